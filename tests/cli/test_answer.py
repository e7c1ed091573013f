"""`generate`: prompts and pictures from standard input, options of methods, two methods side by side, checks first."""

import io
import json
import sys
import time

import pytest

import sparsevlm_jax as sv
from sparsevlm_jax import methods, vlm


class Stdin:
    def __init__(self, content: bytes):
        self.buffer = io.BytesIO(content)


@pytest.fixture
def common(tiny_checkpoint, photo) -> tuple:
    return ("generate", "--model", tiny_checkpoint, "--image", photo, "--max-new-tokens", 4)


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is a failure: what is wrong has to show before."""
    monkeypatch.setattr(vlm, "load", lambda *_, **__: pytest.fail("the model was loaded"))


def test_a_prompt_and_a_picture_come_from_standard_input(run, common, photo, monkeypatch):
    expected = run(*common, "--prompt", "What is it?")
    assert expected[0] == 0 and expected[1].strip()
    monkeypatch.setattr(sys, "stdin", Stdin(b"What is it?\n"))
    assert run(*common, "--prompt", "-") == expected
    monkeypatch.setattr(sys, "stdin", Stdin(photo.read_bytes()))
    assert run(*common[:3], "--image", "-", *common[5:], "--prompt", "What is it?") == expected


def test_standard_input_is_bounded_and_read_once(run, common, monkeypatch, no_model):
    assert "one thing only" in run("generate", "--prompt", "-", "--image", "-")[2]
    monkeypatch.setattr(sys, "stdin", Stdin(b"a" * 2**21))
    assert "longer than 1,048,576 bytes" in run("generate", "--prompt", "-")[2]
    monkeypatch.setattr(sys, "stdin", Stdin(b"\xff\xfe"))
    assert "not valid UTF-8" in run("generate", "--prompt", "-")[2]
    monkeypatch.setattr(sys, "stdin", None)
    assert "closed" in run("generate", "--prompt", "-")[2]


def test_a_prompt_that_is_no_text_is_refused(run, no_model):
    code, _, err = run("generate", "--prompt", "caf\udce9")
    assert code == 2 and "the prompt is not valid UTF-8" in err


def test_an_option_of_a_method_reaches_it(run, common):
    fastv = ("--method", "fastv", "--method-option", "layer=3")
    report = json.loads(run(*common, "--prompt", "?", "--tokens", "3/4", *fastv, "--json")[1])
    tokens = report["report"]["visual_tokens"]
    assert tokens[2] == tokens[0] > tokens[3]  # dropped after the third layer, not the second


def test_options_take_the_type_of_their_default():
    given = ["power=0.5", "size-aware=true", "ridge=1"]
    chosen = methods.parse_options("sparsevlm-diverse", given)
    assert chosen == {"power": 0.5, "size_aware": True, "ridge": 1.0}
    assert type(chosen["ridge"]) is float
    assert methods.create("fastv", 8, layer=1) != methods.create("fastv", 8)


@pytest.mark.parametrize(
    ("method", "option", "words"),
    [
        ("fastv", "depth=3", "'fastv' has no option 'depth'; it has layer=2"),
        ("dense", "layer=3", "'dense' has no option 'layer'; it has none"),
        ("fastv", "layer", "expected layer=a int, got ''"),
        ("fastv", "layer=2.5", "expected layer=a int, got '2.5'"),
        ("sparsevlm-diverse", "size_aware=perhaps", "expected size_aware=a bool, got 'perhaps'"),
        ("fastv", "=", "no option ''"),
    ],
)
def test_an_option_that_is_none_is_one_line(run, no_model, method, option, words):
    code, out, err = run("generate", "--prompt", "?", "--method", method, "--method-option", option)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err


def test_methods_json_has_the_options_and_their_defaults(run):
    listed = json.loads(run("methods", "--json")[1])
    assert listed.keys() == methods.METHODS.keys()
    common = {"kept": None, "positions": "keep"}
    own = {"layer": 2, "image_pivots": 4, "text_pivots": 4, "count": "exact"}
    assert listed["dart"]["options"] == own | common
    repacked = common | {"positions": "repack"}
    assert listed["sparsevlm"] == {"summary": methods.summary("sparsevlm"), "options": repacked}
    assert listed["dense"]["options"] == {}


def test_tokens_kept_at_the_stages_are_an_option(run, common):
    answer = run(*common, "--prompt", "What is it?", "--method", "fastv", "--method-option", "kept=3", "--json")
    assert answer[0] == 0 and json.loads(answer[1])["report"]["visual_tokens"][-1] == 3
    both = run(*common, "--prompt", "?", "--method", "fastv", "--method-option", "kept=3", "--tokens", "3")
    assert both[0] == 2 and "tokens and kept all say how many tokens are kept" in both[2]


def test_compare_prints_both_answers_and_their_costs(run, common, tiny_checkpoint, photo):
    code, out, err = run(*common, "--prompt", "What is it?", "--tokens", "1/4", "--compare", "dense")
    model = sv.load(tiny_checkpoint)
    pruned, dense = (
        sv.generate(model, "What is it?", photo, sparsity=sparsity, max_new_tokens=4).text
        for sparsity in (sv.SparsityConfig.sparsevlm("1/4"), None)
    )
    assert (code, err) == (0, "")
    assert out.startswith(f"sparsevlm  {pruned}\ndense      {dense}\n")
    entering = next(line for line in out.splitlines() if "entering" in line)
    assert entering.split()[-1] == "16.0" and float(entering.split()[-2]) < 16
    assert "ms for the prompt" in out


def test_compare_json_is_one_object(run, common):
    both = json.loads(run(*common, "--prompt", "?", "--compare", "dense", "--json")[1])
    assert both["report"]["method"] == "sparsevlm"
    assert both["compared"]["method"] == both["compared"]["report"]["method"] == "dense"


@pytest.mark.parametrize("new_tokens", [4, pytest.param(80, marks=pytest.mark.slow)])
def test_compare_times_no_first_run(run, common, new_tokens):
    """All that a first run does before it answers, compilation first, is over when the clocks start."""
    both = json.loads(run(*common, "--max-new-tokens", new_tokens, "--prompt", "?", "--compare", "dense", "--json")[1])
    assert both["report"]["timing"]["compile_ms"] == both["compared"]["report"]["timing"]["compile_ms"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--trace /absent/folder/trace.npz", "there is no folder /absent/folder"),
        ("--trace /", "a folder: /"),
        ("--method dense --trace trace.npz", "no trace to save"),
        ("--compare dense --stream", "choose one of them"),
        ("--compare sparsevlm", "the method itself"),
        ("--compare magic", "got 'magic'"),
        ("--batch-size 2", "there is one prompt"),
        ("--tokens 1e99999999", "1e99999999"),
        ("--temperature nan", "temperature must be a finite number >= 0, got nan"),
        ("--temperature -1", "temperature must be a finite number >= 0, got -1.0"),
        ("--top-p 2", "top_p must be a number above 0 and at most 1, got 2.0"),
        ("--top-k -3", "top_k must be a whole number >= 0, got -3"),
        ("--max-new-tokens 0", "max_new_tokens must be a whole number >= 1, got 0"),
        ("--seed 5000000000", "seed must be a whole number <= 4294967295, got 5000000000"),
    ],
)
def test_what_is_wrong_shows_before_the_model_is_loaded(run, no_model, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    code, out, err = run("generate", "--prompt", "?", *options.split())
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err
    assert time.monotonic() - began < 5
