"""Reads PyTorch's `.bin` checkpoints (the zip format of torch >= 1.6) without torch, and without running anything.

The archive holds `<root>/data.pkl`, a pickle that describes the tensors, and one stored (uncompressed) member
`<root>/data/<key>` for each storage. The pickle is read by an unpickler that knows a few harmless globals and refuses
all others; each tensor is a strided view of its mapped storage, checked to lie inside it.
"""

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsevlm_jax.errors import CheckpointError

from .tensors import BFLOAT16, MAX_RANK, StoredTensor, map_bytes

DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_OLD_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # torch.serialization.MAGIC_NUMBER, as pickled
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # what training frameworks put around a state dict
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of the name and of the extra field


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    numel: int


class _View(NamedTuple):
    """A tensor as the pickle describes it: anything may stand in these fields until `_tensor` has checked them."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def open_torch_bin(path: str | Path) -> dict[str, StoredTensor]:
    """Maps a `.bin` state dict: name -> tensor, none of them read yet.

    Raises:
        CheckpointError: the file is missing, truncated, of torch's old format, names a global other than those of a
            plain state dict, or holds a tensor that reaches outside its storage.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if _OLD_MAGIC in file.read(32):
                raise CheckpointError(
                    f"{path} is of the format from before torch 1.6: torch.load and torch.save renew it"
                )
        with zipfile.ZipFile(path) as archive:
            root, described = _unpickle(path, archive)
            members = {info.filename: info for info in archive.infolist()}
            return {name: _tensor(path, root, members, name, view) for name, view in described.items()}
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, struct.error):
        raise CheckpointError(f"{path} is truncated, or not a zip archive as torch >= 1.6 writes") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def _unpickle(path: Path, archive: zipfile.ZipFile) -> tuple[str, dict[str, _View]]:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} is not a PyTorch checkpoint: expected one data.pkl in it, got {len(pickles)}")
    root = pickles[0].removesuffix("data.pkl")
    byteorder = f"{root}byteorder"
    if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
        raise CheckpointError(f"{path} was written on a big-endian machine, expected little-endian")
    if archive.getinfo(pickles[0]).compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{path}: its data.pkl is compressed, which torch never does")
    try:
        with archive.open(pickles[0]) as file:
            state = _StateDictUnpickler(file).load()
    except _ForbiddenGlobal as error:
        raise CheckpointError(
            f"{path} is refused: its pickle asks for {error}, which no plain state dict needs"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"{path}: its data.pkl is damaged ({type(error).__name__})") from None
    wrapper = next((key for key in _WRAPPERS if isinstance(state, dict) and isinstance(state.get(key), dict)), None)
    if wrapper is not None:
        raise CheckpointError(f"{path} is a training checkpoint: save what it holds as {wrapper!r} alone")
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, _View) for k, v in state.items()):
        raise CheckpointError(f"{path} is not a plain state dict of tensors")
    return root, state


class _ForbiddenGlobal(Exception):
    pass


class _StateDictUnpickler(pickle.Unpickler):
    """Builds dicts of `_View`s; every global that could do anything else is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in DTYPES:
            return _StorageType(name)
        raise _ForbiddenGlobal(f"{module}.{name}")

    def persistent_load(self, pid: object) -> _Storage:
        match pid:
            case ("storage", _StorageType() as kind, str(key), str(), int(numel)):
                return _Storage(DTYPES[kind.name], key, numel)
        raise pickle.UnpicklingError("unknown kind of storage")


class _StorageType(NamedTuple):
    name: str


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> _View:
    return _View(storage, offset, shape, strides)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _tensor(path: Path, root: str, members: dict, name: str, view: _View) -> StoredTensor:
    storage, offset, shape, strides = view
    if not isinstance(storage, _Storage) or not all(map(_naturals, ((storage.numel, offset), shape, strides))):
        raise CheckpointError(f"{path}: {name!r} is not described as a tensor")
    if len(shape) != len(strides) or len(shape) > MAX_RANK:
        raise CheckpointError(f"{path}: {name!r} has shape {shape} and strides {strides}")
    start, nbytes = _member(path, f"{root}data/{storage.key}", members)
    if nbytes < storage.numel * storage.dtype.itemsize:
        raise CheckpointError(
            f"{path}: the storage of {name!r} needs {storage.numel} elements, its file has {nbytes} bytes"
        )
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > 0 and last >= storage.numel:
        raise CheckpointError(
            f"{path}: {name!r} of shape {shape}, strides {strides} and offset {offset} reads outside its storage "
            f"of {storage.numel} elements"
        )
    return StoredTensor(shape, storage.dtype, path, _opener(path, start, storage, offset, shape, strides))


def _naturals(values: object) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _member(path: Path, name: str, members: dict[str, zipfile.ZipInfo]) -> tuple[int, int]:
    """Where a stored member's bytes lie in the archive: (offset, length)."""
    info = members.get(name)
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{path}: its storage {name!r} is {'missing' if info is None else 'compressed'}")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER.size)
        size = path.stat().st_size
    if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise CheckpointError(f"{path}: the archive entry of {name!r} is damaged")
    _, name_length, extra_length = LOCAL_HEADER.unpack(header)
    start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if start + info.file_size > size:
        raise CheckpointError(f"{path} is truncated: {name!r} ends at byte {start + info.file_size} of {size}")
    return start, info.file_size


def _opener(path: Path, start: int, storage: _Storage, offset: int, shape: tuple, strides: tuple):
    itemsize = storage.dtype.itemsize

    def open_view() -> np.ndarray:
        if math.prod(shape) == 0:
            return np.empty(shape, storage.dtype)
        flat = map_bytes(path, start, storage.numel * itemsize).view(storage.dtype)[offset:]
        in_bytes = [stride * itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, in_bytes, writeable=False)

    return open_view
