"""What a measurement was taken on: device, versions, commit."""

import importlib.metadata
import json
import os
import platform
import subprocess

import jax

LIBRARIES = ("jax", "jaxlib", "flax", "torch", "transformers", "nvidia-cudnn-cu13")


def environment() -> dict[str, str]:
    """The commit is that of the working tree, or SPARSEVLM_COMMIT where the tree travelled without its history."""
    device = jax.devices()[0]
    kind = f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind
    versions = {name: version for name in LIBRARIES if (version := _version(name))}
    return dict(device=kind, python=platform.python_version(), **versions, commit=_commit())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    if told := os.environ.get("SPARSEVLM_COMMIT"):
        return told
    try:
        run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


if __name__ == "__main__":
    print(json.dumps(environment()))
