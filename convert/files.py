"""Finds the weight files of a checkpoint folder and joins their shards into one table of tensors.

A folder holds one file (`model.safetensors`, `pytorch_model.bin`) or an index beside its shards. The index
`{"metadata": {...}, "weight_map": {tensor: file}}` must agree with the shards on every name; `metadata` is optional and
not trusted (public copies hold `total_size` as a string).
"""

from pathlib import Path, PurePosixPath, PureWindowsPath

from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.jsonfile import read_json

from .safetensors import open_safetensors
from .tensors import StoredTensor, natural
from .torch_bin import open_torch_bin

SINGLE = ("model.safetensors", "pytorch_model.bin")  # in the order of preference
INDEX = tuple(f"{name}.index.json" for name in SINGLE)


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SINGLE + INDEX)


def open_weights(folder: str | Path) -> dict[str, StoredTensor]:
    """Maps every tensor of a Hugging Face style folder, sharded or not, safetensors or `.bin`.

    Raises:
        CheckpointError: no weights there, an index that is wrong about its shards, a shard that is missing, truncated
            or damaged; the message names the file.
    """
    folder = Path(folder)
    for single, index in zip(SINGLE, INDEX, strict=True):
        if (folder / index).is_file():
            return _open_shards(folder, folder / index)
        if (folder / single).is_file():
            return _open_file(folder / single)
    raise CheckpointError(f"{folder} holds no weights: expected one of {', '.join(SINGLE + INDEX)}")


def _open_file(path: Path) -> dict[str, StoredTensor]:
    return open_torch_bin(path) if path.suffix == ".bin" else open_safetensors(path)


def _open_shards(folder: Path, index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    for name, file in weight_map.items():
        if not _is_plain_name(file):
            raise CheckpointError(f"{index} places {name!r} in {file!r}, expected the name of a file in that folder")
    return _join(index, weight_map, {file: _open_file(folder / file) for file in _shards(folder, index, weight_map)})


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
    """One table from all shards, once index and shards agree on where every tensor lies."""
    problems = [
        f"{file} lacks {name!r}, which the index places there"
        for name, file in weight_map.items()
        if name not in shards[file]
    ]
    tensors: dict[str, StoredTensor] = {}
    for file, stored in shards.items():
        for name, tensor in stored.items():
            if name in tensors:
                problems.append(f"{name!r} is in two shards, {tensors[name].file.name} and {file}")
            elif name not in weight_map:
                problems.append(f"{file} holds {name!r}, which the index does not list")
            tensors[name] = tensor
    if problems:
        raise CheckpointError(f"{index} does not match its shards: {'; '.join(problems)}")
    return tensors
