"""From rows of different lengths to a batch of few static shapes.

Programs are compiled for shapes, so shapes come from short ladders: a second prompt of about the same length runs the
program of the first. Rows are left-aligned; what is behind a row's length is padding that nobody looks at.

    rows, images   1 2 3 4 6 8 10 12 14 16 20 24 28 32 40 ...     at most a fifth of a batch is padding
    text           32 64 96 ... 512 576 640 ... 1024 1152 ...     a ninth, behind the first rungs
    visual         16 32 ... 128 160 ... 1024 1280 ... 2048 2560  a fifth, where pictures have any number of tokens
    new tokens     64 128 192 256 320 384 448 512 640 768 ...     a fifth

B batch · L tokens · A position axes · V visual tokens
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32

from ..models.families.family import Encoded, ModelConfig
from ..processing import ProcessedInputs
from ..sparsify import Bucket
from .prefill import PrefillInputs

TEXT_STEP, LONGEST_TEXT_STEP = 32, 128
NEW_TOKENS_STEP = 64


class Batch(NamedTuple):
    """Host arrays of one batch, padded to `bucket`; rows and images to a rung, B and I. The first `rows` are real; the
    others are one token long, without images. Spare images are zero."""

    rows: int
    input_ids: Int32[np.ndarray, "B L"]
    length: Int32[np.ndarray, " B"]
    visual_index: Int32[np.ndarray, "B L"]
    position_ids: Int32[np.ndarray, "B L *A"]
    next_position: Int32[np.ndarray, " B"]
    is_question: Bool[np.ndarray, "B L"]
    pixel_values: Any
    bucket: Bucket

    def inputs(self, encoded: Encoded) -> PrefillInputs:
        """The rows, and what was made of their pictures."""
        prompt = {name: jnp.asarray(getattr(self, name)) for name in PrefillInputs._fields if name != "encoded"}
        return PrefillInputs(**prompt, encoded=encoded)


def assemble(inputs: ProcessedInputs, config: ModelConfig, *, new_tokens: int) -> Batch:
    """Pads processed rows to a bucket.

    Raises:
        ValueError: a token id is none of the model's, or a row with its `new_tokens` is longer than the model's
            positions or its sliding window.
    """
    visual = [row.visual_count for row in inputs.rows]
    lengths = np.array([len(row.input_ids) for row in inputs.rows], np.int32)
    _check_ids(inputs, config)
    _check_length(int(lengths.max()), new_tokens, config)
    most, fewest = max(visual), min(filter(None, visual), default=1)
    text = text_bucket(int(max(lengths - visual)))
    if config.tokens_per_image is None:  # pictures of one size, and prompts of several, share their bounds as they are
        most, fewest = visual_bounds(most)[1], visual_bounds(fewest)[0]
        text = text_bucket(text, beside=most)
    bucket = Bucket(text=text, visual=most, images=max(inputs.images_per_row), fewest=fewest)
    rows, shape = len(lengths), (rung(len(lengths)), bucket.capacity)

    def padded(name: str, value: int | bool) -> np.ndarray:
        """A field of all rows, `value` after each and in the spare ones."""
        fields = [getattr(row, name) for row in inputs.rows]
        whole = np.full((*shape, *fields[0].shape[1:]), value, fields[0].dtype)
        for row, field in zip(whole, fields, strict=False):
            row[: len(field)] = field
        return whole

    def with_spare(array: np.ndarray, value: int = 0) -> np.ndarray:
        """An array with an entry for each row or image, and `value` in the spare ones."""
        spare = rung(len(array)) - len(array)
        return np.pad(array, ((0, spare), *((0, 0) for _ in array.shape[1:])), constant_values=value)

    return Batch(
        rows=rows,
        input_ids=padded("input_ids", config.pad_token_id),
        length=with_spare(lengths, 1),
        visual_index=padded("visual_index", -1),
        position_ids=padded("position_ids", 0),
        next_position=with_spare(np.array([row.next_position for row in inputs.rows], np.int32), 1),
        is_question=padded("is_question", False),
        pixel_values=jax.tree.map(with_spare, inputs.pixel_values),
        bucket=bucket,
    )


def rung(count: int) -> int:
    """The number of rows or images that `count` are padded to: 0 to 4, then even, then a multiple of a quarter of the
    power of two below."""
    step = 1 if count <= 4 else max(2, _power(count) // 8)
    return -(-count // step) * step


def visual_bounds(tokens: int) -> tuple[int, int]:
    """The fewest and the most of the rung that a number of visual tokens is on: multiples of 16, of an eighth of the
    power of two that is not below for more. None at all are a rung of their own."""
    step = max(16, _power(tokens) // 8)
    most = -(-tokens // step) * step
    return max(most - step + 1, 1), most


def _check_ids(inputs: ProcessedInputs, config: ModelConfig) -> None:
    """Embeddings are looked up without a check: an id outside the table would read as NaN."""
    for row, (ids, visual_index, *_) in enumerate(inputs.rows):
        text = ids[visual_index < 0]
        outside = text[(text < 0) | (text >= config.text.vocab_size)]
        if len(outside):
            raise ValueError(
                f"row {row}: token id {outside[0]} is not among the model's {config.text.vocab_size} embeddings: the "
                f"tokenizer is of another model"
            )


def _check_length(tokens: int, new_tokens: int, config: ModelConfig) -> None:
    positions, window = config.text.max_position_embeddings, config.text.sliding_window
    if tokens + new_tokens > positions:
        limit = f"the model has only {positions} positions"
    elif window is not None and tokens + new_tokens - 1 > window:  # the last token is not read any more
        limit = f"the model's attention slides over a window of {window}, beyond which it is not implemented"
    else:
        return
    raise ValueError(f"the prompt has {tokens} tokens and {new_tokens} more may follow, but {limit}")


def text_bucket(tokens: int, *, beside: int = 0) -> int:
    """The next multiple of 32; of an eighth of the power of two below, for longer texts (at most 12 % padding). Texts
    `beside` so many visual tokens of pictures of any size have steps of an eighth of these, up to 128: so that most
    questions share a rung, and programs differ by the picture alone."""
    step = max(TEXT_STEP, _power(tokens) // 16, min(_power(beside) // 16, LONGEST_TEXT_STEP))
    return -(-tokens // step) * step


def new_tokens_bucket(tokens: int) -> int:
    """Width of the answer's buffer: the next multiple of 64; for longer ones of a quarter of the power of two below."""
    step = max(NEW_TOKENS_STEP, _power(tokens) // 8)
    return -(-tokens // step) * step


def _power(count: int) -> int:
    """The smallest power of two that is not below `count`, from 2 on."""
    return 1 << max(count - 1, 1).bit_length()
