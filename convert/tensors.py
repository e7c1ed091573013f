"""A tensor that still lies in its file: what every reader of this package hands out.

`open()` returns a numpy view of the mapped file, so that a caller copies only the slice it needs and the host never
holds more than that.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))
BLOCK = 1 << 22  # elements looked at together
MAX_RANK = 8  # no weight has more axes; numpy itself stops at 64


class StoredTensor(NamedTuple):
    """One tensor of a checkpoint file: `open()` maps it, read-only, in the layout of the file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    open: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def map_bytes(path: Path, offset: int, nbytes: int) -> np.ndarray:
    """`nbytes` of a file from `offset` on, as a read-only memory map."""
    if nbytes == 0:  # which numpy refuses to map
        return np.empty(0, np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(nbytes,))


def is_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite; works in blocks, so that no mask of the array's size is made."""
    flat = array.reshape(-1)
    return all(np.isfinite(flat[start : start + BLOCK]).all() for start in range(0, flat.size, BLOCK))


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]
