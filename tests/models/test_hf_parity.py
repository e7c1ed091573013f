"""The dense model computes what `transformers` computes: module by module, then logits, then greedy tokens.

Weights are four times the usual initialisation, so that attention is far from uniform and a wrong position, scale or
mask shows. Tolerances are relative to the largest value compared, and a few times the error measured.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sparsevlm_jax.checkpoints.sources import load_checkpoint
from sparsevlm_jax.models import LlavaConfig
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.models.families.family import language_model
from sparsevlm_jax.models.nn.params import bind
from sparsevlm_jax.models.towers.clip import ClipVisionModel
from sparsevlm_jax.processing import PixelConfig, ProcessedInputs, Processor
from sparsevlm_jax.runtime.batching import assemble
from sparsevlm_jax.runtime.decode import generate
from sparsevlm_jax.runtime.prefill import PrefillInputs, prefill, start
from sparsevlm_jax.runtime.segment import last_logits, run_segment
from tests.parity import Pair, assert_close, processed, torch_inputs
from tests.tiny import IMAGE_SIZE, random_image, save_llava, tiny_llava, tiny_tokenizer

pytestmark = pytest.mark.slow

NEW_TOKENS = 16
PROMPTS = (
    "What is written on the blue sign?",
    "How many people are in <image> and in <image>?",
    "Where do they stand?",
)
IMAGES = ([random_image(0)], [random_image(1, 30, 40), random_image(2, 80, 57)], [])
CASES = {"heads": {}, "grouped heads": {"kv_heads": 2}, "one key head": {"kv_heads": 1}, "tied": {"tied": True}}
VISION = pytest.mark.parametrize("pair", ["heads"], indirect=True)  # the decoder's heads are all the same to a tower

encode = jax.jit(partial(llava.encode_images, implementation="xla"), static_argnames="config")


def process(pair: Pair, row: int) -> ProcessedInputs:
    processor = Processor(tiny_tokenizer(), pair.config, pixels=PixelConfig.square(IMAGE_SIZE))
    return processor([PROMPTS[row]], [IMAGES[row]])


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request, tmp_path_factory) -> Pair:
    model = tiny_llava(seed=3, **CASES[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    loaded = load_checkpoint(save_llava(tmp_path_factory.mktemp("pair") / "hf", model))
    return Pair(model, loaded.config, loaded.params)


def inputs_of(pair: Pair, rows: ProcessedInputs, params: dict) -> tuple[PrefillInputs, Any]:
    batch = assemble(rows, pair.config, new_tokens=NEW_TOKENS)
    features = jnp.zeros((0, pair.config.tokens_per_image, pair.config.text.hidden_size))
    if len(batch.pixel_values):
        features = encode(params, batch.pixel_values, config=pair.config)
    ids, length = jnp.asarray(batch.input_ids), jnp.asarray(batch.length)
    return PrefillInputs.of(ids, length, features, pair.config.image_token_id), batch.bucket


@VISION
@torch.no_grad()
def test_every_hidden_state_of_the_vision_tower(pair):
    pixels = process(pair, 1).pixel_values
    theirs = pair.theirs.model.vision_tower(torch.from_numpy(pixels), output_hidden_states=True).hidden_states

    @jax.jit
    def states(params, pixels):
        tower = bind(ClipVisionModel, pair.config.vision, params)
        return [tower.hidden_state(pixels, index, implementation="xla") for index in range(-len(theirs), len(theirs))]

    for ours, expected in zip(states(pair.params["vision_tower"], pixels), (*theirs, *theirs), strict=True):
        assert_close(ours, expected, relative=5e-6)


@VISION
@torch.no_grad()
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_image_features_of_every_layer_and_strategy(pair, layer, strategy):
    choice = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    pixels = process(pair, 1).pixel_values
    theirs = pair.theirs.model.get_image_features(torch.from_numpy(pixels), **choice).pooler_output
    config = LlavaConfig.from_hf({**pair.theirs.config.to_dict(), **choice})
    assert_close(encode(pair.params, pixels, config=config), torch.stack(list(theirs)), relative=5e-6)


@VISION
@torch.no_grad()
def test_the_projector(pair):
    features = np.random.default_rng(0).standard_normal((2, 5, 64), np.float32)
    theirs = pair.theirs.model.multi_modal_projector(torch.from_numpy(features))
    assert_close(llava.project(pair.params, jnp.asarray(features), config=pair.config), theirs, relative=5e-7)


@torch.no_grad()
@pytest.mark.parametrize("row", range(3), ids=["one image", "two images", "no image"])
def test_hidden_states_after_every_layer_and_logits_of_every_token(pair, row):
    inputs = process(pair, row)
    theirs = pair.theirs(**torch_inputs(inputs), output_hidden_states=True)
    prompt, bucket = inputs_of(pair, inputs, pair.params)

    @jax.jit
    def run(params, prompt):
        lm = language_model(params, pair.config)
        stream, _ = start(lm, prompt, sparsity=None, bucket=bucket)
        hidden = [stream.hidden]
        for layer in range(pair.config.text.num_hidden_layers):
            stream = run_segment(lm, stream, range(layer, layer + 1), None, implementation="xla", whole=True).stream
            hidden.append(stream.hidden)
        return hidden[:-1], lm.logits(stream.hidden), last_logits(lm, stream)

    hidden, logits, last = run(pair.params, prompt)
    tokens = len(inputs.input_ids[0])
    # HF's last hidden state has passed the final norm, ours has not: it is compared through the logits.
    for ours, expected in zip(hidden, theirs.hidden_states[:-1], strict=True):
        assert_close(ours[:, :tokens], expected, relative=5e-6)
    assert_close(logits[:, :tokens], theirs.logits, relative=5e-6)
    assert_close(last, theirs.logits[:, -1], relative=5e-6)


def greedy(pair: Pair, rows: ProcessedInputs) -> np.ndarray:
    """New tokens of each row: prefill and the decode loop in one program."""
    prompt, bucket = inputs_of(pair, rows, pair.params)
    static: dict[str, Any] = dict(config=pair.config, implementation="xla")

    @jax.jit
    def run(params, prompt):
        result = prefill(params, prompt, sparsity=None, bucket=bucket, new_tokens=NEW_TOKENS, **static)
        return generate(params, result.logits, result.state, jnp.int32(NEW_TOKENS), buffer=NEW_TOKENS, **static)

    return np.asarray(run(pair.params, prompt)[0].tokens)


def their_greedy(pair: Pair, inputs: ProcessedInputs) -> np.ndarray:
    ids = pair.theirs.generate(**torch_inputs(inputs), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=401)
    new = ids[0, inputs.input_ids[0].size :].numpy()
    return np.pad(new, (0, NEW_TOKENS - new.size), constant_values=401)


@torch.no_grad()
def test_sixteen_greedy_tokens_of_a_ragged_batch_are_those_of_each_row_alone(pair):
    singles = [process(pair, row) for row in range(3)]
    batch = processed(
        pair.config,
        [inputs.input_ids[0] for inputs in singles],
        np.concatenate([inputs.pixel_values for inputs in singles]),
        tuple(inputs.images_per_row[0] for inputs in singles),
    )
    np.testing.assert_array_equal(greedy(pair, batch), np.stack([their_greedy(pair, inputs) for inputs in singles]))


@pytest.mark.parametrize("pair", ["grouped heads"], indirect=True)
@torch.no_grad()
def test_sixteen_greedy_tokens_of_one_prompt(pair):
    np.testing.assert_array_equal(greedy(pair, process(pair, 1))[0], their_greedy(pair, process(pair, 1)))


@torch.no_grad()
def test_in_bfloat16_logits_are_as_near_to_float32_as_torchs_own(pair):
    """As many roundings in another order: which of the two is nearer is chance, by how much is not."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), pair.params)
    errors = []
    for row in range(len(PROMPTS)):
        inputs = process(pair, row)
        exact = pair.theirs(**torch_inputs(inputs)).logits[:, -1].numpy()
        pair.theirs.to(torch.bfloat16)
        try:
            theirs = pair.theirs(**torch_inputs(inputs, torch.bfloat16)).logits[:, -1].float().numpy()
        finally:
            pair.theirs.to(torch.float32)
        prompt, bucket = inputs_of(pair, inputs, params)
        static: dict[str, Any] = dict(config=pair.config, sparsity=None, bucket=bucket, implementation="xla")
        ours = np.asarray(jax.jit(partial(prefill, **static))(params, prompt).logits)
        errors.append([np.mean((logits - exact) ** 2) for logits in (ours, theirs)])
    ours_error, their_error = np.sqrt(np.mean(errors, axis=0))
    assert ours_error <= 1.1 * their_error
