"""Raters: the words of the question that look at the image (SparseVLM, section 3.2, eqs. 5-6).

Chosen once, on the embeddings that enter layer 0, and kept for every pruning stage.

B batch · L slots · Q question tokens · D model dim
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .stream import slots_of, to_slots

Rule = Literal["greater", "greater_equal", "all", "last"]


class Raters(NamedTuple):
    """`is_rater` marks slots; `relevance` is each question token's share of the image's attention, which sums to 1 over
    a row's question (0 elsewhere)."""

    is_rater: Bool[Array, "B L"]
    relevance: Float[Array, "B L"]


def select_raters(
    hidden: Float[Array, "B L D"],
    is_visual: Bool[Array, "B L"],
    is_question: Bool[Array, "B L"],
    *,
    question_capacity: int,
    rule: Rule = "greater",
) -> Raters:
    """Question tokens whose relevance to the image exceeds the mean: r = mean_v softmax_q(H_v H_q^T), r_i > mean(r).

    Computed in float32. Where no token passes (one question token, say) every question token is a rater, so scores
    are never an average over nothing. A row without image or question has none.

    Args:
        question_capacity: the largest number of question tokens in a row, Q.
        rule: "greater" is the official code, "greater_equal" the paper (they differ where all relevances are equal);
            "all" takes every question token, "last" the last one only.
    """
    slots, valid = slots_of(is_question, question_capacity)
    question = jnp.take_along_axis(hidden, slots[..., None], axis=1)
    logits = jnp.einsum(
        "BLD,BQD->BLQ", hidden, question, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST
    )
    attention = jax.nn.softmax(jnp.where(valid[:, None], logits, jnp.finfo(jnp.float32).min), axis=-1)
    visual_count = jnp.maximum(is_visual.sum(axis=1), 1)[:, None]
    relevance = jnp.where(is_visual[..., None], attention, 0).sum(axis=1) / visual_count
    relevance = jnp.where(valid, relevance, 0)

    mean = relevance.sum(axis=1, keepdims=True) / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
    chosen = valid & _passes(relevance, mean, valid, rule)
    chosen = jnp.where(chosen.any(axis=1, keepdims=True), chosen, valid) & is_visual.any(axis=1, keepdims=True)

    return Raters(to_slots(chosen, is_question), to_slots(relevance, is_question))


def _passes(relevance, mean, valid, rule: Rule) -> Bool[Array, "B Q"]:
    match rule:
        case "greater":
            return relevance > mean
        case "greater_equal":
            return relevance >= mean
        case "last":
            return jnp.arange(valid.shape[1]) == valid.sum(axis=1, keepdims=True) - 1
        case "all":
            return valid


def question_mask(is_visual: Any, is_valid: Any) -> Any:
    """The text behind the last image token; where there is none, all text that can see an image token.

    p V V t V V q q .   ->   0 0 0 0 0 0 1 1 0
    p V V t V V . . .   ->   0 0 0 1 0 0 0 0 0

    Bool [B, L], of JAX or of NumPy.
    """
    xp = is_visual.__array_namespace__()  # processors ask on the host
    text = is_valid & ~is_visual
    seen = xp.cumsum(is_visual.astype(xp.int32), axis=1)
    behind_last = text & (seen == seen[:, -1:]) & (seen > 0)
    return xp.where(behind_last.any(axis=1, keepdims=True), behind_last, text & (seen > 0))
