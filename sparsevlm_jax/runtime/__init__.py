"""Running a pruned model: rows padded to buckets, prefill in segments, decoding, compiled programs and their cache."""
