"""Vision-language models in JAX with visual-token sparsification (SparseVLM, arXiv 2410.04417).

import sparsevlm_jax as sv
vlm = sv.load("llava-hf/llava-1.5-7b-hf")
out = sv.generate(vlm, "What is written on the purple sign?", "street.png")
out.text, out.report
"""

import importlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import CheckpointError, CheckpointWarning
    from .report.cost import Report
    from .report.trace import SparsityTrace, load_trace, save_trace, trace_prefill
    from .runtime.compilation_cache import CacheWarning, enable_compilation_cache
    from .sparsify import SparsityConfig
    from .vlm import VLM, Output, generate, load, stream

__version__ = "0.1.0"

_imported = time.time()  # a file of this library that changes later is not the code that runs

# Resolved on first use, so that `import sparsevlm_jax` (and `sparsevlm --help`) does not wait for JAX.
_HOME = {
    "CacheWarning": "runtime.compilation_cache",
    "CheckpointError": "errors",
    "CheckpointWarning": "errors",
    "Output": "vlm",
    "Report": "report.cost",
    "SparsityConfig": "sparsify",
    "SparsityTrace": "report.trace",
    "VLM": "vlm",
    "enable_compilation_cache": "runtime.compilation_cache",
    "generate": "vlm",
    "load": "vlm",
    "load_trace": "report.trace",
    "save_trace": "report.trace",
    "stream": "vlm",
    "trace_prefill": "report.trace",
}

__all__ = [
    "VLM",
    "CacheWarning",
    "CheckpointError",
    "CheckpointWarning",
    "Output",
    "Report",
    "SparsityConfig",
    "SparsityTrace",
    "enable_compilation_cache",
    "generate",
    "load",
    "load_trace",
    "save_trace",
    "stream",
    "trace_prefill",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
