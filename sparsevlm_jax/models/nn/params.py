"""Modules to plain nested dicts of arrays and back: the one place that speaks `nnx`.

What crosses `jax.jit` is a nested dict with string keys, and a module is put around it inside, while tracing; an
`nnx.Module` argument would cost tens of milliseconds of Python per call on a 32-layer model. Keys are the attribute
names, list positions as "0", "1", ...
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


class _OneKey(nnx.Rngs):
    """The same key for every parameter. Where only shapes are asked for, counting draws takes three times as long as
    all the rest."""

    def __init__(self, key: jax.Array):
        self._key = key

    def params(self) -> jax.Array:
        return self._key


@functools.lru_cache(maxsize=64)
def _split(module: Callable, config: Any) -> tuple[nnx.GraphDef, dict]:
    graphs = []

    def build() -> dict:
        graph, state = nnx.split(module(config, rngs=_OneKey(jax.random.key(0))))
        graphs.append(graph)
        return nnx.to_pure_dict(state)

    abstract = jax.eval_shape(build)
    return graphs[0], abstract


def bind(module: Callable, config: Any, params: dict) -> Any:
    """`module(config)` around `params`; call it inside jit."""
    return nnx.merge(_split(module, config)[0], _keys(params, lambda key: int(key) if key.isdigit() else key))


def shapes(module: Callable, config: Any, dtype: jax.typing.DTypeLike) -> dict:
    """The tree `bind` takes, as `jax.ShapeDtypeStruct`s of `dtype`.

    The layers of a module are alike, so one is built, and its shapes stand for all: a model is loaded without waiting
    for a module of its depth.
    """
    depth = getattr(config, "num_hidden_layers", 0)
    one = dataclasses.replace(config, num_hidden_layers=1) if depth > 1 else config
    tree = _repeat(_keys(_split(module, one)[1], str), depth)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


def init(module: Callable, config: Any, seed: int) -> dict:
    """Freshly initialised parameters, float32."""
    return _keys(nnx.to_pure_dict(nnx.split(module(config, rngs=nnx.Rngs(seed)))[1]), str)


def _repeat(tree: Any, depth: int) -> Any:
    """Every list of one, {"0": layer}, as a list of `depth`."""
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {"0"} and depth > 1:
        return {str(index): tree["0"] for index in range(depth)}
    return {key: _repeat(value, depth) for key, value in tree.items()}


def _keys(tree: Any, convert: Callable) -> Any:
    return {convert(key): _keys(value, convert) for key, value in tree.items()} if isinstance(tree, dict) else tree
