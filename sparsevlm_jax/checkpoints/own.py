"""This library's own checkpoint: a folder with the parameters as Orbax writes them, and all that is needed to use them.

    sparsevlm.json      format, version, the name, shape and dtype of every parameter, and the hash of every other file
    config.json         the model, in Hugging Face's form
    params/             Orbax
    tokenizer.json ...  tokenizer and processor files, as they came

`save` is atomic (see `atomic`): a folder with this content is whole.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..errors import CheckpointError, CheckpointWarning
from ..models import UnsupportedConfig, abstract_params, config_from_hf, family_of
from ..models.nn.dtypes import stored_dtype
from ..processing import PROCESSOR_FILES
from ..processing.files import read_pixel_config, read_template
from .atomic import new_folder
from .integrity import FileHash, hash_files, read_hashes, seal
from .jsonfile import read_json
from .paths import local_path
from .storage import read_tree, without_foreign_reports, write_tree
from .trees import flatten, nest

FORMAT, VERSION = "sparsevlm-jax", 2
MARKER = "sparsevlm.json"
PARAMS = "params"
DTYPES = ("float16", "bfloat16", "float32")


class Marker(NamedTuple):
    """What `sparsevlm.json` says: parameter -> (shape, dtype), which of them hold NaN or infinity, and file -> hash.

    Checkpoints that were written before hashes were recorded have None for `files`.
    """

    tensors: dict[str, tuple[tuple[int, ...], str]]
    not_finite: tuple[str, ...] = ()
    files: dict[str, FileHash] | None = None


def save(
    folder: str | Path,
    params: dict,
    config: Any,
    *,
    processor_files_from: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model as this library's own checkpoint, atomically.

    Args:
        folder: where; must not exist, unless `overwrite` and it is such a checkpoint.
        params: the parameters `config` describes, each in the dtype it shall be saved in.
        processor_files_from: a folder whose tokenizer and processor files are copied.

    Raises:
        CheckpointError: the parameters are not those of the config, or the folder cannot be written.
    """
    leaves = flatten(params)
    tensors = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in leaves.items()}
    check_params("the parameters to save", config, leaves)
    not_finite = [name for name, leaf in leaves.items() if not jnp.isfinite(leaf).all()]
    files = {} if processor_files_from is None else processor_files(processor_files_from, config)
    with without_foreign_reports(), new_folder(folder, overwrite=overwrite, replaceable=is_converted) as work:
        write_tree(work / PARAMS, params, folder)
        (work / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n")
        for name, content in files.items():
            (work / name).write_bytes(content)
        marker: dict[str, Any] = {"format": FORMAT, "version": VERSION, "tensors": tensors, "not_finite": not_finite}
        marker["files"] = hash_files(work, skip=MARKER)
        (work / MARKER).write_text(json.dumps(marker | {"seal": seal(marker)}, indent=1) + "\n")


def restore(
    folder: str | Path,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    sharding: jax.sharding.Sharding | dict | None = None,
) -> tuple[Any, dict]:
    """Reads a checkpoint that `save` wrote.

    Args:
        dtype: what the parameters become; None keeps each as saved.
        sharding: one sharding for all, or a tree of them shaped like the parameters; None is the default device.

    Raises:
        CheckpointError: something is missing, damaged, of a newer version, or does not fit its config.
        ValueError: a dtype in which no weights are kept.

    Warns:
        CheckpointWarning: some weights hold NaN or infinity; it names them.
    """
    config = read_own_config(local_path(folder))
    return config, restore_params(folder, config, dtype=dtype, sharding=sharding)


def restore_params(
    folder: str | Path,
    config: Any,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    sharding: jax.sharding.Sharding | dict | None = None,
) -> dict:
    """The parameters alone; `config` is the folder's own. Arguments, errors and warnings are those of `restore`."""
    folder, dtype = local_path(folder), stored_dtype(dtype)
    marker = check_stored(folder, config)
    shardings = flatten(sharding) if isinstance(sharding, dict) else dict.fromkeys(marker.tensors, sharding)
    default = jnp.zeros(()).sharding
    abstract = {
        name: jax.ShapeDtypeStruct(shape, dtype or jnp.dtype(stored), sharding=shardings[name] or default)
        for name, (shape, stored) in marker.tensors.items()
    }
    params = read_tree(folder / PARAMS, nest(abstract))
    if marker.not_finite:
        names = ", ".join(marker.not_finite)
        warnings.warn(f"{folder}: weights hold NaN or infinity: {names}", CheckpointWarning, stacklevel=2)
    return params


def check_stored(folder: Path, config: Any) -> Marker:
    """What `sparsevlm.json` says, once it is known to describe the parameters of the config."""
    marker = read_marker(folder)
    _check_tensors(folder, config, marker.tensors)
    return marker


def is_converted(folder: str | Path) -> bool:
    """Whether a folder is this library's own checkpoint."""
    return (local_path(folder) / MARKER).is_file()


def read_marker(folder: Path) -> Marker:
    """What `sparsevlm.json` holds, checked.

    Raises:
        CheckpointError: it is missing, damaged, changed since it was written, or of another format or version.
    """
    path = folder / MARKER
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: the format is {content.get('format')!r}, expected {FORMAT!r}")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path}: the version is {content.get('version')!r}, this library reads {VERSION}")
    sealed = content.pop("seal", None)
    if ("files" in content or sealed is not None) and sealed != seal(content):
        raise CheckpointError(f"{path} has changed since it was written")
    tensors, not_finite = content.get("tensors"), content.get("not_finite", [])
    if not isinstance(tensors, dict) or not all(_is_stored(entry) for entry in tensors.values()):
        raise CheckpointError(f"{path} does not list its parameters as [shape, dtype]")
    if not isinstance(not_finite, list) or not all(isinstance(name, str) for name in not_finite):
        raise CheckpointError(f"{path}: not_finite is not a list of names")
    files = read_hashes(content["files"]) if "files" in content else None
    if "files" in content and files is None:
        raise CheckpointError(f"{path}: files is not a table of [size, sha256]")
    return Marker({name: (tuple(shape), dtype) for name, (shape, dtype) in tensors.items()}, tuple(not_finite), files)


