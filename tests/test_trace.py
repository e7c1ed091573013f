"""A trace says what prefill did, survives its file, and knows which patches are behind a merged token."""

import numpy as np
import pytest

import sparsevlm_jax as sv
from sparsevlm_jax.trace import members

PROMPT = "a red car <image> and a bicycle <image> where?"
PICTURES = [np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8) for seed in (0, 1)]


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint):
    return sv.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def trace(vlm):
    return sv.trace_prefill(vlm, PROMPT, PICTURES, sparsity=sv.SparsityConfig.sparsevlm("1/2"))


def test_a_trace_counts_what_the_report_of_generate_counts(vlm, trace):
    out = sv.generate(vlm, PROMPT, PICTURES, sparsity=sv.SparsityConfig.sparsevlm("1/2"), max_new_tokens=1)
    assert tuple(trace.visual_tokens) == out.report.visual_tokens
    leaving = [len(stage.kept) + len(stage.centers) for stage in trace.stages]
    entering = [len(stage.origin) for stage in trace.stages]
    assert entering == [32, *leaving[:-1]]


def test_raters_are_words_behind_the_last_image(trace):
    words = [word for word, rater in zip(trace.tokens, trace.is_rater, strict=True) if rater]
    assert words and set(words) <= set(trace.tokens[trace.tokens.index("▁where") - 1 :])


def test_the_pictures_are_what_the_model_saw(vlm, trace):
    assert trace.images.shape == (2, 56, 56, 3) and trace.images.dtype == np.uint8
    again = vlm.processor.encode_images(list(trace.images))
    np.testing.assert_allclose(again, vlm.processor.encode_images(PICTURES), atol=1e-6)


def test_kept_are_the_best_scores_and_candidates_the_next_best(trace):
    for stage in trace.stages:
        order = np.argsort(-stage.scores, kind="stable")
        assert sorted(order[: len(stage.kept)]) == list(stage.kept)
        following = order[len(stage.kept) : len(stage.kept) + len(stage.candidates)]
        assert list(following) == list(stage.candidates)


def test_every_patch_stands_behind_at_most_one_token(trace):
    for stage in range(len(trace.stages)):
        patches = np.concatenate(members(trace, stage))
        assert len(set(patches)) == len(patches) and set(patches) <= set(range(32))


def test_a_merged_token_stands_for_its_whole_cluster(trace):
    first = trace.stages[0]
    assert list(members(trace, 1)[-1]) == list(first.candidates[first.cluster == len(first.centers) - 1])


def test_a_saved_trace_comes_back_equal(tmp_path, trace):
    path = sv.save_trace(tmp_path / "street", trace)
    assert path.name == "street.npz"
    again = sv.load_trace(path)
    for name in ("method", "tokens", "is_rater", "relevance", "images", "grid", "visual_tokens"):
        assert np.array_equal(getattr(again, name), getattr(trace, name)), name
    for ours, theirs in zip(again.stages, trace.stages, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert again.report["mean_after_layers"] == trace.report["mean_after_layers"]


def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path):
    for name, content in {"noise.npz": b"not a zip", "empty.npz": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            sv.load_trace(tmp_path / name)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not a saved trace"):
        sv.load_trace(tmp_path / "other.npz")
