"""Runs a recorded case of the official SparseVLM code through this library, end to end, under jit."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsevlm_jax.convert import read_config, read_params
from sparsevlm_jax.models import LlavaConfig
from sparsevlm_jax.models.families import llava
from sparsevlm_jax.report import cost as accounting
from sparsevlm_jax.runtime import decode
from sparsevlm_jax.runtime.prefill import PrefillInputs, PrefillResult, prefill
from sparsevlm_jax.sparsify import Bucket, KeptTokens, RankScale, Raters, RaterScore, SparsityConfig, attention_rank
from sparsevlm_jax.sparsify.scores import gravity_weights

from .compare import Comparison

VERSIONS = ("v10", "v15", "v20", "video")
LIMIT, RANK_LIMIT, GRAVITY_SCORE_LIMIT = 2e-5, 1e-4, 2e-2

_tower = jax.jit(llava.vision_features, static_argnames=("config", "implementation"))
_project = jax.jit(llava.project, static_argnames=("config",))
_prefill = jax.jit(prefill, static_argnames=("config", "sparsity", "bucket", "implementation", "new_tokens", "trace"))
_step = jax.jit(decode.decode_step, static_argnames=("config", "implementation"))
_generate = jax.jit(decode.generate, static_argnames=("config", "implementation", "buffer"))


def compare_case(folder: Path) -> Comparison:
    """Everything recorded in `folder`, against this library.

    Raises:
        NotImplementedError: the recorded version is not one this library knows.
    """
    meta = json.loads((folder / "meta.json").read_text())
    if meta["version"] not in VERSIONS:
        raise NotImplementedError(f"version {meta['version']!r}")
    with np.load(folder / "golden.npz", allow_pickle=False) as file:
        recorded = dict(file)
    # Enlarged query weights, made to lower the rank, amplify rounding: the recording's own float64 rerun says so.
    limit = RANK_LIMIT if meta["version"] == "v10" and "rank" in meta["case"] else LIMIT
    result = Comparison(limit, GRAVITY_SCORE_LIMIT if meta["version"] == "v20" else limit)
    _replay(meta, recorded, (folder / meta["model"]).resolve(), result)
    return result


def sparsity_of(meta: dict) -> SparsityConfig:
    layers = tuple(meta["pruning_layers"])
    if meta["version"] == "v15":
        return SparsityConfig(budget=KeptTokens(tuple(meta["budget"])), layers=layers)
    if meta["version"] == "v20":
        budget, score = KeptTokens(tuple(meta["budget"])), RaterScore(heads=14, gravity=True)
        return SparsityConfig(budget=budget, layers=layers, score=score, recycle=None, positions="keep")
    scale, bias = (meta["scale"], meta["bias"]) if meta["version"] == "v10" else (1.0, 0.0)
    return SparsityConfig(budget=RankScale(scale, bias), layers=layers)


def _replay(meta: dict, recorded: dict, model: Path, result: Comparison) -> None:
    without = () if "pixel_values" in recorded else ("vision_tower",)
    config = read_config(model, without=without)
    params = read_params(model, config, without=without, dtype=jnp.float32)
    features = _features(params, config, recorded, result)
    inputs, bucket = _inputs(config, recorded, features)
    sparsity = sparsity_of(meta)
    noise = {
        layer: jnp.zeros((1, len(recorded[f"L{layer}.score"]))).at[0, recorded[f"L{layer}.cand_idx"]].set(noise)
        for layer in meta["pruning_layers"]
        if (noise := recorded.get(f"L{layer}.noise")) is not None
    }
    out = _prefill(
        params,
        inputs,
        config=config,
        sparsity=sparsity,
        bucket=bucket,
        implementation="xla",
        new_tokens=len(recorded["gen_ids"]),
        trace=True,
        noise=noise,
    )
    _compare_raters(out.trace.raters, recorded, int(inputs.length[0]), result)
    for layer, stage in zip(meta["pruning_layers"], out.trace.stages, strict=True):
        _compare_stage(f"L{layer}.", stage, recorded, config, result)
    _compare_counts(meta, out, config, int(inputs.length[0]), recorded, result)
    _compare_decoding(params, config, out, recorded, result)


def _features(params: dict, config: LlavaConfig, recorded: dict, result: Comparison) -> jax.Array:
    """Visual embeddings, from pixels where they are recorded, else from the recorded tower's features."""
    features = jnp.asarray(recorded["vision_features"])
    features = features.reshape(-1, *features.shape[-2:])
    if "pixel_values" in recorded:
        features = _tower(params, jnp.asarray(recorded["pixel_values"]), config=config, implementation="xla")
        result.close("hidden", "vision_features", features, recorded["vision_features"])
    embeddings = _project(params, features, config=config)
    start, end = int(recorded["v_token_start"]), int(recorded["text_token_start"])
    expected = recorded["inputs_embeds"][0, start:end]
    result.close("hidden", "inputs_embeds", embeddings.reshape(expected.shape), expected)
    return embeddings


