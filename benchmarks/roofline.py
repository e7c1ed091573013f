"""What a machine allows: its rates, measured, and what a prefill of so many tokens a layer could take at them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from shapes import alternate

from sparsevlm_jax.models import LlamaConfig
from sparsevlm_jax.models.nn.linear import matmul
from sparsevlm_jax.report import cost as accounting
from sparsevlm_jax.runtime.prefill import segments
from sparsevlm_jax.sparsify import Bucket, SparsityConfig

PARTS = ("self_attn", "mlp")


class Ceilings(NamedTuple):
    """FLOP/s of a large matrix product, bytes/s of a large copy (read and written) and of a large sum (read)."""

    product: float
    copy: float
    read: float


def ceilings(dtype: Any, quick: bool) -> Ceilings:
    side, size = (1024, 1 << 24) if quick else (4096, 1 << 28)
    side = side * 2 if jax.default_backend() != "cpu" else side
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    large = jax.random.normal(jax.random.key(1), (size,), jnp.float32)
    negate = jax.jit(jnp.negative, donate_argnums=0)

    # A negation reads and writes every byte; in place, so that no time goes into getting fresh memory.
    def copy() -> jax.Array:
        nonlocal large
        large = negate(large)
        return large

    total = jax.jit(jnp.sum)
    variants = {"product": partial(jax.jit(matmul), a, b), "copy": copy, "read": lambda: total(large)}
    best = {name: min(times) / 1e3 for name, times in alternate(variants, repeats=5).items()}
    return Ceilings(2 * side**3 / best["product"], 2 * large.nbytes / best["copy"], large.nbytes / best["read"])


class Rows(NamedTuple):
    """Tokens of one prompt, text included, in each layer: those that enter it, and those its feed-forward runs on."""

    entering: list[int]
    feed_forward: list[int]


def rows_of_layers(config: LlamaConfig, bucket: Bucket, sparsity: SparsityConfig | None) -> Rows:
    """One picture in a prompt."""
    entering, passing, now = [], [], bucket.visual
    for layers, plan in segments(config.num_hidden_layers, sparsity, bucket):
        entering += [now + bucket.text] * len(layers)
        passing += [now + bucket.text] * len(layers)
        if plan and sparsity and plan.skips and "hidden" not in sparsity.needs:
            passing[-1] = plan.needed
        elif plan is None and layers:
            passing[-1] = 1
        now = plan.leaving if plan else now
    return Rows(entering, passing)


def layer_products(config: LlamaConfig, params: dict, part: str, rows: int, layers: int) -> Callable[[], Any]:
    """The matrix products of the first `layers` decoder layers' "self_attn" or "mlp" over `rows` rows, and next to
    nothing else."""

    def run(params: dict, x: jax.Array) -> Any:
        unused = []
        for index in range(layers):
            leaves = params["language_model"]["layers"][str(index)][part]
            own = {name: partial(matmul, kernel=leaf["kernel"]) for name, leaf in leaves.items()}
            if part == "mlp":
                x = x + own["down_proj"](own["gate_proj"](x) * own["up_proj"](x))  # a sum XLA would factor
            else:
                unused += [own["k_proj"](x), own["v_proj"](x)]
                x = x + own["o_proj"](own["q_proj"](x))
            x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
        return x, unused

    dtype = params["language_model"]["embed_tokens"]["embedding"].dtype
    x = jax.random.normal(jax.random.key(0), (rows, config.hidden_size), dtype)
    return partial(jax.jit(run), params, x)


def total_ms(rows: Rows, product_ms: dict[tuple[str, int], float]) -> float:
    """Milliseconds of the products of all layers."""
    return sum(product_ms[part, n] for part, counts in zip(PARTS, rows, strict=True) for n in counts)


def floor(config: LlamaConfig, batch: int, rows: Rows, weights: int, rates: Ceilings) -> float:
    """Seconds of prefill by roofline: layer by layer the longer of its FLOPs and its weights' bytes."""
    one = weights / config.num_hidden_layers / max(rates.copy, rates.read)
    flops = (accounting.layer_flops(n, config, feed_forward=passing) for n, passing in zip(*rows, strict=True))
    return sum(max(batch * count / rates.product, one) for count in flops)
