"""A trace says what prefill did, survives its file, and knows which patches are behind a merged token."""

import json
import pickle
import traceback
from typing import Any

import numpy as np
import pytest

import sparsevlm_jax as sv
from sparsevlm_jax.report.trace import members

PROMPT = "a red car <image> and a bicycle <image> where?"
PICTURES = [np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8) for seed in (0, 1)]


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint):
    return sv.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def trace(vlm):
    return sv.trace_prefill(vlm, PROMPT, PICTURES, sparsity=sv.SparsityConfig.sparsevlm("1/2"))


@pytest.mark.slow
def test_a_trace_counts_what_the_report_of_generate_counts(vlm, trace):
    out = sv.generate(vlm, PROMPT, PICTURES, sparsity=sv.SparsityConfig.sparsevlm("1/2"), max_new_tokens=1)
    assert tuple(trace.visual_tokens) == out.report.visual_tokens
    leaving = [len(stage.kept) + len(stage.centers) for stage in trace.stages]
    entering = [len(stage.origin) for stage in trace.stages]
    assert entering == [32, *leaving[:-1]]


def test_raters_are_words_behind_the_last_image(trace):
    words = [word for word, rater in zip(trace.tokens, trace.is_rater, strict=True) if rater]
    assert words and set(words) <= set(trace.tokens[trace.tokens.index("▁where") - 1 :])


def test_the_pictures_are_what_the_model_saw(vlm, trace):
    assert [(image.shape, image.dtype) for image in trace.images] == [((56, 56, 3), np.uint8)] * 2
    again = vlm.processor.encode_images(list(trace.images))
    np.testing.assert_allclose(again, vlm.processor.encode_images(PICTURES), atol=1e-6)


def test_kept_are_the_best_scores_and_candidates_the_next_best(trace):
    for stage in trace.stages:
        order = np.argsort(-stage.scores, kind="stable")
        assert sorted(order[: len(stage.kept)]) == list(stage.kept)
        following = order[len(stage.kept) : len(stage.kept) + len(stage.candidates)]
        assert list(following) == list(stage.candidates)


def test_every_patch_stands_behind_at_most_one_token(trace):
    for stage in range(len(trace.stages)):
        patches = np.concatenate(members(trace, stage))
        assert len(set(patches)) == len(patches) and set(patches) <= set(range(32))


def test_a_merged_token_stands_for_its_whole_cluster(trace):
    first = trace.stages[0]
    assert list(members(trace, 1)[-1]) == list(first.candidates[first.cluster == len(first.centers) - 1])


def test_a_saved_trace_comes_back_equal(tmp_path, trace):
    path = sv.save_trace(tmp_path / "street", trace)
    assert path.name == "street.npz"
    again = sv.load_trace(path)
    for name in ("method", "tokens", "is_rater", "relevance", "images", "image", "box", "visual_tokens"):
        assert np.array_equal(getattr(again, name), getattr(trace, name)), name
    for ours, theirs in zip(again.stages, trace.stages, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert again.report["mean_after_layers"] == trace.report["mean_after_layers"]


def parts_of(path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def saved(trace, tmp_path_factory):
    return sv.save_trace(tmp_path_factory.mktemp("traces") / "street.npz", trace)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def refuse(path) -> None:
    """An error of this library that names the file."""
    with pytest.raises(ValueError, match=f"{path.name} is not a saved trace: .") as caught:
        sv.load_trace(path)
    assert len(str(caught.value)) < 500 and not isinstance(caught.value, UnicodeError)
    assert "sparsevlm_jax" in traceback.extract_tb(caught.value.__traceback__)[-1].filename


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + bytes(50), pickle.dumps(Bomb()), b"\x93NUMPY"])
def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path, content):
    (tmp_path / "noise.npz").write_bytes(content)
    refuse(tmp_path / "noise.npz")


def test_other_arrays_and_pickled_objects_are_refused(tmp_path, saved):
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    objects = np.empty(1, object)
    objects[0] = Bomb()
    np.savez(tmp_path / "objects.npz", **{**parts_of(saved), "header": objects})
    for name in ("one.npy", "other.npz", "objects.npz"):
        refuse(tmp_path / name)
    with pytest.raises(OSError, match="nowhere"):
        sv.load_trace(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="no regular file"):
        sv.load_trace("/dev/zero")


def test_a_damaged_file_is_refused_or_what_it_was(tmp_path, saved, trace):
    data, rng = saved.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "damaged.npz"
    for step in range(120):
        damaged = bytearray(data)
        if step % 3:
            damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else:
            del damaged[rng.integers(len(data)) :]
        path.write_bytes(bytes(damaged))
        try:
            again = sv.load_trace(path)
        except ValueError as error:
            assert "damaged.npz is not a saved trace" in str(error)
        else:  # zip checks its contents; what is not checked does not matter
            assert np.array_equal(again.images, trace.images) and again.report == json.loads(json.dumps(trace.report))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("is_rater", np.zeros(2, bool)),
        ("relevance", np.zeros((2, 2))),
        ("images.0", np.zeros((56, 56, 3))),
        ("images.1", np.zeros((56, 56), np.uint8)),
        ("image", np.zeros(31, int)),
        ("image", np.full(32, 2)),
        ("box", np.full((32, 4), 1.5)),
        ("box", np.tile([0.5, 0.5, 0.25, 1], (32, 1))),
        ("box", np.full((32, 4), np.nan)),
        ("visual_tokens", np.zeros(0, int)),
        ("stages.0.kept", np.array([99])),
        ("stages.0.kept", np.array([-1])),
        ("stages.0.kept", np.array([0.5])),
        ("stages.0.cluster", np.array([0])),
        ("stages.0.scores", np.array(["a"])),
        ("stages.1.origin", np.arange(3)),
        ("stages.1.centers", np.array([10**6])),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path, saved, part, value):
    np.savez(tmp_path / "wrong.npz", **{**parts_of(saved), part: value})
    refuse(tmp_path / "wrong.npz")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other-1"},
        {"format": None},
        {"method": 5},
        {"tokens": [1]},
        {"tokens": "ab"},
        {"images": [2]},
        {"images": 1},
        {"images": 3},
        {"images": "2"},
        {"layers": 3},
        {"layers": ["a", "b"]},
        {"layers": [0, 1, 2, 3, 4, 5, 6, 7]},
        {"report": None},
        {"report": {}},
        {"report": {"paper_macs": "a"}},
    ],
    ids=str,
)
def test_headers_of_other_kinds_are_refused(tmp_path, saved, change):
    parts = parts_of(saved)
    header = {**json.loads(str(parts["header"])), **change}
    np.savez(tmp_path / "header.npz", **{**parts, "header": np.array(json.dumps(header))})
    refuse(tmp_path / "header.npz")
    for header in ("[]", "{}", "null", "{", "1" * 10_000):
        np.savez(tmp_path / "header.npz", **{**parts, "header": np.array(header)})
        refuse(tmp_path / "header.npz")
