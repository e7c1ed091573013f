"""Streams a PyTorch checkpoint folder into this library's parameters.

Each tensor is mapped, turned (a view), and copied slice by slice straight to where it will live; the host holds about
one tensor above the parameters, whatever the size of a shard.
"""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax import progress
from sparsevlm_jax.checkpoints.trees import flatten, nest
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
from sparsevlm_jax.models import abstract_params, family_of

from .config import read_config
from .files import open_weights
from .fused import unfused
from .kinds import is_original, read_model_json
from .names import Group, Source, assign
from .rows import Table
from .tables import CLIP, table_of
from .tensors import StoredTensor, is_finite

_HEAD, _EMBEDDING = "lm_head.kernel", "language_model.embed_tokens.embedding"


def read_params(
    folder: str | Path,
    config: Any,
    *,
    vision_tower: str | Path | None = None,
    without: tuple[str, ...] = (),
    dtype: jax.typing.DTypeLike | None = None,
    sharding: jax.sharding.Sharding | dict | None = None,
) -> dict:
    """The parameters of a Hugging Face or original LLaVA folder, as the nested dict the models take.

    Args:
        folder: holds the weights: safetensors or `.bin`, in one file or in shards with an index.
        config: the model they must be, exactly.
        vision_tower: CLIP's own folder, for an original checkpoint without a tower; one that has a tower uses that.
        without: top-level parts (such as "vision_tower") that are neither expected nor read.
        dtype: what the parameters become; None keeps each as it is on disk (float64 becomes float32).
        sharding: one sharding for all, or a tree of them shaped like the parameters; None is the default device.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or the tensors are not those of `config`: all that are
            not understood, missing, doubled or misshapen are named in one message.

    Warns:
        CheckpointWarning: some weights hold NaN or infinity, on disk or once cast; it names them.
    """
    sources = match_params(folder, config, vision_tower=vision_tower, without=without)
    shardings = flatten(sharding) if isinstance(sharding, dict) else dict.fromkeys(sources, sharding)
    not_finite: list[str] = []
    params = {}
    for target, source in progress.count(sources.items(), "reading weights"):
        params[target], finite = _place(source, _dtype(source.tensor, dtype), shardings[target])
        if not finite:
            not_finite.append(target)
    if not_finite:
        names = ", ".join(not_finite)
        warnings.warn(
            f"{folder}: {len(not_finite)} weights hold NaN or infinity: {names}", CheckpointWarning, stacklevel=2
        )
    return nest(params)


def match_params(
    folder: str | Path, config: Any, *, vision_tower: str | Path | None = None, without: tuple[str, ...] = ()
) -> dict[str, Source]:
    """The stored tensor behind every parameter, in the order of the model; none is read. Arguments and errors are those
    of `read_params`, as far as they show without reading."""
    targets, groups = _plan(Path(folder), config, vision_tower, without)
    sources = assign(groups, targets, origin=folder)
    return {target: sources[target] for target in targets}


def external_tower(folder: str | Path) -> str | None:
    """The name of the vision tower that an original checkpoint expects to find elsewhere; None if it needs none."""
    config = read_model_json(folder)
    name = config.get("mm_vision_tower")
    if not is_original(config) or not isinstance(name, str):
        return None
    return None if has_tower(folder) else name


def has_tower(folder: str | Path) -> bool:
    """Whether a Hugging Face or original LLaVA folder holds weights of a vision tower."""
    read_model_json(folder)  # what is no such folder is told by its kind
    return _has_tower(open_weights(folder))


def describe(
    folder: str | Path, *, vision_tower: str | Path | None = None
) -> tuple[str, str, list[tuple[tuple[int, ...], str]], Any]:
    """A folder's kind, its layout, the (shape, dtype) of every weight, and its config; no weight is read. An original
    checkpoint's vision tower may lie in a folder of its own."""
    kind = "original" if is_original(read_model_json(folder)) else "huggingface"
    config = read_config(folder, vision_tower=vision_tower)
    table = table_of(config)
    tensors = open_weights(folder, ignored=table.ignored)
    return kind, table.layout_of(tensors), [(tensor.shape, str(tensor.dtype)) for tensor in tensors.values()], config


