"""Training with pruning on sees what pruned generation sees, and gradients pass through the stages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.train_demo import language, pruned, tokenizer, tower
from examples.train_demo.curriculum import ALL
from examples.train_demo.language import Lesson
from examples.train_demo.packing import PREFIX_IDS, SEGMENT
from sparsevlm_jax.demo.world import Mix
from sparsevlm_jax.models.families.llava import encode_images
from sparsevlm_jax.runtime.prefill import PrefillInputs, prefill
from sparsevlm_jax.sparsify import Bucket, SparsityConfig

pytestmark = pytest.mark.slow

CONFIG = language.config(3)
DATA = language.batch(0, 1, Lesson(Mix(signs=(2, 2)), 2, ALL, 3.0))


@pytest.fixture(scope="module")
def params():
    return language.new_params(0, 3, tower.new_params(0)["vision_tower"], 1.0)


def test_the_answer_starts_as_it_does_in_a_pruned_prefill(params):
    """Prompt and answer together, or the prompt alone as `generate` sends it: the same tokens kept, the same logits."""
    some = SparsityConfig.kept(60, 30, layers=(0, 1))
    told = jax.jit(lambda params: pruned.logits(params, DATA, CONFIG, some))(params)
    visual = CONFIG.tokens_per_image
    bucket = Bucket(len(PREFIX_IDS) + SEGMENT, visual)
    ask = jax.jit(partial(prefill, config=CONFIG, sparsity=some, bucket=bucket, implementation="xla"))
    features = encode_images(params, jnp.asarray(DATA.pixel_values), config=CONFIG, implementation="xla")
    for place, own in enumerate(DATA.segments.ids[0]):
        asked = int((own == tokenizer.ASSISTANT).argmax()) + 1
        ids = np.array([[*PREFIX_IDS, *[tokenizer.IMAGE] * visual, *own]], np.int32)
        length = jnp.array([len(PREFIX_IDS) + visual + asked])
        alone = ask(params, PrefillInputs.of(jnp.asarray(ids), length, features, tokenizer.IMAGE))
        np.testing.assert_allclose(told[0, place, asked - 1], alone.logits[0], atol=2e-5)


def test_pruning_changes_the_loss_and_leaves_a_gradient_everywhere(params):
    some = SparsityConfig.kept(30, layers=(1,))

    def loss(params):
        return language.loss(params, DATA, CONFIG, partial(pruned.logits, sparsity=some))[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(dict(params))
    layers = gradient["language_model"]["layers"]
    for part in (gradient["multi_modal_projector"], *layers.values()):
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(part))
        assert any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(part))
    dense = jax.jit(lambda params: language.loss(params, DATA, CONFIG)[0])(params)
    assert float(value) != pytest.approx(float(dense), abs=1e-6)
