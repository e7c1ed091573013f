"""Pictures of what a pruned prefill kept, from a saved trace: no model needed.

    visualize(load_trace("street.npz")).savefig("street.png")

`visualize` shows one question: raters, scores, kept and recycled patches at each stage, tokens per layer. `compare`
shows several questions about the same picture side by side: different words keep different patches.

V visual tokens of a stage
"""

import colorsys
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..arguments import checked
from ..checks import each, whole
from .trace import SparsityTrace, members, valid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _RATER, _KEPT = "#222222", "#8a8f98", "#f6b73c", "#2f6fde"
_FONT = 11  # points
_FADE = 0.22  # what is left of the colours of a dropped patch


def visualize(trace: SparsityTrace) -> "Figure":
    """One question: its words with the raters marked; per stage the scores and what stayed; tokens per layer.

    Raises:
        ValueError: the trace has no stage (a prompt without image).
    """
    _check([trace])
    stages = len(trace.stages)
    width = 3.0 * (stages + 1)
    lines = _lines_of_words(trace, width)
    text = 0.3 * len(lines)
    figure = _figure(width, text + 7.0)
    grid = figure.add_gridspec(
        3, stages + 1, height_ratios=[text, 3.2, 3.2], hspace=0.16, wspace=0.06, left=0, right=1, top=1, bottom=0
    )
    _draw_words(figure.add_subplot(grid[0, :]), lines, width)
    figure.text(0, -0.02, _summary(trace), fontsize=9.5, color=_MUTED, va="top", linespacing=1.5)
    _draw_image(figure.add_subplot(grid[1, 0]), _picture(trace), "what the model sees")
    for stage, record in enumerate(trace.stages):
        axes = figure.add_subplot(grid[1, stage + 1])
        _draw_scores(axes, trace, stage)
        axes.set_title(f"scores after layer {record.layer}", fontsize=10, color=_INK)
        tokens = f"{len(record.origin)} → {len(record.kept)}"
        merged = f" + {len(record.centers)} merged" if len(record.centers) else ""
        _draw_image(figure.add_subplot(grid[2, stage + 1]), kept_picture(trace, stage), tokens + merged)
    _draw_layers(figure.add_subplot(grid[2, 0]), trace)
    return figure


def compare(traces: Sequence[SparsityTrace], answers: Sequence[str] = ()) -> "Figure":
    """One picture, several questions: what each keeps at the last stage.

    Args:
        answers: shown under the questions, where given.

    Raises:
        ValueError: no trace, a trace without image, or pictures that differ.
    """
    _check(traces)
    if len(checked(answers=answers)) not in (0, len(traces)):
        raise ValueError(f"expected an answer for each of {len(traces)} traces, got {len(answers)}")
    if any(not _same(trace.images, traces[0].images) for trace in traces):
        raise ValueError("expected traces of one picture, got different pictures")
    figure = _figure(3.1 * (len(traces) + 1), 4.0)
    grid = figure.add_gridspec(1, len(traces) + 1, wspace=0.08)
    _draw_image(figure.add_subplot(grid[0]), _picture(traces[0]), "what the model sees")
    for index, trace in enumerate(traces):
        axes = figure.add_subplot(grid[index + 1])
        last = trace.stages[-1]
        title = f"{textwrap.fill(trace.prompt, 36)}\n{len(last.kept)} of {trace.visual_tokens[0]} kept"
        title += f" + {len(last.centers)} merged" if len(last.centers) else ""
        _draw_image(axes, kept_picture(trace, len(trace.stages) - 1), title)
        if answers:
            axes.text(0.5, -0.05, answers[index], transform=axes.transAxes, ha="center", va="top", weight="bold")
    return figure


def kept_picture(trace: SparsityTrace, stage: int) -> Float[np.ndarray, "height width 3"]:
    """The picture after `stage`: kept patches as they are, recycled ones tinted by their cluster, the dropped faded;
    several images side by side. What no patch sees is faded, too."""
    _check([trace], stage)
    record, behind = trace.stages[stage], members(trace, stage)
    picture, patches = _picture(trace), _patches(trace)
    shown = 1 - (1 - picture) * _FADE
    for cluster in range(len(record.centers)):
        tint = np.array(colorsys.hsv_to_rgb(cluster * 0.381966 % 1, 0.65, 0.95))  # golden angle: neighbours differ
        for token in record.candidates[record.cluster == cluster]:
            for patch in behind[token]:
                shown[patches[patch]] = 0.45 * picture[patches[patch]] + 0.55 * tint
    for token in record.kept:
        for patch in behind[token]:
            shown[patches[patch]] = picture[patches[patch]]
    return shown


def score_map(trace: SparsityTrace, stage: int) -> Float[np.ndarray, "height width"]:
    """Scores on the pixels of the picture, as in `kept_picture`; a merged token's score on all its patches, NaN where
    nothing is left."""
    _check([trace], stage)
    picture, patches = _picture(trace), _patches(trace)
    values = np.full(picture.shape[:2], np.nan)
    for score, behind in zip(trace.stages[stage].scores, members(trace, stage), strict=True):
        for patch in behind:
            values[patches[patch]] = score
    return values


