"""`load()` puts together what the folder's files say."""

import json
import shutil

import numpy as np
import pytest

import sparsevlm_jax as sv


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def test_an_answer_ends_with_the_token_that_generation_config_names(folder):
    whole = sv.generate(sv.load(folder), "What is it?", max_new_tokens=8).tokens
    end = int(whole[3])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))
    vlm = sv.load(folder)
    assert vlm.config.eos_token_ids == (2, end)
    first = np.flatnonzero(whole == end)[0]
    np.testing.assert_array_equal(sv.generate(vlm, "What is it?", max_new_tokens=8).tokens, whole[: first + 1])


@pytest.mark.slow
def test_pictures_are_bounded_by_max_pixels(folder):
    picture = np.zeros((9, 6, 3), np.uint8)
    with pytest.raises(ValueError, match="more than the 53 pixels"):
        sv.generate(sv.load(folder, max_pixels=53), "What is it?", picture, max_new_tokens=1)
    assert sv.generate(sv.load(folder, max_pixels=54), "What is it?", picture, max_new_tokens=1).tokens.size == 1
