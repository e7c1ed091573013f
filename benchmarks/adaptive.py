"""Rank-adaptive budgets: what the bucketed form saves over the padded one, and what its dispatch costs.

    python benchmarks/adaptive.py                   the 0.1B decoder, 576 visual tokens, 64 words, batch 1
    python benchmarks/adaptive.py --model 1b
    python benchmarks/adaptive.py --quick           144 visual tokens, few repeats, to see that it works

Four prefills of one prompt, random weights, in turns: dense; padded (one program, nothing known of the counts, so its
buffers hold every token); bucketed (the host picks each segment's program); and fixed (one program with a schedule of
just the counts that bucketed found). Bucketed less fixed, over the number of stages, is the price of a dispatch: the
wait for the counts, the call of the next program, and the padding to the ladder's size. Ends with one line of JSON.
"""

import argparse
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes import MODELS, alternate, median, random_params

from sparsevlm_jax.models import LlavaConfig
from sparsevlm_jax.models.nn.attention import choose_implementation
from sparsevlm_jax.runtime.bucketed import prefill_bucketed
from sparsevlm_jax.runtime.prefill import PrefillInputs, prefill
from sparsevlm_jax.sparsify import Bucket, KeptTokens, RankScale, SparsityConfig

TEXT = 64


def prompt(config: LlavaConfig, visual: int, dtype: Any) -> PrefillInputs:
    ids = np.arange(TEXT + visual)[None] % 1000 + 3
    ids[:, 8 : 8 + visual] = config.image_token_id
    features = jax.random.normal(jax.random.key(0), (1, visual, config.text.hidden_size), dtype)
    return PrefillInputs.of(jnp.asarray(ids, jnp.int32), jnp.array([TEXT + visual]), features, config.image_token_id)


def measure(name: str, visual: int, scale: float, repeats: int) -> dict[str, Any]:
    config, dtype = MODELS[name], jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    params = random_params(config, dtype)
    inputs, bucket = prompt(config, visual, dtype), Bucket(TEXT, visual, fewest=visual)
    static: dict[str, Any] = dict(
        config=config, bucket=bucket, implementation=choose_implementation(dtype, head_dim=config.text.head_dim)
    )
    adaptive = SparsityConfig(budget=RankScale(scale))

    def one_program(sparsity: SparsityConfig | None):
        return functools.partial(jax.jit(functools.partial(prefill, sparsity=sparsity, **static)), params, inputs)

    bucketed = functools.partial(prefill_bucketed, params, inputs, sparsity=adaptive, **static)
    found = bucketed().result
    leaving, kept = (np.asarray(counts)[:, 0].tolist() for counts in (found.visual_count, found.wanted))
    layers = adaptive.pruning_layers(config.text.num_hidden_layers)
    fixed = SparsityConfig(budget=KeptTokens(tuple(kept)), layers=layers)
    variants = {
        "dense": one_program(None),
        "padded": one_program(adaptive),
        "bucketed": lambda: bucketed().result,
        "fixed": one_program(fixed),
    }
    ms = median(alternate(variants, repeats=repeats))
    dispatch = (ms["bucketed"] - ms["fixed"]) / len(layers)
    return dict(model=name, visual=visual, scale=scale, layers=layers, leaving=leaving, ms=ms, dispatch_ms=dispatch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="0.1b")
    parser.add_argument("--visual", type=int, default=576)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.8, 4.0, 13.5])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    scales, visual, repeats = ([0.8], 144, 3) if args.quick else (args.scales, args.visual, args.repeats)
    head = "| rank x | tokens after each stage | dense ms | padded | bucketed | fixed | dispatch per stage |"
    print(head + "\n" + "|---" * 7 + "|")
    rows = []
    for scale in scales:
        row = measure(args.model, visual, scale, repeats)
        ms = row["ms"]
        print(
            f"| {scale} | {row['leaving']} | {ms['dense']:.1f} | {ms['padded']:.1f} | {ms['bucketed']:.1f} "
            f"| {ms['fixed']:.1f} | {row['dispatch_ms']:.2f} |",
            flush=True,
        )
        rows.append(row)
    print(json.dumps(dict(device=jax.devices()[0].device_kind, jax=jax.__version__, rows=rows)))


if __name__ == "__main__":
    main()
