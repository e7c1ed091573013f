"""What a GPU has to say, in one command of under ten minutes: tests, precision, latency, memory, open questions.

    python benchmarks/gpu_pass.py                        every part; benchmarks/results/NAME-OF-THE-DEVICE.json
    python benchmarks/gpu_pass.py --parts tests latency  some of them
    python benchmarks/gpu_pass.py --quick                the smallest sizes, for a CPU: to see that it works

Parts, each a process of its own with a limit of its own, so that one that hangs or dies takes none along:

- *tests*: `pytest -m gpu`
- *precision*: tokens that bfloat16 and the device's default float32 keep of those that exact float32 keeps
- *questions*: `gpu_questions.py`
- *latency*: `latency.py`, the 7B in bfloat16 at batch 1 and 16: times, memory, compile times cold and cached, the share
  of bandwidth that decode reaches, and the kernels that take longest
- *peers*: the same at batch 1 beside `transformers` and SparseVLM in PyTorch, both eager
- *compiled peers*, *startup*, *methods*, *13b*: by name only, for they would make it longer: the same with PyTorch's
  compiler, a first answer in a new process, the rivals at batch 16, and the 13B at batch 1

A part's last line of output is its result where that is JSON. Results are written after each part, and a part that runs
again replaces its own result alone. Where the tree travelled without its history, SPARSEVLM_COMMIT says which it is.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
#: Seconds each part may take, then the command: on a GPU, and at the smallest size.
PARTS = {
    "tests": (90, ["-m", "pytest", "-q", "-m", "gpu", "tests"], []),
    "precision": (110, ["precision.py", "--questions", "16"], ["--questions", "4"]),
    "questions": (95, ["gpu_questions.py"], ["--model", "0.1b", "--layers", "4", "--repeats", "3"]),
    "latency": (200, ["latency.py", "--no-peers", "--no-bounds", "--budgets", "192", "--profile"], ["--quick"]),
    "peers": (100, ["latency.py", "--batch", "1", "--eager", "--once", "--no-bounds", "--budgets", "192"], ["--quick"]),
    "compiled peers": (400, ["latency.py", "--batch", "1", "--once", "--no-bounds", "--budgets", "192"], ["--quick"]),
    "startup": (90, ["startup.py", "--json"], ["--repeats", "1"]),
    "methods": (
        290,
        [
            "latency.py",
            "--no-peers",
            "--no-bounds",
            "--once",
            "--batch",
            "16",
            "--budgets",
            "192",
            "--methods",
            "fastv",
            "pyramiddrop",
            "dart",
            "visionzip",
            "divprune",
            "cdpruner",
            "sparsevlm-plus",
        ],
        ["--quick"],
    ),
    "13b": (
        150,
        ["latency.py", "--model", "13b", "--no-peers", "--no-bounds", "--once", "--batch", "1", "--budgets", "192"],
        ["--quick"],
    ),
}
BY_NAME = ("compiled peers", "startup", "methods", "13b")


def run(name: str, *, quick: bool, limit: float | None, extra: list[str]) -> dict:
    """One part: its command, seconds, exit status, the end of its output, and its result."""
    own_limit, command, smallest = PARTS[name]
    limit = limit or own_limit
    program = command if command[0] == "-m" else [str(HERE / command[0]), *command[1:]]
    program = [*program, *(smallest if quick else []), *extra]
    print(f"\n== {name}: python {' '.join(program)}  (at most {limit:.0f} s)", flush=True)
    settings = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if name == "tests":
        settings["XLA_FLAGS"] = ""  # those that the tests set make programs slow
    start, lines = time.perf_counter(), []
    with subprocess.Popen(
        ["timeout", "--kill-after", "5", str(limit), sys.executable, *program],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings, cwd=HERE.parent,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line[:600], end="" if len(line) <= 600 else "...\n", flush=True)
    taken = time.perf_counter() - start
    print(f"== {name}: exit status {process.returncode} after {taken:.0f} s", flush=True)
    try:
        result = json.loads(lines[-1])
    except (ValueError, IndexError):
        result = None
    said = "".join(lines if result is None else lines[:-1])[-3000:]
    shown = ["python", *(str(part).replace(f"{HERE}", "benchmarks") for part in program)]
    return dict(command=" ".join(shown), seconds=taken, status=process.returncode, output=said, result=result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[name for name in PARTS if name not in BY_NAME])
    parser.add_argument("--limit", type=float, help="seconds for each part (default: the part's own)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder (default: benchmarks/results)")
    options, extra = parser.parse_known_args()
    # In a process of its own: one that has looked at a GPU with JAX holds most of its memory.
    asked = subprocess.run(
        [sys.executable, str(HERE / "environment.py")], check=True, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(asked.stdout)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / (re.sub(r"\W+", "-", found["device"]).strip("-").lower() + ".json")
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in options.parts:
        results[name] = {**found, **run(name, quick=options.quick, limit=options.limit, extra=extra)}
        path.write_text(json.dumps(results, indent=1) + "\n")
    states = {name: results[name]["status"] for name in options.parts}
    print(f"\nwritten to {path}: " + ", ".join(f"{name} {state or 'passed'}" for name, state in states.items()))
    raise SystemExit(any(states.values()))


if __name__ == "__main__":
    main()
