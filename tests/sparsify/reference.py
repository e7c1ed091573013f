"""SparseVLM written out once more, in plain NumPy and float64, one row at a time: what the tests compare with.

V visual tokens · Q question tokens · R raters · N heads · H head dim · C candidates · M clusters · D model dim
"""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def relevance(visual: np.ndarray, question: np.ndarray) -> np.ndarray:
    """r = mean_v softmax_q(H_v H_q^T), [Q]."""
    return softmax(visual.astype(np.float64) @ question.astype(np.float64).T).mean(axis=0)


def attention(q: np.ndarray, k: np.ndarray, rater_slot: np.ndarray, length: int) -> np.ndarray:
    """Causal attention of the raters, [N, R, S]; keys of fewer heads are shared by groups of query heads."""
    heads, head_dim = q.shape[1:]
    k = np.repeat(k.astype(np.float64), heads // k.shape[1], axis=1)
    logits = np.einsum("RNH,SNH->NRS", q.astype(np.float64), k) / np.sqrt(head_dim)
    slot = np.arange(k.shape[0])
    visible = (slot <= rater_slot[:, None]) & (slot < length)
    return softmax(np.where(visible, logits, -np.inf))


def merge(x: np.ndarray, clusters: int, *, assign: str = "euclidean", how: str = "mean") -> dict[str, np.ndarray]:
    """Density-peak clustering of candidates x [C, D] in order of descending score, and the merged tokens [M, D]."""
    x = x.astype(np.float64)
    size = len(x)
    squared = ((x[:, None] - x[None]) ** 2).sum(axis=-1) / x.shape[1]
    distance = np.sqrt(squared)
    exponent = -np.sort(squared, axis=1)[:, :clusters].mean(axis=1)
    to_denser = np.full(size, distance.max())
    for i in range(size):
        denser = [distance[i, j] for j in range(size) if (-exponent[j], j) < (-exponent[i], i)]
        to_denser[i] = min(denser, default=distance.max())
    center_score = to_denser * np.exp(exponent)
    centers = sorted(range(size), key=lambda i: (-center_score[i], i))[:clusters]

    if assign == "cosine":
        unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        far = -unit @ unit[centers].T
    else:
        far = distance[:, centers]
    cluster = far.argmin(axis=1)
    cluster[centers] = np.arange(clusters)
    sums = np.stack([x[cluster == c].sum(axis=0) for c in range(clusters)])
    sizes = np.bincount(cluster, minlength=clusters)[:, None]
    merged = sums / (sizes + 1e-6) if how == "mean" else sums
    return dict(merged=merged, centers=np.array(centers), cluster=cluster, center_score=center_score)
