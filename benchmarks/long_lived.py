"""A process that answers for days: calls of random shapes, batches and methods, and what they leave behind.

    python benchmarks/long_lived.py                       500 calls on a tiny random model
    python benchmarks/long_lived.py --calls 60 --limit 8

Prints resident memory, memory maps and compiled programs as it goes. Ends with exit code 1 where they still grow behind
the first half of the calls: maps by more than a tenth, memory by more than a tenth and 100 MB.
"""

import argparse
import gc
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

WORDS = "how many people are in the picture and where do they stand what is on the blue sign".split()
BUDGETS = ("1/2", "1/3", "1/4", 12, 10)


def tiny_model() -> Any:
    """The bundled model's tokenizer and pictures before a smaller model of random weights, 16 tokens a picture."""
    import sparsevlm_jax as sv
    from sparsevlm_jax.demo import CHECKPOINT
    from sparsevlm_jax.models import init_params
    from sparsevlm_jax.processing import Processor

    vlm = sv.load()
    vision = replace(vlm.config.vision, hidden_size=32, intermediate_size=64, num_hidden_layers=2, patch_size=42)
    text = replace(vlm.config.text, hidden_size=64, intermediate_size=64, num_hidden_layers=4, head_dim=16)
    config = replace(vlm.config, vision=vision, text=text)
    processor = Processor.from_folder(CHECKPOINT, config)
    return replace(vlm, config=config, params=init_params(config), processor=processor, name="tiny")


def call(vlm: Any, rng: Random) -> str:
    """One answer, or several, of a random kind; what kind it was."""
    import sparsevlm_jax as sv
    from sparsevlm_jax import methods

    rows = rng.choice((1, 1, 1, 1, 2, 3, 5, 7))
    prompts = [" ".join(rng.choices(WORDS, k=rng.choice((3, 8, 20, 45)))) for _ in range(rows)]
    pictures = np.random.default_rng(rng.randrange(10**6)).integers(0, 256, (3, 60, 80, 3), np.uint8)
    images: list[Any] = [list(pictures[: rng.choice((0, 1, 1, 1, 2))]) or None for _ in prompts]
    name = rng.choice(("dense", *sorted(methods.METHODS)))
    sparsity = None if name == "dense" else methods.create(name, rng.choice(BUDGETS))
    options: Any = dict(sparsity=sparsity, max_new_tokens=rng.choice((1, 2, 5, 70)), temperature=rng.choice((0.0, 1.0)))
    kind = rng.choice(("generate", "generate", "generate", "stream", "trace"))
    if kind == "stream":
        list(sv.stream(vlm, prompts[0], images[0], **options))
    elif kind == "trace" and sparsity and images[0]:
        sv.trace_prefill(vlm, prompts[0], images[0], sparsity=sparsity)
    else:
        sv.generate(vlm, prompts, images, **options)
    return f"{kind} {name}"


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory_maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="compiled programs that are kept (default: as the library has it)")
    parser.add_argument("--seed", type=int, default=0, help="of the random calls (default: %(default)s)")
    args = parser.parse_args()
    if args.limit:
        os.environ["SPARSEVLM_PROGRAMS"] = str(args.limit)
    from sparsevlm_jax.runtime.programs import PROGRAMS

    vlm, rng, begin = tiny_model(), Random(args.seed), time.perf_counter()
    print(f"{'calls':>6}{'resident MB':>13}{'maps':>8}{'programs':>10}{'seconds':>9}")
    samples: list[tuple[float, int]] = []
    for number in range(1, args.calls + 1):
        call(vlm, rng)
        if number % max(1, args.calls // 20) == 0:
            gc.collect()
            samples.append((resident_mb(), memory_maps()))
            row = f"{number:6}{samples[-1][0]:13.0f}{samples[-1][1]:8}{len(PROGRAMS):10}"
            print(f"{row}{time.perf_counter() - begin:9.0f}", flush=True)
    half = len(samples) // 2
    before, after = (tuple(map(max, zip(*part, strict=True))) for part in (samples[:half], samples[half:]))
    flat = after[1] <= 1.1 * before[1] and after[0] <= 1.1 * before[0] + 100
    print(json.dumps({"calls": args.calls, "before": before, "after": after, "flat": flat}))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
