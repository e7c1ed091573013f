"""Where models come from: a local folder of any kind, or a Hugging Face hub id; and what can be done with one.

Three kinds of folder are told apart by what they hold: this library's own (`sparsevlm.json`), Hugging Face's, and the
original LLaVA's (`mm_*` fields in `config.json`). The readers of the last two live in `sparsevlm_jax.convert`, which is
imported only where such a folder is met.
"""

import math
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ..errors import CheckpointError, CheckpointWarning
from ..models import family_of
from ..models.nn.dtypes import stored_dtype
from ..processing import PROCESSOR_FILES
from .atomic import check_target
from .integrity import compare_files
from .own import FORMAT, PARAMS, check_stored, is_converted, read_marker, read_own_config, restore_params, save
from .paths import local_path, resolved

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model"]
_WEIGHTS = (["model*.safetensors"], ["pytorch_model*.bin"])  # in the order of preference
_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}


class Checkpoint(NamedTuple):
    """A model in memory, and the folder its tokenizer and processor files lie in."""

    config: Any
    params: dict
    folder: Path


class CheckpointInfo(NamedTuple):
    """What `sparsevlm info` tells of a folder, found without reading a weight."""

    folder: Path
    kind: str  # "converted", "huggingface" or "original"
    layout: str  # how the weights are named: "sparsevlm-jax", or "A" to "D" or "original" as in convert/tables.py
    parameters: int  # in the files; an original checkpoint may lack its vision tower
    bytes: int
    dtypes: dict[str, int]  # dtype -> number of parameters of it
    config: Any


def resolve_source(name_or_path: str | Path) -> Path:
    """The local folder of a checkpoint; a hub id (`owner/name`) is fetched, or taken from the cache.

    The cache, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as everywhere with huggingface_hub.

    Raises:
        CheckpointError: there is no such folder, or the hub cannot give it.
    """
    path = local_path(name_or_path)
    try:
        if path.is_dir():
            return path
        if path.exists():
            raise CheckpointError(f"{path} is a file, expected the folder of a checkpoint")
    except OSError as error:  # a name too long, a folder that may not be entered
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if not _HUB_ID.fullmatch(str(name_or_path)):
        raise CheckpointError(f"there is no folder {name_or_path}, and it is not a hub id of the form owner/name")
    return _from_hub(str(name_or_path))


def load_checkpoint(
    name_or_path: str | Path,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    sharding: jax.sharding.Sharding | dict | None = None,
    vision_tower: str | Path | None = None,
) -> Checkpoint:
    """Loads a model from a folder of any kind, or from the hub.

    Args:
        dtype: what the parameters become; None keeps each as stored.
        sharding: one sharding for all, or a tree of them shaped like the parameters; None is the default device.
        vision_tower: CLIP's own folder or hub id, for an original checkpoint that has no tower inside. None takes the
            one that the checkpoint's config names.

    Raises:
        CheckpointError: it is not there, or damaged, or its tensors are not those of its config.
        ValueError: naming every config value that is not implemented, or a dtype in which no weights are kept.

    Warns:
        CheckpointWarning: some weights hold NaN or infinity, the config has fields that are none of the model's or ties
            a head that differs, or `vision_tower` is given where there is a tower inside.
    """
    dtype = stored_dtype(dtype)
    return _load(_open(resolve_source(name_or_path), vision_tower), dtype, sharding)


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    vision_tower: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Converts a checkpoint of any kind into this library's own form, tokenizer and processor files included.

    The weights pass through host memory, whatever accelerator there is. Other arguments as in `load_checkpoint`.

    Raises:
        CheckpointError, ValueError: as `load_checkpoint` and `own.save`; and, before a weight is read, where the
            tokenizer or processor files of the source are missing or cannot be used with the model.
    """
    dtype, folder = stored_dtype(dtype), _apart(resolve_source(source), target)
    check_target(target, overwrite=overwrite, replaceable=is_converted)
    loaded = _load_to_write(folder, dtype, vision_tower)
    save(target, loaded.params, loaded.config, processor_files_from=folder, overwrite=overwrite)


def export_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    max_shard_bytes: int = 5_000_000_000,
    vision_tower: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Converts a checkpoint of any kind into a Hugging Face folder that every `transformers` since 4.36 loads.

    Arguments and errors as `convert_checkpoint`, and `convert.export_hf` for the shards.
    """
    from ..convert import export_hf, has_weights

    dtype, folder = stored_dtype(dtype), _apart(resolve_source(source), target)
    check_target(target, overwrite=overwrite, replaceable=has_weights)
    loaded = _load_to_write(folder, dtype, vision_tower)
    export_hf(
        loaded.params,
        loaded.config,
        target,
        max_shard_bytes=max_shard_bytes,
        processor_files_from=folder,
        overwrite=overwrite,
    )


def inspect_checkpoint(name_or_path: str | Path, *, vision_tower: str | Path | None = None) -> CheckpointInfo:
    """What a checkpoint of any kind holds, without reading its weights. `vision_tower` is as in `load_checkpoint`.

    Raises:
        CheckpointError, ValueError: as `load_checkpoint`, as far as that shows without reading.
    """
    folder = resolve_source(name_or_path)
    tower = _given_tower(folder, vision_tower)
    if is_converted(folder):
        stored = read_marker(folder).tensors.values()
        return _info(folder, "converted", FORMAT, list(stored), read_own_config(folder))
    from ..convert import describe

    kind, layout, tensors, config = describe(folder, vision_tower=tower)
    return _info(folder, kind, layout, tensors, config)


