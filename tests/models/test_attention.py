"""Attention in blocks of queries, with shared key heads, of ragged rows: always the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.models.nn import attention
from sparsevlm_jax.models.nn.cache import append, with_room

TOKENS, LENGTHS = 21, [21, 13, 1]


def qkv(kv_heads: int):
    rng = np.random.default_rng(0)
    shapes = [(3, TOKENS, heads, 8) for heads in (4, kv_heads, kv_heads)]
    return [jnp.array(rng.normal(size=shape), jnp.float32) for shape in shapes]


def plain(q, k, v, length: int) -> np.ndarray:
    """Causal attention of one row's first `length` tokens, float64; key heads repeated for their groups."""
    q, k, v = (array[:length].astype(np.float64) for array in (q, k, v))
    k, v = (np.repeat(array, q.shape[1] // array.shape[1], axis=1) for array in (k, v))
    logits = np.einsum("TNH,SNH->NTS", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(np.where(np.tri(length, dtype=bool), logits, -np.inf))
    return np.einsum("NTS,SNH->TNH", weights / weights.sum(axis=-1, keepdims=True), v)


@pytest.mark.slow
@pytest.mark.parametrize("block", [2, 4, 21, 128])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_causal_attention_is_the_plain_formula_on_valid_rows_and_finite_elsewhere(monkeypatch, kv_heads, block):
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    q, k, v = qkv(kv_heads)
    out = np.asarray(attention.causal_attention(q, k, v, jnp.array(LENGTHS), implementation="xla"))
    assert np.isfinite(out).all()
    for row, length in enumerate(LENGTHS):
        expected = plain(*(np.asarray(array[row]) for array in (q, k, v)), length=length)
        np.testing.assert_allclose(out[row, :length], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [2, 4, 21, 128])
def test_full_attention_is_the_same_in_blocks_with_a_bias_for_every_key(monkeypatch, block):
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    q, k, v = qkv(kv_heads=4)
    bias = jnp.log(jnp.arange(1.0, 1 + 3 * TOKENS)).reshape(3, TOKENS)
    out = attention.full_attention(q, k, v, implementation="xla", key_bias=bias)
    logits = (
        np.einsum("BTNH,BSNH->BNTS", np.asarray(q, np.float64), np.asarray(k, np.float64)) / np.sqrt(q.shape[-1])
        + np.asarray(bias)[:, None, None]
    )
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected = np.einsum("BNTS,BSNH->BTNH", weights / weights.sum(axis=-1, keepdims=True), np.asarray(v, np.float64))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_decoding_a_token_is_the_last_row_of_causal_attention(kv_heads):
    q, k, v = qkv(kv_heads)
    length = jnp.array(LENGTHS) - 1
    rows = jnp.arange(3)
    k_cache, v_cache = (append(with_room(array, 2), array[rows, length][:, None], length) for array in (k, v))
    out = attention.decode_attention(q[rows, length][:, None], k_cache, v_cache, length + 1, implementation="xla")
    full = attention.causal_attention(q, k, v, length + 1, implementation="xla")
    np.testing.assert_allclose(out[:, 0], full[rows, length], rtol=1e-5, atol=1e-6)


def test_append_of_one_row_writes_the_same_slot_as_of_many():
    cache, new = jnp.zeros((2, 4, 1, 1)), jnp.ones((2, 1, 1, 1))
    together = append(cache, new, jnp.array([2, 0]))
    assert together[..., 0, 0].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert append(cache[:1], new[:1], jnp.array([2]))[..., 0, 0].tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "chosen"),
    [
        ("cpu", jnp.bfloat16, 128, "xla"),
        ("gpu", jnp.bfloat16, 128, "cudnn"),
        ("gpu", jnp.float16, 64, "cudnn"),
        ("gpu", jnp.float32, 128, "xla"),
        ("gpu", jnp.bfloat16, 12, "xla"),
        ("gpu", jnp.bfloat16, 256, "xla"),
    ],
)
def test_cudnn_is_chosen_where_it_can_run(platform, dtype, head_dim, chosen):
    assert attention.choose_implementation(dtype, head_dim=head_dim, platform=platform) == chosen


def test_an_implementation_that_cannot_run_here_is_an_error_not_another_one():
    if jax.default_backend() != "cpu":
        pytest.skip("cuDNN may run here")
    q, k, v = qkv(4)
    with pytest.raises(Exception, match=r"(?i)cudnn|cuda|gpu|dtype"):
        attention.causal_attention(q, k, v, jnp.array(LENGTHS), implementation="cudnn")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() == "cpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cudnn_is_the_plain_formula_to_half_precision(kv_heads):
    q, k, v = (array.astype(jnp.bfloat16) for array in qkv(kv_heads))
    length, rows = jnp.array(LENGTHS), jnp.arange(3)
    causal = attention.causal_attention(q, k, v, length, implementation="cudnn")
    full = attention.full_attention(q, k, v, implementation="cudnn")
    last = q[rows, length - 1][:, None]
    decoded = attention.decode_attention(last, k, v, length, implementation="cudnn")
    for row, own in enumerate(LENGTHS):
        expected = plain(*(np.asarray(array[row], np.float32) for array in (q, k, v)), length=own)
        for out, held in ((causal[row, :own], expected), (decoded[row], expected[-1:])):
            assert np.linalg.norm(np.float64(out) - held) < 1e-2 * np.linalg.norm(held)
    exact = attention.full_attention(*(array.astype(jnp.float32) for array in (q, k, v)), implementation="xla")
    assert np.linalg.norm(np.float64(full) - np.float64(exact)) < 1e-2 * np.linalg.norm(exact)
