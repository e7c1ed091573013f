"""Configurations that are equal are the same in every field, types included, and so in every plan.

A compiled program is found by equality; in Python True == 1 == 1.0 == Fraction(1), with equal hashes.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from decimal import Decimal
from fractions import Fraction
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsevlm_jax import methods, sparsify
from sparsevlm_jax.methods import dart, plain, prumerge, tome, tower, visionzip
from sparsevlm_jax.methods.tome import PerImage
from sparsevlm_jax.sparsify import Bucket, Geometric, KeptTokens, RankScale, RaterScore, Share, SparsityConfig, Tokens
from sparsevlm_jax.sparsify.config import StagePlan, _plan
from sparsevlm_jax.sparsify.schedule import V15, Geometry

DEPTH, BUCKET = 32, Bucket(text=8, visual=64)
NOT_IN_A_CONFIG = {Bucket, StagePlan, Geometry}  # made by the library itself, of counts
#: What every number may be written as, and what equals it in Python without being meant.
ONES = (
    1,
    1.0,
    True,
    np.int64(1),
    np.uint8(1),
    np.float32(1),
    np.bool_(True),
    Fraction(1),
    Decimal(1),
    "1",
    "100%",
    "1/1",
)
ZEROS = (0, 0.0, -0.0, False, np.int32(0), np.float64(-0.0), Fraction(0), "0", "0%")
HALVES = (0.5, np.float16(0.5), Fraction(1, 2), Decimal("0.5"), "1/2", "50%", "0.50")
WORDS = ("greater", "mean", "cosine", "repack", "numerical", np.str_("greater"), np.str_("mean"), "x", None)
LEAVES = (*ONES, *ZEROS, *HALVES, *WORDS, 2, 2.0, np.int64(2), float("nan"))


def parts() -> list[type]:
    """Every dataclass of the library that can be part of a configuration."""
    modules = [
        sparsify,
        *(importlib.import_module(f"{sparsify.__name__}.{m.name}") for m in pkgutil.iter_modules(sparsify.__path__)),
    ]
    modules += [importlib.import_module(f"{methods.__name__}.{m.name}") for m in pkgutil.iter_modules(methods.__path__)]
    found = {
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if dataclasses.is_dataclass(kind) and kind.__module__.startswith("sparsevlm_jax.")
    }
    return sorted(found - NOT_IN_A_CONFIG, key=lambda kind: kind.__name__)


BASES: dict[str, Any] = {
    "Anchors": V15,
    "CellMeans": plain.CellMeans(PerImage(5)),
    "DominantAndContextual": visionzip.DominantAndContextual(PerImage(5)),
    "KeptTokens": KeptTokens((9, 5)),
    "OutliersAndGrid": prumerge.OutliersAndGrid(PerImage(5)),
    "PerImage": PerImage(5),
    "RankDeficit": sparsify.RankDeficit(0.5),
    "Share": Share(Fraction(1, 2)),
    "SparsityConfig": SparsityConfig.sparsevlm(9),
    "TokenMerging": tome.TokenMerging(PerImage(5)),
    "Tokens": Tokens(9),
    "WholeParts": dart.WholeParts(Tokens(9)),
    "Present": tower.Present(PerImage(5)),
}
FIELDS = [(kind, field.name) for kind in parts() for field in dataclasses.fields(kind)]


def base(kind: type) -> Any:
    return BASES[kind.__name__] if kind.__name__ in BASES else kind()


def same(value: Any, other: Any) -> bool:
    """Equal in every field and every type; functions, and parts without fields, by themselves."""
    if type(value) is not type(other):
        return False
    if dataclasses.is_dataclass(value):
        return all(same(getattr(value, f.name), getattr(other, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, tuple):
        return len(value) == len(other) and all(map(same, value, other))
    return value == other and str(value) == str(other)  # -0.0 == 0.0


def made(value: Any, /, **fields: Any) -> Any:
    """The part with other fields, or None where they are refused."""
    try:
        return dataclasses.replace(value, **fields)
    except ValueError:
        return None


def test_there_are_parts_to_look_at():
    names = {kind.__name__ for kind in parts()}
    assert {"SparsityConfig", "Tokens", "RaterScore", "PerImage", "PivotSimilarity", "Anchors"} <= names
    assert len(FIELDS) > 40


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_refuses_what_is_none_of_its_kind_by_its_name(kind, name):
    for wrong in (object(), [object()], {"a": 1}, np.zeros(3), "\ud800", 1e400, 10**400, b"1", RaterScore):
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(base(kind), **{name: wrong})


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_fields_that_are_equal_are_equal_in_type(kind, name):
    values = [*LEAVES, *([leaf] for leaf in LEAVES), *((leaf,) * 3 for leaf in (*ONES, *ZEROS))]
    found = [part for value in values if (part := made(base(kind), **{name: value})) is not None]
    for part in found:
        assert hash(part) is not None
        for other in found:
            assert (part == other) == same(part, other), f"{part!r} and {other!r}"


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_a_number_of_tokens_is_never_a_share_of_them(name):
    one, every = methods.create(name, 1), methods.create(name, "100%")
    assert one is None or (one != every and every == methods.create(name, 1.0) == methods.create(name, Fraction(1)))
    number: Any = np.int64(1)
    assert one == methods.create(name, "1") == methods.create(name, number)


def test_one_head_is_not_all_heads():
    assert RaterScore(heads=1) != RaterScore(heads=Fraction(1)) == RaterScore(heads="100%") != RaterScore(heads=None)
    assert (RaterScore(heads=1).head_count(32), RaterScore(heads=Fraction(1)).head_count(32)) == (1, 32)


leaf = st.sampled_from(LEAVES)
PARTS: dict[str, st.SearchStrategy] = {
    "budget": st.one_of(
        st.builds(dict, kind=st.just(Tokens), amount=leaf, curve=st.sampled_from([V15, Geometric()])),
        st.builds(dict, kind=st.just(KeptTokens), kept=st.tuples(leaf, leaf, leaf)),
        st.builds(dict, kind=st.just(RankScale), scale=leaf, bias=leaf, capacity=leaf),
        st.builds(dict, kind=st.just(PerImage), amount=leaf),
    ),
    "score": st.builds(dict, kind=st.just(RaterScore), heads=leaf, gravity=leaf, gravity_floor=leaf),
    "recycle": st.one_of(
        st.none(),
        st.builds(dict, kind=st.just(sparsify.Recycle), candidates=leaf, cluster_size=leaf, size_aware=leaf),
    ),
    "select": st.builds(dict, kind=st.just(sparsify.Determinantal), power=leaf, centred=leaf, ridge=leaf),
    "layers": st.one_of(st.none(), st.sampled_from([(2, 6, 15), (2.0, 6, 15), (np.int64(2), 6, 15), [2, 6, 15]])),
}


def config_of(drawn: dict[str, Any]) -> SparsityConfig:
    """The drawn parts, without those that are refused."""
    config = SparsityConfig(budget=Tokens("1/2"))
    for name, spec in drawn.items():
        try:
            part = spec.pop("kind")(**spec) if isinstance(spec, dict) else spec
            config = dataclasses.replace(config, **{name: part})
        except ValueError:
            continue
    return config


def plan_of(config: SparsityConfig) -> Any:
    _plan.cache_clear()  # of an equal configuration the cache would give the very same plan
    try:
        return config.plan(DEPTH, BUCKET)
    except ValueError as error:
        return str(error)


def spelt(value: Any, draw: Any) -> Any:
    """The same specification with each number in another spelling, equal or not."""
    if isinstance(value, dict):
        return {name: entry if name == "kind" else spelt(entry, draw) for name, entry in value.items()}
    for family in (ONES, ZEROS, HALVES):
        if any(value is member for member in family):
            return draw(st.sampled_from(family))
    return tuple(spelt(entry, draw) for entry in value) if isinstance(value, tuple) else value


@hypothesis.settings(max_examples=200)
@given(data=st.data(), drawn=st.fixed_dictionaries(PARTS))
def test_configurations_that_are_equal_have_equal_plans(data, drawn):
    other = config_of(spelt(drawn, data.draw))
    config = config_of(drawn)
    assert (config == other) == same(config, other)
    if config == other:
        assert hash(config) == hash(other) and same(plan_of(config), plan_of(other))
