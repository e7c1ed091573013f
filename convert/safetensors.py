"""Reads the header of a safetensors file and maps its tensors, trusting nothing in it.

Format (huggingface/safetensors): a little-endian u64 with the length of the header, the header as JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`, then the data. Offsets
count from the end of the header; the tensors must tile the data without hole or overlap: no truncated file can pass.
"""

import json
import math
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from sparsevlm_jax.errors import CheckpointError

from .tensors import MAX_RANK, StoredTensor, map_bytes

MAX_HEADER = 100_000_000  # the limit of the reference implementation
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def open_safetensors(path: str | Path) -> dict[str, StoredTensor]:
    """Maps a safetensors file: name -> tensor, none of them read yet.

    Raises:
        CheckpointError: the file is missing, truncated, or not what its header says; the message names the file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header, start = _read_header(path, file, size)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its __metadata__ is not a table")
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    _check_tiling(path, entries, size - start)
    return {
        name: StoredTensor(shape, dtype, path, _opener(path, start + begin, end - begin, shape, dtype))
        for name, (dtype, shape, begin, end) in entries.items()
    }


def _read_header(path: Path, file, size: int) -> tuple[dict, int]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise CheckpointError(f"{path} is truncated: {size} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} is not a safetensors file: its header claims {length} bytes")
    if 8 + length > size:
        raise CheckpointError(f"{path} is truncated: its header needs {8 + length} bytes, the file has {size}")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: its safetensors header is not valid JSON") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its safetensors header is not a table of tensors")
    return header, 8 + length


def _unique(pairs: list[tuple[str, object]]) -> dict:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is given twice")
    return table


def _entry(path: Path, name: str, entry: object) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Checks one row of the header: (dtype, shape, begin, end)."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: the header entry of {name!r} must have dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name!r} has dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(f"{path}: {name!r} has shape {shape!r}, expected at most {MAX_RANK} lengths")
    if not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: {name!r} has data_offsets {offsets!r}, expected [begin, end]")
    needed, given = math.prod(shape) * DTYPES[dtype].itemsize, offsets[1] - offsets[0]
    if needed != given:
        raise CheckpointError(f"{path}: {name!r} of shape {shape} and dtype {dtype} needs {needed} bytes, got {given}")
    return DTYPES[dtype], tuple(shape), offsets[0], offsets[1]


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_tiling(path: Path, entries: dict, available: int) -> None:
    expected = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != expected:
            raise CheckpointError(f"{path}: {name!r} begins at byte {begin} of the data, expected {expected}")
        expected = end
    if expected != available:
        kind = "is truncated" if expected > available else "has bytes that belong to no tensor"
        raise CheckpointError(f"{path} {kind}: its header describes {expected} bytes of data, the file has {available}")


def _opener(path: Path, offset: int, nbytes: int, shape: tuple[int, ...], dtype: np.dtype):
    return lambda: map_bytes(path, offset, nbytes).view(dtype).reshape(shape)
