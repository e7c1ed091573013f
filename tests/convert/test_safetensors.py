"""The safetensors reader gives what the reference library gives, and refuses what is not whole."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sparsevlm_jax.convert.safetensors import open_safetensors
from sparsevlm_jax.errors import CheckpointError


def write(path, header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def entry(dtype: object = "F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]
)
def test_reads_what_the_reference_writes(tmp_path, dtype):
    arrays = {
        "a": np.arange(6).reshape(2, 3).astype(dtype),
        "scalar": np.ones((), dtype),
        "empty": np.ones((0, 3), dtype),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    tensors = open_safetensors(tmp_path / "x.safetensors")
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].open(), array, strict=True)
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(4), "b": np.ones(3)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    for length in range(len(content)):
        (tmp_path / "x.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors is truncated"):
            open_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "header, message",
    [
        ([], "is not a table of tensors"),
        (b"{", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": {}, "a": {}}', "is not valid JSON"),
        ({"__metadata__": []}, "its __metadata__ is not a table"),
        ({"a": {"dtype": "F32"}}, "'a' must have dtype, shape and data_offsets alone"),
        ({"a": entry(dtype="F33")}, "'a' has dtype 'F33', expected one of F64"),
        ({"a": entry(dtype=["F32"])}, r"'a' has dtype \['F32'\]"),
        ({"a": entry(shape=(-2,))}, r"'a' has shape \[-2\]"),
        ({"a": entry(shape=(2.0,))}, r"'a' has shape \[2\.0\]"),
        ({"a": entry(shape=(True, 2))}, r"'a' has shape \[True, 2\]"),
        ({"a": entry(shape=(1,) * 40 + (2,))}, "expected at most 8 lengths"),
        ({"a": entry(shape=(3,))}, r"'a' of shape \[3\] and dtype F32 needs 12 bytes, got 8"),
        ({"a": entry(shape=(2**62, 2**62))}, "needs 85070591730234615865843651857942052864 bytes, got 8"),
        ({"a": entry(offsets=(8, 0))}, "needs 8 bytes, got -8"),
        ({"a": entry(offsets=(0, 8, 16))}, "expected \\[begin, end\\]"),
        ({"a": entry(offsets=(4, 12))}, "'a' begins at byte 4 of the data, expected 0"),
        ({"a": entry(), "b": entry()}, "'b' begins at byte 0 of the data, expected 8"),
        ({"a": entry(shape=(1,), offsets=(0, 4))}, "has bytes that belong to no tensor: .* describes 4 .* has 8"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, message):
    with pytest.raises(CheckpointError, match=message) as error:
        open_safetensors(write(tmp_path / "x.safetensors", header, bytes(8)))
    assert str(tmp_path / "x.safetensors") in str(error.value)


def test_a_length_beyond_all_reason_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="its header claims 18446744073709551615 bytes"):
        open_safetensors(tmp_path / "x.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*x\.safetensors: No such file"):
        open_safetensors(tmp_path / "x.safetensors")
