"""How fast single matrix products are on this machine, by rows: XLA's and, where it is installed, PyTorch's.

    python benchmarks/products.py                    the shapes of a 1B decoder, float32
    python benchmarks/products.py --dtype bfloat16

x [rows, in] times a kernel [out, in], eight kernels in turn so that none stays in a cache. Many rows are bound by the
GFLOP/s, few by the GB/s of weights that are read; a decoder made of such products can be no faster. Medians.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes import alternate, median

from sparsevlm_jax.models.nn.linear import matmul

KERNELS = 8


def xla(x: np.ndarray, kernels: list[np.ndarray], dtype: str) -> Callable[[], Any]:
    run = jax.jit(lambda x, kernels: [matmul(x, kernel) for kernel in kernels])
    return partial(run, *jax.tree.map(partial(jnp.asarray, dtype=dtype), (x, kernels)))


def pytorch(x: np.ndarray, kernels: list[np.ndarray], dtype: str) -> Callable[[], Any]:
    import torch

    tensor, *weights = (torch.from_numpy(array).to(getattr(torch, dtype)) for array in (x, *kernels))

    def run() -> None:
        for weight in weights:
            torch.nn.functional.linear(tensor, weight)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[640, 256, 96, 16, 4, 1])
    parser.add_argument("--kernel", type=int, nargs=2, default=[5632, 2048], metavar=("OUT", "IN"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    draw = np.random.default_rng(0).standard_normal
    kernels = [draw(options.kernel, np.float32) for _ in range(KERNELS)]
    libraries = {"XLA": xla} | ({"PyTorch": pytorch} if importlib.util.find_spec("torch") else {})
    print("| rows |" + "|".join(f" {name} GFLOP/s | GB/s of weights " for name in libraries) + "|")
    print("|---" * (1 + 2 * len(libraries)) + "|")
    for rows in options.rows:
        x = draw((rows, options.kernel[1]), np.float32)
        runs = {name: make(x, kernels, options.dtype) for name, make in libraries.items()}
        ms = median(alternate(runs, repeats=options.repeats))
        size = sum(kernel.size for kernel in kernels)
        cells = [
            f" {2 * rows * size / one / 1e6:.0f} | {jnp.dtype(options.dtype).itemsize * size / one / 1e6:.1f} "
            for one in ms.values()
        ]
        print(f"| {rows} |" + "|".join(cells) + "|", flush=True)


if __name__ == "__main__":
    main()
