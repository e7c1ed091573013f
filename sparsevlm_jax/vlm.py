"""The host side: load a model, ask it, and say what the answer cost.

    vlm = load("llava-hf/llava-1.5-7b-hf")
    out = generate(vlm, image="street.png", prompt="What is written on the purple sign?",
                   sparsity=SparsityConfig.sparsevlm(tokens=192))
    out.text, out.report

What happens in one call stands in `run`.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from .arguments import THIRD, checked
from .checkpoints.sources import load_checkpoint
from .errors import short
from .models.families.family import DECODER, family_of
from .models.nn.attention import Implementation, choose_implementation
from .models.nn.dtypes import compute_dtype
from .processing import MAX_PIXELS, ImageSource, Processor, Prompt
from .report.cost import Report
from .runtime import decode
from .runtime.batching import new_tokens_bucket
from .runtime.programs import Program
from .runtime.run import Run
from .sparsify import Amount, SparsityConfig

_decode = Program(decode.generate, static=("config", "implementation", "buffer"), donate=(2,))

Images: TypeAlias = ImageSource | Sequence[ImageSource] | None
Sparsity: TypeAlias = SparsityConfig | Amount | None


@dataclass(frozen=True)
class VLM:
    """A loaded model: parameters on their device, and what turns text and images into its inputs.

    Attributes:
        config: of the model's family (see `models.families.family.ModelConfig`).
        implementation: of attention, "cudnn" or "xla".
    """

    config: Any
    params: dict
    processor: Processor
    implementation: Implementation
    name: str

    # A program is handed what it reads: looking at an array takes a call 2 us, and a 7B has 390 of them in its tower.

    @property
    def decoder_params(self) -> dict:
        """Those that `prefill` and `decode` read."""
        return {name: tree for name, tree in self.params.items() if name in DECODER}

    @property
    def encoder_params(self) -> dict:
        """Those that `encode` reads."""
        return {name: tree for name, tree in self.params.items() if name not in DECODER}

    @property
    def dtype(self) -> jnp.dtype:
        return self.params["language_model"]["embed_tokens"]["embedding"].dtype

    def __repr__(self) -> str:
        size, text = sum(leaf.size for leaf in jax.tree.leaves(self.params)), self.config.text
        device = ", ".join(sorted(f"{d.platform}:{d.id}" for d in jax.tree.leaves(self.params)[0].devices()))
        return (
            f"VLM({self.name!r}: {size / 1e6:,.1f} M parameters, {text.num_hidden_layers} layers of width "
            f"{text.hidden_size}, {self.config.tokens_per_image or 'varying'} tokens an image, {self.dtype.name} on "
            f"{device}, attention {self.implementation!r})"
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
    allow_http: bool = False,
    max_pixels: int = MAX_PIXELS,
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
        allow_http: fetch pictures that are given as http(s) addresses.
        max_pixels: of a picture; more are refused, but for a JPEG that can be decoded at a smaller size.

    Raises:
        ValueError: the checkpoint is missing, damaged or not implemented; the message names what and where.
    """
    source, dtype, vision_tower, pad_to_square, attention, allow_http, max_pixels = checked(
        source=source,
        dtype=dtype,
        vision_tower=vision_tower,
        pad_to_square=pad_to_square,
        attention=attention,
        allow_http=allow_http,
        max_pixels=max_pixels,
    )
    platform = jax.default_backend()
    dtype = compute_dtype(dtype, platform)
    if source is None:
        from .demo import CHECKPOINT  # the demo stands above this module; only where its model lies is asked

        source = CHECKPOINT
    checkpoint = load_checkpoint(source, dtype=dtype, vision_tower=vision_tower)
    processor = family_of(checkpoint.config).processor.from_folder(
        checkpoint.folder,
        checkpoint.config,
        pad_to_square=pad_to_square,
        allow_http=allow_http,
        max_pixels=max_pixels,
    )
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
    (generated, _), decode_ms, compile_ms = _decode(
        vlm.decoder_params,
        prefilled.logits,
        prefilled.state,
        jnp.int32(run.new_tokens),
        sampling,
        np.int32(run.rows),
        config=vlm.config,
        implementation=vlm.implementation,
        buffer=new_tokens_bucket(run.new_tokens),
    )
    tokens, counts = np.asarray(generated.tokens), np.asarray(generated.count)[: run.rows]
    steps = int(counts.max()) - 1
    timing = run.timing(decode_ms / steps if steps else None, compile_ms)
    answers = [tokens[row, :count] for row, count in enumerate(counts)]
    outputs = [
        Output(vlm.processor.decode(answer), answer, run.report(row, prefilled, timing))
        for row, answer in enumerate(answers)
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
    params = vlm.decoder_params
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
        logits, state = advance(params, state, token)
    if held := vlm.processor.decode(tokens)[len(shown) :]:  # half a character, or a space that stands last
        yield held
