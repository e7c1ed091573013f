"""Methods that keep different tokens rather than important ones, before the language model: DivPrune and CDPruner.

B batch · V visual tokens · R question tokens · D model dim
"""

from dataclasses import dataclass

import jax.numpy as jnp

from ..sparsify import (
    Determinantal,
    Geometric,
    MaxMin,
    Scores,
    Sizes,
    SparsityConfig,
    StageInputs,
    cosine_similarity,
    needing,
    parse_budget,
)
from .registry import TokenBudget, method

_EPSILON = 1e-6


@dataclass(frozen=True)
class NoScore:
    """All tokens alike; the selector decides."""

    needs = needing()

    def cost(self, sizes: Sizes) -> int:
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        return Scores(jnp.zeros(inputs.is_visual.shape))


@dataclass(frozen=True)
class QuestionSimilarity:
    """Mean cosine of a token to the raters' hidden states, scaled to (0, 1] over the row; 1 where all are equal."""

    needs = needing("raters", "hidden")

    def cost(self, sizes: Sizes) -> int:
        return sizes.text * sizes.visual * sizes.dim

    def __call__(self, inputs: StageInputs) -> Scores:
        cosine = cosine_similarity(inputs.visual_hidden, inputs.rater_hidden)
        count = jnp.maximum(inputs.is_rater.sum(axis=1), 1)[:, None]
        relevance = jnp.where(inputs.is_rater[:, None], cosine, 0).sum(axis=2) / count
        low = jnp.where(inputs.is_visual, relevance, jnp.inf).min(axis=1, keepdims=True)
        high = jnp.where(inputs.is_visual, relevance, -jnp.inf).max(axis=1, keepdims=True)
        return Scores(jnp.where(inputs.is_visual, (relevance - low + _EPSILON) / (high - low + _EPSILON), 0))


@method
def divprune(tokens: TokenBudget = 192) -> SparsityConfig:
    """DivPrune (arXiv 2503.02175): before the language model, the tokens farthest from each other.

    Greedy max-min diversity of the projected visual embeddings; the question plays no part.
    """
    return _before(tokens, NoScore(), MaxMin(), "divprune")


@method
def cdpruner(tokens: TokenBudget = 192) -> SparsityConfig:
    """CDPruner (arXiv 2506.10967): before the language model, different tokens close to the question.

    Greedy MAP of the determinantal point process with kernel r_i cos_ij r_j, r the relevance scaled to (0, 1]. The
    paper takes the relevance from CLIP's text tower, which LLaVA checkpoints do not carry. Here it comes from what the
    language model reads: the mean cosine of a projected visual embedding to the question's token embeddings, a weaker
    signal: projectors are not trained to align these.
    """
    return _before(tokens, QuestionSimilarity(), Determinantal(), "cdpruner")


def _before(tokens: TokenBudget, score, select, name: str) -> SparsityConfig:
    budget = parse_budget(tokens, Geometric())
    return SparsityConfig(
        budget=budget, layers=(-1,), raters="all", score=score, select=select, recycle=None, name=name
    )
