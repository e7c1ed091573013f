"""Several questions about one picture in one sequence: each segment sees the picture and itself, nothing else.

A picture's 146 prefix tokens cost far more than a question's fifteen, so eight questions ride on one prefix. All
segments start at the same position, so every one of them looks to the model exactly like a prompt of its own:

    prefix    1 0 | 0 0 | 0 0
              1 1 | 0 0 | 0 0
    segment 1 1 1 | 1 0 | 0 0
              1 1 | 1 1 | 0 0
    segment 2 1 1 | 0 0 | 1 0
              1 1 | 0 0 | 1 1

B batch · P prefix tokens · G segments · Q tokens of a segment · N heads · H head dim · D model dim
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import tokenizer
from .questions import KINDS, Question

SEGMENT: Final = 16
"""Tokens of a segment: question, "ASSISTANT:", answer."""
PREFIX_IDS: Final = (tokenizer.BOS, tokenizer.USER)
"""What stands before the image tokens."""
_NAMED: Final = {**dict.fromkeys(KINDS, 4), "colour by word": 3}
"""Where a question names what it is about, from the end: "... blue sign ? ASSISTANT:", "... C A F E ? ASSISTANT:"."""


class Segments(NamedTuple):
    """`targets[..., i]` is the token after token i; `weights` is zero where no answer is due."""

    ids: Int[np.ndarray, "B G Q"]
    targets: Int[np.ndarray, "B G Q"]
    weights: Float[np.ndarray, "B G Q"]


HINT: Final = 0.9
"""Weight of a hint, below that of any token of an answer."""


def pack(
    rows: Sequence[Sequence[Question]],
    segments: int,
    first_weight: float = 1.0,
    *,
    hints: bool = False,
    width: int = SEGMENT,
) -> Segments:
    """Questions and answers as token ids; places without a question keep weight zero.

    Args:
        rows: the questions of each picture, at most `segments` of them.
        segments: segments per picture.
        first_weight: weight in the loss of an answer's first token, the one that takes choosing.
        width: tokens of a segment; the default holds every question with its own answer.
        hints: also ask for an answer's first token where the question has just named what it is about ("blue").

    Raises:
        ValueError: a row has too many questions, or a question with its answer is too long.
    """
    shape = (len(rows), segments, width)
    packed = Segments(
        np.full(shape, tokenizer.PAD, np.int32), np.full(shape, tokenizer.PAD, np.int32), np.zeros(shape, np.float32)
    )
    for row, questions in enumerate(rows):
        if len(questions) > segments:
            raise ValueError(f"expected at most {segments} questions of a picture, got {len(questions)}")
        for place, question in enumerate(questions):
            _fill(Segments(*(array[row, place] for array in packed)), question, first_weight, hints)
    return packed


def _fill(segment: Segments, question: Question, first_weight: float, hints: bool) -> None:
    asked = tokenizer.encode(question.text + " ASSISTANT:")
    ids = (*asked, *tokenizer.encode(question.answer), tokenizer.EOS)
    if len(ids) - 1 > len(segment.ids):
        width = len(segment.ids)
        raise ValueError(f"{question.text!r} with its answer has {len(ids) - 1} tokens, a segment holds {width}")
    segment.ids[: len(ids) - 1] = ids[:-1]
    segment.targets[: len(ids) - 1] = ids[1:]
    segment.weights[len(asked) - 1 : len(ids) - 1] = 1.0
    segment.weights[len(asked) - 1] = first_weight
    if hints and question.kind in _NAMED:
        name = len(asked) - _NAMED[question.kind]
        segment.targets[name], segment.weights[name] = ids[len(asked)], HINT


def position_ids(prefix: int, segments: int, width: int = SEGMENT) -> Int[np.ndarray, "1 T"]:
    own = np.tile(np.arange(prefix, prefix + width), segments)
    return np.concatenate([np.arange(prefix), own])[None].astype(np.int32)


def packed_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    prefix: int,
    width: int = SEGMENT,
) -> Float[Array, "B T N H"]:
    """Causal attention under the mask of this module, without building the part of it that is empty."""
    first = jax.nn.dot_product_attention(q[:, :prefix], k[:, :prefix], v[:, :prefix], is_causal=True)
    own_q, own_k, own_v = (x[:, prefix:].reshape(x.shape[0], -1, width, *x.shape[2:]) for x in (q, k, v))
    own_q = own_q * q.shape[-1] ** -0.5
    shared = jnp.einsum("BGQNH,BPNH->BNGQP", own_q, k[:, :prefix])
    own = jnp.einsum("BGQNH,BGRNH->BNGQR", own_q, own_k)
    own = jnp.where(jnp.tri(width, dtype=bool), own, -1e30)
    weights = jax.nn.softmax(jnp.concatenate([shared, own], axis=-1), axis=-1)
    second = jnp.einsum("BNGQP,BPNH->BGQNH", weights[..., :prefix], v[:, :prefix])
    second += jnp.einsum("BNGQR,BGRNH->BGQNH", weights[..., prefix:], own_v)
    return jnp.concatenate([first, second.reshape(first.shape[0], -1, *first.shape[2:])], axis=1)
