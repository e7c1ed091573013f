"""Streams a PyTorch checkpoint folder into this library's parameters.

Each tensor is mapped, turned (a view), and copied slice by slice straight to where it will live; the host holds about
one tensor above the parameters, whatever the size of a shard.
"""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax import progress
from sparsevlm_jax.errors import CheckpointError, CheckpointWarning
from sparsevlm_jax.jsonfile import read_json
from sparsevlm_jax.models import LlavaConfig, abstract_params
from sparsevlm_jax.trees import flatten, nest

from .config import is_original, read_config
from .files import open_weights
from .names import CLIP, CLIP_IGNORED, LLAVA_IGNORED, Group, Source, assign, is_ignored, layout_of
from .tensors import StoredTensor, is_finite

_TOWER = "vision_tower"


def read_params(
    folder: str | Path,
    config: LlavaConfig,
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
        vision_tower: CLIP's own folder, for an original checkpoint without a tower.
        without: top-level parts (such as "vision_tower") that are neither expected nor read.
        dtype: what the parameters become; None keeps each as it is on disk (float64 becomes float32).
        sharding: one sharding for all, or a tree of them shaped like the parameters; None is the default device.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or the tensors are not those of `config`: all that are
            not understood, missing, doubled or misshapen are named in one message.

    Warns:
        CheckpointWarning: some weights hold NaN or infinity, on disk or once cast; it names them.
    """
    targets, groups = _plan(Path(folder), config, vision_tower, without)
    sources = assign(groups, targets, origin=folder)
    shardings = flatten(sharding) if isinstance(sharding, dict) else dict.fromkeys(targets, sharding)
    not_finite: list[str] = []
    params = {}
    for target in progress.count(targets, "reading weights"):
        params[target], finite = _place(sources[target], _dtype(sources[target].tensor, dtype), shardings[target])
        if not finite:
            not_finite.append(target)
    if not_finite:
        names = ", ".join(not_finite)
        warnings.warn(
            f"{folder}: {len(not_finite)} weights hold NaN or infinity: {names}", CheckpointWarning, stacklevel=2
        )
    return nest(params)


def external_tower(folder: str | Path) -> str | None:
    """The name of the vision tower that an original checkpoint expects to find elsewhere; None if it needs none."""
    config = read_json(Path(folder) / "config.json")
    name = config.get("mm_vision_tower")
    if not is_original(config) or not isinstance(name, str):
        return None
    return None if any("vision_tower." in tensor for tensor in open_weights(folder)) else name


def describe(folder: str | Path) -> tuple[str, str, list[tuple[tuple[int, ...], str]], LlavaConfig]:
    """A folder's kind, its layout, the (shape, dtype) of every weight, and its config; no weight is read."""
    original = is_original(read_json(Path(folder) / "config.json"))
    tensors = open_weights(folder)
    stored = [(t.shape, str(t.dtype)) for name, t in tensors.items() if not is_ignored(name, LLAVA_IGNORED)]
    return "original" if original else "huggingface", layout_of(tensors), stored, read_config(folder)


def _plan(
    folder: Path, config: LlavaConfig, vision_tower: str | Path | None, without: tuple[str, ...]
) -> tuple[dict[str, tuple[int, ...]], list[Group]]:
    """Every parameter to fill, and the tensors to fill them from."""
    tensors = open_weights(folder)
    tower = {} if vision_tower is None else open_weights(vision_tower)
    layers = config.text.num_hidden_layers + (0 if _TOWER in without else config.vision.num_hidden_layers)
    if layers > len(tensors) + len(tower):  # before a tree of that many layers is built
        raise CheckpointError(f"{folder} holds {len(tensors)} tensors, too few for the {layers} layers of its config")
    tree = {part: leaves for part, leaves in abstract_params(config, jnp.float32).items() if part not in without}
    targets = {name: leaf.shape for name, leaf in flatten(tree).items()}
    if config.text.tie_word_embeddings:
        tensors = _without_tied_head(folder, tensors)
    return targets, [Group(tensors), Group(tower, CLIP, CLIP_IGNORED)]


def _without_tied_head(folder: Path, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Drops the copy of a tied embedding that some writers save as `lm_head`, once it is known to be a copy."""
    head = {name: tensor for name, tensor in tensors.items() if name.endswith("lm_head.weight")}
    embeddings = [tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")]
    for name, tensor in head.items():
        if not embeddings or not np.array_equal(tensor.open(), embeddings[0].open()):
            raise CheckpointError(f"{folder}: the config ties the embeddings, but {name!r} differs from them")
    return {name: tensor for name, tensor in tensors.items() if name not in head}


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
