"""PyTorch checkpoints into this library's parameters, and back. No torch is needed, and no pickle is executed."""

from .config import read_config
from .load import read_params

__all__ = ["read_config", "read_params"]
