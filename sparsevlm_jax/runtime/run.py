"""One call of the model: inputs checked and padded, pictures encoded, the prompt prefilled; and what that cost.

Everything underneath is pure and jitted; here are the checks, the padding, the clocks.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from ..arguments import checked, rows_of
from ..models.families.llava import EncodedImages, encode
from ..processing import ProcessedInputs
from ..report import cost as accounting
from ..report.cost import Report, Timing
from ..sparsify import Recycle, SparsityConfig, StagePlan
from . import decode
from .batching import Batch, assemble, new_tokens_bucket, rung
from .bucketed import prefill_bucketed
from .prefill import PrefillInputs, PrefillResult, prefill
from .programs import Program

if TYPE_CHECKING:
    from ..vlm import VLM


def _take(images: EncodedImages, index: Int32[np.ndarray, " M"]) -> EncodedImages:
    """Images by their numbers."""
    return jax.tree.map(lambda field: field[index], images)


_encode = Program(encode, static=("config", "implementation", "context", "merging"))
_take_images = Program(_take, static=())
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
        if self.sparsity and self.sparsity.size_aware and vlm.implementation != "xla":
            raise ValueError(
                f"tokens that count their size need attention 'xla' (load(..., attention='xla')), "
                f"this model has {vlm.implementation!r}"
            )
        depth = vlm.config.text.num_hidden_layers
        self.plans: tuple[StagePlan, ...] = self.sparsity.plan(depth, self.batch.bucket) if self.sparsity else ()
        self._say_what_is_spare()
        self.ran = self.plans  # bucketed prefill plans anew, by the counts it finds
        self.encode_ms: float | None = None
        self.prefill_ms = self.compile_ms = 0.0

    def _say_what_is_spare(self) -> None:
        """Warns of a budget above what a row with images has."""
        number = getattr(self.sparsity.budget, "number", None) if self.sparsity else None
        if number is None:
            return
        for images in sorted(set(self.inputs.images_per_row) - {0}):
            wanted, there = number(images), images * self.vlm.config.tokens_per_image
            if wanted is not None and wanted > there:
                message = f"a budget of {wanted} visual tokens is more than the {there} that a prompt has"
                warnings.warn(message, stacklevel=4)
                return

    @property
    def rows(self) -> int:
        return self.batch.rows

    def prefill(self, *, trace: bool = False) -> PrefillResult:
        """Encodes and prefills; with `trace` in one program, whatever `sparsity.adaptive` says."""
        vlm, batch = self.vlm, self.batch
        nothing = np.zeros((0, vlm.config.tokens_per_image, vlm.config.text.hidden_size), vlm.dtype)
        images: EncodedImages = EncodedImages(jnp.asarray(nothing), None)
        if len(batch.pixel_values):
            images, self.encode_ms, compile_ms = _encode(
                vlm.encoder_params,
                batch.pixel_values,
                config=vlm.config,
                implementation=vlm.implementation,
                context=bool(self.sparsity and self.sparsity.needs_images),
                merging=self.sparsity.merging if self.sparsity else None,
            )
            self.compile_ms += compile_ms
            images = self._of_marks(images)
        static: dict[str, Any] = dict(
            config=vlm.config,
            sparsity=self.sparsity,
            bucket=batch.bucket,
            implementation=vlm.implementation,
            new_tokens=new_tokens_bucket(self.new_tokens),
        )
        inputs = PrefillInputs(jnp.asarray(batch.input_ids), jnp.asarray(batch.length), images.features, images.context)
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

    def _of_marks(self, images: EncodedImages) -> EncodedImages:
        """An image for each mark, as prefill wants them, where one that was encoded once is shown several times."""
        marks = self.inputs.image_of_mark
        if len(marks) == len(self.inputs.pixel_values):
            return images
        index = np.pad(np.array(marks, np.int32), (0, rung(len(marks)) - len(marks)))
        images, ms, compile_ms = _take_images(images, index)
        self.encode_ms, self.compile_ms = (self.encode_ms or 0.0) + ms, self.compile_ms + compile_ms
        return images

    def timing(self, decode_ms: float | None, compile_ms: float) -> Timing:
        return Timing(self.encode_ms, self.prefill_ms, decode_ms, self.compile_ms + compile_ms)

    def _overflow(self, row: int, result: PrefillResult) -> list[int]:
        wanted = np.asarray(result.wanted)[:, row]
        return [max(0, int(want) - plan.kept) for want, plan in zip(wanted, self.plans, strict=True)]

    def report(self, row: int, result: PrefillResult, timing: Timing) -> Report:
        config, images = self.vlm.config, self.inputs.images_per_row[row]
        text = int(self.batch.length[row]) - images * config.tokens_per_image
        leaving = [int(count) for count in np.asarray(result.visual_count)[:, row]]
        wanted = [int(count) for count in np.asarray(result.wanted)[:, row]]
        stages = self._stages(images * config.tokens_per_image, wanted, leaving)
        return accounting.report(
            method=self.sparsity.name if self.sparsity else "dense",
            config=config,
            images=images,
            text_tokens=text,
            layers=[plan.layer for plan in self.plans],
            leaving=leaving,
            overflow=self._overflow(row, result),
            stages=[self._cost(text, stage, first=index == 0) for index, stage in enumerate(stages)],
            itemsize=self.vlm.dtype.itemsize,
            timing=timing,
            merging=self.sparsity.merging if self.sparsity else None,
            feed_forward={stage.plan.layer: text + stage.needed for stage in stages if stage.plan.layer >= 0},
        )

    def _stages(self, entering: int, wanted: list[int], leaving: list[int]) -> "list[_Stage]":
        stages, method = [], self.sparsity
        for plan, want, left in zip(self.ran, wanted, leaving, strict=True):
            assert method is not None  # there are no plans without
            kept = min(want, plan.kept, entering)
            candidates = int(method.recycle.candidate_count(entering - kept)) if method.recycle else 0
            needed = entering if method.reads_hidden or not plan.skips else kept + candidates
            stages.append(_Stage(plan, entering, kept, candidates, left, needed))
            entering = left
        return stages

    def _cost(self, text: int, stage: "_Stage", *, first: bool) -> accounting.StageCost:
        method, dim = self.sparsity, self.vlm.config.text.hidden_size
        assert method is not None
        score, select = (getattr(part, "macs", None) for part in (method.score, method.select))
        raters_are_chosen = method.raters in ("greater", "greater_equal")  # by relevance, which has a price
        return accounting.stage_cost(
            stage.plan.layer,
            text=1 if method.raters == "last" else text,
            entering=stage.entering,
            candidates=stage.candidates if isinstance(method.recycle, Recycle) else 0,
            clusters=stage.left - stage.kept,
            dim=dim,
            adaptive=stage.plan.table is None,
            first=first and raters_are_chosen,
            score=score(text, stage.entering, dim) if score else None,
            select=select(stage.entering, stage.kept, dim) if select else 0,
        )


class _Stage(NamedTuple):
    """What one row's stage did: visual tokens that entered, were kept, were candidates for the rest, left it, and
    passed the layer's feed-forward."""

    plan: StagePlan
    entering: int
    kept: int
    candidates: int
    left: int
    needed: int
