"""What every method has to beat: a random choice, and an even one. Both before the language model.

B batch · V visual tokens
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import LARGEST_SEED, settle, whole
from ..sparsify import Geometric, Scores, SparsityConfig, StageInputs, Tokens, parse_amount, spread_rank
from .registry import Amount, method


@dataclass(frozen=True)
class RandomScore:
    """A number per visual token, drawn from the seed and the token's place alone: the same in every row and batch."""

    seed: int = 0
    needs_attention = False

    def __post_init__(self):
        settle(self, seed=whole(0, LARGEST_SEED))

    def macs(self, text, visual, dim):
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        def draw(index):
            return jax.random.uniform(jax.random.fold_in(jax.random.key(self.seed), index))

        values = jax.vmap(draw)(jnp.arange(inputs.is_visual.shape[1]))
        return Scores(jnp.broadcast_to(values, inputs.is_visual.shape))


@dataclass(frozen=True)
class SpreadScore:
    """Tokens in an order that covers each image evenly (see `spread_rank`), images taking turns."""

    needs_attention = False

    def macs(self, text, visual, dim):
        return 0

    def __call__(self, inputs: StageInputs) -> Scores:
        step = inputs.visual_step
        rank = spread_rank(step)[np.arange(inputs.is_visual.shape[1]) % step]
        return Scores(jnp.broadcast_to(-rank.astype(np.float32), inputs.is_visual.shape))


@method
def random(tokens: Amount = 192, *, seed: int = 0) -> SparsityConfig:
    """A random choice before the language model, the same for the same seed."""
    return _before(tokens, RandomScore(seed), "random")


@method
def uniform(tokens: Amount = 192) -> SparsityConfig:
    """Tokens spread evenly over the image, before the language model."""
    return _before(tokens, SpreadScore(), "uniform")


def _before(tokens: Amount, score: RandomScore | SpreadScore, name: str) -> SparsityConfig:
    budget = Tokens(parse_amount(tokens), Geometric())
    return SparsityConfig(budget=budget, layers=(-1,), score=score, recycle=None, name=name)
