"""Accuracy against budget: the bundled model, held-out questions, every method.

    python benchmarks/accuracy.py                    all methods at 1/3, 2/9, 1/6 and 1/9 of the image tokens
    python benchmarks/accuracy.py --shares 1/3 --methods fastv dart
    python benchmarks/accuracy.py --ablations 1/3    what each part of SparseVLM is worth
    python benchmarks/accuracy.py --quick            100 questions, few cells, to see that it works

Budgets are in the paper's count, the mean over layers of the tokens left after a layer; the mean entering a layer
stands beside it. An answer is right if it is the true one, letter by letter. "of dense" is a method's accuracy over
that of the model with all tokens on the same questions, with a 95 % interval from 2,000 paired bootstrap samples of
*pictures* (questions about one picture are not independent). Every method runs as its authors number positions and
the other way too: "keep" is the places that the tokens had, "repack" numbers what is left anew.

Writes results.json (every answer), results.md and results.png into --out after every cell, and ends with one line of
JSON. Cells that --out holds already, of the same configuration and questions, are not run again, whatever the commit,
which stands beside each: a run that was cut short goes on where it stopped, and one with more methods adds to it.
"""

import argparse
import dataclasses
import functools
import json
import subprocess
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from held_out import Cost, Exam, Examiner

import sparsevlm_jax as sv
from sparsevlm_jax import methods
from sparsevlm_jax.demo import CHECKPOINT
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.sparsify import Bucket, RankScale, RaterScore, Recycle, SparsityConfig, Tokens, TowerReduction

SHARES = ("1/3", "2/9", "1/6", "1/9")
HEADLINE = ("dense", "sparsevlm", "sparsevlm-simple", "sparsevlm-early", "random", "uniform")
QUICK = ("dense", "sparsevlm", "random")
SAMPLES = 2000


class Cell(NamedTuple):
    """One method at one budget."""

    method: str
    share: str
    sparsity: SparsityConfig | None
    questions: int

    @property
    def positions(self) -> str:
        return self.sparsity.positions if self.sparsity else ""

    @property
    def key(self) -> str:
        """What it is called in results.json."""
        return f"{self.method} {self.share} {self.positions}".strip()


class Result(NamedTuple):
    """What a cell reached; `low` and `high` bound `of_dense`."""

    method: str
    share: str
    positions: str
    questions: int
    accuracy: float
    of_dense: float
    low: float
    high: float
    by_kind: dict[str, float]
    cost: Cost
    seconds: float


def cells(
    examiner: Examiner, names: list[str], shares: list[str], questions: int, others: int, every_position: bool
) -> list[Cell]:
    """Every method at every share that it can reach with this model."""
    found, total = [Cell("dense", "1", None, questions)], examiner.vlm.config.tokens_per_image
    for name in names:
        for share in shares:
            sparsity = methods.create(name, share)
            if sparsity is None:
                continue
            try:
                sparsity.check(_depth(examiner), total)
                sparsity.plan(_depth(examiner), _bucket(total))
                if sparsity.merging and not isinstance(sparsity.merging, TowerReduction):
                    llava.merge_schedule(examiner.vlm.config, sparsity.merging)
            except ValueError as error:  # a budget below the method's floor
                print(f"left out: {name} at {share}: {error}")
                continue
            count = questions if name in HEADLINE else others
            found.append(Cell(name, share, sparsity, count))
            if every_position:
                other = "repack" if sparsity.positions == "keep" else "keep"
                found.append(Cell(name, share, dataclasses.replace(sparsity, positions=other), count))
    return found


def ablations(examiner: Examiner, questions: int, shares: list[str]) -> list[Cell]:
    """SparseVLM v1.5 with one part changed at a time."""
    found = [Cell("dense", "1", None, questions)]
    for share in shares:
        base = SparsityConfig.sparsevlm(share)
        amount = Tokens.parse(share)
        variants: dict[str, SparsityConfig] = {
            "as published": base,
            "raters: all text": dataclasses.replace(base, raters="all"),
            "raters: last token": dataclasses.replace(base, raters="last"),
            "recycling: off": dataclasses.replace(base, recycle=None),
            "recycling: sum": dataclasses.replace(base, recycle=Recycle(merge="sum")),
            "recycling: size-aware": dataclasses.replace(base, recycle=Recycle(size_aware=True)),
            "one stage, first layer": dataclasses.replace(base, layers=base.pruning_layers(_depth(examiner))[:1]),
            "one stage, second layer": dataclasses.replace(base, layers=base.pruning_layers(_depth(examiner))[1:2]),
            "positions: kept": dataclasses.replace(base, positions="keep"),
            "heads: 14 of 32": dataclasses.replace(base, score=RaterScore(heads=Fraction(14, 32))),
            "gravity correction": dataclasses.replace(base, score=RaterScore(gravity=True)),
            "budget: rank, numerical": _rank(examiner, base, amount, "numerical"),
            "budget: rank, entropy": _rank(examiner, base, amount, "entropy"),
        }
        found += [Cell(name, share, sparsity, questions) for name, sparsity in variants.items()]
    return found


