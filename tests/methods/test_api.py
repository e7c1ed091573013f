"""The methods from the outside: the same report and trace as SparseVLM's, and the method of the documentation."""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sparsevlm_jax as sv
from sparsevlm_jax import methods
from tests.tiny import random_image

from .world import IMAGES, make_world, pruned, run_stage

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint):
    return sv.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def reports(vlm) -> dict:
    return {
        name: sv.trace_prefill(vlm, "what?", random_image(), sparsity=pruned(name, "1/2"))
        for name in ("tome", "visionzip", "divprune")
    }


def test_the_report_counts_a_method_before_the_language_model(reports):
    for name, trace in reports.items():
        report = trace.report
        assert report["method"] == name and abs(report["mean_after_layers"] - 8) <= 1
        assert report["visual_tokens"] == (report["visual_tokens"][0],) * 4 and report["visual_tokens"][0] <= 9
        assert report["mean_after_layers"] == report["mean_entering_layers"]
        assert report["flops"] < report["flops_dense"] and report["kv_bytes"] < report["kv_bytes_dense"]


def test_only_merging_inside_the_tower_makes_the_tower_cheaper(reports):
    assert reports["tome"].report["flops_dense"] == reports["divprune"].report["flops_dense"]
    assert reports["tome"].report["flops"] < reports["divprune"].report["flops"]


def test_what_scoring_cost_is_the_methods_own_count(reports):
    stage = {name: trace.report["stages"][0] for name, trace in reports.items()}
    assert stage["visionzip"]["score"] == stage["tome"]["score"] == 0 and stage["divprune"]["select"] == 16 * 16 * 64
    assert all(cost["raters"] == cost["recycle"] == 0 for cost in stage.values())


def test_the_trace_tells_what_was_kept_and_what_became_of_the_rest(reports):
    for name, tokens in (("tome", 16), ("visionzip", 17)):  # VisionZip's tokens hold the class token, too
        merged = reports[name].stages[0]
        assert merged.scores.sum() == tokens and (merged.scores[merged.kept] > 0).all() and len(merged.kept) == 8


def test_tokens_that_count_their_size_are_refused_where_attention_is_fused(vlm):
    fused = dataclasses.replace(vlm, implementation="cudnn")
    with pytest.raises(ValueError, match="need attention 'xla'.*has 'cudnn'"):
        sv.generate(fused, "what?", random_image(), sparsity=methods.create("sparsevlm-sized", "1/2"))


def test_the_method_of_the_documentation_works_and_is_short(monkeypatch):
    monkeypatch.setattr(methods.registry, "METHODS", dict(methods.METHODS))
    (source,) = (
        block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "@method" in block
    )
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
    exec(compile(source, str(DOCS), "exec"), {})
    config = methods.registry.METHODS["longest"](6)
    assert config is not None
    world = make_world(config)
    _, decision, left, _ = run_stage(world, config)
    for row, images in enumerate(IMAGES):
        norm = jnp.linalg.norm(world.stream.hidden[row][world.stream.is_visual[row]], axis=-1)
        count = int(decision.selection.count[row])
        assert 0 < count < 6 or not images, "fewer behind layer 4, for a mean of 6"
        expected = sorted(np.argsort(-np.asarray(norm), kind="stable")[:count].tolist())
        assert np.flatnonzero(decision.selection.is_kept[row]).tolist() == expected
    assert left.is_visual.sum(axis=1).tolist() == decision.selection.count.tolist()


def test_the_documentation_has_a_row_for_every_method():
    table = DOCS.read_text().partition("## What there is")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE))
    assert rows == methods.METHODS.keys()
