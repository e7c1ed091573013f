"""Recordings of methods that act in the vision tower or after it: PruMerge+, VisionZip, ToMe."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax import methods
from sparsevlm_jax.methods.prumerge import outliers_and_grid
from sparsevlm_jax.methods.tome import merge_pairs
from sparsevlm_jax.methods.visionzip import DominantAndContextual
from sparsevlm_jax.sparsify import MergedTokens, TowerOutput, TowerReduction

Recording = Mapping[str, np.ndarray]
LIMIT = 1e-5  # of the largest value


def differences(ours: Mapping[str, Any], recording: Recording) -> list[str]:
    """Where integers are not equal, and where values are further off than LIMIT."""
    found = []
    for name, value in ours.items():
        mine, theirs = np.asarray(value), np.asarray(recording[name])
        if mine.shape != theirs.shape:
            found.append(f"{name}: shape {mine.shape}, recorded {theirs.shape}")
        elif np.issubdtype(theirs.dtype, np.integer):
            if wrong := int((mine != theirs).sum()):
                found.append(f"{name}: {wrong} of {mine.size} differ")
        else:
            error = float(np.abs(np.float64(mine) - theirs).max() / np.abs(theirs).max())
            if not error <= LIMIT:
                found.append(f"{name}: off by {error:.1e} of the largest")
    return found


def reduction(name: str, count: int) -> TowerReduction:
    config = methods.create(name, count)
    assert config and isinstance(config.merging, TowerReduction)
    return config.merging


def visionzip(recording: Recording) -> list[str]:
    count = int(recording["dominant_num"]) + 1 + int(recording["contextual_num"])
    part = reduction("visionzip", count)
    assert isinstance(part, DominantAndContextual)
    attention, metric = recording["cls_attention"].mean(axis=0), recording["keys"].mean(axis=1)
    inputs = (jnp.asarray(array)[None] for array in (recording["hidden"], attention, metric))
    tokens = jax.jit(part.choose, static_argnums=3)(*inputs, count)
    dominant, contextual = part.split(count)
    found = [] if contextual == recording["contextual_num"] else [f"{contextual} contextual tokens"]
    patches = np.asarray(tokens.origin[0, 1:dominant])
    of_attention = patches[np.argsort(-attention[patches], kind="stable")]
    ours = {"all_indices": np.append(0, of_attention), "tokens": tokens.hidden[0]}
    return found + differences(ours, recording)


def prumerge_plus(recording: Recording) -> list[str]:
    features, k = recording["features"], recording["k"]
    hidden = np.concatenate([np.zeros_like(features[:1]), features])
    nothing = jnp.zeros((1, len(hidden), 1, 1))
    tower = TowerOutput(
        jnp.asarray(hidden)[None], nothing, nothing, jnp.asarray(recording["q_cls"])[None], jnp.asarray(k)[None]
    )
    count = len(recording["tokens"])
    tokens = jax.jit(reduction("prumerge-plus", count).reduce, static_argnums=1)(tower, count)
    kept = np.asarray(tokens.origin[0, :-1]) - 1
    of_attention = outliers_and_grid(jnp.asarray(recording["cls_attention"]), count - 1)
    found = [] if np.array_equal(of_attention, kept) else ["cls_attention: the choice is another"]
    first = len(recording["top_indices"])
    ours = {"top_indices": kept[:first], "grid_indices": kept[first:], "tokens": tokens.hidden[0]}
    return found + differences(ours, recording)


def tome(recording: Recording) -> list[str]:
    x, weight, r = (recording[name] for name in ("x", "metric_weight", "r"))
    width = x.shape[1]
    step = jax.jit(merge_pairs, static_argnums=2)

    def run(size: np.ndarray, layers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, their sizes, and where each first token is; each has its own number as features, which tell that."""
        numbered = jnp.concatenate([jnp.asarray(x), jnp.eye(len(x))], axis=1)[None]
        tokens = MergedTokens(numbered, jnp.asarray(size, jnp.float32)[None], jnp.arange(len(x))[None])
        for _ in range(layers):
            metric = jnp.matmul(tokens.hidden[..., :width], weight, precision=jax.lax.Precision.HIGHEST)
            tokens = step(tokens, metric, tokens.hidden.shape[1] - int(r))
        hidden, sizes = np.asarray(tokens.hidden[0]), np.asarray(tokens.size[0])
        return hidden[:, :width], sizes, np.argmax(hidden[:, width:], axis=0)

    found = []
    for suffix, run_of in (("1", (recording["size"], 1)), ("n", (np.ones(len(x)), int(recording["layers"])))):
        outputs = zip(("x", "size", "group"), run(*run_of), strict=True)
        found += differences({f"{name}_{suffix}": value for name, value in outputs}, recording)
    return found


CHECKS: dict[str, Callable[[Recording], list[str]]] = {
    "visionzip": visionzip,
    "prumerge-plus": prumerge_plus,
    "tome": tome,
}
