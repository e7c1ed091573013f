"""Training with pruning on: with nothing pruned it is ordinary training, and gradients pass through the stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.demo import language, pruned, tokenizer, tower
from sparsevlm_jax.demo.curriculum import ALL
from sparsevlm_jax.demo.language import Lesson
from sparsevlm_jax.demo.world import Mix
from sparsevlm_jax.sparsify import SparsityConfig

CONFIG = language.config(3)
DATA = language.batch(0, 1, Lesson(Mix(signs=(2, 2)), 2, ALL, 3.0))


@pytest.fixture(scope="module")
def params():
    return language.new_params(0, 3, tower.new_params(0)["vision_tower"], 1.0)


def test_keeping_every_token_gives_the_logits_of_dense_training(params):
    everything = SparsityConfig.kept(144, layers=(1,))
    told = pruned.logits(params, DATA, CONFIG, everything)
    dense = language.logits(params, DATA, CONFIG)
    real = DATA.segments.ids != tokenizer.PAD
    np.testing.assert_allclose(told[real], dense[real], atol=2e-4)


def test_pruning_changes_the_loss_and_leaves_a_gradient_everywhere(params):
    some = SparsityConfig.kept(30, layers=(1,))

    def loss(params):
        return language.loss(params, DATA, CONFIG, lambda *args: pruned.logits(*args, some))[0]

    gradient = jax.grad(loss)(dict(params))
    layers = gradient["language_model"]["layers"]
    for part in (gradient["multi_modal_projector"], *layers.values()):
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(part))
        assert any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(part))
    assert float(loss(params)) != pytest.approx(float(language.loss(params, DATA, CONFIG)[0]), abs=1e-6)
