"""Held-out accuracy with fewer and fewer image tokens: `python -m sparsevlm_jax.demo.compare`.

Unlike `evaluate`, this generates: every question goes alone through `sparsevlm_jax.generate`, pruned.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..sparsify import SparsityConfig
from ..vlm import VLM, generate, load
from . import CHECKPOINT
from .evaluate import Score, exam, table, tally
from .questions import Question


def questions_of(count: int) -> list[tuple[int, Question]]:
    """The first questions of the held-out exam, each with the seed of its scene."""
    found: list[tuple[int, Question]] = []
    seed = 0
    while len(found) < count:
        found += [(seed, question) for question in exam(seed)[1]]
        seed += 1
    return found[:count]


def answers(
    vlm: VLM, asked: Sequence[tuple[int, Question]], sparsity: SparsityConfig | None, *, batch: int = 50
) -> list[str]:
    """What the model generates, in batches of questions."""
    told: list[str] = []
    for start in range(0, len(asked), batch):
        rows = asked[start : start + batch]
        pictures = [exam(seed)[0].draw() for seed, _ in rows]
        prompts = [question.text for _, question in rows]
        told += [out.text for out in generate(vlm, prompts, pictures, sparsity=sparsity, max_new_tokens=8)]
    return told


def compare(
    vlm: VLM, methods: dict[str, SparsityConfig | None], *, questions: int = 1000
) -> dict[str, dict[str, Score]]:
    """Accuracy by kind of question for each method, all asked the same."""
    asked = questions_of(questions)
    return {
        name: tally(
            (question, told.strip() == question.answer)
            for told, (_, question) in zip(answers(vlm, asked, sparsity), asked, strict=True)
        )
        for name, sparsity in methods.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sparsevlm_jax.demo.compare", description=__doc__)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--tokens", nargs="*", default=["2/3", "1/2", "1/3", "2/9"], help="budgets, numbers or shares")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    options = parser.parse_args()
    methods = {"dense": None} | {tokens: SparsityConfig.sparsevlm(tokens) for tokens in options.tokens}
    results = compare(load(options.model), methods, questions=options.questions)
    for name, scores in results.items():
        print(f"\nimage tokens: {name}\n\n{table(scores)}")
    if options.json:
        plain = {name: {kind: score._asdict() for kind, score in scores.items()} for name, scores in results.items()}
        options.json.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
