"""`convert`, `export` and `info`: folders in and out, and a full disk is one line that leaves nothing behind."""

import errno
import os

import pytest
from orbax.checkpoint import v1 as ocp

from sparsevlm_jax.convert import export

FULL = os.strerror(errno.ENOSPC)


def test_what_was_converted_is_exported_again(run, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("convert", tiny_checkpoint, "own")[:2] == (0, "converted: own\n")
    assert run("export", "own/", "hf", "--dtype", "bfloat16") == (0, "exported: hf\n", "")
    code, out, err = run("info", "hf")
    assert (code, err) == (0, "") and "hf: huggingface checkpoint, names of layout A" in out and "bfloat16" in out


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