def _rank(examiner: Examiner, base: SparsityConfig, amount: Tokens, measure: Any) -> SparsityConfig:
    """Rank-adaptive counts whose mean over layers, on the first questions, is that of the fixed schedule."""
    target = float(amount.amount) * examiner.vlm.config.tokens_per_image
    low, high = 0.0, 64.0
    for _ in range(9):
        scale = (low + high) / 2
        method = dataclasses.replace(base, budget=RankScale(scale, measure=measure))
        after = examiner.ask(method, 64)[1].mean_after_layers
        low, high = (scale, high) if after < target else (low, scale)
    return dataclasses.replace(base, budget=RankScale(low, measure=measure))


def answered(examiner: Examiner, cell: Cell) -> dict[str, Any]:
    """What results.json keeps of a cell."""
    start = time.perf_counter()
    answers, cost = examiner.ask(cell.sparsity, cell.questions)
    seconds = round(time.perf_counter() - start, 1)
    return dict(**_identity(cell), commit=commit(), cost=dataclasses.asdict(cost), seconds=seconds, answers=answers)


def _identity(cell: Cell) -> dict[str, Any]:
    """What must be equal for its answers to be a cell's."""
    return dict(config=repr(cell.sparsity), questions=cell.questions)


def result_of(examiner: Examiner, cell: Cell, entry: dict[str, Any], dense: np.ndarray) -> Result:
    right = examiner.right(entry["answers"])
    scenes = np.array(examiner.exam.scenes[: len(right)])
    kept, low, high = of_dense(right, dense[: len(right)] if dense.size else right, scenes)
    kinds = np.array([question.kind for question in examiner.exam.questions[: len(right)]])
    by_kind = {kind: float(right[kinds == kind].mean()) for kind in sorted(set(kinds))}
    own = (cell.method, cell.share, cell.positions, len(right), float(right.mean()), kept, low, high)
    return Result(*own, by_kind, Cost(**entry["cost"]), entry["seconds"])


