"""What each part of a pruning stage costs: raters, score, rank, select, recycle, compact, for each SparseVLM version.

    python benchmarks/stages.py                     the 1B decoder, 576 and 2,048 visual tokens, 64 words
    python benchmarks/stages.py --model 7b          LLaVA-1.5-7B's sizes
    python benchmarks/stages.py --quick             a small decoder in seconds, to see that it works

The parts of the first stage are compiled and timed apart, on random hidden states, queries and keys of the model's
sizes, in turns with one decoder layer over the same tokens. "share" is the part's time over that of a dense prefill,
taken as that layer times the number of layers. (Later stages see fewer tokens and cost less.) MFLOPs are those of the
part's matrix products. Ends with one line of JSON.
"""

import argparse
import json
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from shapes import MODELS, alternate, median

from sparsevlm_jax import sparsify
from sparsevlm_jax.models import LlamaConfig
from sparsevlm_jax.models.decoders.llama import CausalLM
from sparsevlm_jax.models.nn.attention import causal_attention, choose_implementation
from sparsevlm_jax.models.nn.params import bind, init

TEXT = 64


def setting(config: LlamaConfig, visual: int, dtype: Any, *, text: int = TEXT, batch: int = 1) -> dict[str, Any]:
    """Random inputs of a stage over `visual` image tokens and `text` words, half of them raters."""
    tokens = visual + text
    keys = iter(jax.random.split(jax.random.key(0), 4))
    slot = jnp.broadcast_to(jnp.arange(tokens), (batch, tokens))
    heads = (config.num_attention_heads, config.num_key_value_heads)
    q, k = (jax.random.normal(next(keys), (batch, tokens, n, config.head_dim), dtype) for n in heads)
    hidden = jax.random.normal(next(keys), (batch, tokens, config.hidden_size), dtype)
    is_visual = slot < visual
    is_rater = (slot >= visual) & (slot % 2 == 0)
    stream = sparsify.TokenStream(hidden, slot, is_visual, is_rater, jnp.full(batch, tokens))
    return dict(stream=stream, attention=sparsify.Attention(q, k, config.inverse_frequencies()))


