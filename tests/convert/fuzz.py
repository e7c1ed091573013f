"""Damages checkpoint folders at random and loads them: only this library's own errors may come out.

    python -m tests.convert.fuzz --count 10000 --seed 0

One input is a small folder with one file changed: a value of a JSON file (config, index, safetensors header, tokenizer,
processor, this library's own `sparsevlm.json`) replaced by something odd, or bytes of a file cut off or overwritten.
"""

import argparse
import collections
import copy
import json
import random
import shutil
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch

from sparsevlm_jax.checkpoints.integrity import seal
from sparsevlm_jax.checkpoints.sources import convert_checkpoint, inspect_checkpoint, load_checkpoint, verify_checkpoint
from sparsevlm_jax.convert import write_random_checkpoint
from sparsevlm_jax.errors import CheckpointWarning

WIDTH = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
CONFIG = {
    "model_type": "llava",
    "image_token_index": 260,
    "text_config": {"model_type": "llama", "vocab_size": 264, **WIDTH},
    "vision_config": {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, **WIDTH},
    "vision_feature_layer": -1,
}
ORIGINAL = {
    "model_type": "llava",
    "vocab_size": 264,
    **WIDTH,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_select_layer": -1,
    "mm_hidden_size": 16,
    "vision_config": CONFIG["vision_config"],
}
ODD = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63), 0.5, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        "x",
        "é\ud800",
        "../../etc/passwd",
        "/dev/zero",
        "model.safetensors",
        "F16",
        "I64",
    ),
    *(
        [],
        {},
        [[]],
        [0],
        [-1],
        [1, 2],
        [2**62, 2**62],
        [0, 2**62],
        {"": {}},
        {"a": [1]},
        "model-00001-of-00003.safetensors",
    ),
)
Damage = Callable[[Path, random.Random], None]


def make_folders(root: Path) -> dict[str, Path]:
    """The undamaged folders: one file, shards, `.bin`, original names, and this library's own form."""
    folders = {name: root / name for name in ("single", "sharded", "bin", "original", "converted")}
    write_random_checkpoint(folders["single"], CONFIG)
    write_random_checkpoint(folders["sharded"], CONFIG, max_shard_bytes=20_000)
    convert_checkpoint(folders["single"], folders["converted"])
    state = _torch_state(folders["single"])
    for name, config in (("bin", CONFIG), ("original", ORIGINAL)):
        folders[name].mkdir()
        (folders[name] / "config.json").write_text(json.dumps(config))
        torch.save(_original_names(state) if name == "original" else state, folders[name] / "pytorch_model.bin")
    return folders


