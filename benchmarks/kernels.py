"""Where a program's time goes on a GPU: its kernels by name, from JAX's profiler."""

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Kernels(NamedTuple):
    """Of one run: milliseconds from the first kernel's start to the last one's end, milliseconds in kernels, how many
    there were, and [name, launches, milliseconds] of those that took longest together."""

    span_ms: float
    busy_ms: float
    launches: int
    longest: list[tuple[str, float, float]]


def profile(run: Callable[[], Any], *, repeats: int = 3, longest: int = 25) -> Kernels | None:
    """The kernels of `run`, which is called once before; None where the profiler has seen no GPU."""
    jax.block_until_ready(run())
    spans, launches = [], collections.Counter()
    times: collections.defaultdict[str, float] = collections.defaultdict(float)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                jax.block_until_ready(run())
            events = [event for path in Path(folder).rglob("*.xplane.pb") for event in _device_events(path)]
        if not events:
            return None
        spans.append(max(start + length for _, start, length in events) - min(start for _, start, _ in events))
        for name, _, length in events:
            launches[name] += 1
            times[name] += length
    top = [
        (name, launches[name] / repeats, ns / repeats / 1e6)
        for name, ns in sorted(times.items(), key=lambda item: -item[1])
    ]
    return Kernels(
        sum(spans) / repeats / 1e6,
        sum(times.values()) / repeats / 1e6,
        round(launches.total() / repeats),
        top[:longest],
    )


def _device_events(path: Path) -> list[tuple[str, float, float]]:
    """Name (numbers at its end taken off, so that the layers' are one), start and length in ns."""
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                found += [(_name(event.name), event.start_ns, event.duration_ns) for event in line.events]
    return found


def _name(kernel: str) -> str:
    return re.sub(r"[_.]?\d+$", "", kernel)[:100]
