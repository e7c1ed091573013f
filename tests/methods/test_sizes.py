"""A merged token that counts as many as it stands for is that many equal tokens, in prefill and in decode."""

import dataclasses
import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsevlm_jax.models.nn.attention import causal_attention, decode_attention, full_attention
from sparsevlm_jax.models.nn.cache import KVCache
from sparsevlm_jax.runtime.decode import decode_step
from sparsevlm_jax.sparsify import Recycle

from .test_model import CONFIG, model, run
from .world import pruned

__all__ = ["model"]
ALL_RECYCLED = dataclasses.replace(
    pruned("sparsevlm-sized", "1/2"), recycle=Recycle(candidates=Fraction(1), size_aware=True)
)


def test_a_key_of_size_n_is_n_equal_keys():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 6, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    size = np.array([1, 3, 1, 2, 1, 4])
    copies, bias = np.repeat(np.arange(6), size), jnp.log(size)[None].astype(jnp.float32)
    many_k, many_v = k[:, copies], v[:, copies]
    for row in range(6):  # a query sees the keys up to its own, whole
        seen = jnp.array([size[: row + 1].sum()])
        many = decode_attention(q[:, row : row + 1], many_k, many_v, seen, implementation="xla")
        one = decode_attention(q[:, row : row + 1], k, v, jnp.array([row + 1]), implementation="xla", key_bias=bias)
        np.testing.assert_allclose(one, many, atol=2e-6)
        causal = causal_attention(q, k, v, jnp.array([6]), implementation="xla", key_bias=bias)
        np.testing.assert_allclose(causal[:, row : row + 1], many, atol=2e-6)
    np.testing.assert_allclose(full_attention(q, k, v, implementation="xla", key_bias=bias)[:, 5:], many, atol=2e-6)


def test_a_bias_is_an_error_where_the_kernel_takes_none():
    q = jnp.zeros((1, 2, 1, 8))
    with pytest.raises(ValueError, match="needs 'xla' attention, got 'cudnn'"):
        causal_attention(q, q, q, jnp.array([2]), implementation="cudnn", key_bias=jnp.zeros((1, 2)))


@pytest.mark.slow
def test_where_all_the_dropped_are_recycled_sizes_add_up_to_the_prompt_after_every_stage(model):
    result = run(model, [0, 1, 2], ALL_RECYCLED)
    cache, biases = result.state.cache, result.state.cache.bias or ()
    assert [bias is None for bias in biases] == [True, True, False, False], "layers before the first merge"
    prompt = cache.length[0]
    for layer in (2, 3):
        bias = np.asarray(biases[layer])
        size = np.where(np.arange(bias.shape[1]) < cache.length[layer][:, None], np.exp(bias), 0)
        np.testing.assert_allclose(size.sum(axis=1), prompt, rtol=1e-5)
        assert size[0].max() >= 2 and (cache.length[layer][:2] < prompt[:2]).all()


@pytest.mark.slow
def test_decode_sees_a_merged_token_as_often_as_it_counts(model):
    state = run(model, [1], ALL_RECYCLED).state
    step = jax.jit(functools.partial(decode_step, config=CONFIG, implementation="xla"))
    token = jnp.array([5])
    logits, after = step(model, state, token)
    assert [bias is None for bias in after.cache.bias or ()] == [True, True, False, False]

    keys, values, lengths = [], [], []
    for layer in range(4):
        length, bias = int(state.cache.length[layer, 0]), (state.cache.bias or ())[layer]
        size = np.ones(length, int) if bias is None else np.rint(np.exp(bias[0, :length])).astype(int)
        copies = np.repeat(np.arange(length), size)
        for name, into in (("k", keys), ("v", values)):
            into.append(jnp.pad(getattr(state.cache, name)[layer][:, copies], ((0, 0), (0, 1), (0, 0), (0, 0))))
        lengths.append([len(copies)])
    expanded = state._replace(cache=KVCache(tuple(keys), tuple(values), jnp.array(lengths)))
    np.testing.assert_allclose(logits, decode_step_of(model, expanded, token), atol=2e-5)

    blind = state._replace(cache=state.cache._replace(bias=None))
    assert abs(decode_step_of(model, blind, token) - logits).max() > 1e-4, "sizes do matter here"


@jax.jit
def decode_step_of(tree, state, token):
    return decode_step(tree, state, token, config=CONFIG, implementation="xla")[0]


def test_sizes_weigh_in_the_mean_and_add_up():
    with pytest.raises(ValueError, match="size-aware recycling merges by the mean, got merge = 'sum'"):
        Recycle(merge="sum", size_aware=True)
