"""A record of every decision of one pruned prefill, in one file that plots without the model.

    trace = trace_prefill(vlm, "What is written on the purple sign?", "street.png")
    save_trace("street.npz", trace)
    load_trace("street.npz").stages[0].kept

V visual tokens entering a stage · K kept · C candidates · M merged · L prompt tokens · S layers
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ..arguments import THIRD, checked
from ..checks import real, refusal, whole
from ..errors import SHOWN, short
from ..processing import Prompt
from ..runtime.run import Run
from ..sparsify import SparsityConfig
from ..vlm import VLM, Images, Sparsity

_FORMAT = "sparsevlm-trace-2"
_ARRAYS = ("is_rater", "relevance", "image", "box", "visual_tokens")  # of `SparsityTrace`, as they are
_LARGEST = 2**30  # bytes of a trace's arrays


class StageRecord(NamedTuple):
    """One stage. Tokens are numbered as they enter it; `origin` tells what each is: an image patch (0, 1, ..., over all
    images), or -1 for a merged token. The next stage sees the kept tokens, then one for each cluster.

    `cluster[i]` is the cluster of `candidates[i]`; `centers` has one candidate per cluster. All three are empty where
    nothing is recycled.
    """

    layer: int
    origin: Int[np.ndarray, " V"]
    scores: Float[np.ndarray, " V"]
    kept: Int[np.ndarray, " K"]
    candidates: Int[np.ndarray, " C"]
    cluster: Int[np.ndarray, " C"]
    centers: Int[np.ndarray, " M"]
    position_ids: Int[np.ndarray, "L_out ..."]


class SparsityTrace(NamedTuple):
    """A whole prefill of one prompt.

    Attributes:
        method: the sparsity config's name.
        prompt: the words asked: a question, or the text of a chat's last message.
        tokens: the prompt's text tokens as strings, image tokens left out; `is_rater` and `relevance` go with them.
        images: as the model saw them, cropped and scaled, each [height, width, 3]; one that it saw whole and in tiles
            stands there twice.
        image: of each visual token, the number of its image.
        box: of each visual token, the part of its image that it sees, (top, left, bottom, right) from 0 to 1; all 0 for
            a token without a place, such as a separator.
        visual_tokens: visual tokens entering each layer.
        report: the figures of `Report.to_dict()`.
    """

    method: str
    prompt: str
    tokens: tuple[str, ...]
    is_rater: Bool[np.ndarray, " L"]
    relevance: Float[np.ndarray, " L"]
    images: tuple[UInt8[np.ndarray, "height width 3"], ...]
    image: Int[np.ndarray, " V"]
    box: Float[np.ndarray, "V 4"]
    visual_tokens: Int[np.ndarray, " S"]
    stages: tuple[StageRecord, ...]
    report: dict


def trace_prefill(
    vlm: VLM,
    prompt: Prompt,
    image: Images = None,
    *,
    sparsity: Sparsity = THIRD,
) -> SparsityTrace:
    """Prefills one prompt and keeps every decision; arguments and errors as in `generate`, but dense is refused."""
    method: SparsityConfig | None = checked(sparsity=sparsity)
    if method is None:
        raise refusal("sparsity", "a method that prunes (dense has nothing to trace)", sparsity)
    run = Run(vlm, [prompt], [image], method, max_new_tokens=1)
    result = jax.device_get(run.prefill(trace=True))
    ids, visual_index = run.inputs.rows[0].input_ids, run.inputs.rows[0].visual_index
    is_text, layout, shown = visual_index < 0, run.inputs.layout, run.inputs.images_of(0)
    views = [vlm.processor.restore(run.inputs, image) for image in shown]
    first = np.cumsum([0, *map(len, views)])
    grids = [np.maximum(layout.cell[layout.rows_of(image), 0], 0) for image in shown]
    report = run.report(0, result, run.timing(None, 0.0))
    return SparsityTrace(
        method=method.name,
        prompt=_words(prompt),
        tokens=tuple(vlm.processor.tokenizer.convert_ids_to_tokens(ids[is_text].tolist())),
        is_rater=result.trace.raters.is_rater[0, : len(ids)][is_text],
        relevance=result.trace.raters.relevance[0, : len(ids)][is_text],
        images=tuple(view for of_image in views for view in of_image),
        image=np.concatenate([np.zeros(0, int), *(start + grid for start, grid in zip(first, grids, strict=False))]),
        box=layout.box[visual_index[~is_text]],
        visual_tokens=np.array(report.visual_tokens),
        stages=_records(result.trace.stages, [plan.layer for plan in run.plans]),
        report=report.to_dict(),
    )


def _words(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    content: Any = prompt[-1]["content"]
    parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return " ".join(filter(None, parts))


def _records(stages: Any, layers: list[int]) -> tuple[StageRecord, ...]:
    records, origin = [], None
    for layer, stage in zip(layers, stages, strict=True):
        visual = int(stage.decision.visual_count[0])
        origin = np.arange(visual) if origin is None else origin
        kept = np.flatnonzero(stage.decision.selection.is_kept[0, :visual])
        recycled, nothing = stage.recycled, np.zeros(0, int)
        candidates = recycled.candidates[0, : recycled.candidate_count[0]] if recycled else nothing
        record = StageRecord(
            layer=layer,
            origin=origin,
            scores=stage.decision.scores.values[0, :visual],
            kept=kept,
            candidates=candidates,
            cluster=recycled.cluster[0, : len(candidates)] if recycled else nothing,
            centers=recycled.centers[0, : recycled.merged_count[0]] if recycled else nothing,
            position_ids=stage.position_ids_out[0, : stage.length_out[0]],
        )
        records.append(record)
        origin = np.concatenate([origin[kept], np.full(len(record.centers), -1)])
    return tuple(records)


def members(trace: SparsityTrace, stage: int) -> list[np.ndarray]:
    """The image patches behind each visual token that enters `stage`: one for a patch, all of a cluster's for a merged
    token, through as many stages as it was merged in."""
    if stage == 0:
        return [np.array([patch]) for patch in trace.stages[0].origin]
    before, previous = trace.stages[stage - 1], members(trace, stage - 1)
    clusters = [before.candidates[before.cluster == cluster] for cluster in range(len(before.centers))]
    merged = [np.concatenate([previous[token] for token in cluster]) for cluster in clusters]
    return [*(previous[token] for token in before.kept), *merged]


def save_trace(path: str | Path, trace: SparsityTrace) -> Path:
    """Writes a trace as one compressed `.npz` (the suffix is added where it is missing); returns the path."""
    file, trace = Path(checked(path=path)), valid("trace", trace)
    file = file if file.suffix == ".npz" else file.with_name(file.name + ".npz")
    header = {
        "format": _FORMAT,
        "method": trace.method,
        "prompt": trace.prompt,
        "tokens": trace.tokens,
        "images": len(trace.images),
        "layers": [stage.layer for stage in trace.stages],
        "report": trace.report,
    }
    arrays = {name: getattr(trace, name) for name in _ARRAYS}
    arrays |= {f"images.{index}": image for index, image in enumerate(trace.images)}
    for index, stage in enumerate(trace.stages):
        arrays |= {f"stages.{index}.{name}": value for name, value in stage._asdict().items() if name != "layer"}
    np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
    return file


def load_trace(path: str | Path) -> SparsityTrace:
    """Reads what `save_trace` wrote; no pickle is executed.

    Raises:
        ValueError: the file is not a trace, or is damaged.
        OSError: it cannot be read.
    """
    path = checked(path=path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a saved trace: it is no regular file")
    with open(path, "rb") as file:
        try:
            return valid("it", _read(file))
        except Exception as error:  # NumPy and zipfile meet foreign bytes with a dozen kinds of errors
            raise ValueError(f"{path} is not a saved trace: {str(error)[:SHOWN] or short(error)}") from None


def _read(file: BinaryIO) -> SparsityTrace:
    with np.load(file, allow_pickle=False) as stored:
        if sum(entry.file_size for entry in stored.zip.infolist()) > _LARGEST:
            raise ValueError(f"its arrays have more than {_LARGEST} bytes")
        arrays = dict(stored)
    header = json.loads(str(arrays.pop("header")))
    if header["format"] != _FORMAT:
        raise ValueError(f"its format is {short(header['format'])}, expected {_FORMAT!r}")
    stages = tuple(
        StageRecord(layer, *(arrays[f"stages.{index}.{name}"] for name in StageRecord._fields[1:]))
        for index, layer in enumerate(header["layers"])
    )
    return SparsityTrace(
        method=header["method"],
        prompt=header["prompt"],
        tokens=tuple(header["tokens"]),
        images=tuple(arrays[f"images.{index}"] for index in range(header["images"])),
        **{name: arrays[name] for name in _ARRAYS},
        stages=stages,
        report=header["report"],
    )


def valid(name: str, trace: Any) -> SparsityTrace:
    """The trace, if its parts are what they say and fit each other: what is drawn and counted from it can be.

    Raises:
        ValueError: naming the part.
    """
    if not isinstance(trace, SparsityTrace):
        raise refusal(name, "a SparsityTrace", trace)
    try:
        wrong = next(_faults(trace), None)
    except Exception as error:  # whatever else is wrong with a record that was made by hand
        wrong = str(error)[:SHOWN]
    if wrong is not None:
        raise ValueError(f"{name} is no trace of a prefill: {wrong}")
    return trace


def _faults(trace: SparsityTrace) -> Iterator[str]:
    """What does not fit, part by part; of the first that is named the later ones may depend."""
    if not all(isinstance(value, str) for value in (trace.method, trace.prompt, *trace.tokens)):
        yield "method, prompt and tokens must be texts"
    words = (len(trace.tokens),)
    yield from _array("is_rater", trace.is_rater, "b", words)
    yield from _array("relevance", trace.relevance, "f", words)
    for index, image in enumerate(trace.images):
        yield from _array(f"images.{index}", image, "u", (None, None, 3))
    yield from _array("visual_tokens", trace.visual_tokens, "iu", (None,))
    yield from _array("image", trace.image, "iu", (None,), below=len(trace.images))
    yield from _array("box", trace.box, "f", (len(trace.image), 4))
    top, left, bottom, right = trace.box.T
    if not ((top <= bottom) & (left <= right) & (trace.box >= 0).T & (trace.box <= 1).T).all():
        yield "box must be (top, left, bottom, right), each from 0 to 1"
    if not len(trace.visual_tokens):
        yield "visual_tokens must have an entry for each layer"
    origin = np.arange(len(trace.image))
    for index, stage in enumerate(trace.stages):
        yield from _stage_faults(f"stages.{index}", stage, origin, len(trace.visual_tokens))
        origin = np.concatenate([origin[stage.kept], np.full(len(stage.centers), -1)])
    for figure in ("paper_macs", "paper_macs_dense", "mean_after_layers", "mean_entering_layers"):
        real("a number >= 0", lambda number: number >= 0)(f"report[{figure!r}]", trace.report[figure])


def _stage_faults(name: str, stage: StageRecord, origin: Int[np.ndarray, " V"], layers: int) -> Iterator[str]:
    whole(-1, layers - 1)(f"{name}.layer", stage.layer)
    yield from _array(f"{name}.origin", stage.origin, "iu", origin.shape)
    if not np.array_equal(stage.origin, origin):
        yield f"{name}.origin must number what entered the stage"
    yield from _array(f"{name}.scores", stage.scores, "f", origin.shape)
    axes = np.ndim(stage.position_ids) - 1  # positions are numbers, or vectors
    yield from _array(f"{name}.position_ids", stage.position_ids, "iu", (None,) * (1 + min(max(axes, 0), 1)))
    for part in ("kept", "candidates", "centers"):
        yield from _array(f"{name}.{part}", getattr(stage, part), "iu", (None,), below=len(origin))
    yield from _array(f"{name}.cluster", stage.cluster, "iu", stage.candidates.shape, below=len(stage.centers))


def _array(
    name: str, value: Any, kinds: str, shape: tuple[int | None, ...], *, below: int | None = None
) -> Iterator[str]:
    """Whether it is an array of those kinds and that shape (None: any length), all of it at least 0 and `below`."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        yield f"{name} must be an array of kind {kinds!r}, got {short(value)}"
    elif len(value.shape) != len(shape) or any(b not in (None, a) for a, b in zip(value.shape, shape, strict=True)):
        yield f"{name} must have shape {list(shape)}, got {list(value.shape)}"
    elif below is not None and value.size and not (value.min() >= 0 and value.max() < below):
        yield f"{name} must be from 0 to {below - 1}, got {value.min()} to {value.max()}"
