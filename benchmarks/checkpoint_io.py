"""Time and peak host memory of making, converting, exporting and loading a checkpoint, and of one answer from it.

    python benchmarks/checkpoint_io.py                   about 1 billion random parameters, thrice 2.1 GB on disk
    python benchmarks/checkpoint_io.py --size tiny       the same in seconds, to see that it works

Each step runs in a process of its own. Two figures of memory are given: `anonymous` is what the process itself holds
(Linux's RssAnon: arrays, not mapped files), the number that must fit; `resident` counts mapped pages of the files too,
which the system can take back at any time. Both are peaks, and include about 0.3 GB of Python, JAX and XLA. "above" is
the anonymous peak less the parameters and less what the process held before it began. Ends with one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GB = 1e9
CLIP_L_336 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_L_336 |= {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
TEXT_600M = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12, "num_attention_heads": 16}
TEXT_600M |= {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES = {
    "1b": {"model_type": "llava", "image_token_index": 32000, "text_config": TEXT_600M, "vision_config": CLIP_L_336},
    "tiny": {
        "model_type": "llava",
        "image_token_index": 320,
        "text_config": TEXT_600M | NARROW | {"vocab_size": 384},
        "vision_config": CLIP_L_336 | NARROW | {"image_size": 112},
    },
}


class PeakMemory:
    """Samples this process's memory every few milliseconds."""

    def __enter__(self) -> "PeakMemory":
        self.start = self.anonymous = self.resident = 0
        self.start = self.sample()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.done.wait(0.005):
            self.sample()

    def sample(self) -> int:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        anonymous, resident = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))
        self.anonymous, self.resident = max(self.anonymous, anonymous), max(self.resident, resident)
        return anonymous


def step_make(folders: dict[str, Path], size: str) -> int:
    from sparsevlm_jax.convert import write_random_checkpoint

    write_random_checkpoint(folders["hf"], SIZES[size], max_shard_bytes=500_000_000)
    return 0


def step_convert(folders: dict[str, Path], size: str) -> int:
    from sparsevlm_jax.checkpoints.sources import convert_checkpoint

    convert_checkpoint(folders["hf"], folders["orbax"])
    return _parameter_bytes(folders["hf"])


def step_export(folders: dict[str, Path], size: str) -> int:
    from sparsevlm_jax.checkpoints.sources import export_checkpoint

    export_checkpoint(folders["orbax"], folders["back"])
    return _parameter_bytes(folders["hf"])


def step_load_hf(folders: dict[str, Path], size: str) -> int:
    return _load(folders["hf"])


def step_load_orbax(folders: dict[str, Path], size: str) -> int:
    return _load(folders["orbax"])


def step_answer(folders: dict[str, Path], size: str) -> int:
    import numpy as np

    import sparsevlm_jax as sv

    vlm = sv.load(folders["orbax"])
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    out = sv.generate(vlm, "What is written on the blue sign?", image, max_new_tokens=4)
    assert len(out.tokens) > 0
    return 2 * _parameter_bytes(folders["hf"])  # float32 on the CPU


def step_same(folders: dict[str, Path], size: str) -> int:
    """Not a figure: the three folders hold the same bits."""
    import numpy as np

    from sparsevlm_jax.checkpoints.sources import load_checkpoint
    from sparsevlm_jax.checkpoints.trees import flatten

    first = flatten(load_checkpoint(folders["hf"]).params)
    for name in ("orbax", "back"):
        for key, leaf in flatten(load_checkpoint(folders[name]).params).items():
            assert leaf.dtype == first[key].dtype and np.array_equal(leaf, first[key]), (name, key)
    return 0


STEPS: dict[str, Callable[[dict[str, Path], str], int]] = {
    "make": step_make,
    "convert": step_convert,
    "export": step_export,
    "load from Hugging Face": step_load_hf,
    "load from Orbax": step_load_orbax,
    "load and answer": step_answer,
    "compare": step_same,
}


def _load(folder: Path) -> int:
    import jax

    from sparsevlm_jax.checkpoints.sources import load_checkpoint

    leaves = jax.tree.leaves(jax.block_until_ready(load_checkpoint(folder).params))
    return sum(leaf.nbytes for leaf in leaves)


def _parameter_bytes(folder: Path) -> int:
    from sparsevlm_jax.checkpoints.sources import inspect_checkpoint

    return inspect_checkpoint(folder).bytes


def run_step(name: str, root: Path, size: str) -> dict[str, Any]:
    """Runs one step in this process."""
    import jax

    import sparsevlm_jax.convert  # noqa: F401  imports are no part of the step

    jax.numpy.zeros(1).block_until_ready()
    folders = {folder: root / folder for folder in ("hf", "orbax", "back")}
    with PeakMemory() as memory:
        start = time.perf_counter()
        parameters = STEPS[name](folders, size)
        seconds = time.perf_counter() - start
    return {
        "step": name,
        "seconds": round(seconds, 2),
        "anonymous_gb": round(memory.anonymous / GB, 3),
        "resident_gb": round(memory.resident / GB, 3),
        "above_gb": round((memory.anonymous - memory.start - parameters) / GB, 3) if parameters else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--workdir", type=Path, help="where the folders go for a while; default: the system's place")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(run_step(arguments.step, arguments.workdir, arguments.size)))
        return
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.workdir) as root:
        print(f"{'step':24}{'seconds':>9}{'anonymous GB':>14}{'resident GB':>13}{'above GB':>10}")
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--workdir", root, "--size", arguments.size]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
            results.append(json.loads(result.stdout.splitlines()[-1]))
            row = results[-1]
            above = "" if row["above_gb"] is None else f"{row['above_gb']:.2f}"
            print(
                f"{step:24}{row['seconds']:9.1f}{row['anonymous_gb']:14.2f}{row['resident_gb']:13.2f}{above:>10}",
                flush=True,
            )
    print(json.dumps({"size": arguments.size, "cpus": os.cpu_count(), "steps": results}))


if __name__ == "__main__":
    main()