class Verification(NamedTuple):
    """What `verify_checkpoint` found in order."""

    folder: Path
    converted: bool  # by this library
    files: int  # whose content was compared with its hash; 0 where no hashes were recorded
    bytes: int

    @property
    def summary(self) -> str:
        """One sentence that says what was checked, and what was not."""
        if self.files:
            return f"{self.folder}: {self.files} files, {self.bytes:,} bytes, are as they were written"
        why = "was written before hashes were recorded" if self.converted else "holds no hashes"
        return (
            f"{self.folder} {why}: its files belong together and none is cut short, but a value changed inside one "
            f"would not be seen. `sparsevlm convert` records hashes of what it writes"
        )


def verify_checkpoint(name_or_path: str | Path, *, vision_tower: str | Path | None = None) -> Verification:
    """Checks a checkpoint of any kind, as thoroughly as can be: every byte of one that `convert_checkpoint` wrote.

    A Hugging Face or original folder holds no hashes. Of it, as of a checkpoint that an older version of this library
    converted, it is checked that config, names, shapes, sizes of files, tokenizer and processor fit together.

    Raises:
        CheckpointError: something is missing, damaged or changed; it names the files.
        ValueError: as `load_checkpoint`.
    """
    folder = resolve_source(name_or_path)
    converted = is_converted(folder)
    recorded = read_marker(folder).files if converted else None
    if recorded is not None:
        _given_tower(folder, vision_tower)
        compare_files(folder, recorded, closed=(PARAMS, *PROCESSOR_FILES))
        return Verification(folder, converted, len(recorded), sum(file.size for file in recorded.values()))
    opened = _open(folder, vision_tower)
    if converted:
        check_stored(folder, opened.config)
    else:
        from ..convert import match_params, settle_head

        match_params(folder, settle_head(folder, opened.config), vision_tower=opened.tower)
    family_of(opened.config).processor.from_folder(folder, opened.config)
    return Verification(folder, converted, 0, 0)


def _info(
    folder: Path, kind: str, layout: str, tensors: list[tuple[tuple[int, ...], str]], config: Any
) -> CheckpointInfo:
    dtypes: Counter[str] = Counter()
    for shape, dtype in tensors:
        dtypes[dtype] += math.prod(shape)
    nbytes = sum(_ITEMSIZE.get(dtype, 8) * count for dtype, count in dtypes.items())
    return CheckpointInfo(folder, kind, layout, dtypes.total(), nbytes, dict(dtypes.most_common()), config)


class _Opened(NamedTuple):
    """A checkpoint of which no weight has been read; `tower` is the folder of its vision tower, if that is another."""

    folder: Path
    config: Any
    tower: Path | None


def _open(folder: Path, vision_tower: str | Path | None) -> _Opened:
    tower = _given_tower(folder, vision_tower)
    if is_converted(folder):
        return _Opened(folder, read_own_config(folder), None)
    from ..convert import read_config

    tower = tower or _named_tower(folder)
    return _Opened(folder, read_config(folder, vision_tower=tower), tower)


def _load(opened: _Opened, dtype: jax.typing.DTypeLike | None, sharding: Any) -> Checkpoint:
    folder, config, tower = opened
    if is_converted(folder):
        return Checkpoint(config, restore_params(folder, config, dtype=dtype, sharding=sharding), folder)
    from ..convert import read_params, settle_head

    config = settle_head(folder, config)
    params = read_params(folder, config, vision_tower=tower, dtype=dtype, sharding=sharding)
    return Checkpoint(config, params, folder)


def _load_to_write(folder: Path, dtype: jax.typing.DTypeLike | None, vision_tower: str | Path | None) -> Checkpoint:
    """Loads into host memory, once it is known that what is written will have a processor that works."""
    opened = _open(folder, vision_tower)
    try:
        family_of(opened.config).processor.from_folder(folder, opened.config)
    except ValueError as error:
        raise CheckpointError(f"{folder} would be of no use once written, its processor fails: {error}") from error
    return _load(opened, dtype, _host())


def _given_tower(folder: Path, given: str | Path | None) -> Path | None:
    """The folder of the tower that was asked for; a checkpoint with a tower inside has no use for its weights."""
    if given is None:
        return None
    tower = resolve_source(given)
    from ..convert import has_tower

    if is_converted(folder) or has_tower(folder):
        message = f"{folder} has a vision tower inside: the weights of {tower} are not read"
        warnings.warn(message, CheckpointWarning, stacklevel=2)
    return tower


def _named_tower(folder: Path) -> Path | None:
    """The folder of the tower that the config names, where the checkpoint itself has none."""
    from ..convert import external_tower

    named = external_tower(folder)
    if named is None:
        return None
    try:
        return resolve_source(named)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} has no vision tower inside, give its folder as vision_tower: {error}"
        ) from None


def _apart(source: Path, target: str | Path) -> Path:
    """`source`, once it is sure that writing `target` cannot hurt it."""
    inner, outer = resolved(source), resolved(target)
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise CheckpointError(f"the target {target} and the source {source} lie in one another: choose another target")
    return source


def _host() -> jax.sharding.Sharding | None:
    """Host memory, so that a checkpoint larger than the accelerator can be converted."""
    try:
        return jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX was told to leave the CPU out
        return None


def _from_hub(name: str) -> Path:
    """The snapshot of a hub repository, without the files that are not needed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    from ..convert import has_weights

    try:
        for weights in _WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=_SMALL_FILES + weights))
            if has_weights(folder):
                return folder
    except Exception as error:  # network, permissions, names: the hub's client raises many kinds
        offline = " (HF_HUB_OFFLINE is set, and the cache lacks it)" if HF_HUB_OFFLINE else ""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"there is no folder {name}, and the Hugging Face hub cannot give it{offline}: {reason}"
        ) from error
    raise CheckpointError(f"the hub repository {name} holds no {' or '.join(p for w in _WEIGHTS for p in w)}")
