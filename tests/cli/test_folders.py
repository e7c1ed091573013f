"""`convert`, `export` and `info`: folders in and out, and a full disk is one line that leaves nothing behind."""

import errno
import os

import pytest
from orbax.checkpoint import v1 as ocp

from sparsevlm_jax.convert import export
from tests import tiny
from tests.convert import test_load

FULL = os.strerror(errno.ENOSPC)


def test_what_was_converted_is_exported_again(run, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("convert", tiny_checkpoint, "own")[:2] == (0, "converted: own\n")
    assert run("export", "own/", "hf", "--dtype", "bfloat16") == (0, "exported: hf\n", "")
    code, out, err = run("info", "hf")
    assert (code, err) == (0, "") and "hf: huggingface checkpoint, names of layout A" in out and "bfloat16" in out


def test_info_wants_the_tower_of_a_checkpoint_without_one(run, tmp_path):
    model, original = tiny.tiny_llava(), test_load.TestOriginalLayout()
    original.save(tmp_path / "llava", model, drop="model.vision_tower.", config={"mm_vision_tower": "someone/else"})
    original.save_clip(tmp_path / "clip", model, whole=True)
    code, out, err = run("info", tmp_path / "llava")
    assert (code, out) == (2, "") and "names the vision tower 'someone/else' but does not describe it" in err
    code, out, err = run("info", tmp_path / "llava", "--vision-tower", tmp_path / "clip")
    assert (code, err) == (0, "") and "original checkpoint" in out
    assert f"vision tower    {model.config.vision_config.num_hidden_layers} layers" in out


@pytest.mark.parametrize("command", ["convert", "export"])
def test_a_full_disk_is_one_line_and_leaves_nothing(run, tiny_checkpoint, tmp_path, monkeypatch, command):
    def save(path, *_):  # as Orbax tells it
        raise ValueError(f"RESOURCE_EXHAUSTED: Error writing {path}: {FULL} [os_error_code='28']\n" + "more\n" * 700)

    def write(path, *_):
        raise OSError(errno.ENOSPC, FULL)

    monkeypatch.setattr(ocp, "save", save)
    monkeypatch.setattr(export, "_write_safetensors", write)
    target = tmp_path / "out"
    assert run(command, tiny_checkpoint, target) == (2, "", f"sparsevlm: error: cannot write {target}: {FULL}\n")
    assert list(tmp_path.iterdir()) == []
