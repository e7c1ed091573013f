"""A random model here and in `transformers`, asked the same: what each makes of it, and that both agree."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from sparsevlm_jax.models import LlavaConfig
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.processing import Layout, ProcessedInputs, prompt_row
from sparsevlm_jax.runtime.batching import assemble
from sparsevlm_jax.runtime.decode import generate
from sparsevlm_jax.runtime.prefill import PrefillInputs, prefill


class Pair(NamedTuple):
    """The same random model here and in `transformers`, both float32."""

    theirs: Any
    config: LlavaConfig
    params: dict


def shake(model: Any, seed: int) -> Any:
    """Makes attention far from uniform, and norms and biases random too, so that no wrong one goes unseen."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def processed(
    config: LlavaConfig, ids: Sequence[np.ndarray], pixels: np.ndarray, images_per_row: tuple[int, ...]
) -> ProcessedInputs:
    """Rows of token ids, image tokens among them, as a processor would give them; each image is shown once."""
    layout = Layout.of([config.picture] * sum(images_per_row))
    images = iter(range(sum(images_per_row)))
    rows = [
        prompt_row(row, row == config.image_token_id, [layout.rows_of(next(images)) for _ in range(count)])
        for row, count in zip(ids, images_per_row, strict=True)
    ]
    return ProcessedInputs(rows, pixels, layout, images_per_row, tuple(range(sum(images_per_row))))


def one_row(config: LlavaConfig, *, images: int, words: int) -> ProcessedInputs:
    """Images, then words, all random."""
    rng = np.random.default_rng(words)
    visual = np.full(images * config.tokens_per_image, config.image_token_id)
    ids = np.concatenate([[1], visual, rng.integers(5, 390, words - 1)]).astype(np.int32)
    pixels = rng.standard_normal((images, 3, config.vision.image_size, config.vision.image_size), np.float32)
    return processed(config, [ids], pixels, (images,))


def last_logits(pair: Pair, rows: ProcessedInputs) -> np.ndarray:
    return np.asarray(answer(pair, rows, 1)[0])


def answer(pair: Pair, rows: ProcessedInputs, new_tokens: int) -> tuple[jax.Array, jax.Array]:
    """The logits of the last token of the prompt, and the greedy tokens after it."""
    config = pair.config
    batch = assemble(rows, config, new_tokens=new_tokens)
    static: dict[str, Any] = dict(config=config, implementation="xla")

    @jax.jit
    def run(params, ids, length, pixels):
        features = jnp.zeros((0, config.tokens_per_image, config.text.hidden_size))
        if len(pixels):
            features = llava.encode_images(params, pixels, **static)
        inputs = PrefillInputs.of(ids, length, features, config.image_token_id)
        result = prefill(params, inputs, sparsity=None, bucket=batch.bucket, new_tokens=new_tokens, **static)
        tokens, _ = generate(params, result.logits, result.state, jnp.int32(new_tokens), buffer=new_tokens, **static)
        return result.logits, tokens.tokens

    logits, tokens = run(pair.params, batch.input_ids, batch.length, batch.pixel_values)
    return logits[0], tokens[0]


def torch_inputs(rows: ProcessedInputs, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    ids = torch.from_numpy(rows.input_ids[0].astype(np.int64))[None]
    pixels = {"pixel_values": torch.from_numpy(rows.pixel_values).to(dtype)} if len(rows.pixel_values) else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}


@torch.no_grad()
def their_logits(pair: Pair, rows: ProcessedInputs) -> np.ndarray:
    return pair.theirs(**torch_inputs(rows)).logits[0, -1].numpy()


def assert_close(ours: Any, theirs: Any, *, relative: float = 1e-5) -> None:
    """The largest error is at most `relative` times the largest value."""
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max(), strict=True)


def assert_same_sizes(ours: LlavaConfig, theirs: Any) -> None:
    """Every size and setting that both name is the same."""
    both = "hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
    text, vision = theirs.text_config, theirs.vision_config
    names = [*both, "vocab_size", "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings"]
    assert [getattr(ours.text, name) for name in names] == [getattr(text, name) for name in names]
    assert ours.text.sliding_window == getattr(text, "sliding_window", None)
    assert ours.text.rope_theta == text.rope_parameters["rope_theta"]
    names = [*both, "image_size", "patch_size", "layer_norm_eps", "hidden_act"]
    assert [getattr(ours.vision, name) for name in names] == [getattr(vision, name) for name in names]
    assert ours.image_token_id == theirs.image_token_id
    assert ours.vision_feature_layer == theirs.vision_feature_layer or isinstance(ours.vision_feature_layer, tuple)
    assert ours.vision_feature_select_strategy == theirs.vision_feature_select_strategy
