"""`sparsevlm generate --prompts`: a file of questions in, a line of JSON for each out, the model loaded once.

{"prompt": "What is on the sign?", "image": "street.png"}              ->  {"line": 1, "text": ..., "report": ...}
{"prompt": "Is <image> like <image>?", "image": ["a.png", "b.png"]}    ->  {"line": 2, "text": ..., "report": ...}
{"prompt": "What is it?", "image": "absent.png"}                       ->  {"line": 3, "error": ...}

A prompt is a text or a list of chat messages. Paths of pictures, those in messages too, count from the file's folder.
A line without an image (or with null) is about the pictures of the command line; with [] it is about none.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from .. import progress
from ..errors import short
from .answer import Request, as_json, prepare
from .ending import one_line
from .options import STDIN, picture_from

if TYPE_CHECKING:
    from ..vlm import VLM

_LONGEST = 1 << 26  # bytes of a line, which may hold pictures as data URLs
_PICTURES = ("image", "path", "url", "image_url")  # keys under which a part of a message may carry its picture


class Question(NamedTuple):
    line: int
    prompt: Any
    images: list[Any]


class Fault(NamedTuple):
    """A line that cannot be answered, and why."""

    line: int
    error: str


def run_many(args: argparse.Namespace) -> None:
    """Raises ValueError at the end, if there were lines that could not be answered."""
    if args.batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {args.batch_size}")
    images = [picture_from(name) for name in args.image]
    asked = failed = 0
    with _opened(args.prompts) as file:
        request, model = prepare(args)
        folder = Path() if args.prompts == STDIN else Path(args.prompts).parent
        lines = _questions(file, folder, images)
        while batch := list(islice(lines, args.batch_size)):
            with progress.step(f"answering, {asked} done"):
                results = list(_answers(model, batch, request))
            for result in results:
                print(json.dumps(result), flush=True)
            asked, failed = asked + len(batch), failed + sum("error" in result for result in results)
    if not asked:
        raise ValueError(f"there are no prompts in {args.prompts}")
    if failed:
        raise ValueError(f"{failed} of {asked} prompts could not be answered; their lines of output say why")


def _opened(name: str) -> BinaryIO:
    if name != STDIN:
        return open(name, "rb")
    if sys.stdin is None:
        raise ValueError("the prompts are to come from standard input, which is closed")
    return sys.stdin.buffer


def _questions(file: BinaryIO, folder: Path, images: list) -> Iterator[Question | Fault]:
    """Empty lines are passed over; a line too long to be one ends the reading."""
    number = 0
    while line := file.readline(_LONGEST + 1):
        number += 1
        if len(line) > _LONGEST:
            yield Fault(number, f"the line is longer than {_LONGEST:,} bytes; nothing after it is read")
            return
        if line.strip():
            yield _read(number, line, folder, images)


def _read(number: int, line: bytes, folder: Path, images: list) -> Question | Fault:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Fault(number, f"not a line of JSON: {error}")
    if not isinstance(content, dict) or "prompt" not in content:
        return Fault(number, 'expected an object {"prompt": ..., "image": ...}')
    unknown = content.keys() - {"prompt", "image"}
    if unknown:
        return Fault(number, f"unknown keys {', '.join(sorted(map(repr, unknown)))}; there are 'prompt' and 'image'")
    prompt, given = content["prompt"], content.get("image")
    if not isinstance(prompt, str | list):
        return Fault(number, f"expected a text or a list of chat messages as prompt, got {short(prompt)}")
    prompt = prompt if isinstance(prompt, str) else [_message(folder, message) for message in prompt]
    if given is None:
        return Question(number, prompt, images)
    names = given if isinstance(given, list) else [given]
    if not all(isinstance(name, str) for name in names):
        return Fault(number, "expected the name of a file, or a list of them, as image")
    return Question(number, prompt, [_beside(folder, name) for name in names])


def _message(folder: Path, message: Any) -> Any:
    """A chat message with the paths of its pictures; what is none stays as it is, to be refused by the model."""
    parts = message.get("content") if isinstance(message, dict) else None
    return message | {"content": [_part(folder, part) for part in parts]} if isinstance(parts, list) else message


def _part(folder: Path, part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    placed: dict[str, Any] = {key: _beside(folder, part[key]) for key in _PICTURES if isinstance(part.get(key), str)}
    nested = part.get("image_url")
    if isinstance(nested, dict) and isinstance(nested.get("url"), str):
        placed["image_url"] = {"url": _beside(folder, nested["url"])}
    return part | placed


def _beside(folder: Path, name: str) -> str:
    """A relative path counts from the folder of the file it stands in; an address stays what it is."""
    return name if name.startswith("data:") or "://" in name else str(folder / name)


def _answers(model: "VLM", batch: Iterable[Question | Fault], request: Request) -> Iterator[dict[str, Any]]:
    """Results in the order of the lines. A batch that fails is asked one by one, so that only the guilty line does."""
    batch = list(batch)
    questions = [item for item in batch if isinstance(item, Question)]
    results = _try_together(model, questions, request) or {q.line: _alone(model, q, request) for q in questions}
    for item in batch:
        yield {"line": item.line} | ({"error": item.error} if isinstance(item, Fault) else results[item.line])


def _try_together(model: "VLM", questions: list[Question], request: Request) -> dict[int, dict[str, Any]]:
    from ..vlm import generate

    if len(questions) < 2:
        return {}
    prompts, images = [question.prompt for question in questions], [question.images for question in questions]
    try:
        outputs = generate(model, prompts, images, sparsity=request.sparsity, **request.options)
    except (ValueError, OSError):
        return {}
    return {question.line: as_json(out) for question, out in zip(questions, outputs, strict=True)}


def _alone(model: "VLM", question: Question, request: Request) -> dict[str, Any]:
    from ..vlm import generate

    try:
        (out,) = generate(model, [question.prompt], [question.images], sparsity=request.sparsity, **request.options)
        return as_json(out)
    except (ValueError, OSError) as error:
        return {"error": one_line(str(error))}
