"""What the latency benchmark compares with: `transformers`, dense, and SparseVLM in PyTorch.

SparseVLM is written here to work as the official code does. Both have this library's parameters, so that a comparison
of outputs is a comparison of programs. Needs `torch` and `transformers` (the extra `test`).

L tokens · V visual tokens · C candidates · K clusters · D model dim
"""

import functools
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
import transformers
import transformers.initialization
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from sparsevlm_jax.checkpoints.trees import flatten
from sparsevlm_jax.convert.export import export_tensor
from sparsevlm_jax.convert.tables import table_of
from sparsevlm_jax.models import LlavaConfig
from sparsevlm_jax.sparsify import SparsityConfig, StagePlan

# From the hub's layout to that of the modules of transformers 5.
_RENAMED = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.language_model.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


def build(config: LlavaConfig, params: dict, dtype: torch.dtype, device: str) -> Any:
    """`transformers`' LLaVA with these parameters, attention by PyTorch's fused kernels ("sdpa")."""
    table = transformers.LlavaConfig(**config.to_hf())
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), transformers.initialization.no_init_weights():
            model = transformers.LlavaForConditionalGeneration._from_config(table, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(torch.float32)
    model.tie_weights()
    own, names = model.state_dict(), table_of(config)
    missing = set(own)
    with torch.no_grad():
        for name, leaf in flatten(params).items():
            array = np.asarray(leaf)
            exported, tensor = export_tensor(
                names, name, array.shape, array.dtype, functools.partial(np.asarray, array)
            )
            old = next(old for old in _RENAMED if exported.startswith(old))
            renamed = _RENAMED[old] + exported.removeprefix(old)
            renamed = renamed if renamed in own else renamed.replace(".vision_model.", ".")
            own[renamed].copy_(_from_numpy(np.asarray(tensor.open())))
            missing.discard(renamed)
    unset = [name for name in missing if "position_ids" not in name]
    if unset:
        raise ValueError(f"parameters that this library has no values for: {unset}")
    return model.eval()


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    """bfloat16, which PyTorch does not take from NumPy, goes as its bits."""
    if array.dtype == jax.numpy.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def to_torch(array: jax.Array, dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32)).to(device, dtype)


class Dense:
    """`transformers`, dense: the tower, a prompt's prefill, and greedy steps after it.

    The steps are never compiled: their cache grows, and PyTorch's compiler starts anew as it does (on an H100 the 7B
    had not come to its first timing after 230 s).
    """

    def __init__(self, model: Any, embeddings: torch.Tensor, pixel_values: torch.Tensor, *, compiled: bool):
        self.model, self.embeddings, self.pixel_values = model, embeddings, pixel_values
        self.device = embeddings.device.type
        self._encode = torch.compile(model.get_image_features) if compiled else model.get_image_features
        self._forward = torch.compile(self._last_logits) if compiled else self._last_logits

    def _last_logits(self, embeddings: torch.Tensor, cache: Any) -> torch.Tensor:
        out = self.model.model.language_model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        return self.model.lm_head(out.last_hidden_state[:, -1]).float()

    @torch.inference_mode()
    def encode(self) -> Any:
        features = self._encode(self.pixel_values)
        synchronize(self.device)
        return features

    @torch.inference_mode()
    def prefill(self) -> torch.Tensor:
        self.cache = transformers.DynamicCache(config=self.model.config.text_config)
        logits = self._forward(self.embeddings, self.cache)
        synchronize(self.device)
        return logits

    @torch.inference_mode()
    def decode(self, steps: int) -> None:
        """Greedy steps after the last prefill; the cache is cut back after them."""
        table = self.model.get_input_embeddings()
        token = torch.zeros(len(self.embeddings), 1, dtype=torch.long, device=self.device)
        for _ in range(steps):
            token = self._last_logits(table(token), self.cache).argmax(-1, keepdim=True)
        synchronize(self.device)
        self.cache.crop(-steps)


