"""Checks this library against recordings of the official SparseVLM code.

    python tests/golden/check.py DIR...

Each DIR is a recorded case (meta.json + golden.npz), a folder of function-level recordings (index.json + golden.npz),
or a folder holding such folders. One line a case; exit status 0 only if every case given holds.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden.functional import compare_functional
from tests.golden.replay import compare_case


def find_cases(folder: Path) -> list[Path]:
    """The recorded folders in or under `folder`, sorted."""
    return sorted(file.parent for file in folder.rglob("golden.npz"))


def check(folder: Path):
    """Compares one recorded folder; NotImplementedError where its kind is not known."""
    if (folder / "meta.json").is_file():
        return compare_case(folder)
    if (folder / "index.json").is_file():
        return compare_functional(folder)
    raise NotImplementedError("neither meta.json nor index.json")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--allow-unsupported", action="store_true", help="a kind of recording not known here may pass")
    options = parser.parse_args(arguments)
    good = True
    for folder in options.folders:
        cases = find_cases(folder)
        if not cases:
            print(f"FAIL  {folder}: no recorded case in it")
            good = False
        for case in cases:
            good &= _report(case, options.allow_unsupported)
    return 0 if good else 1


def _report(case: Path, allow_unsupported: bool) -> bool:
    try:
        comparison = check(case)
    except NotImplementedError as error:
        print(f"{'skip' if allow_unsupported else 'FAIL'}  {case.name}: unsupported: {error}", flush=True)
        return allow_unsupported
    print(comparison.line(case.name), flush=True)
    for failure in comparison.failures:
        print(f"        {failure}")
    return comparison.passed


if __name__ == "__main__":
    sys.exit(main())
