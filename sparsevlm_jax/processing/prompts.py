"""Prompts: a question or a chat becomes the one string the language model continues, with a mark where each image goes.

The checkpoint's own chat template is used where it has one; else that of LLaVA-1.5. Marks and images are counted here,
so that a picture never goes unseen and the literal text `<image>` never stands for a picture that is not there.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..checks import HALF_OF_A_PAIR
from ..errors import short
from .images import ImageSource
from .templates import TemplateError, render_template, wants_parts

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[Message]

#: Where an image goes in a text; every LLaVA tokenizer spells it so.
IMAGE_MARK = "<image>"
ROLES = ("system", "user", "assistant")
# Keys under which a message part of the HF form may carry its image; "url" and "path" are addresses.
_SOURCES = ("image", "path", "url")

#: llava-hf: `USER: <image>\n{question} ASSISTANT:`, images before the words of their message.
LLAVA_1_5 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
#: The original LLaVA's `vicuna_v1`: a system sentence first (unless the chat brings its own), `</s>` after answers.
VICUNA_V1 = (
    "{% if messages[0]['role'] != 'system' %}A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}"
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
#: The original LLaVA-NeXT's `mistral_instruct`, for those of its checkpoints that have Mistral as decoder.
MISTRAL_INSTRUCT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' }}{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}"
    "{% if message['role'] == 'assistant' %}{{ ' </s>' }}{% elif message['role'] == 'user' %}{{ ' [/INST]' }}"
    "{% else %}{{ '\n' }}{% endif %}{% endfor %}"
)


class PromptError(ValueError):
    """A prompt that cannot be answered as it stands: no words, or marks and images that do not match."""


class Conversation(NamedTuple):
    """A checked prompt: messages in the HF form, contents as lists of parts, and the images in order of their marks."""

    messages: list[dict[str, Any]]
    images: list[ImageSource]


class Renderer(Protocol):
    """What is asked of a tokenizer here: its special tokens by name, which templates may write."""

    @property
    def special_tokens_map(self) -> Mapping[str, Any]: ...


def read_prompt(prompt: Prompt, images: Sequence[ImageSource] = ()) -> Conversation:
    """Check a prompt and bring it into one form.

    Args:
        prompt: a question, or messages in the HF form: `{"role": ..., "content": text or parts}`, where a part is
            `{"type": "text", "text": ...}` or `{"type": "image"}`, which may carry its own image under "image", "path"
            or "url", or OpenAI's `{"type": "image_url", "image_url": {"url": ...}}`. `<image>` inside a text is a mark
            as well, and stays where it stands.
        images: the images of this prompt, in the order of the marks. Without any mark they go first.

    Raises:
        PromptError: no words to answer, a malformed message, or marks that are not as many as the images.
    """
    if not isinstance(prompt, list | tuple | str):
        raise PromptError(f"expected a question (a text) or a list of chat messages as prompt, got {short(prompt)}")
    question = {"role": "user", "content": prompt}
    messages = [_read_message(message) for message in ([question] if isinstance(prompt, str) else prompt)]
    if not messages or messages[-1]["role"] != "user":
        raise PromptError(f"expected the last message to be the user's, got {_roles(messages) or 'no message'}")
    carried = [part.pop("image") for part in _parts(messages) if "image" in part]
    if carried and images:
        raise PromptError(f"the messages carry {len(carried)} images of their own, and {len(images)} more were given")
    conversation = Conversation(messages, carried or list(images))
    _place_images(conversation)
    _check_words(messages[-1])
    return conversation


def render(conversation: Conversation, renderer: Renderer, template: str) -> str:
    """The text to tokenise: `template` applied to the messages, ending where the answer begins.

    Raises:
        PromptError: the template fails on these messages, drops or adds an image mark, or drops the question.
    """
    messages = conversation.messages
    try:
        if not wants_parts(template):  # it knows contents as plain texts
            messages = [{**message, "content": _flatten(message)} for message in messages]
        text = render_template(template, messages, renderer.special_tokens_map)
    except TemplateError as error:
        raise PromptError(f"the checkpoint's chat template fails on this chat: {error}") from error
    if text.count(IMAGE_MARK) != len(conversation.images):
        raise PromptError(
            f"the checkpoint's chat template wrote {text.count(IMAGE_MARK)} {IMAGE_MARK} marks "
            f"for {len(conversation.images)} images"
        )
    for words in _texts(conversation.messages[-1]):
        if _letters(words) not in _letters(text):
            raise PromptError(
                f"the checkpoint's chat template leaves out the words of the last message: {short(words)}"
            )
    return text


def read_raw(prompt: Prompt, images: Sequence[ImageSource] = ()) -> str:
    """A prompt that is the whole text already, template words and all: only its marks are seen to.

    Raises:
        PromptError: as `read_prompt`.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"a raw prompt is one text; messages need the chat template, got {short(prompt)}")
    conversation = read_prompt(prompt, images)
    return "".join(part.get("text", IMAGE_MARK + "\n") for part in _parts(conversation.messages))


def _read_message(message: Any) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(f"expected a message with a role of {', '.join(ROLES)}, got {short(message)}")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise PromptError(f"expected a message's content to be a text or a list of parts, got {short(content)}")
    return {"role": str(role), "content": [_read_part(part) for part in content]}


def _read_part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    kind = kind if isinstance(kind, str) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": _checked_text(part["text"])}
    if kind == "image":
        carried = [part[key] for key in _SOURCES if part.get(key) is not None]
        return {"type": "image", "image": carried[0]} if carried else {"type": "image"}
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if isinstance(url, str):
            return {"type": "image", "image": url}
    raise PromptError(f"expected a part of type 'text', with its text, 'image' or 'image_url', got {short(part)}")


def _checked_text(text: str) -> str:
    """Plain text that a tokenizer can read: half of a surrogate pair is no character."""
    half = HALF_OF_A_PAIR.search(text)
    if half is not None:
        raise PromptError(
            f"expected a text, got half of a surrogate pair (U+{ord(half[0]):04X}) at character {half.start() + 1}"
        )
    return str(text)


def _place_images(conversation: Conversation) -> None:
    """Put images that no mark places in front of the user's first words; any other difference is an error."""
    messages, images = conversation
    marks = sum(part.get("text", IMAGE_MARK).count(IMAGE_MARK) for part in _parts(messages))
    if not marks:
        first = next(message for message in messages if message["role"] == "user")
        first["content"][:0] = [{"type": "image"} for _ in images]
    elif marks != len(images):
        raise PromptError(
            f"the prompt has {marks} {IMAGE_MARK} mark{'s' * (marks > 1)}, got {len(images)} images "
            f"(a literal {IMAGE_MARK} in a text is a mark, too)"
        )


def _check_words(message: dict[str, Any]) -> None:
    words = "".join(part.get("text", "") for part in message["content"]).replace(IMAGE_MARK, "")
    if not words.strip():
        raise PromptError("the prompt has no words: they say what to look for, and decide which image tokens are kept")


def _texts(message: dict[str, Any]) -> list[str]:
    """The words between the marks."""
    return [words for part in message["content"] for words in part.get("text", "").split(IMAGE_MARK)]


def _letters(text: str) -> str:
    """What no template changes, however it trims, quotes or capitalises."""
    return re.sub(r"[\W_]+", "", text).casefold()


def _flatten(message: dict[str, Any]) -> str:
    return "".join(part.get("text", IMAGE_MARK + "\n") for part in message["content"])


def _parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"]]


def _roles(messages: list[dict[str, Any]]) -> str:
    return ", ".join(message["role"] for message in messages)