def _torch_state(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parts = {
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.vision_tower.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
    }
    renamed = {}
    for name, tensor in state.items():
        part = next(part for part in parts if name.startswith(part))
        renamed[parts[part] + name.removeprefix(part)] = tensor
    return renamed


def damage_json(path: Path, rng: random.Random) -> None:
    """One to three values of a JSON file become odd, vanish, or get a stranger beside them."""
    table = json.loads(path.read_text())
    path.write_bytes(_encode(_odd(table, rng)))


def damage_sealed(path: Path, rng: random.Random) -> None:
    """The same to `sparsevlm.json`, under a seal that fits again: as if it had been written so."""
    table = _odd({k: v for k, v in json.loads(path.read_text()).items() if k != "seal"}, rng)
    path.write_bytes(_encode(table | {"seal": seal(table)} if isinstance(table, dict) else table))


def damage_header(path: Path, rng: random.Random) -> None:
    """The same to the header of a safetensors file; now and then its length lies."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = _encode(_odd(json.loads(content[8 : 8 + length]), rng))
    claimed = (
        len(header) if rng.random() < 0.8 else rng.choice([0, 1, len(header) - 1, len(header) + 9, 2**40, 2**64 - 1])
    )
    path.write_bytes(struct.pack("<Q", claimed) + header + content[8 + length :])


def damage_bytes(path: Path, rng: random.Random) -> None:
    """Cut short, lengthened, or a few bytes overwritten (mostly near the ends, where the structure is)."""
    content = bytearray(path.read_bytes())
    kind = rng.random()
    if kind < 0.3:
        del content[rng.randrange(len(content)) :]
    elif kind < 0.4:
        content += rng.randbytes(rng.randrange(1, 64))
    else:
        near = min(len(content), 6000)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(near) if rng.random() < 0.5 else len(content) - 1 - rng.randrange(near)
            content[place] = rng.randrange(256)
    path.write_bytes(content)


def damage_existence(path: Path, rng: random.Random) -> None:
    path.unlink()
    if rng.random() < 0.5:
        path.mkdir()


def _encode(table: Any) -> bytes:
    return json.dumps(table).encode("utf-8", "surrogatepass")


def _odd(table: Any, rng: random.Random) -> Any:
    table = copy.deepcopy(table)
    for _ in range(rng.randrange(1, 4)):
        spots = list(_spots(table))
        if not spots:
            return rng.choice(ODD)
        container, key = rng.choice(spots)
        action = rng.random()
        if action < 0.2:
            del container[key]
        elif action < 0.3 and isinstance(container, dict):
            container[rng.choice(["", "zz", "mm_new", "quantization_config", "__metadata__"])] = rng.choice(ODD)
        elif action < 0.4:
            container[key] = copy.deepcopy(rng.choice(spots)[0])
        else:
            container[key] = copy.deepcopy(rng.choice(ODD))
    return rng.choice(ODD) if rng.random() < 0.02 else table


def _spots(node: Any):
    """Every (container, key) of a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from _spots(value)


PLANS: tuple[tuple[str, str, Damage], ...] = (
    ("single", "config.json", damage_json),
    ("original", "config.json", damage_json),
    ("converted", "config.json", damage_json),
    ("converted", "sparsevlm.json", damage_json),
    ("sharded", "model.safetensors.index.json", damage_json),
    ("sharded", "model.safetensors.index.json", damage_json),
    ("single", "model.safetensors", damage_header),
    ("single", "model.safetensors", damage_header),
    ("sharded", "model-00002-of-0000*.safetensors", damage_header),
    ("single", "config.json", damage_bytes),
    ("single", "model.safetensors", damage_bytes),
    ("sharded", "model-00001-of-0000*.safetensors", damage_bytes),
    ("sharded", "model.safetensors.index.json", damage_bytes),
    ("bin", "pytorch_model.bin", damage_bytes),
    ("original", "pytorch_model.bin", damage_bytes),
    ("sharded", "model-00001-of-0000*.safetensors", damage_existence),
    ("converted", "sparsevlm.json", damage_bytes),
    ("converted", "sparsevlm.json", damage_sealed),
    ("converted", "params/state/_METADATA", damage_json),
    ("converted", "params/state/manifest.ocdbt", damage_bytes),
    ("converted", "params/state/d/*", damage_bytes),
    ("converted", "params/state/ocdbt.process_0/d/*", damage_existence),
    ("single", "tokenizer.json", damage_bytes),
    ("single", "tokenizer.json", damage_json),
    ("single", "tokenizer_config.json", damage_json),
    ("single", "preprocessor_config.json", damage_json),
    ("single", "chat_template.jinja", damage_bytes),
)


def attempt(folders: dict[str, Path], scratch: Path, seed: int) -> str:
    """Damages, inspects, verifies and loads one folder. Returns "loaded" or the name of the error, which is our own.

    Raises:
        AssertionError: an error of somebody else came out.
    """
    rng = random.Random(seed)
    name, pattern, damage = rng.choice(PLANS)
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folders[name], scratch)
    damage(next(scratch.glob(pattern)), rng)
    outcomes = [_outcome(action, scratch, seed) for action in (inspect_checkpoint, verify_checkpoint, load_checkpoint)]
    return outcomes[-1]


def _outcome(action: Callable[[Path], object], folder: Path, seed: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", CheckpointWarning)
        try:
            action(folder)
        except Exception as error:
            own = type(error).__module__.startswith("sparsevlm_jax") and isinstance(error, ValueError)
            if not own or "\n" in str(error):
                raise AssertionError(
                    f"seed {seed}: {action.__name__} raised {type(error).__name__}: {error}"
                ) from error
            return type(error).__name__
    return "loaded"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, start = 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        folders = make_folders(Path(root) / "good")
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            began = time.perf_counter()
            try:
                outcomes[attempt(folders, Path(root) / "bad", seed)] += 1
            except AssertionError as error:
                outcomes["FOREIGN ERROR"] += 1
                print(error, flush=True)
            slowest = max(slowest, time.perf_counter() - began)
            if seed % 250 == 0:
                jax.clear_caches()  # every odd shape leaves its traces behind, megabytes each
    seconds = time.perf_counter() - start
    print(
        json.dumps({"inputs": arguments.count, "seconds": round(seconds, 1), "slowest": round(slowest, 2), **outcomes})
    )
    raise SystemExit(outcomes["FOREIGN ERROR"] > 0)


if __name__ == "__main__":
    main()
