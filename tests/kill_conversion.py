"""Kills conversions at random moments, and checks what they leave behind.

    python -m tests.kill_conversion --count 500 --seed 0

A process that has imported everything, but started no backend, forks one child per trial; the child converts and is
killed (SIGKILL) after a random part of the time a conversion takes. Every second trial replaces an older checkpoint.
What may be found at the target afterwards: nothing that loads, the whole old checkpoint, or the whole new one.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path


def serve() -> None:
    """Reads trials from stdin, one JSON line each, and forks a child for each; answers with its seconds and signal."""
    import jax
    from orbax.checkpoint import v1  # noqa: F401  imported before the fork, so that a child spends its life converting
    from transformers import AutoTokenizer  # noqa: F401

    import sparsevlm_jax.convert  # noqa: F401
    from sparsevlm_jax.checkpoints.sources import convert_checkpoint

    for line in sys.stdin:
        trial = json.loads(line)
        ready, set_ready = os.pipe()
        child = os.fork()
        if child == 0:
            jax.numpy.isfinite(jax.numpy.zeros(3)).block_until_ready()  # starting JAX is no part of the conversion
            os.write(set_ready, b".")
            convert_checkpoint(trial["source"], trial["target"], overwrite=True)
            os._exit(0)
        os.read(ready, 1)
        os.close(ready)
        os.close(set_ready)
        start = time.perf_counter()
        if trial["delay"] is not None:
            time.sleep(trial["delay"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"seconds": time.perf_counter() - start, "status": status}), flush=True)


class Server:
    """The forking process, seen from the one that checks."""

    def __enter__(self) -> "Server":
        import subprocess

        command = [sys.executable, "-W", "ignore", "-m", "tests.kill_conversion", "--serve"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], env=environment, stdin=-1, stdout=-1, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def convert(self, source: Path, target: Path, *, kill_after: float | None = None) -> float:
        """Runs one conversion and returns its seconds; fails if it failed by itself."""
        assert self.process.stdin is not None and self.process.stdout is not None
        trial = {"source": str(source), "target": str(target), "delay": kill_after}
        self.process.stdin.write(json.dumps(trial) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["status"] in (0, signal.SIGKILL), f"the conversion died of status {answer['status']}"
        return answer["seconds"]


def content(folder: Path) -> dict[str, bytes] | None:
    """Everything a checkpoint holds, bit for bit; None where nothing loads.

    Orbax writes the same values under other names each time: the marker, which lists them, is checked and left out.
    """
    import numpy as np

    from sparsevlm_jax.checkpoints.own import MARKER
    from sparsevlm_jax.checkpoints.sources import load_checkpoint, verify_checkpoint
    from sparsevlm_jax.checkpoints.trees import flatten
    from sparsevlm_jax.errors import CheckpointError

    if not folder.exists():
        return None
    try:
        params = load_checkpoint(folder).params
    except CheckpointError:
        return None
    verify_checkpoint(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != MARKER}
    return files | {name: np.asarray(leaf).tobytes() for name, leaf in flatten(params).items()}


def run(root: Path, *, count: int, seed: int) -> collections.Counter[str]:
    """Kills `count` conversions; returns how often nothing, the old and the new checkpoint was found.

    Raises:
        AssertionError: something else was found, or a later conversion did not clean up.
    """
    from sparsevlm_jax.convert import write_random_checkpoint
    from tests.convert.fuzz import CONFIG

    old_source, new_source = root / "old_source", root / "new_source"
    for seed_of, folder in enumerate((old_source, new_source)):
        write_random_checkpoint(folder, CONFIG, seed=seed_of)
    rng, found = random.Random(seed), collections.Counter()
    with Server() as server:
        server.convert(old_source, root / "old")
        seconds = server.convert(new_source, root / "new")
        old, new = content(root / "old"), content(root / "new")
        assert old is not None and new is not None and old != new
        for trial in range(count):
            target = root / f"target{trial}" / "model"
            if trial % 2:
                shutil.copytree(root / "old", target)
            server.convert(new_source, target, kill_after=rng.uniform(0, 1.1 * seconds))
            left = content(target)
            outcome = {None: "nothing", repr(old): "old", repr(new): "new"}.get(left and repr(left), "SOMETHING ELSE")
            found[outcome] += 1
            assert outcome != "SOMETHING ELSE", f"trial {trial} of seed {seed}"
            assert outcome != "nothing" or trial % 2 == 0 or list(target.parent.glob(".model.replaced-*")), (
                "old one lost"
            )
            if trial % 5 == 0:
                server.convert(new_source, target)
                assert content(target) == new, "a conversion after a killed one"
                assert [path.name for path in target.parent.iterdir()] == ["model"], "leftovers were not swept"
            shutil.rmtree(target.parent, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps({"killed": arguments.count, **run(Path(root), count=arguments.count, seed=arguments.seed)}))


if __name__ == "__main__":
    main()
