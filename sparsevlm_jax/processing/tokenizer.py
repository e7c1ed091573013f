"""The tokenizer of a checkpoint folder, read from `tokenizer.json` without importing `transformers`.

For the model types listed below `transformers` takes the file as it stands (`TokenizersBackend`) and adds what
`tokenizer_config.json` says of special and added tokens; so does `Tokenizer`, and the tests compare ids and texts. The
same class of theirs reads a lone `tokenizer.model`. For every other folder `AutoTokenizer` is asked, which may rebuild
the tokenizer from parts.
"""

import os
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import tokenizers
from tokenizers import AddedToken

from ..checkpoints.jsonfile import optional_json
from ..errors import CheckpointError, cut

#: Model types whose `tokenizer_class` transformers overrides with the plain reading of `tokenizer.json`; and those of
#: the original LLaVA, which it does not know. That code has the ids of SentencePiece (LlamaTokenizer, use_fast=False,
#: of transformers 4.31): where a text begins with a space, two of its marks. So has the plain reading; the
#: LlamaTokenizer of transformers 5 drops one.
_READ_PLAINLY: Final = ("llava", "llava_next", "vipllava", "llava_llama", "llava_mistral")
_PLAIN_CLASSES: Final = ("TokenizersBackend", "PreTrainedTokenizerFast")
#: The names under which a tokenizer's config may hold a special token; more end in `_token`.
_NAMES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CLEANED: Final = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class TextTokenizer(Protocol):
    """What is asked of a tokenizer here: a part of what every Hugging Face tokenizer does."""

    @property
    def all_special_ids(self) -> Any: ...
    @property
    def special_tokens_map(self) -> Any: ...

    def __call__(self, text: Any, *, add_special_tokens: bool = True, verbose: bool = True) -> Any: ...
    def __len__(self) -> int: ...
    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...
    def convert_tokens_to_ids(self, tokens: Any) -> Any: ...
    def convert_ids_to_tokens(self, ids: Any) -> Any: ...


class Tokenizer:
    """A `tokenizers.Tokenizer` with names for its special tokens, under the method names of `transformers`.

    Args:
        backend: encodes and decodes.
        special: name -> token, as in {"bos_token": "<s>"}.
        extra: further special tokens, which have no name.
        clean_up: tidy spaces before punctuation when decoding; BPE tokenizers never do.
        keep_space: a space that a text begins with is kept, where the backend would take it for the mark of its own
            that it puts in front of every text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: Mapping[str, str],
        *,
        extra: Sequence[str] = (),
        clean_up: bool = False,
        keep_space: bool = False,
    ):
        backend.no_truncation()
        backend.no_padding()
        self.backend_tokenizer, self.special_tokens_map = backend, dict(special)
        self.all_special_tokens = list(dict.fromkeys([*special.values(), *extra]))
        self._clean_up = clean_up and not isinstance(backend.model, tokenizers.models.BPE)
        self._keep_space = keep_space

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        if self._keep_space and text.startswith(" "):
            text = " " + text
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens_map.get("bos_token")

    @property
    def bos_token_id(self) -> int | None:
        return self.convert_tokens_to_ids(self.bos_token) if self.bos_token is not None else None

    @cached_property
    def all_special_ids(self) -> list[int | None]:
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        text = self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        for spaced in _CLEANED if self._clean_up else ():
            text = text.replace(spaced, spaced.strip())
        return text

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """A token's id; that of the unknown token where it is not in the vocabulary."""
        known = self.backend_tokenizer.token_to_id(tokens)
        unknown = self.special_tokens_map.get("unk_token")
        return self.backend_tokenizer.token_to_id(unknown) if known is None and unknown is not None else known

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> Any:
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(int(token)) for token in ids]


