"""Reading a HF config dict strictly: every field is read, known to be harmless, or refused by name.

A converter that skips a field it does not know runs a different model without a word. So `done()` lists, in one
error, each value that is not implemented and each field never heard of.
"""

from typing import Any

# Fields that cannot change what inference computes: bookkeeping, training-only, or overridden by the caller.
HARMLESS = frozenset(
    """_name_or_path architectures auto_map dtype torch_dtype transformers_version use_cache initializer_range
    initializer_factor output_attentions output_hidden_states return_dict return_dict_in_generate projection_dim
    pad_token_id bos_token_id eos_token_id sep_token_id decoder_start_token_id dropout id2label label2id problem_type
    finetuning_task tokenizer_class prefix task_specific_params torchscript tf_legacy_loss use_bfloat16
    is_encoder_decoder is_decoder add_cross_attention chunk_size_feed_forward min_length max_length do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens pruned_heads cross_attention_hidden_size tie_encoder_decoder pretraining_tp
    ignore_index image_seq_length attn_implementation _attn_implementation _attn_implementation_autoset
    model_max_length""".split()
)


class UnsupportedConfig(ValueError):
    """A config asks for something this library does not compute; the message lists every such field."""


class ConfigReader:
    """Reads fields from `config`, remembers which, collects complaints and raises them together in `done()`."""

    def __init__(self, config: dict, *, where: str):
        if not isinstance(config, dict):
            raise UnsupportedConfig(f"{where}: expected a JSON object, got {type(config).__name__}")
        self.config, self.where = config, where
        self.seen: set[str] = set()
        self.complaints: list[str] = []

    def __call__(self, name: str, default: Any) -> Any:
        """The field's value, `default` where it is absent or null; its type must be the default's."""
        self.seen.add(name)
        value = self.config.get(name)
        if value is None:
            return default
        kind = type(default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if default is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            self.complaints.append(f"{name} = {value!r}, expected {kind.__name__}")
            return default
        if kind is int and name.endswith(("_size", "_layers", "_heads")) and not 0 < value < 1 << 31:
            self.complaints.append(f"{name} = {value!r}, expected a positive number")
            return default
        if kind is float and not 0 < value < float("inf"):
            self.complaints.append(f"{name} = {value!r}, expected a positive number")
            return default
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """The field must be absent, null, or one of `allowed`."""
        self.seen.add(name)
        value = self.config.get(name)
        if value is not None and not any(
            value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed
        ):
            choices = ", ".join(map(repr, allowed))
            self.complaints.append(f"{name} = {value!r}, implemented: {choices or 'none'}")

    def divides(self, whole_name: str, whole: int, part_name: str, part: int) -> None:
        if whole % part:
            self.complaints.append(f"{whole_name} = {whole} is not a multiple of {part_name} = {part}")

    def done(self) -> None:
        """Raises UnsupportedConfig with every complaint, unknown fields included."""
        unknown = sorted(set(map(str, self.config)) - self.seen - HARMLESS)
        complaints = self.complaints + [f"{name} = {self.config.get(name)!r} is not known" for name in unknown]
        if complaints:
            raise UnsupportedConfig(f"{self.where} is not supported: " + "; ".join(complaints))
