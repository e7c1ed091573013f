"""Does another precision keep the same tokens? Kept patches and answers beside those in exact float32.

    python benchmarks/precision.py                      100 held-out questions to the bundled model, 1/3 of the tokens
    python benchmarks/precision.py --budgets 1/3 1/9 --methods sparsevlm fastv

Held against float32 whose products are exact ("highest", in JAX's terms): bfloat16, and float32 as the device
multiplies it by default, which on a GPU rounds the factors to TensorFloat-32 and on a CPU is the same. All see the same
questions; a patch counts where both keep it, stage by stage. Answers are greedy, and also counted dense: where those
differ, it is not the pruning. The last line is one JSON.
"""

import argparse
import json
from contextlib import nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from environment import environment
from held_out import Exam

import sparsevlm_jax as sv
from sparsevlm_jax import methods
from sparsevlm_jax.demo import world
from sparsevlm_jax.sparsify import SparsityConfig


class Precision(NamedTuple):
    """A model, and how it multiplies: as JAX names it, None for the device's default."""

    vlm: sv.VLM
    products: str | None

    def answers(self, asked: list, sparsity: SparsityConfig | None) -> list[str]:
        with self._products():
            return [sv.generate(self.vlm, *one, sparsity=sparsity).text for one in asked]

    def kept_patches(self, asked: list, sparsity: SparsityConfig) -> list[list[set[int]]]:
        """Of each question, the patches that stay as they are after each stage; merged tokens are none."""
        with self._products():
            traces = [sv.trace_prefill(self.vlm, *one, sparsity=sparsity).stages for one in asked]
        return [[set(stage.origin[stage.kept].tolist()) - {-1} for stage in stages] for stages in traces]

    def _products(self):
        return jax.default_matmul_precision(self.products) if self.products else nullcontext()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="default: the bundled one")
    parser.add_argument("--methods", nargs="+", default=["sparsevlm"])
    parser.add_argument("--budgets", nargs="+", default=["1/3"])
    parser.add_argument("--questions", type=int, default=100)
    options = parser.parse_args()
    full, half = sv.load(options.model, dtype=jnp.float32), sv.load(options.model, dtype=jnp.bfloat16)
    exact = Precision(full, "highest")
    others = {"bfloat16": Precision(half, None), "float32 by default": Precision(full, None)}
    exam = Exam.draw(options.questions)
    asked = [
        (question.text, world.sample(scene, exam.split).draw())
        for scene, question in zip(exam.scenes, exam.questions, strict=True)
    ]
    results: dict[str, dict] = {name: {} for name in others}
    settings: list[tuple[str, SparsityConfig | None]] = [("dense", None)]
    for method in options.methods:
        for budget in options.budgets:
            sparsity = methods.create(method, budget)
            if sparsity is None:
                raise SystemExit(f"{method} keeps every token: there is nothing to compare")
            settings.append((f"{method} {budget}", sparsity))
    for setting, sparsity in settings:
        answers = exact.answers(asked, sparsity)
        kept = exact.kept_patches(asked, sparsity) if sparsity else []
        for name, other in others.items():
            same = [one == another for one, another in zip(answers, other.answers(asked, sparsity), strict=True)]
            found: dict = dict(same_answers=float(np.mean(same)))
            print(f"{setting}, {name}: {found['same_answers']:.1%} of the answers are exact float32's", flush=True)
            if sparsity:
                pairs = zip(kept, other.kept_patches(asked, sparsity), strict=True)
                alike = np.array([[len(a & b) for a, b in zip(*pair, strict=True)] for pair in pairs]).sum(axis=0)
                total = np.array([[len(stage) for stage in one] for one in kept]).sum(axis=0)
                found |= dict(kept_alike=(alike / total).tolist(), in_all=float(alike.sum() / total.sum()))
                stages = ", ".join(f"{share:.2%}" for share in found["kept_alike"])
                print(f"  and {stages} of its patches at the stages, {found['in_all']:.2%} in all", flush=True)
            results[name][setting] = found
    print(json.dumps(dict(**environment(), questions=options.questions, results=results)))


if __name__ == "__main__":
    main()
