"""`sparsevlm generate`: one answer, two methods' answers side by side, or the answers to a file of prompts."""

import argparse
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import progress
from .options import STDIN, Commands, add_vision_tower, command, picture_from, text_from, whole, writable

if TYPE_CHECKING:
    from ..sparsify import SparsityConfig
    from ..vlm import VLM, Output

EXAMPLES = """\
examples:
  one answer, with a third of the image tokens (192 of LLaVA-1.5's 576, the default)
    sparsevlm generate --model llava-hf/llava-1.5-7b-hf --image photo.jpg --prompt "What is on the sign?"
  fewer tokens, as a number or a share; another method, and an option of its own
    sparsevlm generate --model DIR --image photo.jpg --prompt "..." --tokens 64
    sparsevlm generate --model DIR --image photo.jpg --prompt "..." --tokens 1/9 --method fastv --method-option layer=3
  what pruning changes: both answers, what they cost, how long they took
    sparsevlm generate --model DIR --image photo.jpg --prompt "..." --compare dense
  two images, each where its <image> stands; without marks, images go first
    sparsevlm generate --model DIR --image a.png b.png --prompt "Is <image> the same place as <image>?"
  sampled, printed as it comes
    sparsevlm generate --model DIR --image a.png --prompt "..." --temperature 0.7 --top-p 0.9 --seed 1 --stream
  for a program: one JSON object with the text, and what it cost; prompt or picture from standard input
    sparsevlm generate --model DIR --image a.png --prompt - --json < question.txt
  many prompts, the model loaded once: lines {"prompt": ..., "image": file or list of files} in, a line of JSON each out
    sparsevlm generate --model DIR --prompts questions.jsonl --batch-size 8 > answers.jsonl"""


def add_generate(commands: Commands) -> None:
    parser = command(commands, "generate", "answer a question about images", EXAMPLES)
    parser.set_defaults(run=run_generate)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="the question; - reads standard input")
    asked.add_argument("--prompts", metavar="FILE", help="a file of questions, one JSON object a line; - reads stdin")
    parser.add_argument(
        "--image", metavar="FILE", nargs="+", action="extend", default=[], help="images of the prompt; - reads stdin"
    )
    parser.add_argument("--allow-http", action="store_true", help="fetch images that are given as http(s) addresses")
    _add_model(parser.add_argument_group("model"))
    _add_pruning(parser.add_argument_group("pruning"))
    _add_sampling(parser.add_argument_group("answer"))
    parser.add_argument("--batch-size", metavar="B", type=whole, default=1, help="of --prompts (default: %(default)s)")
    parser.add_argument("--trace", metavar="FILE", help="save every pruning decision, for `sparsevlm visualize`")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--stream", action="store_true", help="print the answer as it comes")
    output.add_argument("--json", action="store_true", help="print one JSON object: text and report")


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", metavar="DIR", help="a checkpoint folder of any kind, or a hub id (default: the demo)"
    )
    add_vision_tower(group)
    group.add_argument(
        "--pad-to-square",
        action=argparse.BooleanOptionalAction,
        help="pad pictures, or crop them (default: as the checkpoint does)",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="to compute in (default: bfloat16 on a GPU, float32 on a CPU)",
    )


def _add_pruning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--method",
        metavar="NAME",
        default="sparsevlm",
        help="one of those that `sparsevlm methods` lists (default: %(default)s)",
    )
    group.add_argument(
        "--method-option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the method; may be repeated (`sparsevlm methods --json` lists them)",
    )
    group.add_argument(
        "--tokens",
        metavar="N",
        help="image tokens to keep: 192, 1/3, 0.25 or 25%% (default: 1/3)",
    )
    group.add_argument("--compare", metavar="NAME", help="answer with this method too (dense: no pruning)")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-new-tokens", metavar="N", type=whole, default=64, help="default: %(default)s")
    group.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 takes the likeliest (default)")
    group.add_argument("--top-p", metavar="P", type=float, default=1.0, help="smallest set of that probability")
    group.add_argument("--top-k", metavar="K", type=whole, default=0, help="only the K likeliest; 0 is all of them")
    group.add_argument("--seed", metavar="S", type=whole, default=0, help="of the sampling (default: %(default)s)")


class Request(NamedTuple):
    """What is asked of the model, apart from the prompt and its images."""

    sparsity: "SparsityConfig | None"
    compared: "SparsityConfig | None"
    options: dict[str, Any]