def _inputs(config: LlavaConfig, recorded: dict, features: jax.Array) -> tuple[PrefillInputs, Bucket]:
    """The prompt with its image tokens expanded, in a bucket with some padding: results must not depend on it."""
    ids = recorded["input_ids"][0]
    expanded = np.repeat(np.where(ids < 0, config.image_token_id, ids), np.where(ids < 0, features.shape[1], 1))
    visual = features.shape[0] * features.shape[1]
    bucket = Bucket(text=-(-(len(expanded) - visual) // 16) * 16, visual=visual)
    padded = np.pad(expanded, (0, bucket.capacity - len(expanded)))[None].astype(np.int32)
    return PrefillInputs.of(jnp.asarray(padded), jnp.asarray([len(expanded)]), features, config.image_token_id), bucket


def _compare_raters(raters: Raters, recorded: dict, length: int, result: Comparison) -> None:
    text = slice(int(recorded["text_token_start"]), length)
    result.same("raters", "rater_idx", np.flatnonzero(raters.is_rater[0, text]), recorded["rater_idx"])
    result.close("scores", "rater_scores", raters.relevance[0, text], recorded["rater_scores"])


def _compare_stage(prefix: str, stage: Any, recorded: dict, config: LlavaConfig, result: Comparison) -> None:
    """`stage` is a StageTrace, of a method that scores by attention."""
    want = {name.removeprefix(prefix): value for name, value in recorded.items() if name.startswith(prefix)}
    decision, selection = stage.decision, stage.decision.selection
    visual, raters = int(decision.visual_count[0]), int(decision.rater_count[0])
    length_in, length_out = int(stage.length_in[0]), int(stage.length_out[0])
    kept = np.asarray(selection.is_kept[0, :visual])
    merged = int(stage.recycled.merged_count[0]) if stage.recycled else 0

    result.same("kept", prefix + "v_token_num_in", visual, want["v_token_num_in"])
    result.same("kept", prefix + "v_token_num_out", kept.sum() + merged, want["v_token_num_out"])
    result.same("kept", prefix + "kept_idx", np.flatnonzero(kept), want["kept_idx"])
    result.same("kept", prefix + "pruned_idx", np.flatnonzero(~kept), want["pruned_idx"])
    result.same("positions", prefix + "position_ids_in", stage.position_ids_in[:, :length_in], want["position_ids_in"])
    result.same(
        "positions", prefix + "position_ids_out", stage.position_ids_out[:, :length_out], want["position_ids_out"]
    )
    result.close("scores", prefix + "score", decision.scores.values[0, :visual], want["score"])
    attention = decision.scores.attention_map[0, :raters, :visual]
    result.close("scores", prefix + "attn_mean_raters", attention, want["attn_mean_raters"])
    if "hidden_out" in want:
        result.close("hidden", prefix + "hidden_out", stage.hidden_in[:, :length_in], want["hidden_out"])
    result.close("hidden", prefix + "hidden_after", stage.hidden_out[:, :length_out], want["hidden_after"])
    if "rank" in want:
        rank = attention_rank(decision.scores.attention_map, decision.rater_count, decision.visual_count)
        result.same("ranks", prefix + "rank", int(rank[0]), want["rank"])
    if "heads_selected" in want:
        result.same(
            "heads", prefix + "heads_selected", np.flatnonzero(decision.scores.heads[0]), want["heads_selected"]
        )
        positions = stage.position_ids_in[0]
        weights = gravity_weights(
            positions[decision.rater_slot[:, :raters]],
            positions[decision.visual_slot[:, :visual]],
            config.text.inverse_frequencies(),
        )
        # Recorded to the digits the RoPE tables have, and as small as 1e-4 of the largest: compared absolutely.
        result.close("gravity", prefix + "rope_weights", weights[0], want["rope_weights"])
    if "cand_idx" in want:
        _compare_clusters(prefix, stage, want, result)


def _compare_clusters(prefix: str, stage: Any, want: dict, result: Comparison) -> None:
    """Per candidate after aligning by its visual index: rounding may swap neighbours in the order of scores."""
    recycled, size, clusters = stage.recycled, len(want["cand_idx"]), int(want["cluster_num"])
    ours = np.asarray(recycled.candidates[0, :size])
    result.same("clusters", prefix + "cand_idx", np.sort(ours), np.sort(want["cand_idx"]))
    result.same("clusters", prefix + "cluster_num", int(recycled.merged_count[0]), clusters)
    if not np.array_equal(np.sort(ours), np.sort(want["cand_idx"])):
        return
    result.close("hidden", prefix + "merged", recycled.merged[:, :clusters], want["merged"])
    if clusters == 1:  # which of the tied candidates is the center is arbitrary, and changes nothing
        return
    align = np.argsort(ours)[np.argsort(np.argsort(want["cand_idx"]))]
    result.same("clusters", prefix + "centers_idx", recycled.centers[0, :clusters], want["centers_idx"])
    result.same("clusters", prefix + "idx_cluster", recycled.cluster[0, align], want["idx_cluster"])
    for name, field in (("density", "density"), ("cluster_dist", "distance"), ("cluster_score", "center_score")):
        result.close("clustering", prefix + name, getattr(recycled, field)[0, align], want[name])


def _compare_counts(
    meta: dict, out: PrefillResult, config: LlavaConfig, length: int, recorded: dict, result: Comparison
) -> None:
    """The official counters: multiply-accumulates of the decoder, and "equal tokens", the paper's mean."""
    visual = int(recorded["text_token_start"]) - int(recorded["v_token_start"])
    leaving = [int(count) for count in out.visual_count[:, 0]]
    entering = accounting.tokens_entering(visual, meta["pruning_layers"], leaving, config.text.num_hidden_layers)
    if "flops_counter" in recorded:
        macs = accounting.paper_macs([length - visual + count for count in entering], config.text)
        result.same("counts", "flops_counter", macs, recorded["flops_counter"])
    if "equal_tokens" in recorded:  # summed in float32
        mean = np.float32(accounting.mean_after_layers(entering, leaving[-1]))
        result.close("counts", "equal_tokens", mean, recorded["equal_tokens"])


def _compare_decoding(
    params: dict, config: LlavaConfig, out: PrefillResult, recorded: dict, result: Comparison
) -> None:
    state, logits = out.state, [np.asarray(out.logits[0])]
    result.same("kv", "prefill_kv_len", state.cache.length[:, 0], recorded["prefill_kv_len"])
    result.same("positions", "prefill_last_position", state.next_position[:, 0] - 1, recorded["prefill_last_position"])
    for index, token in enumerate(recorded["gen_ids"][:-1]):
        result.same(
            "positions", f"decode {index} position", state.next_position[:, 0], recorded["decode_position_ids"][index]
        )
        row, state = _step(params, state, jnp.asarray([token], jnp.int32), config=config, implementation="xla")
        logits.append(np.asarray(row[0]))
        result.same("kv", f"decode {index} kv_len", state.cache.length[:, 0], recorded["decode_kv_len"][index])
    result.close("logits", "gen_logits", np.stack(logits), recorded["gen_logits"])
    result.same("ids", "gen_ids", np.argmax(logits, axis=-1), recorded["gen_ids"])
    if "pixel_values" in recorded:  # from end to end, also as `generate` does it, in one loop
        size = len(recorded["gen_ids"])
        options = dict(config=config, implementation="xla", buffer=size)
        generated, _ = _generate(params, out.logits, out.state, jnp.int32(size), **options)
        result.same("ids", "generated", generated.tokens[0, : int(generated.count[0])], recorded["gen_ids"])
