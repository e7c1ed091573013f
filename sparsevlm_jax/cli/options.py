"""What several commands take, and the checks that come before anything heavy is imported."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn, TypeAlias

from .ending import one_line

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

STDIN = "-"
_MAX_PROMPT = 1 << 20  # bytes


class Parser(argparse.ArgumentParser):
    """Help is shown as it is written, and an error never repeats a long argument whole."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        super().error(message if len(message) <= 300 else f"{one_line(message[:300])} ...")


def command(commands: Commands, name: str, summary: str, examples: str) -> Parser:
    """Adds a subcommand, with the options that all have."""
    description = summary[0].upper() + summary[1:] + "."
    parser = commands.add_parser(name, help=summary, description=description, epilog=examples)
    parser.add_argument("--quiet", action="store_true", help="do not say on the terminal what is going on")
    return parser


def whole(text: str) -> int:
    """A whole number of at most 18 digits."""
    if len(text) > 18:
        raise ValueError
    return int(text)


whole.__name__ = "number"  # argparse says "invalid number value"


def add_vision_tower(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--vision-tower", metavar="DIR", help="CLIP's folder or hub id, where the checkpoint has no tower inside"
    )


def writable(path: str | Path) -> str:
    """`path`, once it is sure that a file can be written there.

    Raises:
        ValueError: its folder is missing or closed, or it is a folder.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    if not path or os.path.isdir(path):
        raise ValueError(f"expected the name of a file to write, got {'a folder: ' + path if path else 'nothing'}")
    if not os.path.isdir(folder):
        raise ValueError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise ValueError(f"cannot write {path}: permission denied")
    return path


def text_from(argument: str, name: str) -> str:
    """An argument that is text: itself, or with `-` what stdin holds.

    Raises:
        ValueError: bytes that are not UTF-8, or more than 1 MB of them.
    """
    given = read_stdin(_MAX_PROMPT, name) if argument == STDIN else os.fsencode(argument)
    try:
        return given.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not valid UTF-8: {error.reason} at byte {error.start}") from None


def picture_from(argument: str) -> str | bytes:
    """A picture's path, or with `-` the bytes of the picture on stdin."""
    from ..processing import MAX_BYTES

    return read_stdin(MAX_BYTES, "the picture") if argument == STDIN else argument


def read_stdin(limit: int, name: str) -> bytes:
    """All of stdin, at most `limit` bytes.

    Raises:
        ValueError: there is more, or no stdin.
    """
    if sys.stdin is None:
        raise ValueError(f"{name} is to come from standard input, which is closed")
    content = sys.stdin.buffer.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{name} on standard input is longer than {limit:,} bytes")
    return content
