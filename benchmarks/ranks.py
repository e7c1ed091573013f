"""What a rank says of the raters' attention: three measures against the number of raters, on held-out questions.

    python benchmarks/ranks.py                     512 questions to the bundled model; writes ranks.png

SparseVLM v1.0 and the paper set budgets by the numerical rank of the raters' attention onto the image (eq. 7). Rows of
a softmax are hardly ever exactly dependent, so that rank is the number of raters unless fewer tokens than raters are
left; the stable and the entropy rank differ between questions. Ends with one line of JSON: per stage the share of
prompts whose numerical rank is the smaller of raters and visual tokens, and each measure's mean and spread.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import numpy as np
from held_out import BATCH, Exam, Examiner

import sparsevlm_jax as sv
from sparsevlm_jax.demo import CHECKPOINT
from sparsevlm_jax.runtime.prefill import prefill
from sparsevlm_jax.sparsify import SparsityConfig, attention_rank

_STATIC = ("config", "sparsity", "bucket", "implementation")
MEASURES = ("numerical", "stable", "entropy")


def ranks(examiner: Examiner, sparsity: SparsityConfig) -> list[dict[str, np.ndarray]]:
    """Per stage: raters, visual tokens and each measure, one number a question."""
    vlm, found = examiner.vlm, []
    run = jax.jit(functools.partial(prefill, trace=True), static_argnames=_STATIC)
    for start in range(0, len(examiner.exam.questions), BATCH):
        inputs, bucket = examiner.inputs(range(start, start + BATCH), sparsity)
        static = dict(config=vlm.config, sparsity=sparsity, bucket=bucket, implementation=vlm.implementation)
        found.append([_measure(stage.decision) for stage in run(vlm.params, inputs, **static).trace.stages])
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*found, strict=True)
    ]


def _measure(decision) -> dict[str, np.ndarray]:
    map_, raters, visual = decision.scores.attention_map, decision.rater_count, decision.visual_count
    measured = {name: np.asarray(attention_rank(map_, raters, visual, measure=name)) for name in MEASURES}
    return {"raters": np.asarray(raters), "visual": np.asarray(visual), **measured}


def draw(stages: list[dict[str, np.ndarray]], layers: tuple[int, ...], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(stages), 3.6), dpi=130)
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(stages[0]["raters"]))
    for axes, stage, layer in zip(panels, stages, layers, strict=True):
        top = stage["raters"].max() + 1
        axes.plot([0, top], [0, top], color="grey", linewidth=0.8)
        for name, colour in zip(MEASURES, ("#2f6fde", "#f6b73c", "#2a9d5c"), strict=True):
            axes.scatter(stage["raters"] + jitter, stage[name], s=8, alpha=0.5, color=colour, label=name)
        axes.set(title=f"after layer {layer}", xlabel="raters")
    panels[0].set_ylabel("rank of the raters' attention")
    panels[0].legend(fontsize=8)
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CHECKPOINT)
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--output", type=Path, default=Path("ranks.png"))
    args = parser.parse_args()
    examiner = Examiner(sv.load(args.model), Exam.draw(-(-args.questions // BATCH) * BATCH))
    sparsity = SparsityConfig.sparsevlm("1/3")
    stages = ranks(examiner, sparsity)
    layers = sparsity.pruning_layers(examiner.vlm.config.text.num_hidden_layers)
    draw(stages, layers, args.output)
    summary = {}
    for layer, stage in zip(layers, stages, strict=True):
        full = float(np.mean(stage["numerical"] == np.minimum(stage["raters"], stage["visual"])))
        spread = {name: [float(np.mean(stage[name])), float(np.std(stage[name]))] for name in MEASURES}
        summary[f"layer {layer}"] = dict(full_rank=full, **spread)
        print(f"after layer {layer}: the numerical rank is min(raters, tokens) for {full:.1%} of the questions")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
