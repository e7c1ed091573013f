"""The host side: load a model, ask it, and say what the answer cost.

    vlm = load("llava-hf/llava-1.5-7b-hf")
    out = generate(vlm, image="street.png", prompt="What is written on the blue sign?",
                   sparsity=SparsityConfig.sparsevlm(tokens=192))
    out.text, out.report

Everything underneath is pure and jitted; here are the checks, the padding, the clocks.
"""

import html
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from . import accounting, decode
from .accounting import Report, Timing
from .arguments import THIRD, checked, rows_of
from .batching import Batch, assemble, new_tokens_bucket, rung
from .bucketed import prefill_bucketed
from .errors import short
from .models.attention import Implementation, choose_implementation
from .models.dtypes import compute_dtype
from .models.llava import EncodedImages, LlavaConfig, encode
from .prefill import PrefillInputs, PrefillResult, prefill
from .processing import ImageSource, ProcessedInputs, Processor, Prompt
from .programs import Program
from .sources import load_checkpoint
from .sparsify import Amount, Recycle, SparsityConfig, StagePlan


def _take(images: EncodedImages, index: Int32[np.ndarray, " M"]) -> EncodedImages:
    """Images by their numbers."""
    return jax.tree.map(lambda field: field[index], images)


_encode = Program(encode, static=("config", "implementation", "context", "merging"))
_take_images = Program(_take, static=())
_prefill = Program(prefill, static=("config", "sparsity", "bucket", "implementation", "new_tokens", "trace"))
_decode = Program(decode.generate, static=("config", "implementation", "buffer"), donate=(2,))
_step = Program(decode.decode_step, static=("config", "implementation"), donate=(1,))
_choose = Program(decode.choose, static=())

Images: TypeAlias = ImageSource | Sequence[ImageSource] | None
Sparsity: TypeAlias = SparsityConfig | Amount | None


@dataclass(frozen=True)
class VLM:
    """A loaded model: parameters on their device, and what turns text and images into its inputs.

    Attributes:
        implementation: of attention, "cudnn" or "xla".
    """

    config: LlavaConfig
    params: dict
    processor: Processor
    implementation: Implementation
    name: str

    @property
    def dtype(self) -> jnp.dtype:
        return self.params["language_model"]["embed_tokens"]["embedding"].dtype

    def __repr__(self) -> str:
        size, text = sum(leaf.size for leaf in jax.tree.leaves(self.params)), self.config.text
        device = ", ".join(sorted(f"{d.platform}:{d.id}" for d in jax.tree.leaves(self.params)[0].devices()))
        return (
            f"VLM({self.name!r}: {size / 1e6:,.1f} M parameters, {text.num_hidden_layers} layers of width "
            f"{text.hidden_size}, {self.config.tokens_per_image} tokens an image, {self.dtype.name} on {device}, "
            f"attention {self.implementation!r})"
        )


class Output(NamedTuple):
    """An answer: its text, its token ids (end-of-sequence included), and what it cost."""

    text: str
    tokens: np.ndarray
    report: Report

    def __repr__(self) -> str:
        return f"Output({short(self.text)}, {len(self.tokens)} tokens, {self.report!r})"

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.text)}</p>{self.report._repr_html_()}"


def load(
    source: str | Path | None = None,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    vision_tower: str | Path | None = None,
    pad_to_square: bool | None = None,
    attention: Implementation | None = None,
) -> VLM:
    """Loads a model to the default device.

    Args:
        source: a Hugging Face hub id, a local folder in Hugging Face's or the original LLaVA's form, or a folder that
            `sparsevlm convert` made. None takes the small model that is bundled, which reads drawn street signs.
        dtype: of the weights and matmuls; None is bfloat16 on GPU and float32 on CPU. A CPU with bfloat16 instructions
            (AVX-512 BF16) prefills 1.8 times as fast in bfloat16, in half the memory; a decode step takes 1.3 to 1.5
            times as long.
        vision_tower: CLIP's folder, for original LLaVA checkpoints that carry no tower.
        pad_to_square: pad pictures (original LLaVA) instead of cropping them (llava-hf); None does as the checkpoint.
        attention: "cudnn" or "xla"; None takes cuDNN where it can run.

    Raises:
        ValueError: the checkpoint is missing, damaged or not implemented; the message names what and where.
    """
    source, dtype, vision_tower, pad_to_square, attention = checked(
        source=source, dtype=dtype, vision_tower=vision_tower, pad_to_square=pad_to_square, attention=attention
    )
    platform = jax.default_backend()
    dtype = compute_dtype(dtype, platform)
    if source is None:
        from .demo import CHECKPOINT  # the demo stands above this module; only where its model lies is asked

        source = CHECKPOINT
    checkpoint = load_checkpoint(source, dtype=dtype, vision_tower=vision_tower)
    processor = Processor.from_folder(checkpoint.folder, checkpoint.config, pad_to_square=pad_to_square)
    head_dim = checkpoint.config.text.head_dim
    chosen = choose_implementation(dtype, head_dim=head_dim, platform=platform)
    if attention == "cudnn" != chosen:
        raise ValueError(
            "attention 'cudnn' needs a GPU, half precision and a head dim that is a multiple of 8 up to 128, "
            f"got {platform}, {dtype.name} and {head_dim}"
        )
    config = replace(checkpoint.config, eos_token_ids=processor.eos_token_ids)  # as generation_config.json has it
    return VLM(config, checkpoint.params, processor, attention or chosen, str(source))


