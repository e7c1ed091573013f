"""Pictures to arrays: exactly what the shipped processor does to a picture of the right size."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float
from PIL import Image

MEAN: Final = 0.47
STD: Final = 0.235


def normalise(pictures: Sequence[Image.Image]) -> Float[np.ndarray, "I 3 height width"]:
    """RGB pictures of one size, as normalised float32 with channels first."""
    raw = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float32)
    return ((raw / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2)
