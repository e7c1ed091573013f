"""The command `sparsevlm`: answer questions about images, convert checkpoints, and say what one holds.

Each subcommand is a function that adds its parser and one that runs it, side by side in a module of this package. What
is heavy (JAX, the model) is imported when a command runs, so `--help` answers at once. How a command ends is told in
`ending`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from .. import __version__, progress
from .answer import add_generate
from .ending import guarded
from .folders import add_convert, add_export, add_info
from .options import Parser
from .show import add_demo, add_methods, add_visualize

DESCRIPTION = """\
Vision-language models in JAX that drop most image tokens on the way (SparseVLM, arXiv 2410.04417).

  sparsevlm demo
  sparsevlm generate --model DIR --image photo.jpg --prompt "What is written on the sign?"
  sparsevlm info DIR
  sparsevlm convert DIR OUT
  sparsevlm visualize TRACE

`sparsevlm COMMAND --help` has more examples."""

COMMANDS = (add_demo, add_generate, add_convert, add_export, add_info, add_methods, add_visualize)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Raises:
        SystemExit: after `--help` and `--version`, and for a command line that does not parse.
    """
    return guarded(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    with _progress(args):
        with progress.step("starting"):
            _compilation_cache()
        args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="sparsevlm", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"sparsevlm-jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


def _progress(args: argparse.Namespace):
    """Shows what goes on where a person is watching."""
    if not args.quiet and sys.stderr is not None and sys.stderr.isatty():
        return progress.shown(sys.stderr)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return nullcontext()


def _compilation_cache() -> None:
    """Keep compiled programs between runs; JAX_COMPILATION_CACHE_DIR says where, and empty means nowhere."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") == "":
        return  # before JAX is imported
    from ..runtime.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
