"""What a Python prompt shows of a model, an answer and its report: little, and readable."""

import re

import pytest

import sparsevlm_jax as sv
from tests.tiny import random_image


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint):
    return sv.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def out(vlm):
    return sv.generate(vlm, "what is written on the sign?", random_image(), max_new_tokens=4)


def test_a_model_is_shown_by_its_name_and_sizes(vlm, tiny_checkpoint):
    shown = repr(vlm)
    assert len(shown) < 300 and str(tiny_checkpoint) in shown
    for part in ("M parameters", "4 layers of width 64", "16 tokens an image", "float32 on cpu:0", "attention 'xla'"):
        assert part in shown
    assert re.fullmatch(r"Processor\(.* tokens, images of 56 x 56 pixels\)", repr(vlm.processor))


def test_an_answer_is_shown_as_its_text_and_cost(out):
    assert str(out) == out.text and f"{out}" == out.text
    assert repr(out).startswith("Output(") and f"{len(out.tokens)} tokens" in repr(out) and len(repr(out)) < 600
    text, tokens, report = out  # still a tuple
    assert (text, report) == (out.text, out.report) and tokens is out.tokens


def test_a_report_is_a_line_and_prints_as_a_table(out):
    assert repr(out.report).startswith("Report('sparsevlm': image tokens 16 ") and "\n" not in repr(out.report)
    lines = str(out.report).splitlines()
    assert "sparsevlm" in lines[0] and any("KV cache" in line for line in lines) and len(lines) < 12


def test_notebooks_show_a_table_and_no_markup_of_the_answers(out):
    html = out._replace(text="<script>alert(1)</script> & so on")._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on" in html
    assert html.count("<table>") == 1 and "GFLOPs" in html
    named = out.report.__class__(**{**vars(out.report), "method": "<b>mine</b>"})
    assert "<b>" not in named._repr_html_()
