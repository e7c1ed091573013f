"""Comparing with a recording: exact things equal, the rest by its largest error, relative to the largest value."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Comparison:
    """What a case was compared in; `failures` says, in words, what did not hold."""

    limit: float
    score_limit: float
    failures: list[str] = field(default_factory=list)
    equal: dict[str, bool] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    compared: int = 0

    def same(self, group: str, name: str, ours, recorded) -> None:
        """Exactly equal, shapes included; `group` is what the report counts it under."""
        ours, recorded = np.asarray(ours), np.asarray(recorded)
        ok = ours.shape == recorded.shape and bool(np.all(ours == recorded))
        self.equal[group] = self.equal.get(group, True) and ok
        self.compared += 1
        if not ok:
            self.failures.append(f"{name}: got {_short(ours)}, recorded {_short(recorded)}")

    def close(self, group: str, name: str, ours, recorded) -> None:
        """max|difference| / max|recorded| within the limit of `group`."""
        ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
        self.compared += 1
        if ours.shape != recorded.shape:
            self.failures.append(f"{name}: shape {ours.shape}, recorded {recorded.shape}")
            return
        error = float(np.max(np.abs(ours - recorded)) / max(np.max(np.abs(recorded)), 1e-30)) if ours.size else 0.0
        error = error if np.isfinite(error) else float("inf")
        self.worst[group] = max(self.worst.get(group, 0.0), error)
        limit = self.score_limit if group == "scores" else self.limit
        if error > limit:
            self.failures.append(f"{name}: relative error {error:.1e} above {limit:.0e}")

    @property
    def passed(self) -> bool:
        return self.compared > 0 and not self.failures

    def line(self, case: str) -> str:
        sets = " ".join(f"{group} {'=' if ok else 'DIFFER'}" for group, ok in self.equal.items())
        errors = " ".join(f"{group} {error:.1e}" for group, error in self.worst.items())
        return f"{'pass' if self.passed else 'FAIL'}  {case:14s} {sets} | worst relative error: {errors}"


def _short(array: np.ndarray) -> str:
    text = np.array2string(array, threshold=8, edgeitems=4)
    return f"{' '.join(text.split())} {array.shape}"
