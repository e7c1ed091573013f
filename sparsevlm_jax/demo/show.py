"""`sparsevlm demo`: draw a street, ask about it dense and pruned, and say what pruning saved."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from PIL import Image

from ..accounting import Report
from ..sparsify import SparsityConfig
from ..vlm import generate, load
from . import CHECKPOINT, world
from .questions import Question, pick

_KINDS: Final = ("word by colour", "colour by word", "car")
_SCENE: Final = world.Mix(signs=(3, 4))


class Asked(NamedTuple):
    """A question, and what the model said to it with all image tokens and with some."""

    question: Question
    dense: str
    sparse: str
    dense_report: Report
    sparse_report: Report


class Demo(NamedTuple):
    picture: Image.Image
    asked: tuple[Asked, ...]


def scene_and_questions(seed: int) -> tuple[world.Scene, list[Question]]:
    """A held-out street of three or four signs, and one question of each of three kinds."""
    scene, rng = world.sample(seed, "test", _SCENE), Random(f"demo {seed}")
    return scene, [question for kind in _KINDS for question in pick(scene, rng, 1, {kind: 1.0})]


def run_demo(
    *,
    seed: int = 0,
    tokens: str = "1/3",
    model: str | Path = CHECKPOINT,
    save_to: Path | None = None,
) -> Demo:
    """Draws the scene of a seed and asks three questions about it, dense and pruned.

    Args:
        seed: which street; every seed has another, none of them seen in training.
        tokens: budget of image tokens, a number or a share, for SparseVLM.
        model: a checkpoint that answers; default: the bundled one.
        save_to: where to save the picture, five times enlarged; None saves nothing.

    Raises:
        ValueError: the checkpoint cannot be loaded, or the budget does not fit it.
        OSError: the picture cannot be written.
    """
    scene, questions = scene_and_questions(seed)
    picture = scene.draw()
    if save_to is not None:
        picture.resize((5 * world.SIZE, 5 * world.SIZE), Image.Resampling.LANCZOS).save(save_to)
    vlm = load(model)
    prompts, pictures = [question.text for question in questions], [picture] * len(questions)
    dense = generate(vlm, prompts, pictures, sparsity=None, max_new_tokens=8)
    sparse = generate(vlm, prompts, pictures, sparsity=SparsityConfig.sparsevlm(tokens), max_new_tokens=8)
    asked = tuple(
        Asked(question, one.text, other.text, one.report, other.report)
        for question, one, other in zip(questions, dense, sparse, strict=True)
    )
    return Demo(picture, asked)


def lines(demo: Demo) -> Iterator[str]:
    """What the command prints: questions and answers, then what the prompts cost."""
    for asked in demo.asked:
        yield asked.question.text
        yield f"  truth   {asked.question.answer}"
        yield f"  dense   {asked.dense}"
        yield f"  sparse  {asked.sparse}"
    dense, sparse = demo.asked[0].dense_report, demo.asked[0].sparse_report
    yield ""
    yield f"image tokens a layer   {dense.mean_entering_layers:8.1f} -> {sparse.mean_entering_layers:.1f}"
    yield f"FLOPs, image + prompt  {dense.flops / 1e6:7.1f}M -> {sparse.flops / 1e6:.1f}M"
    yield f"KV cache of a prompt   {dense.kv_bytes / 1024:7.1f}K -> {sparse.kv_bytes / 1024:.1f}K bytes"
