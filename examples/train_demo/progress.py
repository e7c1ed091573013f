"""The progress line of training: how far, how fast, loss and accuracy, on standard error."""

import sys
import time

import jax

_WINDOW = 50


class Progress:
    """Collects what each step reports and writes the means of every 50 steps; a bar where a person is watching."""

    def __init__(self, name: str, steps: int, batch: int):
        self.name, self.steps, self.batch = name, steps, batch
        self._metrics: list[dict[str, jax.Array]] = []
        self._since = time.monotonic()

    def tell(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._metrics.append(metrics)
        if len(self._metrics) == _WINDOW or step == self.steps:
            self._write(step)

    def _write(self, step: int) -> None:
        means = {name: sum(float(row[name]) for row in self._metrics) / len(self._metrics) for name in self._metrics[0]}
        seconds = time.monotonic() - self._since  # only now: the numbers above are what training has to be done for
        rate = len(self._metrics) * self.batch / seconds
        told = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        done = 20 * step // self.steps
        bar = f"{self.name} [{'#' * done}{'.' * (20 - done)}] {step}/{self.steps}"
        print(f"{bar}  {rate:.0f} scenes/s  {told}", file=sys.stderr, flush=True)
        self._metrics, self._since = [], time.monotonic()
