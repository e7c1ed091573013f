"""Checks this library's rivals of SparseVLM against recordings of their authors' selection code.

    python tests/golden/check_methods.py DIR...

Each DIR holds recordings METHOD_NUMBER.npz, in it or below. One line a file; exit status 0 only if all of them hold.
Which code each was recorded from, and what its fields are: tests/golden/methods/README.md.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden import decoder_methods, tower_methods

Check = Callable[[Mapping[str, np.ndarray]], list[str]]

CHECKS: dict[str, Check] = decoder_methods.CHECKS | tower_methods.CHECKS


def method_of(recording: Path) -> str:
    return recording.stem.rpartition("_")[0]


def recordings(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npz"))


def failures(recording: Path) -> list[str]:
    """What does not hold, in words.

    Raises:
        NotImplementedError: no method of that name is here.
    """
    name = method_of(recording)
    if name not in CHECKS:
        raise NotImplementedError(f"no method {name!r}, only {', '.join(sorted(CHECKS))}")
    with np.load(recording) as file:
        return CHECKS[name](dict(file))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--allow-unsupported", action="store_true", help="a method that is not here may pass")
    options = parser.parse_args(arguments)
    good = True
    for folder in options.folders:
        found = recordings(folder)
        if not found:
            print(f"FAIL  {folder}: no recording in it")
            good = False
        for recording in found:
            good &= _report(recording, options.allow_unsupported)
    return 0 if good else 1


def _report(recording: Path, allow_unsupported: bool) -> bool:
    try:
        found = failures(recording)
    except NotImplementedError as error:
        print(f"{'skip' if allow_unsupported else 'FAIL'}  {recording.stem}: unsupported: {error}", flush=True)
        return allow_unsupported
    print(f"{'FAIL' if found else 'pass'}  {recording.stem}", flush=True)
    for failure in found:
        print(f"        {failure}")
    return not found


if __name__ == "__main__":
    sys.exit(main())
