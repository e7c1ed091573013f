"""Images and text into arrays: what a LLaVA checkpoint expects, without torch."""

from .images import ImageError, ImageSource, open_image
from .pixels import PixelConfig, center_crop, pad_to_square, preprocess

__all__ = ["ImageError", "ImageSource", "PixelConfig", "center_crop", "open_image", "pad_to_square", "preprocess"]
