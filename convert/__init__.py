"""PyTorch checkpoints into this library's parameters, and back. No torch is needed, and no pickle is executed."""

from .config import read_config
from .export import export_hf
from .files import has_weights
from .load import describe, external_tower, has_tower, match_params, read_params, settle_head
from .random_weights import write_random_checkpoint

__all__ = [
    "describe",
    "export_hf",
    "external_tower",
    "has_tower",
    "has_weights",
    "match_params",
    "read_config",
    "read_params",
    "settle_head",
    "write_random_checkpoint",
]
