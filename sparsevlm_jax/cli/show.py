"""`sparsevlm demo`, `methods` and `visualize`: what the library can do, as text and as pictures."""

import argparse
import json
from pathlib import Path

from .. import progress
from .options import Commands, command, whole, writable

DEMO = """\
examples:
  sparsevlm demo                              a street nobody has seen, three questions, all tokens and a third
  sparsevlm demo --seed 7 --save other.png    another street, and its picture
  sparsevlm demo --tokens 1/9                 fewer image tokens"""

METHODS = """\
examples:
  sparsevlm methods
  sparsevlm methods --json                    options and their defaults too
  sparsevlm generate --model DIR --image photo.jpg --prompt "..." --method divprune --tokens 64
  sparsevlm generate --model DIR --image photo.jpg --prompt "..." --method fastv --method-option layer=3"""

VISUALIZE = """\
examples:
  what was kept for one question, stage by stage
    sparsevlm generate --model DIR --image photo.jpg --prompt "What is on the sign?" --trace sign.npz
    sparsevlm visualize sign.npz --output sign.png
  several questions about one picture, side by side
    sparsevlm visualize sign.npz dog.npz car.npz --output questions.svg"""


def add_demo(commands: Commands) -> None:
    parser = command(commands, "demo", "draw a street and ask about it, with all image tokens and with some", DEMO)
    parser.set_defaults(run=run_demo)
    parser.add_argument("--seed", metavar="S", type=whole, default=0, help="which street (default: %(default)s)")
    parser.add_argument("--tokens", metavar="N", default="1/3", help="image tokens to keep (default: %(default)s)")
    parser.add_argument("--save", metavar="FILE", default="street.png", help="the picture, PNG (default: %(default)s)")


def run_demo(args: argparse.Namespace) -> None:
    path = Path(writable(args.save))
    with progress.step("starting"):
        from ..demo import show
    demo = show.run_demo(seed=args.seed, tokens=args.tokens, save_to=path)
    for line in show.lines(demo):
        print(line)
    print(f"\npicture: {path}")


def add_methods(commands: Commands) -> None:
    parser = command(commands, "methods", "list the pruning methods that --method takes", METHODS)
    parser.set_defaults(run=run_methods)
    parser.add_argument("--json", action="store_true", help="print one JSON object: name -> summary and options")


def run_methods(args: argparse.Namespace) -> None:
    with progress.step("starting"):
        from .. import methods

    names = sorted(methods.METHODS)
    if args.json:
        print(json.dumps({n: {"summary": methods.summary(n), "options": methods.options(n)} for n in names}))
        return
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {methods.summary(name)}")


def add_visualize(commands: Commands) -> None:
    parser = command(commands, "visualize", "draw what a traced run kept", VISUALIZE)
    parser.set_defaults(run=run_visualize)
    parser.add_argument("traces", metavar="TRACE", nargs="+", help="files that `sparsevlm generate --trace` saved")
    parser.add_argument("--output", metavar="FILE", default="trace.png", help="PNG or SVG (default: %(default)s)")


def run_visualize(args: argparse.Namespace) -> None:
    writable(args.output)
    with progress.step("drawing"):
        from ..report import visualize
        from ..report.trace import load_trace

        visualize.check_suffix(args.output)
        traces = [load_trace(path) for path in args.traces]
        figure = visualize.visualize(traces[0]) if len(traces) == 1 else visualize.compare(traces)
        visualize.save(figure, args.output)
    print(f"drawn: {args.output}")
