"""Chat templates: where a checkpoint keeps its own, what form of messages it wants, and rendering it.

`transformers` looks for a processor's template in `processor_config.json`, in `chat_template.json`, in
`chat_template.jinja`, and for a tokenizer's in `tokenizer_config.json`; the first that is there counts. Named templates
have one called "default", which is taken.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from ..checkpoints.jsonfile import optional_json, read_json
from ..errors import CheckpointError, cut

#: Characters of a template. The longest that are published have 30,000.
LONGEST_SOURCE: Final = 65_536
# Filters that go through a list; on a text they would go through its letters.
_THROUGH_A_LIST: Final = ("selectattr", "rejectattr", "map", "groupby")


class TemplateError(ValueError):
    """A template that cannot be used, or not for these messages."""


def find_template(folder: Path, of_tokenizer: Any) -> str | None:
    """The chat template of a checkpoint folder.

    Args:
        of_tokenizer: the template that the tokenizer's config holds, if any.

    Raises:
        CheckpointError: a file that should hold a template cannot be read or holds none.
    """
    json_file, jinja_file = folder / "chat_template.json", folder / "chat_template.jinja"
    processor = optional_json(folder / "processor_config.json").get("chat_template")
    if processor is not None:
        return _default(processor, folder / "processor_config.json")
    if json_file.is_file():
        return _default(read_json(json_file).get("chat_template"), json_file)
    if jinja_file.is_file():
        return _read_text(jinja_file)
    return None if of_tokenizer is None else _default(of_tokenizer, folder / "tokenizer_config.json")


def check_template(template: str, origin: object) -> None:
    """Raises CheckpointError where `template` is no Jinja."""
    try:
        _compiled(template)
    except TemplateError as error:
        raise CheckpointError(f"the chat template of {origin} cannot be read: {error}") from None


def render_template(template: str, messages: list[dict[str, Any]], special_tokens: Mapping[str, str]) -> str:
    """The text that a template makes of messages, up to where the answer begins.

    Args:
        special_tokens: what templates know under names such as `bos_token`.

    Raises:
        TemplateError: the template fails, or asks for more than a template may (`meter`).
    """
    from .meter import metered, spend

    compiled = _compiled(template)

    def render() -> str:
        pieces = []
        for piece in compiled.generate(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **special_tokens
        ):
            spend(len(piece))
            pieces.append(piece)
        return "".join(pieces)

    return _own_errors(lambda: metered(render))


@lru_cache(maxsize=16)
def wants_parts(template: str) -> bool:
    """Whether a template takes a message's content as a list of parts, and not as one text.

    Its syntax tree tells: it goes through the content, or takes fields of its items. A content is what stands under
    the name "content", what is assigned from one, and what a macro is called with in place of one.

    Raises:
        TemplateError: the template is no Jinja.
    """
    _check_length(template)
    return _own_errors(lambda: _takes_parts(_sandbox().parse(template)))


def _takes_parts(tree: Any) -> bool:
    from jinja2 import nodes

    names = _content_names(tree)

    def is_content(node: Any) -> bool:
        return any(_is_content(part, names) for part in _alternatives(node))

    return (
        any(is_content(loop.iter) for loop in tree.find_all(nodes.For))
        or any(f.name in _THROUGH_A_LIST and is_content(f.node) for f in tree.find_all(nodes.Filter))
        or any(_is_item(access.node) and is_content(access.node.node) for access in _accesses(tree))
    )


def _content_names(tree: Any) -> set[str]:
    """Variables that hold a content."""
    from jinja2 import nodes

    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    sources = [(node.target.name, node.node) for node in tree.find_all(nodes.Assign) if hasattr(node.target, "name")]
    for call in tree.find_all(nodes.Call):
        macro = macros.get(getattr(call.node, "name", None))
        if macro is not None:
            sources += [(parameter.name, given) for parameter, given in zip(macro.args, call.args, strict=False)]
            sources += [(keyword.key, keyword.value) for keyword in call.kwargs]
    names: set[str] = set()
    while True:
        more = {name for name, node in sources if any(_is_content(part, names) for part in _alternatives(node))}
        if more <= names:
            return names
        names |= more


def _is_content(node: Any, names: set[str]) -> bool:
    from jinja2 import nodes

    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return _is_name(node.arg)
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return node.node.attr == "get" and bool(node.args) and _is_name(node.args[0])
    return isinstance(node, nodes.Name) and node.name in names


def _alternatives(node: Any) -> Iterator[Any]:
    """What an expression may stand for, its filters, slices and conditions taken off."""
    from jinja2 import nodes

    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, nodes.Filter) or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)):
            stack.append(node.node)
        elif isinstance(node, nodes.CondExpr):
            stack += [node.expr1, node.expr2]
        elif isinstance(node, nodes.And | nodes.Or):
            stack += [node.left, node.right]
        elif node is not None:
            yield node


def _accesses(tree: Any) -> Iterator[Any]:
    """Fields that are taken by name: `x["type"]`, `x.type`."""
    from jinja2 import nodes

    yield from tree.find_all(nodes.Getattr)
    for node in tree.find_all(nodes.Getitem):
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            yield node


def _is_name(node: Any) -> bool:
    from jinja2 import nodes

    return isinstance(node, nodes.Const) and node.value == "content"


def _is_item(node: Any) -> bool:
    """`x[0]`, `x[i]`; no slice, and no field."""
    from jinja2 import nodes

    if not isinstance(node, nodes.Getitem) or isinstance(node.arg, nodes.Slice):
        return False
    return not isinstance(node.arg, nodes.Const) or isinstance(node.arg.value, int)


def _default(value: Any, origin: Path) -> str:
    """A template, or of several with names the one called "default": a table, or a list as tokenizers keep it."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {str(entry.get("name")): entry.get("template") for entry in value}
    if isinstance(value, dict):
        if "default" not in value:
            raise CheckpointError(f"{origin} has chat templates, but none of them is called 'default'")
        value = value["default"]
    if not isinstance(value, str):
        raise CheckpointError(f"{origin} holds no chat_template")
    return value


@lru_cache(maxsize=1)
def _sandbox() -> Any:
    from .sandbox import Sandbox  # Jinja takes 50 ms to import, and only prompts need it

    return Sandbox()


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    from .meter import metered

    _check_length(template)
    return _own_errors(lambda: metered(lambda: _sandbox().from_string(template)))


def _check_length(template: str) -> None:
    if len(template) > LONGEST_SOURCE:
        raise TemplateError(f"it has {len(template)} characters, at most {LONGEST_SOURCE} are read")


def _own_errors(function: Callable[[], Any]) -> Any:
    """Calls `function`; whatever a foreign program raises, it could not be applied."""
    try:
        return function()
    except RecursionError:
        raise TemplateError("it is nested too deeply") from None
    except Exception as error:
        raise TemplateError(cut(str(error)) or type(error).__name__) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {cut(str(error))}") from None
