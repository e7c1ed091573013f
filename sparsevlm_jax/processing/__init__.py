"""Images and text into arrays: what a LLaVA checkpoint expects, without torch."""

from .files import PROCESSOR_FILES
from .images import MAX_BYTES, MAX_PIXELS, ImageError, ImageSource, open_image
from .layout import Layout, Picture, PictureSize, PromptRow, prompt_row, square_picture
from .pixels import PixelConfig, center_crop, pad_to_square, preprocess
from .processor import Prepared, ProcessedInputs, Processor, Shown
from .prompts import IMAGE_MARK, LLAVA_1_5, VICUNA_V1, Message, Prompt, PromptError, read_prompt, render

__all__ = [
    "IMAGE_MARK",
    "LLAVA_1_5",
    "MAX_BYTES",
    "MAX_PIXELS",
    "PROCESSOR_FILES",
    "VICUNA_V1",
    "ImageError",
    "ImageSource",
    "Layout",
    "Message",
    "Picture",
    "PictureSize",
    "PixelConfig",
    "Prepared",
    "ProcessedInputs",
    "Processor",
    "Prompt",
    "PromptError",
    "PromptRow",
    "Shown",
    "center_crop",
    "open_image",
    "pad_to_square",
    "preprocess",
    "prompt_row",
    "read_prompt",
    "render",
    "square_picture",
]
