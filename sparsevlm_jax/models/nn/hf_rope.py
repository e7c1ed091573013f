"""RoPE out of a HF config, in each of the spellings that `transformers` 4 and 5 read.

Version 4 has `rope_theta` and `rope_scaling` ({"type": ...}, later {"rope_type": ...}), version 5 has all of it in
`rope_parameters`, into which it turns the old names. Where several are given they rank as version 5 ranks them.
"""

from typing import Any

from ...hf.reader import FLOAT_MAX, ConfigReader
from .rope import LinearScaling, Llama3Scaling, RopeScaling

_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def read_rope(read: ConfigReader) -> tuple[float, RopeScaling | None]:
    """The base, and how frequencies are scaled; complaints go to the reader."""
    name, table = _table(read)
    theta, whole = read("rope_theta"), read("partial_rotary_factor")
    if "rope_theta" in table:
        theta = _positive(read, f"{name}.rope_theta", table["rope_theta"]) or theta
    if table.get("partial_rotary_factor", whole) not in (None, 1):
        read.complain("partial_rotary_factor", table.get("partial_rotary_factor", whole), "implemented: 1.0")
    kind = table.get("rope_type", table.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KEYS:
        read.complain(f"{name}.rope_type", kind, f"implemented: {', '.join(map(repr, _KEYS))}")
        return theta, None
    ours = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_KEYS[kind]}
    read.leftovers += [f"{read.prefix}{name}.{key}" for key in sorted(set(map(str, table)) - ours)]
    return theta, _scaling(read, name, kind, table)


def _table(read: ConfigReader) -> tuple[str, dict[str, Any]]:
    """The table that counts, under its name: an old one before a new one, as version 5 has it."""
    read.seen |= {"rope_scaling", "rope_parameters"}
    name = "rope_scaling" if read.config.get("rope_scaling") else "rope_parameters"
    table = read.config.get(name) or {}
    if not isinstance(table, dict) or any(isinstance(value, dict) for value in table.values()):
        read.complain(name, table, "expected one table for all layers")
        return name, {}
    return name, table


def _scaling(read: ConfigReader, name: str, kind: str, table: dict[str, Any]) -> RopeScaling | None:
    original = read("original_max_position_embeddings", null=0)
    if kind == "default":
        return None
    given = dict(table)
    if kind == "llama3":
        given.setdefault("original_max_position_embeddings", read("max_position_embeddings"))
        given |= {"original_max_position_embeddings": original} if original else {}
    checked = {key: _positive(read, f"{name}.{key}", given.get(key)) for key in _KEYS[kind]}
    values = {key: value for key, value in checked.items() if value is not None}
    if len(values) < len(checked):
        return None
    if kind == "linear":
        return LinearScaling(**values)
    low, high = values["low_freq_factor"], values["high_freq_factor"]
    if low >= high:
        return read.complain(f"{name}.low_freq_factor", low, f"expected less than high_freq_factor = {high}")
    return Llama3Scaling(values["factor"], low, high, int(values["original_max_position_embeddings"]))


def _positive(read: ConfigReader, name: str, value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < FLOAT_MAX:
        return read.complain(name, value, "expected a positive number")
    return float(value)
