"""`.bin` files are read without torch's unpickler: right where they are plain, refused where they are anything else."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import _utils

from sparsevlm_jax.convert.torch_bin import open_torch_bin
from sparsevlm_jax.errors import CheckpointError


def saved(path, state):
    torch.save(state, path)
    return open_torch_bin(path)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
)
def test_reads_what_torch_writes(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    stored = saved(tmp_path / "x.bin", {"a": tensor})["a"]
    assert stored.shape == (2, 3) and str(stored.dtype) == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(stored.open().astype(np.float64), tensor.double().numpy(), strict=True)


def test_views_of_one_storage_are_told_apart(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = {"whole": base, "turned": base.T, "part": base[1:3, 2:5], "steps": base[::2, ::3], "scalar": base[3, 3]}
    state |= {"empty": base[:0], "stretched": base[:, :1].expand(4, 7)}
    stored = saved(tmp_path / "x.bin", state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(stored[name].open(), tensor.numpy(), strict=True, err_msg=name)


def test_parameters_and_modules_state_dicts_are_read(tmp_path):
    module = torch.nn.Linear(3, 2)
    stored = saved(tmp_path / "x.bin", module.state_dict())  # an OrderedDict with an attribute
    np.testing.assert_array_equal(stored["weight"].open(), module.weight.detach().numpy())
    stored = saved(tmp_path / "x.bin", {"p": module.bias})
    np.testing.assert_array_equal(stored["p"].open(), module.bias.detach().numpy())


class Evil:
    """Unpickled by anyone careless, it runs a command."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def replace_pickle(path, content: bytes):
    """Puts another data.pkl into an archive that torch wrote."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            archive.writestr(info.filename, content if info.filename.endswith("data.pkl") else data)
    return path


@pytest.mark.parametrize("call", [os.system, eval, exec, __import__, getattr, print, OrderedDict.fromkeys, torch.load])
def test_a_malicious_pickle_runs_nothing(tmp_path, call):
    mark = tmp_path / "it_ran"
    argument = f"touch {mark}" if call is os.system else f"open({str(mark)!r}, 'w')"
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    replace_pickle(tmp_path / "x.bin", pickle.dumps({"a": Evil(call, argument)}, protocol=2))
    with pytest.raises(CheckpointError, match="is refused: its pickle asks for"):
        open_torch_bin(tmp_path / "x.bin")
    assert not mark.exists()


class _Described:
    """Pickles as a tensor with the offset, shape and strides given, over a storage of `numel` floats."""

    def __init__(self, offset, shape, strides, numel=4):
        self.arguments = (_Storage(numel), offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return _utils._rebuild_tensor_v2, self.arguments


class _Storage:
    def __init__(self, numel):
        self.numel = numel


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return ("storage", torch.FloatStorage, "0", "cpu", obj.numel) if isinstance(obj, _Storage) else None


@pytest.mark.parametrize(
    "described, message",
    [
        (_Described(0, (5,), (1,)), r"shape \(5,\), strides \(1,\) and offset 0 reads outside its storage of 4"),
        (_Described(1, (4,), (1,)), "offset 1 reads outside its storage"),
        (_Described(0, (2, 2), (3, 1)), "reads outside its storage"),
        (_Described(4, (), ()), "reads outside its storage"),
        (_Described(-1, (2,), (1,)), "is not described as a tensor"),
        (_Described(0, (2,), (-1,)), "is not described as a tensor"),
        (_Described(0, (2.0,), (1,)), "is not described as a tensor"),
        (_Described(0, (2, 2), (1,)), r"has shape \(2, 2\) and strides \(1,\)"),
        (_Described(0, (1,) * 9, (1,) * 9), "has shape"),
        (_Described(0, (2,), (1,), numel=5), "needs 5 elements, its file has 16 bytes"),
        (_Described(0, (0,), (1,), numel=-1), "is not described as a tensor"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, described, message):
    torch.save({"a": torch.ones(4)}, tmp_path / "x.bin")
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump({"a": described})
    replace_pickle(tmp_path / "x.bin", buffer.getvalue())
    with pytest.raises(CheckpointError, match=message):
        open_torch_bin(tmp_path / "x.bin")


def test_what_is_no_state_dict_is_refused(tmp_path):
    for content in ([torch.ones(1)], {"a": 1}, {"nested": {"a": torch.ones(1)}}, torch.ones(1)):
        with pytest.raises(CheckpointError, match="is not a plain state dict of tensors"):
            saved(tmp_path / "x.bin", content)


def test_the_old_format_is_refused(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"x\.bin is of the format from before torch 1\.6"):
        open_torch_bin(tmp_path / "x.bin")


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_a_training_checkpoint_is_told_from_a_state_dict(tmp_path, wrapper):
    with pytest.raises(CheckpointError, match=f"is a training checkpoint: save what it holds as '{wrapper}' alone"):
        saved(tmp_path / "x.bin", {"epoch": 3, wrapper: {"a": torch.ones(2)}, "optimizer": {"lr": 0.1}})


def test_a_file_cut_short_is_refused(tmp_path):
    torch.save({"a": torch.ones(100)}, tmp_path / "x.bin")
    content = (tmp_path / "x.bin").read_bytes()
    for length in range(0, len(content), 17):
        (tmp_path / "x.bin").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"x\.bin"):
            open_torch_bin(tmp_path / "x.bin")


def test_a_storage_that_is_not_there_is_named(tmp_path):
    torch.save({"a": torch.ones(4)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        for name, data in members:
            if not name.endswith("data/0"):
                archive.writestr(name, data)
    with pytest.raises(CheckpointError, match="its storage 'x/data/0' is missing"):
        open_torch_bin(tmp_path / "x.bin")
