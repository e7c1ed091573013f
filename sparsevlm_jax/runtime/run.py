"""One call of the model: inputs checked and padded, pictures encoded, the prompt prefilled; and what that cost.

Everything underneath is pure and jitted; here are the checks, the padding, the clocks.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..arguments import checked, rows_of
from ..models.families.family import Encoded, family_of
from ..processing import ProcessedInputs, PromptRow
from ..report import cost as accounting
from ..report.cost import Report, Timing
from ..sparsify import ImageContext, Sizes, SparsityConfig, StagePlan
from . import decode
from .batching import Batch, assemble, new_tokens_bucket, rung
from .bucketed import prefill_bucketed
from .prefill import PrefillResult, prefill
from .programs import Program

if TYPE_CHECKING:
    from ..vlm import VLM


def encode(params: dict, pixel_values: Any, *, config: Any, **options: Any) -> Encoded:
    """Pixels to visual tokens, as the model's family makes them; see `family.Encode`."""
    return family_of(config).encode(params, pixel_values, config=config, **options)


_encode = Program(encode, static=("config", "implementation", "context", "merging"))
_prefill = Program(prefill, static=("config", "sparsity", "bucket", "implementation", "new_tokens", "trace"))
_step = Program(decode.decode_step, static=("config", "implementation"), donate=(1,))
_choose = Program(decode.choose, static=())


