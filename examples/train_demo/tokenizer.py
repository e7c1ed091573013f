"""The demo model's tokenizer: one token per word of the questions, one per capital letter, no merges.

Words in capitals fall apart into letters, so an answer is spelled letter by letter and decodes joined ("C A F E" is
"CAFE"); the space before them is dropped. Any word that is not in the vocabulary is `<unk>`.
"""

from functools import cache
from typing import TYPE_CHECKING, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sparsevlm_jax.demo.sprites import COLOURS, SHAPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNK, BOS, EOS, PAD, IMAGE, USER, ASSISTANT = range(7)
_SPECIAL: Final = ("<unk>", "<s>", "</s>", "<pad>", "<image>", "USER:", "ASSISTANT:")
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_QUESTION_WORDS: Final = """
a an and any are at behind below above beside big can car cars colour colours count did do does find for has have
here how i in is it left letters like look many me name next no not of on one or picture please read reads right say
says see shape show sign signs small street tell text that the there these this to two under up was what where which
who with word words written yes you
"""
_CAPITALISED: Final = (
    "What",
    "Which",
    "How",
    "Is",
    "Are",
    "Read",
    "Where",
    "The",
    "Tell",
    "Name",
    "Can",
    "Yes",
    "No",
    "There",
)
_METASPACE: Final = "▁"


@cache
def build() -> Tokenizer:
    """The tokenizer, as the `tokenizers` library has it; `tokenizer.json` is this, saved."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True, lstrip=index > PAD, rstrip=index > PAD)
         for index, token in enumerate(_SPECIAL)]
    )  # fmt: skip
    lower = [normalizers.Replace(Regex(rf"\b{word}\b"), word.lower()) for word in _CAPITALISED]
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Replace(Regex(r"\s+"), " "), normalizers.Replace(Regex(r"\bcolor"), "colour"), *lower
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(_METASPACE, prepend_scheme="always", split=True),
        pre_tokenizers.Split(Regex(rf"{_METASPACE}(?=[A-Z](?![a-z])|[?.,]|$)"), "removed"),
        pre_tokenizers.Split(Regex(rf"{_METASPACE}?[A-Z]?[a-z]+|[A-Z]|[?.,]"), "isolated"),
    ])  # fmt: skip
    tokenizer.decoder = decoders.Metaspace(_METASPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", BOS)])
    return tokenizer


def vocabulary() -> dict[str, int]:
    """Token to id: specials, punctuation, letters, then words and digits, which carry their leading space."""
    words = sorted({*_QUESTION_WORDS.split(), *COLOURS, *SHAPES, *"0123456789"})
    tokens = [*_SPECIAL, "?", ".", ",", *_LETTERS, *(_METASPACE + word for word in words)]
    return {token: index for index, token in enumerate(tokens)}


def for_transformers() -> "PreTrainedTokenizerFast":
    """The same tokenizer as `transformers` wraps it; `save_pretrained` writes what AutoTokenizer reads."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=build(), unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left",
    )  # fmt: skip


@cache
def encode(text: str) -> tuple[int, ...]:
    """Ids of a piece of a prompt, without `<s>`.

    Raises:
        ValueError: a word is not in the vocabulary.
    """
    ids = tuple(build().encode(text, add_special_tokens=False).ids)
    if UNK in ids:
        raise ValueError(f"the demo model's vocabulary lacks a word of {text!r}")
    return ids
