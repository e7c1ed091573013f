"""Phi-3's fused weights, taken apart: its files hold queries, keys and values as one matrix, and gate and up as one."""

from collections.abc import Mapping

from sparsevlm_jax.models import LlamaConfig

from .tensors import StoredTensor


def unfused(tensors: Mapping[str, StoredTensor], text: LlamaConfig) -> dict[str, StoredTensor]:
    """`tensors` with each fused matrix as those it is made of, under their names: stretches of its rows, views of the
    file. One of another number of rows than the config says is left as it is, for the reader to complain of."""
    query, key = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    parts = {
        "self_attn.qkv_proj.weight": {"q_proj": query, "k_proj": key, "v_proj": key},
        "mlp.gate_up_proj.weight": {"gate_proj": text.intermediate_size, "up_proj": text.intermediate_size},
    }
    result = {}
    for name, tensor in tensors.items():
        fused = next((ending for ending in parts if name.endswith(ending)), None)
        if fused is None or len(tensor.shape) != 2 or tensor.shape[0] != sum(parts[fused].values()):
            result[name] = tensor
            continue
        start, whole = 0, fused.split(".")[1]
        for part, rows in parts[fused].items():
            result[name.replace(whole, part)] = _rows(tensor, start, rows)
            start += rows
    return result


def _rows(tensor: StoredTensor, start: int, rows: int) -> StoredTensor:
    return tensor._replace(shape=(rows, *tensor.shape[1:]), open=lambda: tensor.open()[start : start + rows])