class Run:
    """One call: inputs checked and padded, then prefilled; keeps the clocks. Arguments and errors as in `generate`."""

    vlm: "VLM"
    sparsity: SparsityConfig | None
    new_tokens: int

    def __init__(self, vlm: "VLM", prompt: Any, image: Any, sparsity: Any, max_new_tokens: int):
        self.vlm, self.sparsity, self.new_tokens = checked(vlm=vlm, sparsity=sparsity, max_new_tokens=max_new_tokens)
        prompts, images, self.is_batch = rows_of(prompt, image)
        self.inputs: ProcessedInputs = vlm.processor(prompts, images)
        self.batch: Batch = assemble(self.inputs, vlm.config, new_tokens=self.new_tokens)
        self.needs = self.sparsity.needs if self.sparsity else frozenset()
        if "sizes" in self.needs and vlm.implementation != "xla":
            raise ValueError(
                f"tokens that count their size need attention 'xla' (load(..., attention='xla')), "
                f"this model has {vlm.implementation!r}"
            )
        is_merging = self.sparsity is not None and self.sparsity.merging is not None
        number = self.sparsity.budget.number(1) if self.sparsity else None
        if is_merging and number is not None and vlm.config.tokens_per_image is None:
            raise ValueError(
                "this method merges tokens in the vision tower, which sees pictures of this model in tiles, as many as "
                f"each asks for: expected a share of the tokens ('1/3'), got {number} tokens"
            )
        axes = vlm.config.text.position_axes
        if self.sparsity and self.sparsity.positions == "repack" and axes > 1:
            raise ValueError(
                f"{self.sparsity.name} numbers positions anew, and those of this model have {axes} axes: use a method "
                "with positions='keep'"
            )
        depth = vlm.config.text.num_hidden_layers
        self.plans: tuple[StagePlan, ...] = ()
        if self.sparsity:
            for visual in sorted({row.visual_count for row in self.inputs.rows}):
                self.sparsity.check(depth, visual)
            self.plans = self.sparsity.plan(depth, self.batch.bucket)
        self._say_what_is_spare()
        self.ran = self.plans  # bucketed prefill plans anew, by the counts it finds
        self.encode_ms: float | None = None
        self.prefill_ms = self.compile_ms = 0.0

    def _say_what_is_spare(self) -> None:
        """Warns of a budget above what a row with images has."""
        if self.sparsity is None:
            return
        for images, there in sorted({(n, row.visual_count) for n, row in self._rows_with_images()}):
            wanted = self.sparsity.budget.number(images)
            if wanted is not None and wanted > there:
                message = f"a budget of {wanted} visual tokens is more than the {there} that a prompt has"
                warnings.warn(message, stacklevel=4)
                return

    def _rows_with_images(self) -> list[tuple[int, PromptRow]]:
        rows = zip(self.inputs.images_per_row, self.inputs.rows, strict=True)
        return [(images, row) for images, row in rows if images]

    @property
    def rows(self) -> int:
        return self.batch.rows

    def prefill(self, *, trace: bool = False) -> PrefillResult:
        """Encodes and prefills; with `trace` in one program, whatever `sparsity.adaptive` says."""
        vlm, batch = self.vlm, self.batch
        encoded = Encoded(jnp.zeros((0, vlm.config.text.hidden_size), vlm.dtype))
        if self.inputs.image_of_mark:
            encoded, self.encode_ms, compile_ms = _encode(
                vlm.encoder_params,
                batch.pixel_values,
                config=vlm.config,
                implementation=vlm.implementation,
                context="tower" in self.needs,
                merging=self.sparsity.merging if self.sparsity else None,
            )
            self.compile_ms += compile_ms
            if vlm.config.tokens_per_image is None:  # what pads the tower's program is not for the decoder's
                encoded = jax.tree.map(lambda field: field[: rung(len(self.inputs.layout.media))], encoded)
            encoded = self._with_layout(encoded)
        static: dict[str, Any] = dict(
            config=vlm.config,
            sparsity=self.sparsity,
            bucket=batch.bucket,
            implementation=vlm.implementation,
            new_tokens=new_tokens_bucket(self.new_tokens),
        )
        inputs = batch.inputs(encoded)
        counts_vary = any(plan.table is None for plan in self.plans)
        if self.sparsity and self.sparsity.adaptive == "bucketed" and counts_vary and not trace:
            result, self.prefill_ms, compile_ms, self.ran = prefill_bucketed(vlm.decoder_params, inputs, **static)
        else:
            result, self.prefill_ms, compile_ms = _prefill(vlm.decoder_params, inputs, trace=trace, **static)
        self.compile_ms += compile_ms
        if any(overflow for row in range(self.rows) for overflow in self._overflow(row, result)):
            warnings.warn("a budget wanted more tokens than its capacity holds; see report.overflow", stacklevel=3)
        return result

    def compile_steps(self, prefilled: PrefillResult, sampling: decode.Sampling | None) -> tuple[Callable, Callable]:
        """The two programs of a stream: the choice of a token, and the step that follows it."""
        vlm = self.vlm
        choose, choose_ms = _choose.compiled(prefilled.logits, sampling, np.int32(0))
        token = choose(prefilled.logits, sampling, np.int32(0))
        static = dict(config=vlm.config, implementation=vlm.implementation)
        advance, advance_ms = _step.compiled(vlm.decoder_params, prefilled.state, token, **static)
        self.compile_ms += choose_ms + advance_ms
        return choose, advance

    def _with_layout(self, encoded: Encoded) -> Encoded:
        """Where the tokens are beside what the tower says of them, for a method that asks."""
        if "cells" not in self.needs:
            return encoded
        layout, spare = self.inputs.layout, len(encoded.tokens) - len(self.inputs.layout.media)
        media, cell = np.pad(layout.media, (0, spare)), np.pad(layout.cell, ((0, spare), (0, 0)))
        context = encoded.context or ImageContext()
        return encoded._replace(context=context._replace(media=jnp.asarray(media), cell=jnp.asarray(cell)))

    def timing(self, decode_ms: float | None, compile_ms: float) -> Timing:
        return Timing(self.encode_ms, self.prefill_ms, decode_ms, self.compile_ms + compile_ms)

    def _overflow(self, row: int, result: PrefillResult) -> list[int]:
        wanted = np.asarray(result.wanted)[:, row]
        return [max(0, int(want) - plan.kept) for want, plan in zip(wanted, self.plans, strict=True)]

    def report(self, row: int, result: PrefillResult, timing: Timing) -> Report:
        config, visual = self.vlm.config, self.inputs.rows[row].visual_count
        text = int(self.batch.length[row]) - visual
        pictures = [self.inputs.layout.size_of(image) for image in self.inputs.images_of(row)]
        leaving = [int(count) for count in np.asarray(result.visual_count)[:, row]]
        wanted = [int(count) for count in np.asarray(result.wanted)[:, row]]
        stages = self._stages(visual, wanted, leaving)
        return accounting.report(
            method=self.sparsity.name if self.sparsity else "dense",
            config=config,
            pictures=pictures,
            text_tokens=text,
            layers=[plan.layer for plan in self.plans],
            leaving=leaving,
            overflow=self._overflow(row, result),
            stages=[self._cost(text, stage, first=index == 0) for index, stage in enumerate(stages)],
            itemsize=self.vlm.dtype.itemsize,
            timing=timing,
            merging=self.sparsity.merging if self.sparsity else None,
            feed_forward={s.plan.layer: text + s.needed for s in stages if visual and s.plan.layer >= 0},
        )

    def _stages(self, entering: int, wanted: list[int], leaving: list[int]) -> "list[_Stage]":
        stages, method = [], self.sparsity
        for plan, want, left in zip(self.ran, wanted, leaving, strict=True):
            assert method is not None  # there are no plans without
            kept = min(want, plan.kept, entering)
            candidates = int(method.recycle.candidate_count(entering - kept)) if method.recycle else 0
            needed = entering if "hidden" in method.needs or not plan.skips else kept + candidates
            stages.append(_Stage(plan, entering, kept, candidates, left, needed))
            entering = left
        return stages

    def _cost(self, text: int, stage: "_Stage", *, first: bool) -> accounting.StageCost:
        method, decoder = self.sparsity, self.vlm.config.text
        assert method is not None
        sizes = Sizes(
            text=1 if method.raters == "last" else text,
            visual=stage.entering,
            kept=stage.kept,
            candidates=stage.candidates,
            merged=stage.left - stage.kept,
            dim=decoder.hidden_size,
            query_width=decoder.num_attention_heads * decoder.head_dim,
            key_width=decoder.num_key_value_heads * decoder.head_dim,
        )
        return accounting.stage_cost(stage.plan.layer, method, sizes, first=first)


class _Stage(NamedTuple):
    """What one row's stage did: visual tokens that entered, were kept, were candidates for the rest, left it, and
    passed the layer's feed-forward."""

    plan: StagePlan
    entering: int
    kept: int
    candidates: int
    left: int
    needed: int
