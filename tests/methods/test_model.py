"""Every method inside a model: each row as if it were alone, one program for one shape, all tokens kept is dense."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax import methods
from sparsevlm_jax.models import init_params
from sparsevlm_jax.models.decoders.llama import LlamaConfig
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.models.families.llava import LlavaConfig
from sparsevlm_jax.models.towers.clip import ClipVisionConfig
from sparsevlm_jax.processing import Layout
from sparsevlm_jax.runtime.prefill import PrefillInputs, PrefillResult, prefill
from sparsevlm_jax.sparsify import Bucket, ImageContext, SparsityConfig
from tests.marks import sampled

pytestmark = pytest.mark.slow

IMAGE_ID, STEP = 63, 16
CONFIG = LlavaConfig(
    vision=ClipVisionConfig(32, 48, 4, 2, image_size=28, patch_size=7),
    text=LlamaConfig(64, 32, 48, 4, 4, 2, 8, 1e-5, 1e4, 512),
    image_token_id=IMAGE_ID,
)
BUCKET = Bucket(text=9, visual=2 * STEP, images=2)
ROWS = ((1, 4), (2, 7), (0, 6))  # images and words behind them
TRACED: list[SparsityConfig | None] = []  # a new entry for every program that is compiled
PRUNED = sorted(set(methods.METHODS) - {"dense"})


@pytest.fixture(scope="module")
def model() -> dict:
    return init_params(CONFIG)


@functools.partial(jax.jit, static_argnames=("context", "merging"))
def encode(tree, pixels, context, merging):
    return llava.encode(tree, pixels, config=CONFIG, implementation="xla", context=context, merging=merging)


def known(context: ImageContext | None, images: int) -> ImageContext:
    """The tower's context, and where the tokens are."""
    layout = Layout.of([CONFIG.picture] * images)
    return (context or ImageContext())._replace(media=jnp.asarray(layout.media), cell=jnp.asarray(layout.cell))


@functools.partial(jax.jit, static_argnames=("sparsity",))
def run_prefill(tree, inputs, sparsity):
    TRACED.append(sparsity)
    return prefill(tree, inputs, config=CONFIG, sparsity=sparsity, bucket=BUCKET, implementation="xla", new_tokens=1)


def run(tree: dict, rows: list[int], sparsity: SparsityConfig | None) -> PrefillResult:
    """A batch of some of ROWS, each with its own words and pictures whatever stands beside it."""
    ids, lengths, pixels = np.zeros((len(rows), BUCKET.capacity), np.int32), [], []
    for at, row in enumerate(rows):
        rng, (images, words) = np.random.default_rng(row), ROWS[row]
        line = [*rng.integers(0, 60, 2), *[IMAGE_ID] * (images * STEP), *rng.integers(0, 60, words)]
        ids[at, : len(line)] = line
        lengths.append(len(line))
        pixels += [rng.normal(size=(3, 28, 28)) for _ in range(images)]
    pixels += [np.zeros((3, 28, 28))] * (3 - len(pixels))
    context, merging = ("tower" in sparsity.needs, sparsity.merging) if sparsity else (False, None)
    images = encode(tree, jnp.asarray(np.array(pixels), jnp.float32), context, merging)
    inputs = PrefillInputs.of(
        jnp.asarray(ids), jnp.asarray(lengths), images.tokens, IMAGE_ID, known(images.context, len(pixels))
    )
    return run_prefill(tree, inputs, sparsity)


@pytest.mark.parametrize("name", sampled(PRUNED, ("sparsevlm", "pyramiddrop", "divprune", "tome", "visionzip")))
def test_a_batch_is_its_rows_one_by_one_and_a_second_one_compiles_nothing(model, name):
    together = run(model, [0, 1, 2], methods.create(name, "1/2"))
    before = len(TRACED)
    elsewhere = run(model, [1, 0, 2], methods.create(name, "1/2"))
    assert len(TRACED) == before, "an equal method is the same program"
    for row in (0, 1):
        alone = run(model, [row], methods.create(name, "1/2"))
        assert alone.visual_count[:, 0].tolist() == together.visual_count[:, row].tolist()
        assert 0 < int(together.visual_count[-1, row]) < ROWS[row][0] * STEP
        for other in (alone.logits[0], elsewhere.logits[1 - row]):
            np.testing.assert_allclose(other, together.logits[row], atol=2e-5)
    np.testing.assert_allclose(elsewhere.logits[2], together.logits[2], atol=2e-5)
    assert len(TRACED) == before + 1, "rows of one image and of two share a program"


@pytest.mark.parametrize("name", PRUNED)
def test_keeping_every_token_is_dense(model, name):
    dense = run(model, [0, 1, 2], None)
    kept = run(model, [0, 1, 2], methods.create(name, 2 * STEP))
    assert (kept.visual_count == jnp.array([STEP, 2 * STEP, 0])).all()
    np.testing.assert_allclose(kept.logits, dense.logits, atol=2e-5)
    assert kept.state.cache.length.tolist() == dense.state.cache.length.tolist()
    assert kept.state.next_position.tolist() == dense.state.next_position.tolist()


def test_a_method_that_asks_nothing_of_the_tower_costs_it_nothing(model):
    pixels = jnp.ones((2, 3, 28, 28))

    def encode_images(tree, pixels):
        return llava.encode(tree, pixels, config=CONFIG, implementation="xla").tokens

    def plain(tree, pixels):
        return llava.encode_images(tree, pixels, config=CONFIG, implementation="xla").reshape(-1, 32)

    ours, theirs = (jax.jit(function).lower(model, pixels).as_text() for function in (encode_images, plain))
    assert ours.replace("encode_images", "plain") == theirs
    for name in ("sparsevlm", "fastv", "visionzip"):
        cache = jax.eval_shape(lambda name=name: run(model, [0], methods.create(name, "1/2"))).state.cache
        assert not any(bias is not None for bias in cache.bias), "no sizes, no bias"
