"""Names of PyTorch weights -> this library's parameters: one regex table for LLaVA, total on both sides.

The same model is found under four sets of names, by the version of `transformers` that wrote it, and under those of the
original code (haotian-liu/LLaVA). X stands for the names inside a part:

    layout    written by              language model          head                    vision tower
    A         4.36 to 4.57; the hub   language_model.model.X  language_model.lm_head  vision_tower.vision_model.X
    B         4.52 to 4.57 in memory  model.language_model.X  lm_head                 model.vision_tower.vision_model.X
    C         5.x in memory           model.language_model.X  lm_head                 model.vision_tower.X
    D         5.x, saved afresh       language_model.model.X  language_model.lm_head  vision_tower.X
    original  haotian-liu/LLaVA       model.X                 lm_head                 model.vision_tower twice, as in B
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsevlm_jax.errors import CheckpointError

from .tensors import FLOATS, StoredTensor, natural


def as_is(stored: np.ndarray) -> np.ndarray:
    return stored


def conv_to_matmul(stored: np.ndarray) -> np.ndarray:
    """Conv (D, 3, p, p) over non-overlapping patches -> kernel (D, 3*p*p) on patches flattened in (C, pH, pW) order."""
    return stored.reshape(stored.shape[0], -1)


class Row(NamedTuple):
    """A source name (matched in full), the target it fills, and how the stored array becomes the target (a view)."""

    pattern: str
    target: str
    transform: Callable[[np.ndarray], np.ndarray] = as_is


class Source(NamedTuple):
    """Where a parameter comes from."""

    name: str
    tensor: StoredTensor
    transform: Callable[[np.ndarray], np.ndarray]


LISTED = 40  # names that an error lists of each kind; a checkpoint of other names would have hundreds

_TEXT = r"(?:language_model\.model|model\.language_model(?:\.model)?|language_model|model)\."
_TOWER = r"(?:model\.)?(?:vision_tower\.){1,2}(?:vision_model\.)?"
_PROJECTOR = r"(?:model\.)?multi_modal_projector\."
_LAYER = r"layers\.([0-9]+)\."
_BLOCK = r"encoder\.layers\.([0-9]+)\."


def _tower_rows(prefix: str) -> tuple[Row, ...]:
    embeddings = "vision_tower.embeddings"
    linears = r"self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12]"
    return (
        Row(prefix + r"embeddings\.class_embedding", f"{embeddings}.class_embedding"),
        Row(prefix + r"embeddings\.patch_embedding\.weight", f"{embeddings}.patch_embedding.kernel", conv_to_matmul),
        Row(prefix + r"embeddings\.patch_embedding\.bias", f"{embeddings}.patch_embedding.bias"),
        Row(prefix + r"embeddings\.position_embedding\.weight", f"{embeddings}.position_embedding.embedding"),
        Row(prefix + r"(pre_layrnorm|post_layernorm)\.weight", r"vision_tower.\1.scale"),
        Row(prefix + r"(pre_layrnorm|post_layernorm)\.bias", r"vision_tower.\1.bias"),
        Row(prefix + _BLOCK + r"(layer_norm[12])\.weight", r"vision_tower.encoder.layers.\1.\2.scale"),
        Row(prefix + _BLOCK + rf"({linears})\.weight", r"vision_tower.encoder.layers.\1.\2.kernel"),
        Row(prefix + _BLOCK + rf"(layer_norm[12]|{linears})\.bias", r"vision_tower.encoder.layers.\1.\2.bias"),
    )


LLAVA = (
    Row(_TEXT + r"embed_tokens\.weight", "language_model.embed_tokens.embedding"),
    Row(
        _TEXT + _LAYER + r"(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight",
        r"language_model.layers.\1.\2.kernel",
    ),
    Row(
        _TEXT + _LAYER + r"(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.bias",
        r"language_model.layers.\1.\2.bias",
    ),
    Row(
        _TEXT + _LAYER + r"((?:input|post_attention)_layernorm|self_attn\.[qk]_norm)\.weight",
        r"language_model.layers.\1.\2.scale",
    ),
    Row(_TEXT + r"norm\.weight", "language_model.norm.scale"),
    Row(r"(?:language_model\.)?lm_head\.weight", "lm_head.kernel"),
    Row(_PROJECTOR + r"(linear_[12])\.weight", r"multi_modal_projector.\1.kernel"),
    Row(_PROJECTOR + r"(linear_[12])\.bias", r"multi_modal_projector.\1.bias"),
    Row(r"model\.mm_projector\.0\.weight", "multi_modal_projector.linear_1.kernel"),
    Row(r"model\.mm_projector\.0\.bias", "multi_modal_projector.linear_1.bias"),
    Row(r"model\.mm_projector\.2\.weight", "multi_modal_projector.linear_2.kernel"),
    Row(r"model\.mm_projector\.2\.bias", "multi_modal_projector.linear_2.bias"),
    *_tower_rows(_TOWER),
)
# Buffers that old versions saved, every one recomputed from the config; and SigLIP's head, which pools all patches.
LLAVA_IGNORED = (
    r".*\.rotary_emb\.(?:inv_freq|cos_cached|sin_cached)",
    r".*\.embeddings\.position_ids",
    _TOWER + r"head\..*",
)

# A CLIP folder of its own, as the original LLaVA reads its tower: the text half of a full CLIPModel is left alone.
CLIP = _tower_rows(r"(?:vision_model\.)?")
CLIP_IGNORED = (
    r"(?:vision_model\.)?embeddings\.position_ids",
    r"text_model\..*",
    r"(?:text|visual)_projection\.weight",
    r"logit_scale",
)

# What no feature of a LLaVA passes through: a tower that is stored without it gets the identity.
UNUSED = {"vision_tower.post_layernorm.scale": np.ones, "vision_tower.post_layernorm.bias": np.zeros}

_LAYOUTS = (
    ("original", r"model\.(?:embed_tokens|layers|norm|mm_projector)\..*|model\.vision_tower\.vision_tower\..*"),
    ("A", r"vision_tower\.vision_model\..*"),
    ("B", r"model\.vision_tower\.vision_model\..*"),
    ("C", r"model\.vision_tower\..*"),
    ("D", r"vision_tower\..*"),
)


def layout_of(names: Mapping[str, object]) -> str:
    """Which of the sets of names above a checkpoint uses: "A", "B", "C", "D", "original", or "unknown"."""
    for layout, pattern in _LAYOUTS:
        if any(re.fullmatch(pattern, name) for name in names):
            return layout
    return "unknown"


# Names that tell of weights which are no whole model, or not as they were trained; the first that is found is told.
_FOREIGN = (
    (r"base_model\.model\..*|.*\.lora_[AB]\..*", "LoRA weights: merge them into their model (peft's merge_and_unload)"),
    (r".*\.(?:qweight|qzeros|SCB|weight\.absmax|weight\.quant_map|weight_scale)", "quantised weights"),
    (r"module\..*", "weights inside a wrapper (`module.`): save those of the model in it"),
    (r"_orig_mod\..*", "weights inside a compiled module (`_orig_mod.`): save those of the model in it"),
    (r"_fsdp_wrapped_module\..*|.*\._flat_param", "shards of FSDP: gather them into a full state dict first"),
)


def foreign_kind(names: Iterable[str]) -> str | None:
    """What weights are that no table can name, told by their names; None for all others."""
    listed = list(names)
    return next((kind for pattern, kind in _FOREIGN if any(re.fullmatch(pattern, name) for name in listed)), None)


class Group(NamedTuple):
    """Tensors that lie together, without the ignored ones, and the table that names them."""

    tensors: Mapping[str, StoredTensor]
    rows: tuple[Row, ...] = LLAVA


def assign(groups: Sequence[Group], targets: Mapping[str, tuple[int, ...]], *, origin: str | Path) -> dict[str, Source]:
    """Finds the one stored tensor behind every parameter.

    Args:
        groups: what the files hold; in each, the first row that matches a whole name wins.
        targets: dotted name -> shape of every parameter to fill.
        origin: what the error message calls the checkpoint.

    Raises:
        CheckpointError: the weights are of a kind that no table can name; or it names every tensor that no row knows,
            every parameter that nothing fills or that two tensors fill, and every wrong shape or type, in one message.
    """
    kind = foreign_kind(name for group in groups for name in group.tensors)
    if kind is not None:
        raise CheckpointError(f"{origin} holds {kind}")
    sources: dict[str, Source] = {}
    unknown, doubled = [], []
    for group, name in ((each, name) for each in groups for name in each.tensors):
        target, transform = lookup(group.rows, name)
        if target is None or target not in targets:
            unknown.append(repr(name))
        elif target in sources:
            doubled.append(f"{sources[target].name!r} and {name!r} (both {target})")
        else:
            sources[target] = Source(name, group.tensors[name], transform)
    for name in UNUSED.keys() & targets.keys() - sources.keys():
        sources[name] = _stand_in(name, targets[name], sources)
    complaints = {
        "not understood": unknown,
        "missing": [name for name in targets if name not in sources],
        "given twice": doubled,
        "of the wrong shape or type": list(_mismatches(sources, targets)),
    }
    if any(complaints.values()):
        listed = [f"{len(names)} {what}: {_listing(names)}" for what, names in complaints.items() if names]
        raise CheckpointError(f"{origin} does not hold the model its config describes; tensors {'; '.join(listed)}")
    return sources


def _stand_in(name: str, shape: tuple[int, ...], sources: dict[str, Source]) -> Source:
    """The identity in place of an unused parameter, of the dtype of its neighbours."""
    dtypes = [source.tensor.dtype for target, source in sources.items() if target.startswith("vision_tower.")]
    dtype = dtypes[0] if dtypes else np.dtype(np.float32)
    return Source(name, StoredTensor(shape, dtype, Path(), lambda: UNUSED[name](shape, dtype)), as_is)


def lookup(rows: tuple[Row, ...], name: str) -> tuple[str | None, Callable[[np.ndarray], np.ndarray]]:
    """The parameter that a tensor of that name fills, None if no row knows it, and how its array becomes it."""
    for row in rows:
        match = re.fullmatch(row.pattern, name)
        if match:
            return match.expand(row.target), row.transform
    return None, as_is


def _mismatches(sources: dict[str, Source], targets: Mapping[str, tuple[int, ...]]):
    for target, (name, tensor, transform) in sources.items():
        got = _transformed_shape(tensor, transform)
        if got != tuple(targets[target]):
            yield f"{name!r} (expected {tuple(targets[target])} once it is {target}, got {got})"
        elif tensor.dtype not in FLOATS:
            yield f"{name!r} (expected floating point, got {tensor.dtype})"


def _transformed_shape(tensor: StoredTensor, transform: Callable[[np.ndarray], np.ndarray]) -> tuple[int, ...]:
    """The shape after the transform, found without reading: on an array of the stored shape that owns no memory."""
    if not tensor.shape or 0 in tensor.shape:
        return tensor.shape
    return transform(np.broadcast_to(np.zeros((), np.int8), tensor.shape)).shape


def _listing(names: list[str]) -> str:
    shown = sorted(names, key=natural)[:LISTED]
    return ", ".join(shown) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
