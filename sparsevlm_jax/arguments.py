"""The arguments of the public functions, and what each must be: one table.

    sparsity, max_new_tokens = checked(sparsity=sparsity, max_new_tokens=max_new_tokens)

gives each in its one form, or a ValueError: "max_new_tokens must be a whole number >= 1, got 2.5". What is inside a
prompt and a picture is looked at where they are read (`processing`); how arguments go together, where they are used.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import methods
from .checkpoints.paths import as_path
from .checks import (
    LARGEST_SEED,
    Check,
    choice,
    each,
    entries_of,
    exact,
    flag,
    having,
    optional,
    real,
    refusal,
    text,
    whole,
)
from .models.nn.attention import Implementation
from .models.nn.dtypes import float_dtype
from .processing import ImageSource, Prompt
from .sparsify import Share, SparsityConfig, parse_amount

THIRD = SparsityConfig.sparsevlm(tokens="1/3")


def checked(**arguments: Any) -> Any:
    """The values as `RULES` has them: of several arguments a list in their order, of one its value alone.

    Raises:
        ValueError: one is none of what it must be; the message names it.
    """
    values = [RULES[name](name, value) for name, value in arguments.items()]
    return values if len(values) > 1 else values[0]


def sparsity(name: str, value: Any) -> SparsityConfig | None:
    """A config; None; a method's name, at a third of the tokens; or SparseVLM's number or share of tokens."""
    if value is None or isinstance(value, SparsityConfig):
        return value
    if isinstance(value, str) and value in methods.METHODS:
        return methods.create(value, "1/3")
    if not isinstance(value, Share) and exact(value) is None:
        known = ", ".join(sorted(methods.METHODS))
        raise refusal(name, f"a SparsityConfig, a number or share of tokens, None, or one of {known}", value)
    return SparsityConfig.sparsevlm(parse_amount(value, name=name))


def path(name: str, value: Any) -> Path:
    """A file's name."""
    found = as_path(value)
    if found is not None and os.fspath(value):
        return found
    raise refusal(name, "a path", value)


def source(name: str, value: Any) -> str | Path:
    """A path, or a hub id."""
    found = path(name, value)
    return str(value) if isinstance(value, str) else found


def seeds(name: str, value: Any) -> int | tuple[int, ...]:
    """One seed, or several in a list, a tuple or an array."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = list(value)
    seed = whole(0, LARGEST_SEED)
    return each(seed, at_least=1)(name, value) if isinstance(value, list | tuple) else seed(name, value)


def model(name: str, value: Any) -> Any:
    """What `load` gives."""
    return having("a model that `load` gave", "config", "params", "processor", "implementation")(name, value)


RULES: dict[str, Check] = {
    "allow_http": flag,
    "answers": each(text),
    "attention": optional(choice(Implementation)),
    "dtype": optional(float_dtype),
    "max_new_tokens": whole(1),
    "max_pixels": whole(1),
    "pad_to_square": optional(flag),
    "path": path,
    "seed": seeds,
    "source": optional(source),
    "sparsity": sparsity,
    "temperature": real("a finite number >= 0", lambda temperature: temperature >= 0),
    "top_k": whole(0),
    "top_p": real("a number above 0 and at most 1", lambda share: 0 < share <= 1),
    "vision_tower": optional(source),
    "vlm": model,
}


def rows_of(prompt: Any, image: Any) -> tuple[list[Prompt], list[list[ImageSource]], bool]:
    """Rows and their images, and whether the caller gave a batch.

    One prompt is a string, or a list of messages (dicts); a list of those is a batch. One picture for a batch is every
    row's.

    Raises:
        ValueError: no prompt, or a batch whose images are not one entry per prompt.
    """
    prompts = _text_or_list(prompt)
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], Mapping)):
        return [prompts], [_as_list(image)], False
    if not prompts:
        raise ValueError("expected at least one prompt, got none")
    prompts = [_text_or_list(entry) for entry in prompts]
    entries = entries_of(image)
    if entries is None:
        return prompts, [_as_list(image) for _ in prompts], True
    if len(entries) != len(prompts):
        raise ValueError(
            f"expected a picture, or an entry of images for each of {len(prompts)} prompts, got {len(entries)} entries"
        )
    return prompts, [_as_list(entry) for entry in entries], True


def _text_or_list(prompt: Any) -> Any:
    """A prompt or a list of prompts: a text, or the entries of a sequence."""
    if isinstance(prompt, str):
        return prompt
    try:
        if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray | memoryview | range):
            return list(prompt)
    except Exception:  # a sequence can be foreign code
        pass
    raise refusal("prompt", "a text, chat messages, or a list of either", prompt)


def _as_list(image: Any) -> list[ImageSource]:
    entries = entries_of(image)
    return entries if entries is not None else [] if image is None else [image]