def _same(images: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return len(images) == len(others) and all(map(np.array_equal, images, others))


def _check(traces: Sequence[SparsityTrace], stage: int = 0) -> None:
    each(valid, at_least=1)("traces", traces)
    if any(not trace.stages for trace in traces):
        raise ValueError("a trace without pruning stages has nothing to show: its prompt had no image")
    whole(0, min(len(trace.stages) for trace in traces) - 1)("stage", stage)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only pictures wait for it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)  # measures text; nothing global is touched, as pyplot would
    return figure


def _picture(trace: SparsityTrace) -> Float[np.ndarray, "height width 3"]:
    """All images side by side, white below those that are less high."""
    height = max(image.shape[0] for image in trace.images)
    padded = [np.pad(image, ((0, height - len(image)), (0, 0), (0, 0)), constant_values=255) for image in trace.images]
    return np.concatenate(padded, axis=1).astype(np.float64) / 255


def _patches(trace: SparsityTrace) -> list[tuple[slice, slice]]:
    """The pixels of the picture that each visual token sees."""
    left = np.cumsum([0, *(image.shape[1] for image in trace.images)])
    patches = []
    for number, box in zip(trace.image, trace.box, strict=True):
        height, width = trace.images[number].shape[:2]
        edges = np.rint(box * [height, width, height, width]).astype(int) + [0, left[number]] * 2
        patches.append((slice(edges[0], edges[2]), slice(edges[1], edges[3])))
    return patches


def _draw_image(axes: "Axes", picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=10, color=_INK)
    _bare(axes)


def _draw_scores(axes: "Axes", trace: SparsityTrace, stage: int) -> None:
    picture = _picture(trace)
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2) * 0.5 + 0.5
    height, width = picture.shape[:2]
    axes.imshow(grey, extent=(0, width, height, 0))
    values = score_map(trace, stage)
    axes.imshow(values, extent=(0, width, height, 0), cmap="viridis", alpha=0.8, vmin=0, vmax=np.nanmax(values))
    _bare(axes)


def _draw_words(axes: "Axes", lines: list[list["_Word"]], width: float) -> None:
    """The text of the prompt, raters marked, the deeper the more relevant."""
    axes.set(xlim=(0, width), ylim=(len(lines), 0))
    _bare(axes)
    strongest = max((word.relevance for line in lines for word in line), default=0) or 1
    for row, line in enumerate(lines):
        for word in line:
            strength = 0.35 + 0.65 * word.relevance / strongest
            box = dict(boxstyle="round,pad=0.2", facecolor=_RATER, edgecolor="none", alpha=strength)
            style: dict[str, Any] = dict(color=_INK, bbox=box) if word.is_rater else dict(color=_MUTED)
            axes.text(word.left, row + 0.5, word.text, fontsize=_FONT, family="monospace", va="center", **style)


class _Word(NamedTuple):
    text: str
    left: float  # inches
    is_rater: bool
    relevance: float


def _lines_of_words(trace: SparsityTrace, width: float) -> list[list[_Word]]:
    """The prompt's tokens set in lines of at most `width` inches; a monospace letter is 0.6 of its font size wide."""
    lines: list[list[_Word]] = [[]]
    left = 0.0
    for token, is_rater, relevance in zip(trace.tokens, trace.is_rater, trace.relevance, strict=True):
        text = readable(token)
        if not text.strip():
            continue
        advance = (len(text) + 1.2) * 0.6 * _FONT / 72
        if left + advance > width and lines[-1]:
            lines.append([])
            left = 0.0
        lines[-1].append(_Word(text, left, bool(is_rater), float(relevance)))
        left += advance
    return lines


def readable(token: str) -> str:
    """A token as a person would write it: byte and space markers undone, special tokens empty."""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
    if byte:
        return chr(int(byte[1], 16))
    return "" if re.fullmatch(r"<.*>", token) else token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", " ").strip()


def _summary(trace: SparsityTrace) -> str:
    saving = trace.report["paper_macs_dense"] / trace.report["paper_macs"]
    after, entering = trace.report["mean_after_layers"], trace.report["mean_entering_layers"]
    return (
        f"{trace.method}: {after:.1f} of {trace.visual_tokens[0]} image tokens left after a "
        f"layer on average ({entering:.1f} enter one); prefill of the language model "
        f"{saving:.2f} times cheaper.\nMarked words are raters, whose attention scores the image. Tinted patches were "
        "dropped and recycled, one tint for each merged token; faded ones are gone."
    )


def _draw_layers(axes: "Axes", trace: SparsityTrace) -> None:
    layers = np.arange(len(trace.visual_tokens))
    axes.bar(layers, trace.visual_tokens, width=0.85, color=_KEPT)
    axes.axhline(trace.visual_tokens[0], color=_MUTED, linewidth=1, linestyle="--")
    axes.set_title("image tokens entering each layer", fontsize=10, color=_INK)
    axes.set_xlabel("layer", fontsize=9, color=_MUTED)
    axes.tick_params(labelsize=8, colors=_MUTED)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlim(-0.6, len(layers) - 0.4)  # no tick for a layer that is not there
    axes.set_box_aspect(0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _bare(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def check_suffix(path: Any) -> None:
    """Raises ValueError unless the file is to be PNG or SVG."""
    if not str(path).lower().endswith((".png", ".svg")):
        raise ValueError(f"expected a file name ending in .png or .svg, got {path}")


def save(figure: "Figure", path: Any) -> None:
    """Writes PNG or SVG, by the suffix.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written.
    """
    check_suffix(path)
    figure.savefig(path, bbox_inches="tight")