def run_generate(args: argparse.Namespace) -> None:
    _check(args)
    if args.prompts is not None:
        from .many import run_many

        return run_many(args)
    prompt = text_from(args.prompt, "the prompt")
    images = [picture_from(name) for name in args.image]
    request, model = prepare(args)
    if args.trace:
        _save_trace(args.trace, model, prompt, images, request.sparsity)
    if args.stream:
        return _stream(model, prompt, images, request)
    if args.compare is None:
        out = _ask(model, prompt, images, request.sparsity, request.options)
        print(json.dumps(as_json(out)) if args.json else out.text)
        return
    runs = {args.method: request.sparsity, args.compare: request.compared}
    for sparsity in runs.values():  # a first run is slower than others
        _ask(model, prompt, images, sparsity, request.options)
    outputs = {name: _ask(model, prompt, images, sparsity, request.options) for name, sparsity in runs.items()}
    _print_both(outputs, as_objects=args.json)


def _check(args: argparse.Namespace) -> None:
    """Options that do not go together, or with standard input, show before anything heavy is imported."""
    if args.prompts is not None and (args.trace or args.stream or args.compare):
        raise ValueError("--prompts goes with neither --trace, --stream nor --compare: those are for one prompt")
    if args.prompts is None and args.batch_size != 1:
        raise ValueError("--batch-size is for --prompts: there is one prompt")
    if args.stream and args.compare:
        raise ValueError("--stream prints one answer, --compare two: choose one of them")
    if args.compare == args.method:
        raise ValueError(f"--compare {args.compare} is the method itself: name another")
    if [args.prompt, args.prompts, *args.image].count(STDIN) > 1:
        raise ValueError("standard input can be one thing only: the prompt, the prompts, or a picture")
    if args.trace:
        writable(args.trace)


def prepare(args: argparse.Namespace) -> "tuple[Request, VLM]":
    """The request and the model; what is wrong with the request is found before the model is loaded."""
    with progress.step("starting"):
        from .. import methods
        from .. import vlm as sv
        from ..arguments import checked
    chosen = methods.parse_options(args.method, args.method_option)
    tokens = "1/3" if args.tokens is None else args.tokens
    told_otherwise = args.tokens is None and methods.says_budget(chosen)
    sparsity = methods.create(args.method, None if told_otherwise else tokens, **chosen)
    compared = methods.create(args.compare, tokens) if args.compare else None
    if args.trace and sparsity is None:
        raise ValueError("a dense run prunes nothing, there is no trace to save")
    given = {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")}
    options = dict(zip(given, checked(**given), strict=True))
    with progress.step("loading the model"):
        names = ("dtype", "vision_tower", "pad_to_square", "allow_http")
        model = sv.load(args.model, **{name: getattr(args, name) for name in names})
    return Request(sparsity, compared, options), model


def as_json(out: "Output") -> dict[str, Any]:
    return {"text": out.text, "report": out.report.to_dict()}


def _ask(model: "VLM", prompt: str, images: list, sparsity: "SparsityConfig | None", options: dict) -> "Output":
    from ..vlm import generate

    with progress.step("answering"):
        return generate(model, prompt, images, sparsity=sparsity, **options)


def _stream(model: "VLM", prompt: str, images: list, request: Request) -> None:
    from ..vlm import stream

    pieces = stream(model, prompt, images, sparsity=request.sparsity, **request.options)
    with progress.step("answering"):
        first = next(pieces, "")
    with progress.hidden():  # the answer's line is not to be wiped away
        print(first, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


def _print_both(outputs: "dict[str, Output]", *, as_objects: bool) -> None:
    from ..report.comparison import table

    if as_objects:
        first, (name, other) = next(iter(outputs.values())), list(outputs.items())[1]
        print(json.dumps(as_json(first) | {"compared": {"method": name} | as_json(other)}))
        return
    width = max(map(len, outputs))
    for name, out in outputs.items():
        print(f"{name:{width}}  {out.text}")
    print()
    for line in table({name: out.report for name, out in outputs.items()}):
        print(line)


def _save_trace(path: str, model: "VLM", prompt: str, images: list, sparsity: "SparsityConfig | None") -> None:
    from ..report.trace import save_trace, trace_prefill

    assert sparsity is not None  # a dense run has been refused
    with progress.step("tracing"):
        save_trace(path, trace_prefill(model, prompt, images, sparsity=sparsity))
