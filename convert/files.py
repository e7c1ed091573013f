"""Finds the weight files of a checkpoint folder and joins their shards into one table of tensors.

A folder holds one file (`model.safetensors`, `pytorch_model.bin`) or an index beside its shards. As in `transformers`
(`modeling_utils._get_resolved_checkpoint_files`), safetensors go before `.bin` and a whole file before an index; and an
index `{"metadata": {...}, "weight_map": {tensor: file}}` says which files there are, while what they hold is read from
themselves. `metadata` is optional and not trusted (public copies hold `total_size` as a string).
"""

import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sparsevlm_jax.checkpoints.jsonfile import read_json
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning

from .safetensors import open_safetensors
from .tensors import StoredTensor, natural
from .torch_bin import open_torch_bin

SINGLE = ("model.safetensors", "pytorch_model.bin")  # in the order of preference
_POINTER = b"version https://git-lfs"
INDEX = tuple(f"{name}.index.json" for name in SINGLE)


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SINGLE + INDEX)


def open_weights(folder: str | Path, *, ignored: Sequence[str] = ()) -> dict[str, StoredTensor]:
    """Maps the tensors of a Hugging Face style folder, sharded or not, safetensors or `.bin`.

    Args:
        ignored: patterns; a tensor whose whole name matches one is left out, wherever it is or is said to be.

    Raises:
        CheckpointError: no weights there, an index of what is in no shard, a tensor in two shards, a shard that is
            missing, truncated or damaged; the message names the file.

    Warns:
        CheckpointWarning: index and shards, or index and whole file, contradict each other in what can be read anyhow.
    """
    folder = Path(folder)
    for single, index in zip(SINGLE, INDEX, strict=True):
        if (folder / single).is_file():
            if (folder / index).is_file():
                _warn(f"{folder} holds {single} and {index}: the first is read, the index and its shards are not")
            return _without(_open_file(folder / single), ignored)
        if (folder / index).is_file():
            return _open_shards(folder, folder / index, ignored)
    raise CheckpointError(f"{folder} holds no weights: expected one of {', '.join(SINGLE + INDEX)}")


def _open_file(path: Path) -> dict[str, StoredTensor]:
    with suppress(OSError), path.open("rb") as file:  # what cannot be opened is told of below
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: `git lfs pull` fetches them")
    return open_torch_bin(path) if path.suffix == ".bin" else open_safetensors(path)


def _without(tensors: dict[str, Any], ignored: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in tensors.items() if not any(re.fullmatch(p, name) for p in ignored)}


def _warn(message: str) -> None:
    warnings.warn(message, CheckpointWarning, stacklevel=1)  # from one place: a folder opened twice is told of once


def _open_shards(folder: Path, index: Path, ignored: Sequence[str]) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    for name, file in weight_map.items():
        if not _is_plain_name(file):
            raise CheckpointError(f"{index} places {name!r} in {file!r}, expected the name of a file in that folder")
    shards = {file: _without(_open_file(folder / file), ignored) for file in _shards(folder, index, weight_map)}
    return _join(index, _without(weight_map, ignored), shards)


def _is_plain_name(file: object) -> bool:
    """Whether an index entry names a file of its own folder: an index must not reach elsewhere on the disk."""
    if not isinstance(file, str) or not file.isprintable() or not file.endswith((".safetensors", ".bin")):
        return False
    return PurePosixPath(file).name == file and PureWindowsPath(file).name == file


def _shards(folder: Path, index: Path, weight_map: dict[str, str]) -> list[str]:
    shards = sorted(set(weight_map.values()), key=natural)
    missing = [file for file in shards if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(f"{index} names shards that are not there: {', '.join(missing)}")
    return shards


def _join(
    index: Path, weight_map: dict[str, str], shards: dict[str, dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    """One table from all shards. What the index places wrongly, or does not list, is in it all the same."""
    places: dict[str, str] = {}
    problems = []
    for file, stored in shards.items():
        problems += [f"{name!r} is in two shards, {places[name]} and {file}" for name in stored if name in places]
        places |= dict.fromkeys(stored, file)
    problems += [f"{file} lacks {name!r}" for name, file in weight_map.items() if name not in places]
    if problems:
        raise CheckpointError(f"{index} does not match its shards: {'; '.join(problems)}")
    astray = [f"{name!r} is in {file}" for name, file in places.items() if weight_map.get(name) != file]
    if astray:
        _warn(f"{index} does not say where all is: {'; '.join(astray)}")
    return {name: shards[file][name] for name, file in places.items()}