class Options(TypedDict, total=False):
    """The options of `generate`, for type checkers."""

    sparsity: Sparsity
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | Sequence[int]


@overload
def generate(vlm: VLM, prompt: Prompt, image: Images = None, **options: Unpack[Options]) -> Output: ...


@overload
def generate(
    vlm: VLM, prompt: Sequence[Prompt], image: Images | Sequence[Images] = None, **options: Unpack[Options]
) -> list[Output]: ...


def generate(
    vlm: VLM,
    prompt: Prompt | Sequence[Prompt],
    image: Images | Sequence[Images] = None,
    *,
    sparsity: Sparsity = THIRD,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
) -> Output | list[Output]:
    """Answers one prompt (an `Output`) or a batch of them (a list of `Output`), each as if it were alone.

    Args:
        prompt: a question, or chat messages in the Hugging Face form ([{"role": ..., "content": ...}]); or a list of
            either.
        image: for one prompt an image (path, bytes, PIL, array), several in a list, or None; for a list of prompts a
            list with one such entry per prompt, or one image, which every prompt is about and which is read and encoded
            once. Images go where the prompt has `<image>`, else in front.
        sparsity: the pruning method: a config, a method's name (at a third of the tokens), or the number or share of
            tokens that SparseVLM keeps (64, "1/3"); None runs dense.
        max_new_tokens: at most that many tokens; the answer ends earlier at an end-of-sequence token.
        temperature: 0 takes the most likely token; otherwise tokens are drawn, from the `top_k` most likely (0: all),
            of those from the fewest that reach probability `top_p`.
        seed: of the draws; one for all rows or one per row. A row's draws do not depend on the other rows.

    Raises:
        ValueError: a prompt without words, marks that do not match the images, a budget the model cannot meet, a
            prompt longer than the model's positions, options out of range.
        OSError: an image file that cannot be read.

    Warns:
        UserWarning: the budget is above the visual tokens that there are, or above its own capacity.
    """
    options = checked(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    run = Run(vlm, prompt, image, sparsity, max_new_tokens)
    sampling = decode.sampling(run.rows, *options, padding=len(run.batch.length) - run.rows)
    prefilled = run.prefill()
    buffer = new_tokens_bucket(run.new_tokens)
    (generated, _), decode_ms, compile_ms = _decode(
        vlm.params,
        prefilled.logits,
        prefilled.state,
        jnp.int32(run.new_tokens),
        sampling,
        np.int32(run.rows),
        config=vlm.config,
        implementation=vlm.implementation,
        buffer=buffer,
    )
    tokens, counts = np.asarray(generated.tokens), np.asarray(generated.count)[: run.rows]
    steps = int(counts.max()) - 1
    timing = run.timing(decode_ms / steps if steps else None, compile_ms)
    outputs = [
        Output(
            vlm.processor.decode(tokens[row, : counts[row]]),
            tokens[row, : counts[row]],
            run.report(row, prefilled, timing),
        )
        for row in range(run.rows)
    ]
    return outputs if run.is_batch else outputs[0]


def stream(
    vlm: VLM,
    prompt: Prompt,
    image: Images = None,
    *,
    sparsity: Sparsity = THIRD,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """The answer to one prompt, piece by piece as its tokens come; together the text that `generate` returns.

    Arguments and errors as in `generate`; errors are raised at the first piece.
    """
    options = checked(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    run = Run(vlm, [prompt], [image], sparsity, max_new_tokens)
    sampling = decode.sampling(1, *options)
    prefilled = run.prefill()
    logits, state = prefilled.logits, prefilled.state
    choose, advance = run.compile_steps(prefilled, sampling)  # before the first token, so that none waits for it
    tokens: list[int] = []
    shown = ""
    for step in range(run.new_tokens):
        token = choose(logits, sampling, np.int32(step))
        tokens.append(int(token[0]))
        text = vlm.processor.decode_settled(tokens)
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
        if tokens[-1] in vlm.config.eos_token_ids or step + 1 == run.new_tokens:
            break
        logits, state = advance(vlm.params, state, token)
    yield vlm.processor.decode(tokens)[len(shown) :]


class Run:
    """One call: inputs checked and padded, then prefilled; keeps the clocks."""

    vlm: VLM
    sparsity: SparsityConfig | None
    new_tokens: int

    def __init__(self, vlm: VLM, prompt: Any, image: Any, sparsity: Sparsity, max_new_tokens: int):
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
                vlm.params,
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
            result, self.prefill_ms, compile_ms, self.ran = prefill_bucketed(vlm.params, inputs, **static)
        else:
            result, self.prefill_ms, compile_ms = _prefill(vlm.params, inputs, trace=trace, **static)
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
        advance, advance_ms = _step.compiled(vlm.params, prefilled.state, token, **static)
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