def read_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a checkpoint folder; it is never looked for anywhere else.

    Raises:
        CheckpointError: the folder has none, it cannot be read, or reading it needs a library that is missing.
    """
    has_json = (folder / "tokenizer.json").is_file()
    if not has_json and not (folder / "tokenizer.model").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json or tokenizer.model")
    settings = optional_json(folder / "tokenizer_config.json")
    if not has_json:
        _check_sentencepiece(folder)
    try:
        if not _is_read_plainly(folder, settings):
            return _from_transformers(folder, "AutoTokenizer")
        return _from_json(folder, settings) if has_json else _from_pieces(folder, settings)
    except CheckpointError:
        raise
    except Exception as error:  # transformers and the Rust core raise whatever a damaged file leads to
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {_first_line(error)}") from error


def _is_read_plainly(folder: Path, settings: Mapping[str, Any]) -> bool:
    if "fast_tokenizer_files" in settings:  # one file a version of transformers: which, transformers knows
        return False
    kind = optional_json(folder / "config.json").get("model_type")
    return kind in _READ_PLAINLY or settings.get("tokenizer_class") in _PLAIN_CLASSES


def _from_json(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    if "added_tokens_decoder" in settings:
        special, extra = _special_tokens(settings, {})
        table = _table(settings, "added_tokens_decoder")
        added = {int(index): AddedToken(**token) for index, token in table.items()}
    else:  # the older pair of files
        special, extra = _special_tokens(settings, optional_json(folder / "special_tokens_map.json"))
        names = {token.content for token in (*special.values(), *extra)}
        added = _older_added_tokens(folder, names) | backend.get_added_tokens_decoder()
    if backend.padding is not None:
        special.setdefault("pad_token", _token(backend.padding["pad_token"]))
    _add_tokens(backend, added, special, extra)
    backend.encode_special_tokens = settings.get("split_special_tokens") is True
    return Tokenizer(
        backend,
        {name: token.content for name, token in special.items()},
        extra=[token.content for token in extra],
        clean_up=settings.get("clean_up_tokenization_spaces") is True,
    )


def _from_pieces(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """A lone `tokenizer.model`. Where "legacy" is false, the backend marks only the first piece of a text."""
    read: Any = _from_transformers(folder, "TokenizersBackend")
    read.backend_tokenizer.encode_special_tokens = read.split_special_tokens
    return Tokenizer(
        read.backend_tokenizer,
        read.special_tokens_map,
        extra=read.all_special_tokens,
        keep_space=settings.get("legacy") is False,
    )


def _special_tokens(
    settings: Mapping[str, Any], older: Mapping[str, Any]
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """Special tokens with and without a name; `older` is `special_tokens_map.json`, which has the last word."""
    named: dict[str, Any] = {}
    for table in (settings, older):
        more = table.get("extra_special_tokens")
        named |= {name: value for name, value in table.items() if name in _NAMES or _is_named(name, value)}
        named |= more if isinstance(more, dict) else {}  # a multimodal model's own tokens
    extra = _list(settings, "extra_special_tokens") or _list(settings, "additional_special_tokens")
    extra += _list(older, "extra_special_tokens") or ([] if extra else _list(older, "additional_special_tokens"))
    order = [*_NAMES, *(name for name in named if name not in _NAMES)]
    return (
        {name: _token(named[name]) for name in order if named.get(name) is not None},
        list({token.content: token for token in map(_token, extra)}.values()),
    )


def _older_added_tokens(folder: Path, special: Container[str]) -> dict[int, AddedToken]:
    return {
        index: AddedToken(content, normalized=content not in special, special=content in special)
        for content, index in optional_json(folder / "added_tokens.json").items()
    }


def _add_tokens(
    backend: tokenizers.Tokenizer,
    added: Mapping[int, AddedToken],
    special: Mapping[str, AddedToken],
    extra: Iterable[AddedToken],
) -> None:
    """Adds what the tokenizer lacks or spells otherwise: by index first, then special tokens without one."""
    there = backend.get_added_tokens_decoder().values()
    known = set(map(repr, there))
    missing = {token.content: token for _, token in sorted(added.items()) if repr(token) not in known}
    names = {token.content for token in special.values()}
    for token in missing.values():
        token.special |= token.content in names  # whatever its entry says
    held = {token.content for token in there} | set(missing)
    missing |= {token.content: token for token in (*special.values(), *extra) if token.content not in held}
    if missing:
        backend.add_tokens(list(missing.values()))


def _is_named(name: str, value: Any) -> bool:
    return name.endswith("_token") and _is_token(value)


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _token(value: Any) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if not _is_token(value):
        raise CheckpointError(f"the tokenizer's config has {value!r} where a special token is expected")
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    return AddedToken(value["content"], special=True, **{key: value[key] for key in flags if key in value})


def _table(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = settings[name]
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} of the tokenizer's config is no table, but a {type(value).__name__}")
    return value


def _list(settings: Mapping[str, Any], name: str) -> list[Any]:
    """A list of tokens, empty where there is none or a table of named ones."""
    value = settings.get(name) or []
    if not isinstance(value, list | dict):
        raise CheckpointError(f"{name} of the tokenizer's config is no list, but a {type(value).__name__}")
    return [] if isinstance(value, dict) else value


def _check_sentencepiece(folder: Path) -> None:
    missing = [name for name in ("sentencepiece", "google.protobuf") if not _is_installed(name)]
    if missing:
        packages = " ".join(name.removeprefix("google.") for name in missing)
        raise CheckpointError(
            f"{folder} has a tokenizer.model and no tokenizer.json; to read it, `pip install {packages}`"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _from_transformers(folder: Path, reader: str) -> TextTokenizer:
    """What a class of `transformers` reads; it is imported late and without its advice to install PyTorch."""
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(quiet)
    os.environ[quiet] = "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[quiet]
        else:
            os.environ[quiet] = before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of old config files, which no user can change
        return getattr(transformers, reader).from_pretrained(folder, local_files_only=True)


def _first_line(error: Exception) -> str:
    return cut(str(error).strip().partition("\n")[0]) or type(error).__name__
