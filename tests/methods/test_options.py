"""What every method takes beside its own options: tokens kept at the stages, and how positions are numbered."""

import pytest

from sparsevlm_jax import methods
from sparsevlm_jax.sparsify import Bucket, KeptTokens, PerImage, SparsityConfig

PRUNED = sorted(set(methods.METHODS) - {"dense"})
IMAGE = Bucket(text=20, visual=576, fewest=576)


def kept(config: SparsityConfig | None, depth: int = 32) -> list[int]:
    """Of 576 tokens, at each stage."""
    assert config is not None
    return [plan.kept for plan in config.plan(depth, IMAGE)]


@pytest.mark.parametrize("name", PRUNED)
def test_every_method_keeps_what_kept_says_and_numbers_positions_as_told(name):
    own = methods.create(name)
    assert own is not None and methods.options(name)["positions"] == own.positions
    stages = len(own.pruning_layers(32))
    numbers = [300, 200, 110][:stages]
    for value in (tuple(numbers), ",".join(map(str, numbers)), KeptTokens.parse(numbers).kept):
        config = methods.create(name, kept=value)
        assert kept(config) == numbers and config is not None and config.name == name
    for positions in ("keep", "repack"):
        config = methods.create(name, 192, positions=positions)
        assert config is not None and config.positions == positions
    with pytest.raises(ValueError, match="positions must be"):
        methods.create(name, positions="shuffle")
    with pytest.raises(ValueError, match="tokens and kept all say how many tokens are kept"):
        methods.create(name, 192, kept=192)
    with pytest.raises(ValueError, match="one number of"):
        kept(methods.create(name, kept=(9,) * (stages + 1)))


def test_papers_that_count_at_the_stage_get_their_numbers():
    for name in ("fastv", "dart"):
        for tokens, mean in ((192, 180), (128, 114), (64, 47)):
            assert kept(methods.create(name, kept=tokens)) == [tokens]
            assert abs(kept(methods.create(name, tokens))[0] - mean) <= 1
        assert kept(methods.create(name, kept=576)) == [576], "all of them"
    assert [kept(methods.create("dart", kept=n, count="published")) for n in (192, 128, 64)] == [[196], [132], [68]]
    for ratios in ((0.5, 0.25, 0.125), "1/2,1/4,1/8"):
        assert kept(methods.create("pyramiddrop", ratios=ratios)) == [288, 144, 72]
    with pytest.raises(ValueError, match="kept and ratios all say"):
        methods.create("pyramiddrop", kept=(3, 2, 1), ratios=(0.5, 0.25, 0.125))


def test_a_method_in_the_tower_counts_by_image():
    config = methods.create("visionzip", kept=64)
    assert config is not None and config == methods.create("visionzip", 64) and config.budget == PerImage(64)


def test_options_are_read_from_texts():
    read = methods.parse_options("fastv", ["kept=192", "positions=repack", "layer=3"])
    assert read == {"kept": "192", "positions": "repack", "layer": 3} and methods.says_budget(read)
    assert methods.create("fastv", **read) == methods.create("fastv", kept=192, positions="repack", layer=3)
    with pytest.raises(ValueError, match=r"kept\[0\] must be a number of kept tokens"):
        methods.create("fastv", **methods.parse_options("fastv", ["kept=some"]))
    with pytest.raises(ValueError, match="'dense' has no option 'kept'"):
        methods.create("dense", kept=3)


def test_a_users_method_has_them_too(monkeypatch):
    from sparsevlm_jax.sparsify import Geometric, parse_budget

    monkeypatch.setattr(methods.registry, "METHODS", dict(methods.METHODS))

    @methods.method
    def mine(tokens=192):
        """Mine."""
        return SparsityConfig(budget=parse_budget(tokens, Geometric()), layers=(3,), recycle=None, name="mine")

    assert kept(methods.create("mine", kept="1/9")) == [64]
    assert methods.options("mine") == {"kept": None, "positions": "repack"}
