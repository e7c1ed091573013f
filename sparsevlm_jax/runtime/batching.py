"""From rows of different lengths to a batch of few static shapes.

Programs are compiled for shapes, so shapes come from short ladders: a second prompt of about the same length runs the
program of the first. Rows are left-aligned; what is behind a row's length is padding that nobody looks at.

    rows, images   1 2 3 4 6 8 10 12 14 16 20 24 28 32 40 ...     at most a fifth of a batch is padding
    text           32 64 96 ... 512 576 640 ... 1024 1152 ...     a ninth, behind the first rungs
    new tokens     64 128 192 256 320 384 448 512 640 768 ...     a fifth

B batch · L tokens · I images · V visual tokens of one image
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from ..models.families.llava import LlavaConfig
from ..processing import ProcessedInputs
from ..sparsify import Bucket

TEXT_STEP = 32
NEW_TOKENS_STEP = 64


class Batch(NamedTuple):
    """Host arrays of one batch, padded to `bucket`; rows and images to a rung, B and I. The first `rows` are real; the
    others are one token long, without images. Spare images are zero."""

    rows: int
    input_ids: Int32[np.ndarray, "B L"]
    length: Int32[np.ndarray, " B"]
    pixel_values: Float[np.ndarray, "I 3 height width"]
    bucket: Bucket


def assemble(inputs: ProcessedInputs, config: LlavaConfig, *, new_tokens: int) -> Batch:
    """Pads processed rows to a bucket.

    Raises:
        ValueError: the image tokens of a row are not those of its images, a token id is none of the model's, or a row
            with its `new_tokens` is longer than the model's positions or its sliding window.
    """
    visual = [int((ids == config.image_token_id).sum()) for ids in inputs.input_ids]
    for row, (tokens, images) in enumerate(zip(visual, inputs.images_per_row, strict=True)):
        if tokens != images * config.tokens_per_image:
            raise ValueError(
                f"row {row}: expected {images * config.tokens_per_image} image tokens for {images} images of "
                f"{config.tokens_per_image}, got {tokens}"
            )
    lengths = np.array([len(ids) for ids in inputs.input_ids], np.int32)
    _check_ids(inputs, config)
    _check_length(int(lengths.max()), new_tokens, config)
    text = max(len(ids) - tokens for ids, tokens in zip(inputs.input_ids, visual, strict=True))
    bucket = Bucket(text=text_bucket(text), visual=max(visual), visual_step=config.tokens_per_image)
    rows, images = len(lengths), len(inputs.pixel_values)
    input_ids = np.full((rung(rows), bucket.capacity), config.pad_token_id, np.int32)
    for row, ids in zip(input_ids, inputs.input_ids, strict=False):
        row[: len(ids)] = ids
    lengths = np.pad(lengths, (0, rung(rows) - rows), constant_values=1)
    pixels = np.pad(inputs.pixel_values, ((0, rung(images) - images), (0, 0), (0, 0), (0, 0)))
    return Batch(rows, input_ids, lengths, pixels, bucket)


def rung(count: int) -> int:
    """The number of rows or images that `count` are padded to: 0 to 4, then even, then a multiple of a quarter of the
    power of two below."""
    step = 1 if count <= 4 else max(2, _power(count) // 8)
    return -(-count // step) * step


def _check_ids(inputs: ProcessedInputs, config: LlavaConfig) -> None:
    """Embeddings are looked up without a check: an id outside the table would read as NaN."""
    for row, ids in enumerate(inputs.input_ids):
        text = ids[ids != config.image_token_id]
        outside = text[(text < 0) | (text >= config.text.vocab_size)]
        if len(outside):
            raise ValueError(
                f"row {row}: token id {outside[0]} is not among the model's {config.text.vocab_size} embeddings: the "
                f"tokenizer is of another model"
            )


def _check_length(tokens: int, new_tokens: int, config: LlavaConfig) -> None:
    positions, window = config.text.max_position_embeddings, config.text.sliding_window
    if tokens + new_tokens > positions:
        limit = f"the model has only {positions} positions"
    elif window is not None and tokens + new_tokens - 1 > window:  # the last token is not read any more
        limit = f"the model's attention slides over a window of {window}, beyond which it is not implemented"
    else:
        return
    raise ValueError(f"the prompt has {tokens} tokens and {new_tokens} more may follow, but {limit}")


def text_bucket(tokens: int) -> int:
    """The next multiple of 32; of an eighth of the power of two below, for longer texts (at most 12 % padding)."""
    step = max(TEXT_STEP, _power(tokens) // 16)
    return -(-tokens // step) * step


def new_tokens_bucket(tokens: int) -> int:
    """Width of the answer's buffer: the next multiple of 64; for longer ones of a quarter of the power of two below."""
    step = max(NEW_TOKENS_STEP, _power(tokens) // 8)
    return -(-tokens // step) * step


def _power(count: int) -> int:
    """The smallest power of two that is not below `count`, from 2 on."""
    return 1 << max(count - 1, 1).bit_length()
