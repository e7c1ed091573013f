"""Adaptive prefill that saves time: segment by segment, each in the smallest compiled program that holds its tokens.

Under one `jit` a count that depends on the image can only be masked: the later layers run at the capacity whatever the
image. Here the host reads each stage's counts and dispatches the next segment at the next size of a short ladder:

    [embed, layers 0..2, score, count] -> host: 131 tokens stay -> [prune to 192, layers 3..6, score, count] -> ...

The price is one wait for the device per stage; the programs are few, since sizes are.

B batch
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..models.decoders.llama import CausalLM
from ..models.families.family import ModelConfig, language_model
from ..models.nn.attention import Implementation
from ..sparsify import Bucket, Decision, SparsityConfig, StagePlan, TokenStream, apply
from .prefill import PrefillInputs, PrefillResult, context_of_rows, start
from .programs import Program
from .segment import DecodeState, Segment, Stage, join, last_logits, run_segment


class Carried(NamedTuple):
    """What one program leaves for the next, and for the result: the stream behind a segment and its layers' state (see
    `run_segment`), what the next stage decided and how many visual tokens that leaves, or the logits."""

    stream: TokenStream
    visual_total: Int[Array, " B"]
    state: DecodeState
    decision: Decision | None
    leaving: Int[Array, " B"] | None
    logits: Array | None


class Timed(NamedTuple):
    """A result with the milliseconds its programs ran and compiled, and the stages as they were planned on the way."""

    result: PrefillResult
    run_ms: float
    compile_ms: float
    plans: tuple[StagePlan, ...]


def prefill_bucketed(
    params: dict,
    inputs: PrefillInputs,
    *,
    config: ModelConfig,
    sparsity: SparsityConfig,
    bucket: Bucket,
    implementation: Implementation,
    new_tokens: int = 0,
) -> Timed:
    """What `prefill` computes, for budgets without a table; not to be traced, since it looks at values.

    Equal to the padded form up to rounding, as long as the budget's capacity does not bind. A text-only batch has no
    stage and is one program.
    """
    depth, layers = config.text.num_hidden_layers, sparsity.pruning_layers(config.text.num_hidden_layers)
    layers = layers if bucket.visual else ()
    static = dict(config=config, sparsity=sparsity, implementation=implementation, new_tokens=new_tokens)
    ends = [*(layer + 1 for layer in layers), depth]
    plan = sparsity.bound(layers[0], bucket.visual, bucket) if layers else None
    segment, run_ms, compile_ms = _first(params, inputs, bucket=bucket, end=ends[0], plan=plan, **static)
    segments, plans = [segment], []
    for stage, end in enumerate(ends[1:]):
        assert plan is not None
        plans.append(plan)
        leaving = ladder(int(np.max(np.asarray(segment.leaving))), plan.leaving)
        fitted = dataclasses.replace(plan, leaving=leaving)
        plan = sparsity.bound(layers[stage + 1], leaving, bucket) if stage + 1 < len(layers) else None
        carried = (segment.stream, segment.visual_total, segment.decision)
        segment, ms, compiling_ms = _next(
            params, *carried, fitted=fitted, start_layer=ends[stage], end=end, plan=plan, **static
        )
        run_ms, compile_ms = run_ms + ms, compile_ms + compiling_ms
        segments.append(segment)
    result, ms, compiling_ms = _result(segments)
    return Timed(result, run_ms + ms, compile_ms + compiling_ms, tuple(plans))


def ladder(tokens: int, limit: int) -> int:
    """The smallest of 8, 12, 16, 24, 32, 48, 64, ... that holds `tokens` (at most half again), bounded by `limit`."""
    size = 8
    while size < tokens:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return min(size, limit)


def _run_first(
    params: dict,
    inputs: PrefillInputs,
    *,
    config: ModelConfig,
    sparsity: SparsityConfig,
    bucket: Bucket,
    end: int,
    plan: StagePlan | None,
    implementation: Implementation,
    new_tokens: int,
) -> Carried:
    lm = language_model(params, config)
    stream, _ = start(lm, inputs, sparsity=sparsity, bucket=bucket)
    total = stream.is_visual.sum(axis=1)
    stage = None if plan is None else Stage(plan, sparsity, total, context_of_rows(inputs, plan.visual))
    run = run_segment(lm, stream, range(end), stage, implementation=implementation, new_tokens=new_tokens)
    return _carry(lm, run, total, stage)


def _run_next(
    params: dict,
    stream: TokenStream,
    visual_total: Int[Array, " B"],
    decision: Decision,
    *,
    config: ModelConfig,
    sparsity: SparsityConfig,
    fitted: StagePlan,
    start_layer: int,
    end: int,
    plan: StagePlan | None,
    implementation: Implementation,
    new_tokens: int,
) -> Carried:
    lm = language_model(params, config)
    pruned, _ = apply(stream, decision, fitted, sparsity)
    layers, stage = range(start_layer, end), None if plan is None else Stage(plan, sparsity, visual_total)
    run = run_segment(lm, pruned, layers, stage, implementation=implementation, new_tokens=new_tokens)
    return _carry(lm, run, visual_total, stage)


def _carry(lm: CausalLM, run: Segment, visual_total: Int[Array, " B"], stage: Stage | None) -> Carried:
    """What the host and the next program want of a segment that has run."""
    if stage is None or run.decision is None:
        return Carried(run.stream, visual_total, run.state, None, None, last_logits(lm, run.stream))
    kept, recycle = run.decision.selection.count, stage.sparsity.recycle
    merged = recycle.merged_count(run.decision.visual_count - kept, kept) if recycle else 0
    return Carried(run.stream, visual_total, run.state, run.decision, kept + merged, None)


def _result(segments: list[Carried]) -> tuple[PrefillResult, float, float]:
    """The segments as one, and the milliseconds to run and compile what joins them. Keys and values stay as they are:
    they come in too many shapes to compile for."""
    *stages, last = segments
    assert last.logits is not None
    counts = [(stage.leaving, stage.decision.wanted) for stage in stages if stage.decision]
    states = [segment.state for segment in segments]
    bare = [state._replace(cache=state.cache._replace(k=(), v=(), bias=())) for state in states]
    (state, visual_count, wanted), run_ms, compile_ms = _joined(bare, counts, last.visual_total)
    k, v, bias = ([x for s in states for x in getattr(s.cache, name) or ()] for name in ("k", "v", "bias"))
    state = state._replace(cache=state.cache._replace(k=tuple(k), v=tuple(v), bias=tuple(bias)))
    return PrefillResult(last.logits, state, visual_count, wanted, trace=None), run_ms, compile_ms


def _join_counts(
    states: list[DecodeState], counts: list[tuple[Array, Array]], total: Int[Array, " B"]
) -> tuple[DecodeState, Int[Array, "S B"], Int[Array, "S B"]]:
    empty = jnp.zeros((0, *total.shape), jnp.int32)
    leaving, wanted = (jnp.stack(column) for column in zip(*counts, strict=True)) if counts else (empty, empty)
    return join(states), leaving, wanted


_STATIC = ("config", "sparsity", "end", "plan", "implementation", "new_tokens")
_first = Program(_run_first, static=(*_STATIC, "bucket"))
_next = Program(_run_next, static=(*_STATIC, "fitted", "start_layer"))
_joined = Program(_join_counts, static=())
