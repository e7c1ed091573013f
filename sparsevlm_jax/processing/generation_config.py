"""What a checkpoint's makers say of decoding: what ends an answer is followed, what is not computed here is named.

This library decodes greedily unless `generate` is told otherwise. A `generation_config.json` that asks for something
else (sampling, penalties, beams, forbidden tokens) is answered by one warning with all of it. Silent are values at the
defaults of `transformers`, and fields that say nothing of the tokens (caches, outputs, lengths that the caller gives).
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..checkpoints.jsonfile import read_json
from ..errors import CheckpointError, CheckpointWarning, short

#: Fields that change the tokens, and their value in `transformers` where the file does not say.
DEFAULTS: Final[dict[str, Any]] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "max_time": None,
    "stop_strings": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "forced_decoder_ids": None,
    "force_words_ids": None,
    "constraints": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "token_healing": False,
    "watermarking_config": None,
}
#: Fields that count only beside another: these where tokens are drawn, and these where beams are searched.
SAMPLING: Final[dict[str, Any]] = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
BEAMS: Final[dict[str, Any]] = {
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}
#: Fields that change no token here: ids that other files give, lengths that the caller gives, caches, outputs.
SILENT: Final = frozenset(
    """bos_token_id pad_token_id eos_token_id decoder_start_token_id max_length max_new_tokens transformers_version
    _from_model_config use_cache cache_implementation cache_config max_cache_len return_legacy_cache output_attentions
    output_hidden_states output_scores output_logits return_dict_in_generate attn_implementation disable_compile
    compile_config low_memory prefill_chunk_size remove_invalid_values renormalize_logits is_assistant use_mtp
    num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens
    max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight
    speculation_type continuous_batching_config generation_kwargs trust_remote_code _commit_hash""".split()
)


def read_generation_config(folder: Path, default: tuple[int, ...]) -> tuple[int, ...]:
    """Ids that end an answer: `generation_config.json`'s, else `default`, which are the model config's.

    Raises:
        CheckpointError: the file cannot be read, or its ids are none.

    Warns:
        CheckpointWarning: the file asks for another way of decoding than this library's; it names all of it.
    """
    path = folder / "generation_config.json"
    if path.is_file():
        settings = read_json(path)
        left_out = left_out_of(settings)
    else:  # before there was such a file, the model's config held the same fields
        path = folder / "config.json"
        settings = read_json(path) if path.is_file() else {}
        left_out = left_out_of({name: value for name, value in settings.items() if name in DEFAULTS | SAMPLING | BEAMS})
        settings = {}
    if left_out:
        warnings.warn(
            f"{path} asks for {', '.join(left_out)}: left out, since answers are decoded greedily unless generate() "
            "is told otherwise",
            CheckpointWarning,
            stacklevel=2,
        )
    return _token_ids(settings.get("eos_token_id"), path) or default


def left_out_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings, as "name = value", that greedy decoding does not follow; unknown ones included."""
    counting = dict(DEFAULTS)
    if settings.get("do_sample"):
        counting |= SAMPLING
    if settings.get("num_beams", 1) != 1:
        counting |= BEAMS
    known = DEFAULTS.keys() | SAMPLING.keys() | BEAMS.keys() | SILENT
    return [
        f"{short(name).strip(chr(39))} = {short(value)}"
        for name, value in settings.items()
        if (name in counting and value is not None and value != counting[name]) or name not in known
    ]


def _token_ids(value: Any, path: Path) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, list) else () if value is None else (value,)
    if not all(type(token) is int for token in ids):
        raise CheckpointError(f"{path}: eos_token_id = {short(value)}, expected the ids of tokens")
    return ids
