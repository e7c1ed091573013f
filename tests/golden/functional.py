"""Recorded inputs and outputs of single functions of the official code, against this library's.

`index.json` lists the entries and their arguments; the arrays of entry "topk0" are "topk0.attn", "topk0.mask", ...
Everything runs with padding behind the real tokens, which must change nothing.

B batch · N heads · R raters · V visual tokens · C candidates · M clusters
"""

import json
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax.models.nn.rope import inverse_frequencies
from sparsevlm_jax.sparsify import (
    Geometry,
    KeptTokens,
    RankScale,
    Recycle,
    Selection,
    attention_rank,
    correct_gravity,
    gravity_weights,
    mean_over_heads,
    onto_visual,
    priority_heads,
    recycle,
    score,
    select,
    select_raters,
)
from sparsevlm_jax.sparsify.budget import CountInputs

from .compare import Comparison

LIMIT, GRAVITY_LIMIT = 2e-5, 2e-2
PADDING, RATERS, VISUAL = 3, 10, 112  # room behind the real tokens; shared, so that few programs are compiled
PRIORITY_HEADS, PRUNING_LAYERS = 14, (2, 6, 15)
BUDGETS = {
    "v1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "v2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
_select_raters = jax.jit(select_raters, static_argnames=("question_capacity",))
_select, _attention_rank = jax.jit(select), jax.jit(attention_rank)
_gravity_weights = jax.jit(gravity_weights)
_recycle = jax.jit(recycle, static_argnames=("rule", "candidate_capacity", "merged_capacity"))

RANDOM_TIE = "cam_two_clusters_zero"  # the official code without its noise: which center wins the tie is arbitrary


def compare_functional(folder: Path) -> Comparison:
    """Every entry of `folder`'s index.

    Raises:
        NotImplementedError: an entry of a function this library has no counterpart of.
    """
    with np.load(folder / "golden.npz", allow_pickle=False) as file:
        arrays = dict(file)
    result = Comparison(LIMIT, GRAVITY_LIMIT)
    for entry in json.loads((folder / "index.json").read_text())["entries"]:
        name = entry["name"]
        if entry["fn"] not in _COMPARE:
            raise NotImplementedError(f"function {entry['fn']!r}")
        recorded = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
        _COMPARE[entry["fn"]](entry, recorded, result)
    return result


def _raters(entry: dict, recorded: dict, result: Comparison) -> None:
    visual, text = recorded["v_t"], recorded["t_t"]
    hidden = np.concatenate([visual, text, np.ones_like(text[:, :1]).repeat(PADDING, axis=1)], axis=1)
    slot = np.arange(hidden.shape[1])[None]
    end = visual.shape[1] + text.shape[1]
    is_question = (slot >= visual.shape[1]) & (slot < end)
    raters = _select_raters(
        jnp.asarray(hidden), slot < visual.shape[1], is_question, question_capacity=text.shape[1] + PADDING
    )
    result.close("raters", f"{entry['name']}.m_v_t", raters.relevance[:, visual.shape[1] : end], recorded["m_v_t"])
    # The official rater set may be empty, and its scores are then NaN; here every word of the question is one instead.
    expected = recorded["idx"] if len(recorded["idx"]) else np.arange(text.shape[1])
    result.same("raters", f"{entry['name']}.idx", np.flatnonzero(raters.is_rater[0, visual.shape[1] :]), expected)


def _scored(entry: dict, recorded: dict):
    """The rater map [1, R, V] of recorded attention, the tokens' scores, and which of them are real."""
    visual, raters = np.arange(entry["v_token_num"]), entry["text_token_start"] + recorded["raters"]
    attention = recorded["attn"][:, :, raters]
    attention = _padded(_padded(attention, 2, RATERS), 3, VISUAL + PADDING)
    is_rater, is_visual = (np.arange(size)[None] < len(real) for size, real in ((RATERS, raters), (VISUAL, visual)))
    slots = _padded(visual + entry["v_token_start"], 0, VISUAL)[None]
    attention_map, scores = _score(attention, slots, is_visual, is_rater)
    return attention_map, scores, is_visual


@jax.jit
def _score(attention, slots, is_visual, is_rater):
    attention_map = mean_over_heads(onto_visual(attention, slots, is_visual, is_rater))
    return attention_map, score(attention_map, is_rater)


def _padded(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """`array` with ones behind, to `size` along `axis`."""
    widths = [(0, size - length if index == axis else 0) for index, length in enumerate(array.shape)]
    return np.pad(array, widths, constant_values=1)


def _topk(entry: dict, recorded: dict, result: Comparison) -> None:
    name, visual = entry["name"], entry["v_token_num"]
    _, scores, is_visual = _scored(entry, recorded)
    kept = BUDGETS[entry["version"]][entry["retain"]][PRUNING_LAYERS.index(entry["layer"])]
    geometry = Geometry(entry["layer"] + 1, (entry["layer"],), visual)
    count = KeptTokens((kept,)).table(geometry, None)[0, -1:]
    selection = _select(scores, is_visual, jnp.asarray(count))
    result.close("selection", f"{name}.score", scores[:, :visual], recorded["score"])
    result.same("selection", f"{name}.mask", selection.is_kept[:, :visual], recorded["mask"])
    result.same("selection", f"{name}.s_flag", bool(selection.count[0] < visual), entry["s_flag"])


def _rank(entry: dict, recorded: dict, result: Comparison) -> None:
    name, visual = entry["name"], entry["v_token_num"]
    attention_map, scores, is_visual = _scored(entry, recorded)
    visual_count, rater_count = jnp.asarray([visual]), jnp.asarray([len(recorded["raters"])])
    result.close("selection", f"{name}.score", scores[:, :visual], recorded["score"])
    result.same("ranks", f"{name}.rank", _attention_rank(attention_map, rater_count, visual_count), [entry["rank"]])
    for version, budget in (("v10", RankScale(entry["scale"], entry["bias"])), ("video", RankScale(1.0, 0.0))):
        count = budget.count(CountInputs(visual_count, rater_count, attention_map))
        selection = _select(scores, is_visual, count)
        result.same("ranks", f"{name}.n_kept_{version}", int(count[0]), entry[f"n_kept_{version}"])
        result.same("selection", f"{name}.mask_{version}", selection.is_kept[:, :visual], recorded[f"mask_{version}"])


def _heads(entry: dict, recorded: dict, result: Comparison) -> None:
    columns = slice(entry["v_token_start"], entry["text_token_start"])
    onto = jnp.asarray(recorded["attn"][:, :, recorded["cur_text_token_idx"], columns])
    chosen = np.flatnonzero(priority_heads(onto, PRIORITY_HEADS)[0])
    result.same("heads", f"{entry['name']}.selected_in_order", chosen, np.sort(recorded["selected_in_order"]))


def _gravity(entry: dict, recorded: dict, result: Comparison) -> None:
    name, position = entry["name"], jnp.asarray(recorded["position_ids"])
    weights = _gravity_weights(position, position, inverse_frequencies(entry["head_dim"], entry["rope_theta"]))
    result.close("gravity", f"{name}.rope_weights", weights[0], recorded["rope_weights"])
    attention = jnp.asarray(recorded["attn"])
    corrected = correct_gravity(attention, jnp.asarray(recorded["rope_weights"])[None])
    result.close("gravity", f"{name}.corrected", corrected, recorded["corrected"])
    # Divided by weights as small as 1e-4, rounding grows: the whole way is only held to the limit of scores.
    group = "gravity" if entry["min_abs"] > 0.1 else "scores"
    result.close(group, f"{name}.corrected, own weights", correct_gravity(attention, weights), recorded["corrected"])


def _clusters(entry: dict, recorded: dict, result: Comparison) -> None:
    name, size, clusters = entry["name"], entry["N"], entry["cluster_num"]
    recycled = _recycled(recorded["x"], recorded["noise"], size, clusters)
    result.same("clusters", f"{name}.cluster_num", recycled.merged_count, [clusters])
    if name == RANDOM_TIE:
        result.close("clustering", f"{name}.density", recycled.density[:, :size], recorded["density"])
        return
    result.close("clustering", f"{name}.merged", recycled.merged[:, :clusters], recorded["merged"])
    if clusters == 1:  # every density ties, and which candidate is the center changes nothing
        return
    result.same("clusters", f"{name}.index_down", recycled.centers[:, :clusters], recorded["index_down"])
    result.same("clusters", f"{name}.idx_cluster", recycled.cluster[:, :size], recorded["idx_cluster"])
    for theirs, ours in (("density", "density"), ("dist", "distance"), ("score", "center_score")):
        result.close("clustering", f"{name}.{theirs}", getattr(recycled, ours)[:, :size], recorded[theirs])


def _recycled(x: np.ndarray, noise: np.ndarray, size: int, clusters: int):
    """All of x [1, C, D] as candidates in the order they are recorded in, into `clusters` clusters."""
    rule = Recycle(candidates=Fraction(1), cluster_size=size // (clusters - 1) if clusters > 1 else size + 1)
    order = np.arange(size + PADDING)[None]
    selection = Selection(jnp.asarray(order), jnp.zeros(order.shape, bool), jnp.asarray([0]))
    return _recycle(
        jnp.asarray(np.pad(x, ((0, 0), (0, PADDING), (0, 0)), constant_values=7)),
        selection,
        jnp.asarray([size]),
        rule,
        candidate_capacity=size + PADDING,
        merged_capacity=clusters + PADDING,
        noise=jnp.asarray(np.pad(noise, ((0, 0), (0, PADDING)))),
    )


_COMPARE = {
    "rater selection": _raters,
    "attn_postprocess_topk": _topk,
    "attn_postprocess_rank": _rank,
    "select_attn_head_by_sum": _heads,
    "gravity correction": _gravity,
    "cluster_and_merge": _clusters,
}
