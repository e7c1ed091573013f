"""Random checkpoints of any size, written as a Hugging Face folder without torch: for benchmarks and first steps.

The answers of such a model are noise. Its tokenizer knows single bytes only, so that it can spell every text.
"""

import json
import zlib
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sparsevlm_jax.checkpoints.atomic import new_folder
from sparsevlm_jax.checkpoints.trees import flatten
from sparsevlm_jax.models import ModelConfig, abstract_params, config_from_hf
from sparsevlm_jax.processing import LLAVA_1_5, PixelConfig

from .export import export_tensor, write_shards
from .files import has_weights
from .tables import table_of
from .tensors import StoredTensor

SPECIALS = ("<unk>", "<s>", "</s>")


def write_random_checkpoint(
    folder: str | Path,
    config: dict,
    *,
    seed: int = 0,
    dtype: str = "float16",
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Writes a llava-hf folder with random weights, a byte tokenizer and the processor files.

    Args:
        config: a llava-hf `config.json`; its vocabulary must hold the 259 byte tokens and the image token.
        seed: the same seed gives the same file, whatever the shards.
        dtype: "float16", "bfloat16" or "float32".

    Raises:
        ValueError: naming every config value that is not implemented, or too small a vocabulary.
    """
    model = config_from_hf(config)
    if not len(SPECIALS) + 256 <= model.image_token_id:
        raise ValueError(f"expected an image_token_index of at least {len(SPECIALS) + 256}, got {model.image_token_id}")
    with new_folder(folder, overwrite=overwrite, replaceable=has_weights) as work:
        write_shards(work, _random_tensors(model, seed, dtype), max_shard_bytes=max_shard_bytes)
        pixels = PixelConfig.square(model.vision.image_size).to_hf()
        _write_json(work / "config.json", model.to_hf() | {"torch_dtype": dtype})
        _write_json(work / "preprocessor_config.json", pixels)
        _write_json(work / "tokenizer.json", byte_tokenizer(model.image_token_id))
        _write_json(work / "tokenizer_config.json", _TOKENIZER_CONFIG)
        (work / "chat_template.jinja").write_text(LLAVA_1_5)


def _random_tensors(config: ModelConfig, seed: int, dtype: str) -> dict[str, StoredTensor]:
    tree, table = flatten(abstract_params(config, jnp.dtype(dtype))), table_of(config)
    return dict(
        export_tensor(table, name, leaf.shape, leaf.dtype, partial(_draw, name, leaf.shape, leaf.dtype, seed))
        for name, leaf in tree.items()
    )


def _draw(name: str, shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    """Norms one, biases zero, the rest normal and small enough that no layer overflows half precision."""
    kind = name.rsplit(".", 1)[-1]
    if kind in ("scale", "bias"):
        return np.full(shape, float(kind == "scale"), dtype)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    spread = shape[1] ** -0.5 if kind == "kernel" else 0.02
    return (random.standard_normal(shape, np.float32) * np.float32(spread)).astype(dtype)


def byte_tokenizer(image_token_id: int) -> dict:
    """A `tokenizer.json` of the Llama kind with no merges: every text becomes its bytes, <image> one token."""
    names = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [f"<unused{i}>" for i in range(image_token_id - len(names))]
    added = [*((i, name) for i, name in enumerate(SPECIALS)), (image_token_id, "<image>")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    decoder = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    decoder += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in added],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {name: i for i, name in enumerate(names)},
            "merges": [],
        },
    }


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "padding_side": "left",
}


def _write_json(path: Path, table: dict) -> None:
    path.write_text(json.dumps(table, indent=1) + "\n")