def _plan(
    folder: Path, config: Any, vision_tower: str | Path | None, without: tuple[str, ...]
) -> tuple[dict[str, tuple[int, ...]], list[Group]]:
    """Every parameter to fill, and the tensors to fill them from."""
    table = table_of(config)
    tensors = open_weights(folder, ignored=table.ignored)
    tower = {}
    if vision_tower is not None and not _has_tower(tensors):
        tower = open_weights(vision_tower, ignored=CLIP.ignored)
    parts = family_of(config).modules(config).items()
    layers = sum(getattr(part, "num_hidden_layers", 0) for name, (_, part) in parts if name not in without)
    if layers > len(tensors) + len(tower):  # before a tree of that many layers is built
        raise CheckpointError(f"{folder} holds {len(tensors)} tensors, too few for the {layers} layers of its config")
    tree = {part: leaves for part, leaves in abstract_params(config, jnp.float32).items() if part not in without}
    targets = {name: leaf.shape for name, leaf in flatten(tree).items()}
    tensors = unfused(tensors, config.text)
    if config.text.tie_word_embeddings:
        tensors = _tied(folder, tensors, table)
    return targets, [Group(tensors, table), Group(tower, CLIP)]


def _has_tower(names: Iterable[str]) -> bool:
    return any("vision_tower." in name for name in names)


def settle_head(folder: str | Path, config: Any) -> Any:
    """The config with its embeddings tied or not as the weights have them.

    A head that is stored beside the embeddings that it is tied to, and differs from them, is a head of its own: so
    `transformers` 5 has it (`PreTrainedModel.tie_weights`).

    Warns:
        CheckpointWarning: the config ties what the weights do not.
    """
    if not config.text.tie_word_embeddings:
        return config
    table = table_of(config)
    if not _differ(*_head_and_embedding(open_weights(folder, ignored=table.ignored), table)):
        return config
    message = f"{folder}: the config ties the head to the embeddings, but the weights of both differ: they stay apart"
    warnings.warn(message, CheckpointWarning, stacklevel=2)
    return replace(config, text=replace(config.text, tie_word_embeddings=False))


def _tied(folder: Path, tensors: dict[str, StoredTensor], table: Table) -> dict[str, StoredTensor]:
    """Leaves one of a tied head and its embedding: a writer may save both, or the head alone."""
    head, embedding = _head_and_embedding(tensors, table)
    if head is None:
        return tensors
    if _differ(head, embedding):
        raise CheckpointError(f"{folder}: the config ties the embeddings, but the head differs from them")
    rest = {name: tensor for name, tensor in tensors.items() if tensor is not head}
    entry = table.by_parameter(_EMBEDDING)
    return {**rest, entry.stored: head} if embedding is None and entry is not None else rest


def _head_and_embedding(
    tensors: dict[str, StoredTensor], table: Table
) -> tuple[StoredTensor | None, StoredTensor | None]:
    stored = {entry.parameter: tensors[name] for name in tensors if (entry := table.by_stored(name))}
    return stored.get(_HEAD), stored.get(_EMBEDDING)


def _differ(head: StoredTensor | None, embedding: StoredTensor | None) -> bool:
    if head is None or embedding is None:
        return False
    return not np.array_equal(head.open(), embedding.open())


def _dtype(tensor: StoredTensor, wanted: jax.typing.DTypeLike | None) -> np.dtype:
    if wanted is not None:
        return jnp.dtype(wanted)
    return np.dtype(np.float32) if tensor.dtype == np.float64 else tensor.dtype


def _place(source: Source, dtype: np.dtype, sharding: jax.sharding.Sharding | None) -> tuple[jax.Array, bool]:
    """One parameter on its devices, and whether all of it is finite."""
    view = source.transform(source.tensor.open())
    finite = True

    def read(index: Any) -> np.ndarray:
        nonlocal finite
        with np.errstate(over="ignore", invalid="ignore"):  # an overflowing cast is reported as infinity
            part = np.array(view[index], dtype=dtype, order="C")  # a copy: the CPU backend may keep what it is given
        finite = finite and is_finite(part)
        return part

    sharding = sharding or jnp.zeros(()).sharding  # the default device, as configured
    array = jax.make_array_from_callback(view.shape, sharding, read)
    return array.block_until_ready(), finite
