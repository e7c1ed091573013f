"""Shapes without a model of full depth are those of the model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from sparsevlm_jax.checkpoints.own import read_own_config
from sparsevlm_jax.demo import CHECKPOINT
from sparsevlm_jax.models import abstract_params, init_params
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.models.nn import params

DEMO = read_own_config(CHECKPOINT)


def spelled(tree) -> list[tuple[str, tuple[int, ...]]]:
    return sorted((jax.tree_util.keystr(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))


@pytest.mark.parametrize(("tower", "text"), [(1, 1), (2, 3), (1, 3), (3, 1)])
def test_abstract_parameters_are_those_of_a_fresh_model(tower, text):
    vision = replace(DEMO.vision, num_hidden_layers=tower)
    config = replace(DEMO, vision=vision, text=replace(DEMO.text, num_hidden_layers=text))
    assert spelled(abstract_params(config, jnp.bfloat16)) == spelled(init_params(config))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(config, jnp.bfloat16))} == {jnp.dtype(jnp.bfloat16)}


def test_a_module_binds_the_shapes_that_are_asked_for():
    for module, part in llava.modules(DEMO).values():
        shapes = params.shapes(module, part, jnp.float32)
        assert spelled(shapes) == spelled(params._keys(params._split(module, part)[1], str))
