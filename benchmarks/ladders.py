"""How many programs pictures of any size need, and what padding them to shared shapes costs.

    python benchmarks/ladders.py                       200 pictures of a LLaVA-NeXT 7B and a LLaVA-OneVision 0.5B
    python benchmarks/ladders.py --pictures 1000 --longest 4000

One picture a prompt, height and width drawn apart, each as likely to be twice as long as half as long; the prompt's
words from `--words`. A program is compiled for every combination of shapes. FLOPs are the decoder's, padded over true
ones; no model is run. The last line is one JSON.
"""

import argparse
import json
import time
from collections import Counter

import numpy as np
from shapes import MODELS

from sparsevlm_jax.report.cost import decoder_flops
from sparsevlm_jax.runtime.batching import rung, text_bucket, visual_bounds
from sparsevlm_jax.sparsify import Bucket, SparsityConfig


def plan_ms(visual: int) -> dict[str, tuple[float, float]]:
    """Of SparseVLM at 1/3 in 32 layers: rows from four fifths of so many tokens on, and rows of any smaller number."""
    method, taken = SparsityConfig.sparsevlm("1/3"), {}
    for name, fewest in (("of a rung", visual // 5 * 4), ("of any number", 1)):
        times = []
        for _ in range(2):  # the second is remembered
            start = time.perf_counter()
            method.plan(32, Bucket(64, visual, fewest=fewest))
            times.append((time.perf_counter() - start) * 1e3)
        taken[name] = (round(times[0], 2), round(times[1], 3))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["next-7b", "onevision-0.5b"])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--shortest", type=int, default=200, help="pixels of an edge (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=2000)
    parser.add_argument("--words", type=int, nargs=2, default=(40, 110), help="tokens of text, template included")
    options = parser.parse_args()
    results = {}
    for name in options.models:
        config, rng = MODELS[name], np.random.default_rng(0)
        layers, prefills, encodes = config.text.num_hidden_layers, Counter(), Counter()
        costs, counts = [], []
        for _ in range(options.pictures):
            edges = np.exp(rng.uniform(np.log(options.shortest), np.log(options.longest), 2))
            _, cut = config.cut((int(edges[0]), int(edges[1])))
            text, visual = int(rng.integers(*options.words)), len(cut.source)
            fewest, most = visual_bounds(visual)
            padded = text_bucket(text_bucket(text), beside=most)
            prefills[padded, most, fewest, rung(visual)] += 1
            tiles = cut.picture.tiles
            tokens = tiles * (config.tokens_per_tile + config.vision.patches_per_side)
            encodes[rung(tiles), rung(tokens), cut.is_scaled] += 1
            flops = [decoder_flops([n] * layers, config.text) for n in (text + visual, padded + most)]
            costs.append(flops[1] / flops[0] - 1)
            counts.append(visual)
        results[name] = dict(
            tokens=(min(counts), max(counts)),
            prefill_programs=len(prefills),
            encode_programs=len(encodes),
            padding=dict(mean=float(np.mean(costs)), most=float(max(costs))),
        )
        print(name, results[name])
    plans = {visual: plan_ms(visual) for visual in (2880, 16384)}
    print("plan, ms cold and warm:", plans)
    print(json.dumps(dict(**vars(options), results=results, plan_ms=plans)))


if __name__ == "__main__":
    main()
