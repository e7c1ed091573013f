"""Flax modules and their configs: `families` of `towers` and `decoders`, which are made of `nn`."""

import jax

from ..hf.reader import UnsupportedConfig
from .decoders.llama import LlamaConfig
from .families.family import ModelConfig, config_from_hf, family_of
from .families.llava import LlavaConfig
from .nn import params
from .towers.clip import ClipVisionConfig
from .towers.siglip import SiglipVisionConfig

__all__ = [
    "ClipVisionConfig",
    "LlamaConfig",
    "LlavaConfig",
    "ModelConfig",
    "SiglipVisionConfig",
    "UnsupportedConfig",
    "abstract_params",
    "config_from_hf",
    "family_of",
    "init_params",
]


def abstract_params(config: ModelConfig, dtype: jax.typing.DTypeLike) -> dict:
    """The parameter tree of a model as `jax.ShapeDtypeStruct`s: what a checkpoint must fill, no memory used."""
    return _assemble(config, lambda module, part: params.shapes(module, part, dtype))


def init_params(config: ModelConfig, seed: int = 0) -> dict:
    """Random float32 parameters, for tests and training from scratch."""
    return _assemble(config, lambda module, part: params.init(module, part, seed))


def _assemble(config: ModelConfig, make) -> dict:
    tree = {}
    for name, (module, part) in family_of(config).modules(config).items():
        tree |= {name: make(module, part)} if name else make(module, part)
    return tree