def _is_stored(entry: Any) -> bool:
    match entry:
        case [list(shape), str(dtype)]:
            return dtype in DTYPES and all(type(length) is int and 0 < length < 2**63 for length in shape)
    return False


def read_own_config(folder: Path) -> Any:
    """The model of a folder whose `config.json` is in Hugging Face's form."""
    try:
        return config_from_hf(read_json(folder / "config.json"))
    except UnsupportedConfig as error:
        raise UnsupportedConfig(f"{folder}: {error}") from None


def processor_files(folder: str | Path, config: Any) -> dict[str, bytes]:
    """The tokenizer and processor files of a checkpoint folder: name -> content.

    An original LLaVA folder has a tokenizer only; what its code does with pixels and prompts is put into files here.
    """
    folder = Path(folder)
    files = {name: (folder / name).read_bytes() for name in PROCESSOR_FILES if (folder / name).is_file()}
    if (folder / "config.json").is_file() and "mm_vision_tower" in read_json(folder / "config.json"):
        pixels = read_pixel_config(folder, config.image_size).to_hf()
        files.setdefault("preprocessor_config.json", json.dumps(pixels, indent=2).encode())
        files.setdefault("chat_template.jinja", read_template(folder).encode())
    return files


def check_params(origin: object, config: Any, leaves: Mapping[str, Any]) -> None:
    """The leaves (dotted name -> array) must be the parameters of the config, all of them, in a type that is saved.

    Raises:
        CheckpointError: naming every leaf that is missing, superfluous, or of another shape or type.
    """
    _check_tensors(origin, config, {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in leaves.items()})


def _check_tensors(origin: object, config: Any, tensors: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """The tensors must be those of the config, no more and no fewer."""
    layers = sum(getattr(part, "num_hidden_layers", 0) for _, part in family_of(config).modules(config).values())
    if layers > len(tensors):  # before a tree of that many layers is built
        raise CheckpointError(f"{origin}: {len(tensors)} parameters are too few for {layers} layers")
    expected = {name: leaf.shape for name, leaf in flatten(abstract_params(config, jnp.float32)).items()}
    complaints = [f"{name} has dtype {dtype}" for name, (_, dtype) in tensors.items() if dtype not in DTYPES]
    complaints += [f"{name} is missing" for name in expected if name not in tensors]
    complaints += [f"{name!r} is not a parameter of the model" for name in tensors if name not in expected]
    complaints += [
        f"{name} has shape {shape}, expected {expected[name]}"
        for name, (shape, _) in tensors.items()
        if name in expected and shape != expected[name]
    ]
    if complaints:
        raise CheckpointError(f"{origin} do not fit the config: {'; '.join(complaints)}")
