"""A record of every decision of one pruned prefill, in one file that plots without the model.

    trace = trace_prefill(vlm, "What is written on the blue sign?", "street.png")
    save_trace("street.npz", trace)
    load_trace("street.npz").stages[0].kept

V visual tokens entering a stage · K kept · C candidates · M merged · L prompt tokens · S layers
"""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from .processing import ImageSource, Prompt
from .sparsify import SparsityConfig
from .vlm import THIRD, VLM, Run

_FORMAT = "sparsevlm-trace-1"


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
    position_ids: Int[np.ndarray, " L_out"]


class SparsityTrace(NamedTuple):
    """A whole prefill of one prompt.

    Attributes:
        method: the sparsity config's name.
        prompt: the words asked: a question, or the text of a chat's last message.
        tokens: the prompt's text tokens as strings, image tokens left out; `is_rater` and `relevance` go with them.
        images: as the model saw them, cropped and scaled, [I, height, width, 3].
        grid: patches of one image, (rows, columns).
        visual_tokens: visual tokens entering each layer.
        report: the figures of `Report.to_dict()`.
    """

    method: str
    prompt: str
    tokens: tuple[str, ...]
    is_rater: Bool[np.ndarray, " L"]
    relevance: Float[np.ndarray, " L"]
    images: UInt8[np.ndarray, "I height width 3"]
    grid: tuple[int, int]
    visual_tokens: Int[np.ndarray, " S"]
    stages: tuple[StageRecord, ...]
    report: dict


def trace_prefill(
    vlm: VLM,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    *,
    sparsity: SparsityConfig = THIRD,
) -> SparsityTrace:
    """Prefills one prompt and keeps every decision; arguments and errors as in `generate`."""
    run = Run(vlm, [prompt], [image], sparsity, max_new_tokens=1)
    result = jax.device_get(run.prefill(trace=True))
    ids = run.inputs.input_ids[0]
    is_text = ids != vlm.config.image_token_id
    side = vlm.config.vision.image_size // vlm.config.vision.patch_size
    report = run.report(0, result, run.timing(None, 0.0))
    return SparsityTrace(
        method=sparsity.name,
        prompt=_words(prompt),
        tokens=tuple(vlm.processor.tokenizer.convert_ids_to_tokens(ids[is_text].tolist())),
        is_rater=result.trace.raters.is_rater[0, : len(ids)][is_text],
        relevance=result.trace.raters.relevance[0, : len(ids)][is_text],
        images=vlm.processor.pixels.restore(run.inputs.pixel_values),
        grid=(side, side),
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
    path = Path(path)
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    header = {
        "format": _FORMAT,
        "method": trace.method,
        "prompt": trace.prompt,
        "tokens": trace.tokens,
        "grid": trace.grid,
        "layers": [stage.layer for stage in trace.stages],
        "report": trace.report,
    }
    arrays = {name: getattr(trace, name) for name in ("is_rater", "relevance", "images", "visual_tokens")}
    for index, stage in enumerate(trace.stages):
        arrays |= {f"stages.{index}.{name}": value for name, value in stage._asdict().items() if name != "layer"}
    np.savez_compressed(path, header=np.array(json.dumps(header)), **arrays)
    return path


def load_trace(path: str | Path) -> SparsityTrace:
    """Reads what `save_trace` wrote; no pickle is executed.

    Raises:
        ValueError: the file is not a trace, or is damaged.
        OSError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(str(arrays.pop("header")))
        if header["format"] != _FORMAT:
            raise ValueError(f"its format is {header['format']!r}, expected {_FORMAT!r}")
        stages = [
            StageRecord(layer, *(arrays[f"stages.{index}.{name}"] for name in StageRecord._fields[1:]))
            for index, layer in enumerate(header["layers"])
        ]
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a saved trace: {error}") from None
    return SparsityTrace(
        method=header["method"],
        prompt=header["prompt"],
        tokens=tuple(header["tokens"]),
        is_rater=arrays["is_rater"],
        relevance=arrays["relevance"],
        images=arrays["images"],
        grid=tuple(header["grid"]),
        visual_tokens=arrays["visual_tokens"],
        stages=tuple(stages),
        report=header["report"],
    )
