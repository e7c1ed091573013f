"""Writes parameters as a Hugging Face folder, in layout A of `tables`: that of the hub, which every version loads.

One tensor is in host memory at a time: a safetensors header can be written before its data.
"""

import json
import struct
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax import progress
from sparsevlm_jax.checkpoints.atomic import new_folder
from sparsevlm_jax.checkpoints.own import check_params, processor_files
from sparsevlm_jax.checkpoints.trees import flatten
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
from sparsevlm_jax.models import ModelConfig

from .files import has_weights
from .rows import Table, shape_after
from .safetensors import DTYPES
from .tables import table_of
from .tensors import StoredTensor, is_finite

# What a header takes at most, beyond the names in it: itself, and one entry.
_HEADER_BYTES, _ENTRY_BYTES = 64, 160
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def export_hf(
    params: Mapping[str, Any],
    config: ModelConfig,
    target: str | Path,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    max_shard_bytes: int = 5_000_000_000,
    processor_files_from: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a Hugging Face folder, atomically: config, safetensors, and the tokenizer and processor files given.

    Args:
        params: the parameters `config` describes.
        dtype: what the weights are saved in; None keeps each as it is.
        max_shard_bytes: the most that one file of weights may hold; a single larger tensor gets a file of its own.
        processor_files_from: a folder whose tokenizer and processor files are copied.
        overwrite: replace `target` if it is a checkpoint folder.

    Raises:
        CheckpointError: the parameters are not those of the config, `transformers` has no class for such a model, or
            the folder cannot be written.

    Warns:
        CheckpointWarning: some weights hold NaN or infinity in `dtype`; it names them.
    """
    leaves, table = flatten(params), table_of(config)
    if gap := config.not_in_hf():
        raise CheckpointError(f"a model of {gap}")
    check_params("the parameters to export", config, leaves)
    not_finite: list[str] = []

    def fetch(name: str) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # an overflowing cast is reported as infinity
            array = np.asarray(leaves[name]).astype(dtype or leaves[name].dtype)
        if not is_finite(array):
            not_finite.append(name)
        return array

    tensors = dict(
        export_tensor(table, name, leaf.shape, jnp.dtype(dtype or leaf.dtype), partial(fetch, name))
        for name, leaf in leaves.items()
    )
    files = {} if processor_files_from is None else processor_files(processor_files_from, config)
    with new_folder(target, overwrite=overwrite, replaceable=has_weights) as work:
        write_shards(work, tensors, max_shard_bytes=max_shard_bytes)
        saved_in = sorted({str(tensor.dtype) for tensor in tensors.values()})
        fields = config.to_hf() | ({"torch_dtype": saved_in[0]} if len(saved_in) == 1 else {})
        (work / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        for name, content in files.items():
            (work / name).write_bytes(content)
    if not_finite:
        message = f"{target}: {len(not_finite)} weights hold NaN or infinity: {', '.join(not_finite)}"
        warnings.warn(message, CheckpointWarning, stacklevel=2)


def write_shards(folder: Path, tensors: Mapping[str, StoredTensor], *, max_shard_bytes: int) -> None:
    """Writes tensors as `model.safetensors`, or as shards of at most `max_shard_bytes` and their index."""
    shards = _pack(tensors, max_shard_bytes)
    if len(shards) == 1:
        _write_safetensors(folder / "model.safetensors", shards[0])
        return
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def export_tensor(
    table: Table, name: str, shape: tuple[int, ...], dtype: np.dtype, fetch: Callable[[], np.ndarray]
) -> tuple[str, StoredTensor]:
    """A parameter's name on disk, and its array as a tensor that is fetched only when it is written."""
    entry = table.by_parameter(name)
    if entry is None:
        raise CheckpointError(f"the parameter {name!r} has no name in the Hugging Face layout")
    write = entry.transform.write
    return entry.stored, StoredTensor(
        shape_after(write, shape), dtype, Path(), lambda: np.ascontiguousarray(write(fetch()))
    )


def _pack(tensors: Mapping[str, StoredTensor], limit: int) -> list[dict[str, StoredTensor]]:
    """Fills shards in order: a tensor that does not fit any more begins the next one."""
    shards: list[dict[str, StoredTensor]] = [{}]
    room = limit - _HEADER_BYTES
    for name, tensor in tensors.items():
        needed = tensor.nbytes + len(name) + _ENTRY_BYTES
        if needed > room and shards[-1]:
            shards.append({})
            room = limit - _HEADER_BYTES
        shards[-1][name] = tensor
        room -= needed
    return shards


def _write_safetensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))  # so that each lies aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entry = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        header[name] = entry
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data begins aligned, as in the reference implementation
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in progress.count(tensors.values(), f"writing {path.name}"):
            file.write(tensor.open().reshape(-1).view(np.uint8).data)
