"""What `generation_config.json` asks for is followed or named in one warning; defaults are silent."""

import json
import os
import warnings
from pathlib import Path

import pytest
from transformers import GenerationConfig

from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
from sparsevlm_jax.processing.generation_config import (
    BEAMS,
    DEFAULTS,
    SAMPLING,
    SILENT,
    left_out_of,
    read_generation_config,
)

REAL = os.environ.get("SPARSEVLM_REAL")


def read(folder: Path, content: object, name: str = "generation_config.json") -> tuple[int, ...]:
    (folder / name).write_text(json.dumps(content))
    return read_generation_config(folder, (2,))


@pytest.mark.parametrize(("value", "expected"), [(7, (7,)), ([7, 8], (7, 8)), (None, (2,)), ([], (2,))])
def test_the_files_ids_end_an_answer_before_the_model_configs_do(tmp_path, value, expected):
    assert read_generation_config(tmp_path, (2,)) == (2,)
    assert read(tmp_path, {"eos_token_id": value}) == expected


@pytest.mark.parametrize("value", ["x", True, 2.5, [2, "x"], {"a": 1}, [[1]]])
def test_ids_that_are_none_are_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id = .*expected the ids of tokens"):
        read(tmp_path, {"eos_token_id": value})


def test_the_table_has_the_defaults_of_transformers():
    defaults = {**vars(GenerationConfig()), **GenerationConfig._get_default_generation_params()}
    for name, value in (DEFAULTS | SAMPLING | BEAMS).items():
        assert (defaults.get(name) or 0) == (value or 0), name
    known = DEFAULTS.keys() | SAMPLING.keys() | BEAMS.keys() | SILENT
    assert {name for name in defaults if not name.startswith("_")} <= known


def test_defaults_and_what_touches_no_token_are_silent(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path, GenerationConfig().to_dict())
        read(tmp_path, DEFAULTS | SAMPLING | BEAMS)
        read(tmp_path, {"max_length": 4096, "temperature": 0.9, "top_p": 0.6, "use_cache": False, "length_penalty": 2})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"repetition_penalty": 1.05}, ["repetition_penalty = 1.05"]),
        ({"no_repeat_ngram_size": 3}, ["no_repeat_ngram_size = 3"]),
        ({"suppress_tokens": [1, 2]}, ["suppress_tokens = [1, 2]"]),
        ({"begin_suppress_tokens": [3]}, ["begin_suppress_tokens = [3]"]),
        ({"bad_words_ids": [[1]], "forced_eos_token_id": 2}, ["bad_words_ids = [[1]]", "forced_eos_token_id = 2"]),
        ({"min_new_tokens": 4, "min_length": 5}, ["min_new_tokens = 4", "min_length = 5"]),
        ({"do_sample": True, "top_k": 50, "top_p": 0.8}, ["do_sample = True", "top_p = 0.8"]),
        ({"num_beams": 4, "early_stopping": True}, ["num_beams = 4", "early_stopping = True"]),
        ({"guidance_scale": 1.5}, ["guidance_scale = 1.5"]),
        ({"frobnicate": 1}, ["frobnicate = 1"]),
    ],
    ids=str,
)  # fmt: skip
def test_another_way_of_decoding_is_named_in_one_warning(tmp_path, settings, named):
    with pytest.warns(CheckpointWarning, match="left out, since answers are decoded greedily") as caught:
        read(tmp_path, settings)
    assert left_out_of(settings) == named and len(caught) == 1
    assert ", ".join(named) in str(caught[0].message)


def test_without_the_file_the_model_configs_fields_are_named_alike(tmp_path):
    with pytest.warns(CheckpointWarning, match=r"config\.json asks for repetition_penalty = 1\.2: left out"):
        assert read(tmp_path, {"repetition_penalty": 1.2, "eos_token_id": 9, "hidden_size": 3}, "config.json") == (2,)


def test_a_warning_stays_short(tmp_path):
    with pytest.warns(CheckpointWarning) as caught:
        read(tmp_path, {"suppress_tokens": list(range(100_000)), "x" * 10_000: 1})
    assert len(str(caught[0].message)) < 800


@pytest.mark.skipif(not REAL, reason="SPARSEVLM_REAL names no folder of published files")
def test_published_files_are_read():
    silent = []
    for path in sorted(Path(REAL or "").glob("*/generation_config.json")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert read_generation_config(path.parent, (2,))
        silent += [path.parent.name] * (not caught)
    assert {"llava-1.5-7b-hf", "llava-v1.5-7b"} <= set(silent) and "qwen2-vl-7b-instruct" not in silent
