"""Questions that only a GPU can answer: what XLA's choices and cuDNN's give for one prefill and one decode step.

    python benchmarks/gpu_questions.py                 a 7B's layers, eight of them, bfloat16
    python benchmarks/gpu_questions.py --layers 32     the whole one
    python benchmarks/gpu_questions.py --model 0.1b --layers 4 --repeats 3     on a CPU, to see that it works

Each variant is the same program compiled with other options, or with another attention for the one query of a decode
step; all run in turns. Milliseconds are medians, of a prefill of 576 image tokens and 64 words, and of one decode step
after it. The last line is one JSON.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from environment import environment
from shapes import MODELS, random_params

from sparsevlm_jax.models.nn.attention import choose_implementation
from sparsevlm_jax.runtime import decode
from sparsevlm_jax.runtime.prefill import PrefillInputs, prefill
from sparsevlm_jax.sparsify import Bucket, SparsityConfig

GRAPHED = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"  # XLA's default, as of jax 0.11
APART, NO_GRAPHS = {"xla_gpu_dot_merger_threshold_mb": 0}, {"xla_gpu_enable_command_buffer": ""}
PREFILL: dict[str, dict[str, Any]] = {
    "as XLA does": {},
    "K and V apart": APART,
    "no CUDA graphs": NO_GRAPHS,
    "both": APART | NO_GRAPHS,
}
DECODE = {
    "as XLA does": {},
    "K and V apart": APART,
    "no CUDA graphs": NO_GRAPHS,
    "the loop in a CUDA graph": {"xla_gpu_enable_command_buffer": f"{GRAPHED},WHILE"},
}


class Timed(NamedTuple):
    """Medians: milliseconds until a call is back, its kernels under way, and until its results are there."""

    dispatch_ms: float
    ms: float


def timed(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timed]:
    """All in turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            result = call()
            back = time.perf_counter()
            jax.block_until_ready(result)
            if turn:  # the first is a warm-up
                taken[name].append(((back - start) * 1e3, (time.perf_counter() - start) * 1e3))
    return {name: Timed(*np.median(times, axis=0).tolist()) for name, times in taken.items()}


def main() -> None:
    gpu = jax.default_backend() != "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="7b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--text", type=int, default=64)
    parser.add_argument("--steps", type=int, default=32 if gpu else 4, help="decoded (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    whole = MODELS[options.model]
    config = dataclasses.replace(
        whole, eos_token_ids=(-1,), text=dataclasses.replace(whole.text, num_hidden_layers=options.layers)
    )
    dtype = jnp.dtype(jnp.bfloat16 if gpu else jnp.float32)
    implementation = choose_implementation(dtype, head_dim=config.text.head_dim)
    params = random_params(config, dtype)
    bucket = Bucket(options.text, config.tokens_per_image, fewest=config.tokens_per_image)
    ids = np.random.default_rng(0).integers(3, 1000, (options.batch, bucket.capacity))
    ids[:, 8 : 8 + bucket.visual] = config.image_token_id
    features = jax.random.normal(jax.random.key(1), (options.batch, bucket.visual, config.text.hidden_size), dtype)
    inputs = PrefillInputs.of(
        jnp.asarray(ids, jnp.int32), jnp.full(options.batch, bucket.capacity), features, config.image_token_id
    )
    limit = jnp.int32(options.steps + 1)

    failed: dict[str, str] = {}

    def compiled(name: str, function: Callable, *args: Any, compiler_options: dict[str, Any], **static: Any) -> Any:
        try:
            program = jax.jit(partial(function, **static)).lower(*args).compile(compiler_options=compiler_options)
            jax.block_until_ready(program(*args))
        except Exception as error:  # of any kind: what a compiler or a driver refuses is an answer too
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
            print(f"{name}: {failed[name]}", flush=True)
            return {}
        print(f"compiled: {name}", flush=True)
        return {name: partial(program, *args)}

    alone = jax.jit(lambda params, x: x + 1, keep_unused=True)
    calls = {"nothing, of all parameters": partial(alone, params, limit)}
    static = dict(config=config, implementation=implementation)
    for method, label in ((None, "dense"), (SparsityConfig.sparsevlm(192), "192 tokens")):
        own = dict(**static, sparsity=method, bucket=bucket, new_tokens=options.steps)
        for name, given in PREFILL.items():
            calls |= compiled(f"prefill, {label}, {name}", prefill, params, inputs, compiler_options=given, **own)
    state = calls["prefill, dense, as XLA does"]()
    args, own = (params, state.logits, state.state, limit), dict(config=config, buffer=options.steps + 1)
    runs = [(name, implementation, given) for name, given in DECODE.items()]
    if implementation != "xla":
        runs.append(("XLA's attention for the one query", "xla", {}))
    steps: dict[str, Callable[[], Any]] = {}
    for name, attention, given in runs:
        steps |= compiled(
            f"decode, {name}", decode.generate, *args, compiler_options=given, implementation=attention, **own
        )
    results = timed(calls, options.repeats)
    results |= {
        name: Timed(*(ms / options.steps for ms in both)) for name, both in timed(steps, options.repeats).items()
    }
    for name, (dispatch_ms, ms) in results.items():
        print(f"{name}: {ms:.3f} ms, of which {dispatch_ms:.3f} until the call is back")
    found = {name: both._asdict() for name, both in results.items()}
    print(json.dumps(dict(**environment(), **vars(options), results=found, failed=failed)))


if __name__ == "__main__":
    main()
