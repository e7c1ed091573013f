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

from sparsevlm_jax.demo.questions import KINDS, ONE_CAR, Question

from . import tokenizer

SEGMENT: Final = 16
"""Tokens of a segment: question, "ASSISTANT:", answer."""
PREFIX_IDS: Final = (tokenizer.BOS, tokenizer.USER)
"""What stands before the image tokens."""
_NAMED: Final = {
    **dict.fromkeys(KINDS, slice(-4, -3)),
    "colour by word": slice(7, -2),
    "car": slice(-4, -2),
    ONE_CAR: slice(-3, -2),
}
"""Which tokens of a question name what it is about: "... blue sign ? ASSISTANT:", "What colour is the sign that says
C A F E ? ASSISTANT:", "... red car ? ASSISTANT:"."""


class Segments(NamedTuple):
    """`targets[..., i]` is the token after token i; `weights` is zero where no answer is due."""

    ids: Int[np.ndarray, "B G Q"]
    targets: Int[np.ndarray, "B G Q"]
    weights: Float[np.ndarray, "B G Q"]


HINT: Final = 0.9
"""Weight of a question's hints together, below that of any token of an answer."""


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
        hints: also ask for an answer's first token where the question names what it is about ("blue").

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
        named = list(range(len(asked))[_NAMED[question.kind]])
        segment.targets[named], segment.weights[named] = ids[len(asked)], HINT / len(named)


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
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    seen_k, seen_v = k[:, :, :prefix], v[:, :, :prefix]
    own_q, own_k, own_v = (x[:, :, prefix:].reshape(*x.shape[:2], -1, width, x.shape[-1]) for x in (q, k, v))
    scores = jnp.einsum("BNTH,BNPH->BNTP", q, seen_k)
    first = jax.nn.softmax(jnp.where(jnp.tri(prefix, dtype=bool), scores[:, :, :prefix], -1e30), axis=-1)
    # One softmax over prefix and own segment, whose scores lie in two arrays: a common maximum, a common sum.
    shared = scores[:, :, prefix:].reshape(*own_q.shape[:-1], prefix)
    own = jnp.where(jnp.tri(width, dtype=bool), jnp.einsum("BNGQH,BNGRH->BNGQR", own_q, own_k), -1e30)
    highest = jax.lax.stop_gradient(jnp.maximum(jnp.max(shared, -1, keepdims=True), jnp.max(own, -1, keepdims=True)))
    shared, own = jnp.exp(shared - highest), jnp.exp(own - highest)
    second = jnp.einsum("BNGQP,BNPH->BNGQH", shared, seen_v) + jnp.einsum("BNGQR,BNGRH->BNGQH", own, own_v)
    second /= jnp.sum(shared, -1, keepdims=True) + jnp.sum(own, -1, keepdims=True)
    before = jnp.einsum("BNQP,BNPH->BNQH", first, seen_v)
    return jnp.swapaxes(jnp.concatenate([before, second.reshape(*q.shape[:2], -1, q.shape[-1])], axis=2), 1, 2)
