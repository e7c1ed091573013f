"""Adaptive prefill that saves time: segment by segment, each in the smallest compiled program that holds its tokens.

Under one `jit` a count that depends on the image can only be masked: the later layers run at the capacity whatever the
image. Here the host reads each stage's counts and dispatches the next segment at the next size of a short ladder:

    [embed, layers 0..2, score, count] -> host: 131 tokens stay -> [prune to 192, layers 3..6, score, count] -> ...

The price is one wait for the device per stage; the programs are few, since sizes are.

B batch
"""

import dataclasses
from dataclasses import dataclass
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


class Between(NamedTuple):
    """What one program leaves for the next: the stream behind a segment (see `run_segment`), what the stage decided,
    and the visual tokens of each row's prompt."""

    stream: TokenStream
    decision: Decision | None
    visual_total: Int[Array, " B"]


class Carried(NamedTuple):
    """What a program gives: what the next one takes up, its layers' state, and how many visual tokens leave the stage,
    or the logits."""

    between: Between
    state: DecodeState
    leaving: Int[Array, " B"] | None
    logits: Array | None


@dataclass(frozen=True)
class Setting:
    """What is static in all programs of a prefill."""

    config: ModelConfig
    sparsity: SparsityConfig
    implementation: Implementation
    new_tokens: int

    def run(self, lm: CausalLM, stream: TokenStream, layers: range, stage: Stage | None) -> Segment:
        return run_segment(lm, stream, layers, stage, implementation=self.implementation, new_tokens=self.new_tokens)


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
    setting = Setting(config, sparsity, implementation, new_tokens)
    ends = [*(layer + 1 for layer in layers), depth]
    plan = sparsity.bound(layers[0], bucket.visual, bucket) if layers else None
    segment, run_ms, compile_ms = _first(
        params, inputs, setting=setting, bucket=bucket, layers=range(ends[0]), plan=plan
    )
    segments, plans = [segment], []
    for stage, end in enumerate(ends[1:]):
        assert plan is not None
        plans.append(plan)
        leaving = ladder(int(np.max(np.asarray(segment.leaving))), plan.leaving)
        fitted = dataclasses.replace(plan, leaving=leaving)
        plan = sparsity.bound(layers[stage + 1], leaving, bucket) if stage + 1 < len(layers) else None
        segment, ms, compiling_ms = _next(
            params, segment.between, setting=setting, fitted=fitted, layers=range(ends[stage], end), plan=plan
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
    setting: Setting,
    bucket: Bucket,
    layers: range,
    plan: StagePlan | None,
) -> Carried:
    lm, sparsity = language_model(params, setting.config), setting.sparsity
    stream, _ = start(lm, inputs, sparsity=sparsity, bucket=bucket)
    total = stream.is_visual.sum(axis=1)
    stage = None if plan is None else Stage(plan, sparsity, total, context_of_rows(inputs, plan.visual))
    return _carry(lm, setting.run(lm, stream, layers, stage), total, stage)


def _run_next(
    params: dict,
    between: Between,
    *,
    setting: Setting,
    fitted: StagePlan,
    layers: range,
    plan: StagePlan | None,
) -> Carried:
    lm, (stream, decision, visual_total) = language_model(params, setting.config), between
    assert decision is not None  # there is a stage before every program but the first
    pruned, _ = apply(stream, decision, fitted, setting.sparsity)
    stage = None if plan is None else Stage(plan, setting.sparsity, visual_total)
    return _carry(lm, setting.run(lm, pruned, layers, stage), visual_total, stage)


def _carry(lm: CausalLM, run: Segment, visual_total: Int[Array, " B"], stage: Stage | None) -> Carried:
    """What the host and the next program want of a segment that has run."""
    if stage is None or run.decision is None:
        return Carried(Between(run.stream, None, visual_total), run.state, None, last_logits(lm, run.stream))
    kept, recycle = run.decision.selection.count, stage.sparsity.recycle
    merged = recycle.merged_count(run.decision.visual_count - kept, kept) if recycle else 0
    return Carried(Between(run.stream, run.decision, visual_total), run.state, kept + merged, None)


def _result(segments: list[Carried]) -> tuple[PrefillResult, float, float]:
    """The segments as one, and the milliseconds to run and compile what joins them. Keys and values stay as they are:
    they come in too many shapes to compile for."""
    *stages, last = segments
    assert last.logits is not None
    decisions = [stage.between.decision for stage in stages]
    counts = [(stage.leaving, own.wanted) for stage, own in zip(stages, decisions, strict=True) if own]
    states = [segment.state for segment in segments]
    bare = [state._replace(cache=state.cache._replace(k=(), v=(), bias=())) for state in states]
    (state, visual_count, wanted), run_ms, compile_ms = _joined(bare, counts, last.between.visual_total)
    k, v, bias = ([x for s in states for x in getattr(s.cache, name) or ()] for name in ("k", "v", "bias"))
    state = state._replace(cache=state.cache._replace(k=tuple(k), v=tuple(v), bias=tuple(bias)))
    return PrefillResult(last.logits, state, visual_count, wanted, trace=None), run_ms, compile_ms


def _join_counts(
    states: list[DecodeState], counts: list[tuple[Array, Array]], total: Int[Array, " B"]
) -> tuple[DecodeState, Int[Array, "S B"], Int[Array, "S B"]]:
    empty = jnp.zeros((0, *total.shape), jnp.int32)
    leaving, wanted = (jnp.stack(column) for column in zip(*counts, strict=True)) if counts else (empty, empty)
    return join(states), leaving, wanted


_first = Program(_run_first, static=("setting", "bucket", "layers", "plan"))
_next = Program(_run_next, static=("setting", "fitted", "layers", "plan"))
_joined = Program(_join_counts, static=())
