"""The methods again, from their papers, in plain NumPy float64, one row at a time and with loops.

V visual tokens · Q question tokens · L tokens of the row · N heads · H head dim · D model dim
"""

from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One row, cut to its real tokens. `heads` is the attention [N, L, L] of the layer before the stage, `next_heads`
    that of the layer after it."""

    visual: np.ndarray  # [V, D]
    raters: np.ndarray  # [R, D]
    visual_slot: np.ndarray
    rater_slot: np.ndarray
    heads: np.ndarray
    next_heads: np.ndarray
    keys: np.ndarray  # [L, K, H], of the language model
    size: np.ndarray | None
    order: np.ndarray | None
    step: int


def rows_of(world) -> list[Row]:
    stream, attention, images, following = world
    rows = []
    for b, length in enumerate(np.asarray(stream.length)):
        cut = lambda x, b=b, length=length: np.asarray(x[b, :length], np.float64)  # noqa: E731
        visual, raters = (np.flatnonzero(np.asarray(mask[b])) for mask in (stream.is_visual, stream.is_rater))
        tower = [
            None if x is None else np.asarray(x[b, : len(visual)], np.float64) for x in (images.size, images.order)
        ]
        hidden, keys = cut(stream.hidden), cut(attention.k)
        heads = causal_attention(cut(attention.q), keys)
        q, k = (np.reshape(hidden @ np.float64(weight), (len(hidden), -1, keys.shape[2])) for weight in following)
        maps = heads, causal_attention(q, k)
        rows.append(Row(hidden[visual], hidden[raters], visual, raters, *maps, keys, *tower, step=16))
    return rows


def causal_attention(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    maps = []
    for head in range(q.shape[1]):
        logits = q[:, head] @ k[:, head * k.shape[1] // q.shape[1]].T / np.sqrt(q.shape[2])
        logits[np.triu_indices(len(q), 1)] = -np.inf
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        maps.append(weights / weights.sum(axis=1, keepdims=True))
    return np.array(maps)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def top(scores, count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def by_last_token(row: Row, count: int) -> list[int]:
    return top(row.heads[:, row.rater_slot[-1]].mean(axis=0)[row.visual_slot], count)


def by_next_layer(row: Row, count: int) -> list[int]:
    return top(row.next_heads[:, row.rater_slot[-1]].mean(axis=0)[row.visual_slot], count)


def by_raters(row: Row) -> np.ndarray:
    return row.heads[:, row.rater_slot][:, :, row.visual_slot].mean(axis=(0, 1))


def divprune(row: Row, count: int) -> list[int]:
    distance = [[1 - cosine(a, b) for b in row.visual] for a in row.visual]
    everything, chosen = range(len(row.visual)), []
    while len(chosen) < count:
        others = chosen or list(everything)
        nearest = {
            i: min([distance[i][j] for j in others if j != i] or [np.inf]) for i in everything if i not in chosen
        }
        chosen.append(max(nearest, key=lambda i: (nearest[i], -i)))
    return chosen


def largest_determinant(kernel: np.ndarray, count: int) -> list[int]:
    """Greedy, every candidate's determinant computed afresh."""
    chosen: list[int] = []
    while len(chosen) < count:
        value = {}
        for i in range(len(kernel)):
            if i not in chosen:
                sign, log = np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])
                value[i] = log if sign > 0 else -np.inf
        chosen.append(max(value, key=lambda i: (value[i], -i)))
    return chosen


def cdpruner(row: Row, count: int) -> list[int]:
    relevance = np.array([np.mean([cosine(v, q) for q in row.raters]) for v in row.visual])
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min() + 1e-6)
    similarity = np.array([[cosine(a, b) for b in row.visual] for a in row.visual])
    return largest_determinant(relevance[:, None] * similarity * relevance, count)


def sparsevlm_diverse(row: Row, count: int) -> list[int]:
    score = by_raters(row)
    score = score / score.max()
    centred = row.visual - row.visual.mean(axis=0)
    similarity = 0.95 * np.array([[cosine(a, b) for b in centred] for a in centred]) + 0.05 * np.eye(len(centred))
    return largest_determinant(score[:, None] * similarity * score, count)


def dart(row: Row, count: int) -> list[int]:
    norm = np.abs(row.keys).sum(axis=(1, 2))
    image = top(norm[row.visual_slot], 4)
    text = top(norm[row.rater_slot], 4)
    chosen = image[:count]
    weight = 1 + np.arange(row.visual.shape[1])  # of the final norm; cosines do not see the length that it divides by
    pivots = [row.visual[i] for i in image] + [row.raters[i] for i in text]
    each = -(-(count - len(chosen)) // len(pivots))
    for pivot in pivots:
        likeness = {i: cosine(v * weight, pivot * weight) for i, v in enumerate(row.visual) if i not in chosen}
        least = sorted(likeness, key=lambda i, likeness=likeness: (likeness[i], i))
        chosen += least[: min(each, count - len(chosen))]
    return chosen


def uniform(row: Row, count: int) -> list[int]:
    side = int(np.sqrt(row.step))
    place = [(i // side, i % side) for i in range(row.step)]
    middle = (side - 1) / 2
    order = [min(range(row.step), key=lambda i: ((place[i][0] - middle) ** 2 + (place[i][1] - middle) ** 2, i))]
    while len(order) < row.step:
        away = lambda i: min((place[i][0] - place[j][0]) ** 2 + (place[i][1] - place[j][1]) ** 2 for j in order)  # noqa: E731
        order.append(max((i for i in range(row.step) if i not in order), key=lambda i: (away(i), -i)))
    turns = [token + image * row.step for token in order for image in range(len(row.visual) // row.step)]
    return turns[:count]


def in_the_tower(row: Row, count: int) -> list[int]:
    """The places that the tower has filled, in its order, image by image."""
    assert row.size is not None and row.order is not None
    filled = [int(i) for i in np.flatnonzero(row.size)]
    turn = row.order
    return sorted(filled, key=lambda i: (i // row.step, turn[i]))[:count]
