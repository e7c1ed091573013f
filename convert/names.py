"""Finds the stored tensor behind every parameter by a family's table, total on both sides: nothing is left over."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsevlm_jax.errors import CheckpointError

from .rows import AS_IS, Table, shape_after
from .tensors import FLOATS, StoredTensor, natural

LISTED = 40  # names that an error lists of each kind; a checkpoint of other names would have hundreds


class Source(NamedTuple):
    """Where a parameter comes from."""

    name: str
    tensor: StoredTensor
    transform: Callable[[np.ndarray], np.ndarray]


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
    table: Table


def assign(groups: Sequence[Group], targets: Mapping[str, tuple[int, ...]], *, origin: str | Path) -> dict[str, Source]:
    """Finds the one stored tensor behind every parameter.

    Args:
        groups: what the files hold.
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
        entry = group.table.by_stored(name)
        if entry is None or entry.parameter not in targets:
            unknown.append(repr(name))
        elif entry.parameter in sources:
            doubled.append(f"{sources[entry.parameter].name!r} and {name!r} (both {entry.parameter})")
        else:
            sources[entry.parameter] = Source(name, group.tensors[name], entry.transform.read)
    sources |= _stand_ins(groups, targets, sources)
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


def _stand_ins(
    groups: Sequence[Group], targets: Mapping[str, tuple[int, ...]], sources: Mapping[str, Source]
) -> dict[str, Source]:
    """What is put in place of the parameters that may be absent, of the dtype of their part's others."""
    missing = [name for name in targets if name not in sources]
    entries = [entry for group in groups for name in missing if (entry := group.table.by_parameter(name))]
    result = {}
    for _, name, _, absent in entries:
        if absent is not None:
            part = name.partition(".")[0] + "."
            dtypes = [source.tensor.dtype for target, source in sources.items() if target.startswith(part)]
            dtype = dtypes[0] if dtypes else np.dtype(np.float32)
            tensor = StoredTensor(targets[name], dtype, Path(), partial(absent, targets[name], dtype))
            result[name] = Source(name, tensor, AS_IS.read)
    return result


def _mismatches(sources: dict[str, Source], targets: Mapping[str, tuple[int, ...]]):
    for target, (name, tensor, transform) in sources.items():
        got = shape_after(transform, tensor.shape)
        if got != tuple(targets[target]):
            yield f"{name!r} (expected {tuple(targets[target])} once it is {target}, got {got})"
        elif tensor.dtype not in FLOATS:
            yield f"{name!r} (expected floating point, got {tensor.dtype})"


def _listing(names: list[str]) -> str:
    shown = sorted(names, key=natural)[:LISTED]
    return ", ".join(shown) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
