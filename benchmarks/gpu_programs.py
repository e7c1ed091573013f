"""What XLA makes of prefill and decode for a GPU that is not there: compile time, memory, kernels. Needs no GPU.

    pip install --no-deps jax-cuda13-plugin==X jax-cuda13-pjrt==X nvidia-cudnn-cu13    X: the version of jax, 0.11 on
    python benchmarks/gpu_programs.py                      the 7B in bfloat16, an H200's programs, minutes
    python benchmarks/gpu_programs.py --model 0.1b --images 1 --batch 1

XLA compiles for a described target ("deviceless"). How fast the programs run cannot be known this way, and without a
device XLA tunes no matrix product and compiles no cuDNN graph. What can be known, and is here:

- *memory*: "working" is what a program needs at once beyond parameters and results, "KV" the results, in which decode
  works in place; "largest" is the largest array that a kernel writes, results apart.
- *kernels*: one launch each, by kind: matrix products, cuDNN attention, copies of more than a megabyte (a weight whose
  layout does not suit would show there), and the rest. Decode's are those of one step.

The last line is one JSON.
"""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["JAX_PLATFORMS"] = "cuda,cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # of the CUDA libraries, which only running needs
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"

import argparse
import collections
import json
import math
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from shapes import MODELS, tokens_of

from sparsevlm_jax.models import abstract_params
from sparsevlm_jax.runtime import decode
from sparsevlm_jax.runtime.prefill import PrefillInputs, prefill
from sparsevlm_jax.sparsify import Bucket, SparsityConfig

# What XLA's cost models ask of a chip, by its datasheet and CUDA's occupancy tables (compute capability 9.0).
HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  core_count: 132 fpus_per_core: 128 threads_per_core_limit: 2048 threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
"""
TARGETS = {
    "h100": HOPPER.format(name="NVIDIA H100 80GB HBM3", memory=80 * 10**9, bandwidth=3_350 * 10**9),
    "h200": HOPPER.format(name="NVIDIA H200", memory=141 * 10**9, bandwidth=4_800 * 10**9),
}
MEGABYTE = 1e6
_ITEMSIZE = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
_NO_KERNEL = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "partition-id"}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")


def kernels(computation: str) -> tuple[dict[str, int], float]:
    """Launches of one computation of a compiled program's text, by kind, and the megabytes of the largest array they
    write, but for those that pad or update a cache."""
    count: collections.Counter[str] = collections.Counter()
    largest = 0.0
    for line in filter(_INSTRUCTION.match, computation.splitlines()):
        (name, shape, op), *_ = _INSTRUCTION.findall(line)
        if op in _NO_KERNEL:
            continue
        size = max(map(_megabytes, re.findall(r"(\w+)\[([\d,]*)\]", shape)), default=0.0)
        if "pad" not in name and "dynamic_update_slice" not in name:  # those write the cache
            largest = max(largest, size)
        if "dot_product_attention" in name:
            count["attention"] += 1
        elif "dot" in name or "__cublas" in line:
            count["products"] += 1
        elif size > 1 and re.match(r"copy|transpose|wrapped_(copy|transpose)", name):
            count["copies"] += 1
        else:
            count["other"] += 1
    return dict(count), largest


def _megabytes(array: tuple[str, str]) -> float:
    dtype, sides = array
    return _ITEMSIZE.get(dtype, 1) * math.prod(int(side) for side in sides.split(",") if side) / MEGABYTE


def computations(text: str) -> tuple[str, str | None]:
    """Of a compiled program's text the entry, and the body of its loop if it has one."""
    parts = {part.split(" ", 2)[0].lstrip("%"): part for part in re.split(r"\n(?=%|ENTRY)", text)}
    entry = parts["ENTRY"]
    loop = re.search(r"body=%([\w.\-]+)", entry)
    return entry, parts[loop[1]] if loop else None


