"""What the model scores: held-out questions, by kind, with controls. `python -m examples.train_demo.evaluate`.

An answer counts when every one of its tokens, the end included, is right. Scored here are the argmaxes along the true
answer, many questions to a picture: they are all right exactly when greedy generation spells the true answer, so this
is generation's accuracy at a hundredth of its price (a test compares the two).
"""

import argparse
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax.checkpoints.sources import load_checkpoint
from sparsevlm_jax.demo import CHECKPOINT, world
from sparsevlm_jax.demo.questions import EXAM_QUESTIONS, KINDS, Question, exam
from sparsevlm_jax.demo.words import UNSEEN_WORDS
from sparsevlm_jax.demo.world import Split
from sparsevlm_jax.models.families.llava import LlavaConfig

from . import language, packing, pixels

Control = Literal["none", "blank picture", "shuffled questions"]

_BATCH: Final = 25
_WIDTH: Final = 20  # a question of one kind with an answer of another can be longer than either with its own


class Score(NamedTuple):
    """Right answers of a number of questions."""

    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        return self.right / self.asked if self.asked else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson 1927), which stays within 0 and 1."""
        if not self.asked:
            return 0.0, 1.0
        z, n, share = 1.959964, self.asked, self.accuracy
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
        return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    params: dict, config: LlavaConfig, *, questions: int = 4000, split: Split = "test", control: Control = "none"
) -> dict[str, Score]:
    """Accuracy by kind of question.

    Args:
        questions: at least this many are asked; whole batches of pictures are drawn.
        control: "blank picture" shows grey instead of the scene; "shuffled questions" asks a picture's questions in
            another order, and expects the answers in the first.

    Returns:
        A score for each kind, for "word, never seen in training" (part of the kinds that ask for words), and "all".
    """
    correct = jax.jit(functools.partial(_correct, config=config))
    marks: list[tuple[Question, bool]] = []
    seed = 0
    while len(marks) < questions:
        exams = [exam(seed + index, split) for index in range(_BATCH)]
        seed += _BATCH
        right = correct(params, _batch(exams, control))
        for row, (_, asked) in zip(np.asarray(right), exams, strict=True):
            marks += zip(asked, row[: len(asked)].tolist(), strict=True)
    return tally(marks)


def _batch(exams: list[tuple[world.Scene, list[Question]]], control: Control) -> language.Batch:
    rows = [asked for _, asked in exams]
    if control == "shuffled questions":
        rows = [[own._replace(text=other.text) for own, other in zip(row, _turned(row), strict=True)] for row in rows]
    pixel_values = pixels.normalise([scene.draw() for scene, _ in exams])
    if control == "blank picture":
        pixel_values = np.zeros_like(pixel_values)
    return language.Batch(pixel_values, packing.pack(rows, EXAM_QUESTIONS, width=_WIDTH))


def _turned(row: list[Question]) -> list[Question]:
    return [*row[1:], row[0]]


def _correct(params: dict, data: language.Batch, *, config: LlavaConfig) -> jax.Array:
    """[B, G]: whether greedy generation spells each answer."""
    chosen = jnp.argmax(language.logits(params, data, config), -1)
    return jnp.all((chosen == data.segments.targets) | (data.segments.weights == 0), axis=-1)


def tally(marks: Iterable[tuple[Question, bool]]) -> dict[str, Score]:
    """Marks to scores, by kind and in all."""
    groups: dict[str, list[bool]] = {kind: [] for kind in (*KINDS, "word, never seen in training", "all")}
    for question, right in marks:
        groups[question.kind].append(right)
        groups["all"].append(right)
        if question.answer in UNSEEN_WORDS:
            groups["word, never seen in training"].append(right)
    return {name: Score(sum(rights), len(rights)) for name, rights in groups.items()}


def table(scores: dict[str, Score]) -> str:
    """Scores as a Markdown table."""
    lines = ["| question | accuracy | 95 % interval | questions |", "|---|---|---|---|"]
    for name, score in scores.items():
        low, high = score.interval
        lines.append(f"| {name} | {score.accuracy:.1%} | {low:.1%} to {high:.1%} | {score.asked} |")
    return "\n".join(lines)


def read_model(folder: Path | None) -> tuple[dict, LlavaConfig]:
    """Parameters in float32 and the config of a checkpoint folder; None is the bundled one."""
    checkpoint = load_checkpoint(folder or CHECKPOINT, dtype=jnp.float32)
    return checkpoint.params, checkpoint.config


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.train_demo.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, help="a checkpoint folder; default: the bundled one")
    parser.add_argument("--questions", type=int, default=4000)
    parser.add_argument("--split", choices=list(world.MIXES), default="test")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    options = parser.parse_args()
    params, config = read_model(options.model)
    results = {}
    for control in ("none", "blank picture", "shuffled questions"):
        scores = evaluate(params, config, questions=options.questions, split=options.split, control=control)
        results[control] = {name: score._asdict() for name, score in scores.items()}
        print(f"\n{options.split}, control: {control}\n\n{table(scores)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