def parts(
    method: sparsify.SparsityConfig, config: LlamaConfig, visual: int, dtype: Any
) -> dict[str, Callable[[], Any]]:
    """Each part of the method's first stage as a compiled call."""
    given = setting(config, visual, dtype)
    stream, attention = given["stream"], given["attention"]
    bucket = sparsify.Bucket(TEXT, visual, fewest=visual)
    plan = method.plan(config.num_hidden_layers, bucket)[0]
    visual_slot, valid = sparsify.slots_of(stream.is_visual, visual)
    rater_slot, is_rater = sparsify.slots_of(stream.is_rater, TEXT)
    inputs = sparsify.StageInputs(stream, attention, visual_slot, valid, rater_slot, is_rater)
    scored = jax.jit(method.score)(inputs)
    count = jnp.array([plan.table[-1] if plan.table else min(plan.kept, 8 * TEXT // 2)])
    chosen = method.select(scored.values, inputs.visual_hidden, valid, count, capacity=plan.kept)
    every = sparsify.CountInputs(valid.sum(1), is_rater.sum(1), scored.attention_map)
    decision = sparsify.Decision(visual_slot, valid.sum(1), rater_slot, is_rater.sum(1), scored, count, chosen)

    def call(function: Callable, *args: Any) -> Callable[[], Any]:
        return partial(jax.jit(function), *args)

    select_raters = partial(sparsify.select_raters, question_capacity=TEXT, rule=method.raters)
    made = {
        "raters": call(select_raters, stream.hidden, stream.is_visual, ~stream.is_visual),
        "score": call(method.score, inputs),
        "select": call(
            lambda s, h: method.select(s, h, valid, count, capacity=plan.kept), scored.values, stream.hidden
        ),
    }
    if isinstance(method.budget, sparsify.AdaptiveBudget):
        made["count"] = call(method.budget.count, every)
    if recycle := method.recycle:

        def recycled(hidden: jax.Array, selection: sparsify.Selection) -> sparsify.Recycled:
            return recycle(
                sparsify.RecycleInputs(hidden, selection, valid.sum(1), plan.candidates, plan.merged, scored)
            )

        made["recycle"] = call(recycled, inputs.visual_hidden, chosen)
    without = sparsify.SparsityConfig(budget=method.budget, recycle=None, positions=method.positions)
    made["compact"] = call(lambda s, d: sparsify.apply(s, d, plan, without)[0], stream, decision)
    return made


def flops(method: sparsify.SparsityConfig, config: LlamaConfig, visual: int, part: str) -> int:
    """Of the matrix products a part makes: raters, score; clustering by its Gram matrix; the rank by its SVD."""
    plan = method.plan(config.num_hidden_layers, sparsify.Bucket(TEXT, visual, fewest=visual))[0]
    width = config.num_attention_heads * config.head_dim
    return {
        "raters": 2 * TEXT * (visual + TEXT) * config.hidden_size,
        "score": 2 * TEXT * (visual + TEXT) * width,
        "rank": 4 * TEXT * visual * min(TEXT, visual),
        "recycle": 2 * plan.candidates * (plan.candidates + plan.merged) * config.hidden_size,
    }.get(part, 0)


def layer(config: LlamaConfig, visual: int, dtype: Any) -> Callable[[], Any]:
    """One decoder layer over the unpruned tokens, compiled."""
    one = LlamaConfig(**{**vars(config), "num_hidden_layers": 1, "vocab_size": 8})
    params = jax.tree.map(lambda x: x.astype(dtype), init(CausalLM, one, 0))
    stream = setting(config, visual, dtype)["stream"]
    implementation = choose_implementation(dtype, head_dim=config.head_dim)

    def run(params: dict, stream: sparsify.TokenStream) -> jax.Array:
        lm = bind(CausalLM, one, params)

        def attend(q, k, v):
            return causal_attention(q, k, v, stream.length, implementation=implementation), None

        return lm.language_model.layers[0](stream.hidden, lm.rotary(stream.position_ids), attend)[0]

    return partial(jax.jit(run), params, stream)


def methods() -> dict[str, sparsify.SparsityConfig]:
    third = Fraction(1, 3)
    return {
        "v1.5": sparsify.SparsityConfig.sparsevlm(third),
        "plus": sparsify.SparsityConfig.sparsevlm_plus(third),
        "v1.0": sparsify.SparsityConfig.sparsevlm_v1(),
        "paper": sparsify.SparsityConfig.paper(),
        "video": sparsify.SparsityConfig.sparsevlm_video(),
    }


def measure(config: LlamaConfig, visual: int, dtype: Any, repeats: int) -> list[dict[str, Any]]:
    variants: dict[str, Callable[[], Any]] = {"layer": layer(config, visual, dtype)}
    for name, method in methods().items():
        variants |= {f"{name} {part}": call for part, call in parts(method, config, visual, dtype).items()}
    times = median(alternate(variants, repeats=repeats))
    dense = times.pop("layer") * config.num_hidden_layers
    rows = []
    for label, ms in times.items():
        name, part = label.split(" ")
        rows.append(
            dict(visual=visual, version=name, part=part, ms=ms, share=ms / dense)
            | dict(mflops=flops(methods()[name], config, visual, part) / 1e6, dense_ms=dense)
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="1b")
    parser.add_argument("--visual", type=int, nargs="+", default=[576, 2048])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    config = MODELS["0.1b" if args.quick else args.model].text
    visual, repeats = ([144], 2) if args.quick else (args.visual, args.repeats)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    rows = [row for count in visual for row in measure(config, count, dtype, repeats)]
    print("| visual tokens | version | part | MFLOPs | ms | share of dense prefill |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['visual']} | {row['version']} | {row['part']} | {row['mflops']:.0f} | {row['ms']:.2f} "
            f"| {row['share']:.2%} |"
        )
    device = jax.devices()[0].device_kind
    print(json.dumps(dict(model="0.1b" if args.quick else args.model, device=device, jax=jax.__version__, rows=rows)))


if __name__ == "__main__":
    main()
