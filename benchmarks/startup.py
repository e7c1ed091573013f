"""Where the time goes before the first answer: `sparsevlm generate` with the bundled model, in processes of their own.

    python benchmarks/startup.py            one table: nothing cached, then everything
    python benchmarks/startup.py --json     the same as one JSON object

Each run is two processes: the command, timed from outside, and a Python one that does the same and tells its parts.
What the sum of the parts lacks is the interpreter's start and end. Seconds; warm ones are medians of `--repeats`.
Fetching a program stands under "compile or fetch"; "trace and lower" is what JAX's own cache alone would leave.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "What is written on the blue sign?"
PARTS = ("import", "weights", "tokenizer", "trace and lower", "compile or fetch", "run", "rest")


def measure(picture: str) -> dict[str, float]:
    """Seconds of each part, in this process."""
    begin = time.perf_counter()
    import jax

    from sparsevlm_jax import enable_compilation_cache, vlm
    from sparsevlm_jax.runtime import executables

    enable_compilation_cache()
    jax.devices()
    seconds = {"import": time.perf_counter() - begin}
    vlm.load_checkpoint = _timed(vlm.load_checkpoint, seconds, "weights")
    executables.load = _timed(executables.load, seconds, "fetch")
    vlm.Processor.from_folder = _timed(vlm.Processor.from_folder, seconds, "tokenizer")
    compiling: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiling.append(duration_secs)

    model = vlm.load()
    jax.monitoring.register_event_duration_secs_listener(listen)
    timing = vlm.generate(model, PROMPT, picture).report.timing
    programs = timing.compile_ms / 1e3
    seconds["trace and lower"] = max(0.0, programs - sum(compiling) - seconds.pop("fetch"))
    seconds["compile or fetch"] = programs - seconds["trace and lower"]
    seconds["run"] = ((timing.encode_ms or 0) + timing.prefill_ms) / 1e3
    return seconds | {"rest": time.perf_counter() - begin - sum(seconds.values())}


def _timed(function: Callable, seconds: dict[str, float], name: str) -> Any:
    def timed(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **options)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    return timed


def run_once(picture: Path, cache: Path) -> dict[str, float]:
    """Seconds of the command, and of the parts."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    parts = subprocess.run(
        [sys.executable, __file__, "--measure", str(picture)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    command = [sys.executable, "-m", "sparsevlm_jax", "generate", "--image", str(picture), "--prompt", PROMPT]
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return {"command": time.perf_counter() - start} | json.loads(parts.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="warm runs (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    from sparsevlm_jax.demo.show import scene_and_questions

    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "street.png"
        scene_and_questions(0)[0].draw().save(picture)
        cold = run_once(picture, Path(folder))  # its command is warm already: the parts filled the cache
        del cold["command"]
        runs = [run_once(picture, Path(folder)) for _ in range(args.repeats)]
    warm = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    if args.json:
        print(json.dumps({"cold": cold, "warm": warm}))
        return
    print(f"{'seconds':18}{'cold':>8}{'warm':>8}")
    for name in PARTS:
        print(f"{name:18}{cold[name]:8.2f}{warm[name]:8.2f}")
    print(f"{'sum of parts':18}{sum(cold[n] for n in PARTS):8.2f}{sum(warm[n] for n in PARTS):8.2f}")
    print(f"{'the whole command':18}{'':8}{warm['command']:8.2f}")


if __name__ == "__main__":
    main()
