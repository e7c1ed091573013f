"""Does half precision keep the same tokens? Kept patches and answers in bfloat16 beside those in float32.

    python benchmarks/precision.py                      100 held-out questions to the bundled model, 1/3 of the tokens
    python benchmarks/precision.py --budgets 1/3 1/9 --methods sparsevlm fastv

Both precisions see the same questions; a patch counts where float32 keeps it and bfloat16 does too, stage by stage.
Answers are greedy, and also counted dense: where those differ, it is not the pruning. The last line is one JSON.
"""

import argparse
import json

import jax.numpy as jnp
import numpy as np
from held_out import Exam

import sparsevlm_jax as sv
from sparsevlm_jax import methods
from sparsevlm_jax.demo import evaluate
from sparsevlm_jax.sparsify import SparsityConfig


def kept_patches(vlm: sv.VLM, question: str, picture, sparsity: SparsityConfig) -> list[set[int]]:
    """Patches that stay as they are behind each stage (merged tokens are none of the picture's)."""
    stages = sv.trace_prefill(vlm, question, picture, sparsity=sparsity).stages
    return [set(stage.origin[stage.kept].tolist()) - {-1} for stage in stages]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="default: the bundled one")
    parser.add_argument("--methods", nargs="+", default=["sparsevlm"])
    parser.add_argument("--budgets", nargs="+", default=["1/3"])
    parser.add_argument("--questions", type=int, default=100)
    options = parser.parse_args()
    full, half = sv.load(options.model, dtype=jnp.float32), sv.load(options.model, dtype=jnp.bfloat16)
    exam = Exam.draw(options.questions)
    asked = [
        (question.text, evaluate.exam(scene, exam.split)[0].draw())
        for scene, question in zip(exam.scenes, exam.questions, strict=True)
    ]

    def same_answers(sparsity: SparsityConfig | None) -> float:
        told = [[sv.generate(vlm, *one, sparsity=sparsity).text for one in asked] for vlm in (full, half)]
        return float(np.mean([one == other for one, other in zip(*told, strict=True)]))

    results = {"dense": dict(same_answers=same_answers(None))}
    print(f"dense: {results['dense']['same_answers']:.1%} of the answers are the same")
    for method in options.methods:
        for budget in options.budgets:
            sparsity = methods.create(method, budget)
            if sparsity is None:
                raise SystemExit(f"{method} keeps every token: there is nothing to compare")
            both = [[kept_patches(vlm, *one, sparsity) for vlm in (full, half)] for one in asked]
            kept = np.array([[len(stage) for stage in one] for one, _ in both]).sum(axis=0)
            alike = np.array([[len(a & b) for a, b in zip(*pair, strict=True)] for pair in both]).sum(axis=0)
            shares, in_all = (alike / kept).tolist(), float(alike.sum() / kept.sum())
            name = f"{method} {budget}"
            results[name] = dict(kept_alike=shares, in_all=in_all, same_answers=same_answers(sparsity))
            stages = ", ".join(f"{share:.2%}" for share in shares)
            print(f"{name}: bfloat16 keeps {stages} of float32's patches at its stages, {in_all:.2%} in all;")
            print(f"  {results[name]['same_answers']:.1%} of the answers are the same", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