def of_dense(right: np.ndarray, dense: np.ndarray, scenes: np.ndarray) -> tuple[float, float, float]:
    """Ratio of accuracies and its 95 % bootstrap interval over pictures, both answered on the same questions."""
    _, where = np.unique(scenes, return_inverse=True)
    ours, theirs = np.bincount(where, right), np.bincount(where, dense)
    draws = np.random.default_rng(0).integers(0, len(ours), (SAMPLES, len(ours)))
    ratios = ours[draws].sum(axis=1) / np.maximum(theirs[draws].sum(axis=1), 1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(right.sum() / max(dense.sum(), 1)), float(low), float(high)


def table(results: list[Result]) -> str:
    head = [
        "method",
        "budget",
        "positions",
        "tokens after / entering a layer",
        "questions",
        "accuracy",
        "of dense",
        "95 % interval",
    ]
    lines = ["| " + " | ".join([*head, "MACs of dense", "KV of dense"]) + " |", "|---" * (len(head) + 2) + "|"]
    for r in results:
        tokens = f"{r.cost.mean_after_layers:.1f} / {r.cost.mean_entering_layers:.1f}"
        macs, kv = r.cost.paper_macs / r.cost.paper_macs_dense, r.cost.kv_bytes / r.cost.kv_bytes_dense
        lines.append(
            f"| {r.method} | {r.share} | {r.positions} | {tokens} | {r.questions:,} | {r.accuracy:.1%} "
            f"| {r.of_dense:.1%} | {r.low:.1%} to {r.high:.1%} | {macs:.0%} | {kv:.0%} |"
        )
    return "\n".join(lines)


def share_table(results: list[Result]) -> str:
    """Accuracy of dense in percent and its interval, a line for each method and way to number positions."""
    shares = list(dict.fromkeys(r.share for r in results if r.method != "dense"))
    found = {(r.method, r.positions, r.share): r for r in results if r.method != "dense"}
    lines = ["| method | positions | " + " | ".join(shares) + " |", "|---" * (len(shares) + 2) + "|"]
    for method, positions in dict.fromkeys((method, positions) for method, positions, _ in found):
        own = [found.get((method, positions, share)) for share in shares]
        texts = (f"{100 * r.of_dense:.1f} ({100 * r.low:.0f} to {100 * r.high:.0f})" if r else "" for r in own)
        lines.append(f"| {method} | {positions} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def kinds_table(results: list[Result]) -> str:
    kinds = list(results[0].by_kind)
    lines = ["| method | budget | positions | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 3) + "|"]
    for r in results:
        scores = (f"{r.by_kind[kind]:.1%}" if kind in r.by_kind else "" for kind in kinds)
        lines.append(f"| {r.method} | {r.share} | {r.positions} | " + " | ".join(scores) + " |")
    return "\n".join(lines)


def plot(results: list[Result], path: Path) -> None:
    """Accuracy over budget, a line a method, with intervals."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=130)
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
    for name in dict.fromkeys(r.method for r in results if r.method != "dense"):
        own = sorted((r for r in results if r.method == name), key=lambda r: float(Fraction(r.share)))
        x = [float(Fraction(r.share)) for r in own]
        errors = [[r.of_dense - r.low for r in own], [r.high - r.of_dense for r in own]]
        style = "-" if name in HEADLINE else ":"
        axes.errorbar(x, [r.of_dense for r in own], yerr=errors, label=name, linestyle=style, marker="o", capsize=2)
    axes.set(xscale="log", xlabel="image tokens left, share (mean after a layer)", ylabel="accuracy, of dense")
    shares = sorted({r.share for r in results if r.method != "dense"}, key=lambda s: float(Fraction(s)))
    axes.set_xticks([float(Fraction(s)) for s in shares], shares)
    axes.minorticks_off()
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, bbox_inches="tight")


def opened(path: Path, examiner: Examiner, model: str) -> dict[str, Any]:
    """The record in `path`, or a new one.

    Raises:
        SystemExit: there is one of another model or of other questions.
    """
    truth = [[*question] for question in examiner.exam.questions]
    new = dict(model=model, split=examiner.exam.split, jax=jax.__version__, questions=truth, cells={})
    if not path.exists():
        return new
    record = json.loads(path.read_text())
    common = min(len(record["questions"]), len(truth))
    same = record["questions"][:common] == truth[:common]
    if not same or any(record[name] != new[name] for name in ("model", "split", "jax")):
        raise SystemExit(f"{path} is of another model, JAX or exam: name another folder with --out")
    return record | dict(questions=max(record["questions"], truth, key=len))


def write(folder: Path, record: dict[str, Any], results: list[Result]) -> str:
    """Tables and raw answers of the cells so far."""
    text = f"{share_table(results)}\n\n{table(results)}\n\n{kinds_table(results)}\n"
    (folder / "results.md").write_text(text)
    new = folder / "results.json.new"  # a run may be cut short at any time
    new.write_text(json.dumps(record) + "\n")
    new.replace(folder / "results.json")
    return text


def _as_published(cell: Cell) -> bool:
    """Whether it numbers positions as its method does by itself."""
    method = methods.create(cell.method, cell.share)
    return method is None or method.positions == cell.positions


@functools.cache
def commit() -> str:
    """The commit measured, "+" where the tree differs from it."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def _depth(examiner: Examiner) -> int:
    return examiner.vlm.config.text.num_hidden_layers


def _bucket(visual: int) -> Bucket:
    return Bucket(text=32, visual=visual, fewest=visual)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CHECKPOINT, help="a checkpoint folder (default: the bundled one)")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--methods", nargs="*", default=sorted(set(methods.METHODS) - {"dense"}))
    parser.add_argument("--questions", type=int, default=4000, help="of the headline methods (default: %(default)s)")
    parser.add_argument("--shares", nargs="+", default=[*SHARES, "1/18"], help="of image tokens (default: %(default)s)")
    parser.add_argument("--others", type=int, default=1000, help="of the other methods (default: %(default)s)")
    parser.add_argument("--ablations", nargs="*", metavar="SHARE", help="of SparseVLM, at these budgets (1/3)")
    parser.add_argument(
        "--own-positions", dest="every_position", action="store_false", help="number positions as the method does only"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    args = parser.parse_args()
    if args.quick:
        args.questions = args.others = 100
        args.methods = [name for name in QUICK if name != "dense"]
    examiner = Examiner(sv.load(args.model), Exam.draw(args.questions, args.split))
    args.out.mkdir(parents=True, exist_ok=True)
    todo = (
        ablations(examiner, args.others, args.ablations or ["1/3"])
        if args.ablations is not None
        else cells(examiner, args.methods, args.shares, args.questions, args.others, args.every_position)
    )
    todo = todo[:3] if args.quick else todo
    model = "bundled" if args.model == CHECKPOINT else str(args.model)
    record = opened(args.out / "results.json", examiner, model)
    results, dense, text = [], np.zeros(0), ""
    for cell in todo:
        entry = record["cells"].get(cell.key)
        if entry is None or any(entry[name] != value for name, value in _identity(cell).items()):
            entry = record["cells"][cell.key] = answered(examiner, cell)
            print(f"{cell.key:32s} in {entry['seconds']:.0f} s", flush=True)
        elif entry["commit"] != commit():
            print(f"{cell.key:32s} of commit {entry['commit']}", flush=True)
        dense = examiner.right(entry["answers"]) if cell.method == "dense" else dense
        results.append(result_of(examiner, cell, entry, dense))
        text = write(args.out, record, results)
    if args.ablations is None:
        plot([r for r, cell in zip(results, todo, strict=True) if _as_published(cell)], args.out / "results.png")
    print("\n" + text)
    summary = [r._replace(cost=dataclasses.asdict(r.cost))._asdict() for r in results]
    print(json.dumps(dict(commit=commit(), split=args.split, results=summary)))


if __name__ == "__main__":
    main()