class Sparse:
    """SparseVLM v1.5's prefill of one prompt: the whole attention map is made at the pruning layers, as the official
    code makes it, and fused kernels do the other layers. Ties of density go to the higher score instead of to noise,
    which is what this library does, so that both keep and merge the same tokens."""

    def __init__(
        self,
        model: Any,
        embeddings: torch.Tensor,
        before: int,
        visual: int,
        sparsity: SparsityConfig,
        plans: tuple[StagePlan, ...],
    ):
        if len(embeddings) != 1:
            raise ValueError(f"the official algorithm takes one prompt at a time, got {len(embeddings)}")
        self.model, self.embeddings, self.before, self.visual = model, embeddings, before, visual
        if sparsity.recycle is None:
            raise ValueError(f"{sparsity.name} merges nothing, expected SparseVLM v1.5")
        self.recycle, self.plans = sparsity.recycle, {plan.layer: plan for plan in plans}

    @torch.inference_mode()
    def prefill(self) -> torch.Tensor:
        decoder, x, visual = self.model.model.language_model, self.embeddings, self.visual
        self.cache, after = [], self.before + visual
        raters = _raters(x[0, self.before : after], x[0, after:])
        for index, layer in enumerate(decoder.layers):
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
            q, k, v = self._project(layer, x, decoder.rotary_emb(x, position_ids))
            self.cache.append((k, v))
            plan, attention_map = self.plans.get(index), None
            if plan is None:
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                attended, attention_map = _attention_with_map(q, k, v)
            x = x + layer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            if plan is not None and attention_map is not None:
                scores = attention_map[0].mean(0)[self.before + visual + raters, self.before : self.before + visual]
                x, visual = self._prune(x, scores.mean(0), visual, plan)
        logits = self.model.lm_head(decoder.norm(x[:, -1])).float()
        synchronize(x.device.type)
        return logits

    def _project(self, layer: Any, x: torch.Tensor, rotary: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        heads = (*x.shape[:2], -1, attention.head_dim)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (project(normed).view(heads).transpose(1, 2) for project in projections)
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        groups = attention.num_key_value_groups
        return q, repeat_kv(k, groups), repeat_kv(v, groups)

    def _prune(self, x: torch.Tensor, scores: torch.Tensor, visual: int, plan: StagePlan) -> tuple[torch.Tensor, int]:
        kept = min(plan.kept, visual - 1)
        order = torch.argsort(scores, descending=True, stable=True)
        hidden = x[0, self.before : self.before + visual]
        stay = hidden[order[:kept].sort().values]
        dropped = visual - kept
        candidates = hidden[order[kept : kept + self.recycle.candidate_count(dropped)]]
        merged = _merge(candidates, self.recycle.merged_count(dropped, kept))
        parts = [x[0, : self.before], stay, merged, x[0, self.before + visual :]]
        return torch.cat(parts)[None], kept + len(merged)


def _raters(visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    relevance = (visual @ text.T).float().softmax(-1).mean(0)
    return (relevance > relevance.mean()).nonzero()[:, 0]


def _attention_with_map(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores + torch.full_like(scores[0, 0], float("-inf")).triu(1)
    weights = scores.softmax(-1)
    return weights @ v, weights


def _merge(x: torch.Tensor, clusters: int) -> torch.Tensor:
    """Density-peak clusters of the candidates [C, D], each the mean of its members [K, D]."""
    wide = x.float()
    distance = torch.cdist(wide, wide) / x.shape[1] ** 0.5
    nearest = distance.topk(clusters, largest=False).values
    density = torch.exp(-(nearest**2).mean(-1))
    place = torch.arange(len(x), device=x.device)
    denser = (density > density[:, None]) | ((density == density[:, None]) & (place < place[:, None]))
    separation = torch.where(denser, distance, distance.max()).min(-1).values
    centers = (separation * density).argsort(descending=True, stable=True)[:clusters]
    member = distance[:, centers].argmin(-1)
    member[centers] = torch.arange(clusters, device=x.device)
    ours = F.one_hot(member, clusters).float()
    return (ours.T @ wide / (ours.sum(0)[:, None] + 1e-6)).to(x.dtype)
