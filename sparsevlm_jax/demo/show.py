"""`sparsevlm demo`: draw a street, ask about it dense and pruned, and say what pruning saved."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final, NamedTuple

from PIL import Image

from .. import progress
from ..report.comparison import table
from ..report.cost import Report, Timing
from ..sparsify import SparsityConfig
from ..vlm import Output, generate, load
from . import CHECKPOINT, world
from .questions import Question, pick

_KINDS: Final = ("word by colour", "colour by word", "car")
_SCENE: Final = world.Mix(signs=(3, 4))
_ROUNDS: Final = 5


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
        ValueError: the checkpoint cannot be loaded, the budget does not fit it, or `save_to` has another content.
        OSError: the picture cannot be written.
    """
    sparsity = SparsityConfig.sparsevlm(tokens)
    scene, questions = scene_and_questions(seed)
    picture = scene.draw()
    if save_to is not None:
        save(picture, save_to)
    with progress.step("loading the model"):
        vlm = load(model)
    prompts, pictures = [question.text for question in questions], [picture] * len(questions)

    def ask(sparsity: SparsityConfig | None) -> list[Output]:
        return generate(vlm, prompts, pictures, sparsity=sparsity, max_new_tokens=8)

    with progress.step("answering"):
        for each in (None, sparsity):
            ask(each)  # a first run is slower than others
        rounds = [(ask(None), ask(sparsity)) for _ in range(_ROUNDS)]  # in turn: other work slows both alike
    dense, sparse = (_typical(runs) for runs in zip(*rounds, strict=True))
    asked = tuple(
        Asked(question, one.text, other.text, one.report, other.report)
        for question, one, other in zip(questions, dense, sparse, strict=True)
    )
    return Demo(picture, asked)


def _typical(runs: Sequence[list[Output]]) -> list[Output]:
    """The outputs of runs that are equal but for their times, with the median of each time."""
    timings = [outputs[0].report.timing for outputs in runs]  # of the whole batch
    timing = Timing(**{field.name: _median([getattr(one, field.name) for one in timings]) for field in fields(Timing)})
    return [out._replace(report=replace(out.report, timing=timing)) for out in runs[0]]


def _median(times: Sequence[float | None]) -> Any:  # None in a part that never ran, which `Timing` knows
    measured = [time for time in times if time is not None]
    return median(measured) if measured else None


def save(picture: Image.Image, path: Path) -> None:
    """Writes a street, enlarged; a file that is there already is left alone.

    Raises:
        ValueError: the file is there and is another picture, or its name has no picture's suffix.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise ValueError(f"expected a picture's name, ending in .png, .jpg or .webp, got {path}")
    content = io.BytesIO()
    picture.resize((5 * world.SIZE, 5 * world.SIZE), Image.Resampling.LANCZOS).save(content, kind)
    if path.exists() and path.stat().st_size:
        if not path.is_file() or path.read_bytes() != content.getvalue():
            raise ValueError(f"{path} is there already and is another picture: choose another name")
        return
    path.write_bytes(content.getvalue())


def lines(demo: Demo) -> Iterator[str]:
    """What the command prints: questions and answers, then what the prompts cost."""
    for asked in demo.asked:
        yield asked.question.text
        yield f"  truth   {asked.question.answer}"
        yield f"  dense   {asked.dense}"
        yield f"  sparse  {asked.sparse}"
    dense, sparse = demo.asked[0].dense_report, demo.asked[0].sparse_report
    yield ""
    yield from table({"dense": dense, "sparse": sparse})
    yield ""
    after, total = sparse.mean_after_layers, dense.visual_tokens[0]
    yield f"A budget counts the tokens left after a layer: on average {after:.1f} of {total}."
    yield f"Pruning comes at the end of a layer, so more enter one: {sparse.mean_entering_layers:.1f}."
    yield f"Times are those of all three questions at once, medians of {_ROUNDS} runs each."
