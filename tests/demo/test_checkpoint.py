"""The bundled model: it sees, it reads the question, and `transformers` gives the same answers."""

import json
from typing import Any

import numpy as np
import pytest

import sparsevlm_jax as sv
from examples.train_demo import evaluate, language, tokenizer
from sparsevlm_jax.demo import CHECKPOINT, world
from sparsevlm_jax.demo.questions import exam

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
ASKED = [(seed, question) for seed in range(40) for question in exam(seed)[1]][:200]
"""Held-out questions, each with the seed of its scene."""
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def vlm():
    return sv.load(CHECKPOINT)


@pytest.fixture(scope="module")
def dense(vlm):
    told = []
    for start in range(0, len(ASKED), 50):
        rows = ASKED[start : start + 50]
        prompts, pictures = [asked.text for _, asked in rows], [world.sample(seed, "test").draw() for seed, _ in rows]
        told += sv.generate(vlm, prompts, pictures, sparsity=None, max_new_tokens=8)
    return [output.text.strip() for output in told]


def test_it_fits_the_package():
    sizes = [path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(sizes) < 24 * MEGABYTE and max(sizes) < 16 * MEGABYTE


def test_its_embeddings_have_the_norm_that_raters_are_made_for(vlm):
    table = np.asarray(vlm.params["language_model"]["embed_tokens"]["embedding"])
    assert np.linalg.norm(table, axis=-1).mean() == pytest.approx(1, abs=1e-3)


def test_its_config_and_tokenizer_are_those_the_code_makes(vlm):
    assert vlm.config == language.config(vlm.config.text.num_hidden_layers)
    saved = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    assert saved["model"]["vocab"] == tokenizer.vocabulary()


def test_transformers_gives_the_same_answers(dense):
    """200 held-out questions, dense, greedy, through AutoProcessor and LlavaForConditionalGeneration."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(CHECKPOINT, local_files_only=True, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32, local_files_only=True)
    told = []
    generate: Any = model.generate  # pyright: ignore[reportAttributeAccessIssue]  # of a mixin that types itself
    for start in range(0, len(ASKED), 25):
        rows = ASKED[start : start + 25]
        inputs = processor(
            text=[f"USER: <image>\n{question.text} ASSISTANT:" for _, question in rows],
            images=[world.sample(seed, "test").draw() for seed, _ in rows],
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            ids = generate(**inputs, max_new_tokens=8, do_sample=False)
        fresh = ids[:, inputs["input_ids"].shape[1] :]
        told += [text.strip() for text in processor.batch_decode(fresh, skip_special_tokens=True)]
    assert told == dense


def test_generation_scores_what_the_packed_evaluation_says(vlm, dense):
    params, config = evaluate.read_model(None)
    packed = evaluate.evaluate(params, config, questions=len(ASKED))["all"]
    generated = sum(told == question.answer for told, (_, question) in zip(dense, ASKED, strict=True))
    assert packed.asked >= len(ASKED)
    assert abs(packed.right / packed.asked - generated / len(ASKED)) < 0.03


def test_it_needs_the_picture_and_the_question():
    params, config = evaluate.read_model(None)
    seen = evaluate.evaluate(params, config, questions=600)["all"].accuracy
    for control in ("blank picture", "shuffled questions"):
        assert evaluate.evaluate(params, config, questions=600, control=control)["all"].accuracy < seen - 0.4