def built(function: Callable, *args: Any, donate: tuple[int, ...] = (), is_loop: bool = False) -> dict[str, Any]:
    """A program's compile time, memory and kernels; of one `is_loop`, those of a turn."""
    start = time.perf_counter()
    program = jax.jit(function, donate_argnums=donate).lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    text = program.as_text()
    assert memory is not None and text is not None, "this backend does not tell what it compiled"
    entry, body = computations(text)
    assert is_loop == (body is not None), "a loop where none was expected, or none where one was"
    launched, largest = kernels(body or entry)
    return dict(
        compile_s=seconds,
        working_mb=memory.temp_size_in_bytes / MEGABYTE,
        results_mb=memory.output_size_in_bytes / MEGABYTE,
        in_place_mb=memory.alias_size_in_bytes / MEGABYTE,
        kernels=launched,
        largest_mb=largest,
    )


def programs(
    config: Any,
    place: Callable[[Any], Any],
    *,
    batch: int,
    images: int,
    text: int,
    tokens: str | None,
    new: int,
) -> dict[str, Any]:
    """Prefill of `batch` prompts with `images` images and `text` words each, and the loop that decodes `new` tokens."""
    visual = images * tokens_of(config)
    sparsity = None if tokens is None else SparsityConfig.sparsevlm(tokens)
    params = place(abstract_params(config, jnp.bfloat16))
    features = (batch * images, tokens_of(config), config.text.hidden_size)
    abstract: tuple[Any, ...] = (  # stand for arrays while a program is compiled
        jax.ShapeDtypeStruct((batch, text + visual), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct(features, jnp.bfloat16),
    )
    inputs = place(jax.eval_shape(partial(PrefillInputs.of, image_token_id=config.image_token_id), *abstract))
    static: dict[str, Any] = dict(config=config, implementation="cudnn")
    bucket = Bucket(text, visual, images=images, fewest=visual)
    first = partial(prefill, **static, sparsity=sparsity, bucket=bucket, new_tokens=new)
    out = jax.eval_shape(first, params, inputs)
    logits, state = place(out.logits), place(out.state)
    limit = place(jax.ShapeDtypeStruct((), jnp.int32))
    steps = partial(decode.generate, **static, buffer=new)
    return dict(
        name="dense" if tokens is None else f"sparsevlm {tokens}",
        batch=batch,
        visual=visual,
        params_gb=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) / 1e9,
        prefill=built(first, params, inputs),
        decode=built(steps, params, logits, state, limit, donate=(2,), is_loop=True),
    )


HEAD = (
    "batch", "image tokens", "program", "prefill working MB", "largest MB", "KV MB", "GB in all", "decode working MB",
    "prefill: products", "attention", "copies", "other kernels", "decode step: kernels", "copies", "compile s",
)  # fmt: skip


def line(row: dict[str, Any]) -> str:
    first, steps = row["prefill"], row["decode"]
    count, step = first["kernels"], steps["kernels"]
    whole = row["params_gb"] + (first["working_mb"] + first["results_mb"]) / 1e3
    cells = (
        *(row["batch"], row["visual"], row["name"], f"{first['working_mb']:.0f}", f"{first['largest_mb']:.0f}"),
        *(f"{first['results_mb']:.0f}", f"{whole:.2f}", f"{steps['working_mb']:.0f}"),
        *(count.get(kind, 0) for kind in ("products", "attention", "copies", "other")),
        *(sum(step.values()), step.get("copies", 0), f"{first['compile_s'] + steps['compile_s']:.0f}"),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, default="h200")
    parser.add_argument("--model", choices=MODELS, default="7b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 5], help="pictures in a prompt (default: 1 and 5)")
    parser.add_argument("--text", type=int, default=64)
    parser.add_argument("--budgets", nargs="+", default=["1/3", "2/9", "1/9"])
    parser.add_argument("--new-tokens", type=int, default=32)
    options = parser.parse_args()
    target = topologies.get_topology_desc(platform="cuda", target_config=TARGETS[options.target], topology="1x1x1")
    whole = jax.sharding.SingleDeviceSharding(target.devices[0])

    def place(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree)

    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    rows = []
    for batch in options.batch:
        for images in options.images:
            for tokens in (None, *options.budgets):
                given = dict(batch=batch, images=images, text=options.text, tokens=tokens, new=options.new_tokens)
                rows.append(programs(MODELS[options.model], place, **given))
                print(line(rows[-1]), flush=True)
    record = dict(target=options.target, model=options.model, jax=jax.__version__, text=options.text, rows=rows)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
