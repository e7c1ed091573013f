"""A Jinja environment in which a chat template can neither touch Python nor use it up.

It is the one `transformers` renders chat templates in (immutable sandbox, blocks trimmed, `break` and `continue`,
`{% generation %}`, its `tojson`, `raise_exception`, `strftime_now`, `dict` and `namespace`). Templates come with
checkpoints and are foreign programs, so here each step is metered as well (see `meter`). Filters without use in chats
whose cost the meter does not bound are left out (`LEFT_OUT`), and of methods those are there whose cost is known.
"""

import functools
import json
import re
from collections.abc import Callable
from datetime import datetime
from types import BuiltinMethodType
from typing import Any, Final

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from .meter import (
    BOUNDS,
    PLACE,
    TooCostly,
    check_attribute,
    check_bits,
    check_join,
    check_percent,
    check_product,
    check_size,
    check_width,
    drawn,
    made,
    spend,
)

LEFT_OUT: Final = ("batch", "filesizeformat", "pprint", "slice", "striptags", "urlize", "wordwrap", "xmlattr")
# Filters and tests that look at no more than the surface of a value, which may then be a chat of any length.
_SURFACE_FILTERS: Final = frozenset("length count first last default d".split())
_SURFACE_TESTS: Final = frozenset("defined undefined none string mapping sequence iterable number boolean".split())
_BY_ATTRIBUTE: Final = frozenset("map select reject selectattr rejectattr sort groupby unique min max sum".split())
_TEXT_METHODS: Final = frozenset(
    """capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower
    isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex
    rpartition rsplit rstrip split splitlines startswith strip swapcase title upper""".split()
)
_METHODS: Final = {
    dict: frozenset(("items", "keys", "values", "get")),
    list: frozenset(("index", "count")),
    tuple: frozenset(("index", "count")),
}


def _guarded(name: str, function: Callable[..., Any], *, surface: bool) -> Callable[..., Any]:
    """A filter or test that is charged for; lazy arguments are drawn, so that their size is known."""
    context = hasattr(function, "jinja_pass_arg")  # then the first argument is Jinja's own

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        spend(PLACE)
        args = tuple(drawn(value) for value in args)
        values = args[1:] if context else args
        if not surface:
            check_size(*values, *kwargs.values())
        if name in _BY_ATTRIBUTE:
            check_attribute([*values[1:], *kwargs.values()])
        if name == "join":
            check_join(*values, *([kwargs["d"]] if "d" in kwargs else []))
            check_attribute([*values[2:], kwargs.get("attribute")])
        elif name in BOUNDS:
            BOUNDS[name](*values, **kwargs)
        return made(function(*args, **kwargs))

    return call


class _Formatter(SandboxedFormatter):
    """`str.format` with bounded widths."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        check_width(*(int(digits[:9]) for digits in re.findall(r"\d+", format_spec)))
        return made(super().format_field(value, format_spec))


class _Instrument(NodeTransformer):
    """Puts the meter where Jinja's sandbox has no hook: loops, macros, comparisons, slices, `~`."""

    def visit_For(self, node: Any, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call("drawn", node.iter)
        return _charged(node)

    def visit_Macro(self, node: nodes.Macro, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node)
        return _charged(node)

    visit_CallBlock = visit_Macro

    def visit_Output(self, node: nodes.Output, *args: Any, **kwargs: Any) -> Any:
        """What stands in the template itself; what is computed is charged as it is made."""
        self.generic_visit(node)
        text = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [_charge(text, node), node] if text else node

    def visit_Compare(self, node: nodes.Compare, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _call("sliced", node.node)
        return node

    def visit_Concat(self, node: Any, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", *node.nodes)


def _call(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _call("weighed", node)


def _charged(node: Any) -> Any:
    """Charges for a body each time it runs."""
    node.body.insert(0, _charge(PLACE, node))
    return node


def _charge(size: int, at: nodes.Node) -> nodes.ExprStmt:
    return nodes.ExprStmt(_call("spend", nodes.Const(size)), lineno=at.lineno)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; the text inside is text."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment; compile and render inside of `metered`. Constants are computed in each rendering: folded, they
    would be computed once in each place, and be written out in the compiled code."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,
            finalize=_finalized,
        )
        self.filters["tojson"] = _to_json
        for name in LEFT_OUT:
            del self.filters[name]
        for table, surface in ((self.filters, _SURFACE_FILTERS), (self.tests, _SURFACE_TESTS)):
            for name, function in table.items():
                table[name] = _guarded(name, function, surface=name in surface)
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
        self.spend, self.drawn = spend, drawn
        self._meters = (spend, drawn, self.weighed, self.sliced, self.joined)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> Any:
        tree = _Instrument().visit(source)
        tree.set_environment(self)
        return super()._generate(tree, *args, **kwargs)

    @staticmethod
    def weighed(value: Any) -> Any:
        spend(PLACE)
        check_size(value)
        return value

    @staticmethod
    def sliced(value: Any) -> Any:
        spend(len(value) if isinstance(value, str) else PLACE * len(value) if hasattr(value, "__len__") else PLACE)
        return value

    @staticmethod
    def joined(*values: Any) -> str:
        check_size(*values)
        return made("".join(map(str, values)))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        if any(function is meter for meter in self._meters):
            return function(*args)
        spend(PLACE)
        args = tuple(map(drawn, args))
        check_size(*args, *kwargs.values())
        if isinstance(function, BuiltinMethodType):
            _check_method(function, args)
        return made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        spend(PLACE)
        check_size(left, right)
        if operator == "%" and isinstance(left, str):
            check_percent(left, right)
        elif operator == "*":
            check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * max(0, right))
        return made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        if super().wrap_str_format(value) is None:
            return None
        if value.__name__ != "format":
            raise SecurityError(f"str.{value.__name__} is not available")
        return lambda *args, **kwargs: _Formatter(self).vformat(str(value.__self__), args, kwargs)


@pass_context  # which is there in a rendering alone, so that Jinja folds no constant that is written
def _finalized(_: Any, value: Any) -> Any:
    spend(check_size(value))
    return value


def _check_method(method: BuiltinMethodType, args: tuple[Any, ...]) -> None:
    """A method of a text, table or list: those whose cost is known."""
    owner, name = method.__self__, method.__name__
    if isinstance(owner, str):
        check_size(owner)
        if name == "join":
            check_join(*args, owner)
        elif name in BOUNDS and name != "format":
            BOUNDS[name](owner, *args)
        elif name not in _TEXT_METHODS:
            raise SecurityError(f"str.{name} is not available")
    elif name not in _METHODS.get(type(owner), ()):
        raise SecurityError(f"{type(owner).__name__}.{name} is not available")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As `transformers` has it: without HTML escapes, and with the options of `json.dumps`."""
    check_width(indent)
    for text in (indent, *(separators or ())):
        if isinstance(text, str) and len(text) > 100:
            raise TooCostly("it separates JSON by more than 100 characters")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return "".join(map(made, encoder.iterencode(value)))


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


class _Dict:
    """`dict` for templates: builds one, and is no class to climb out of."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any):  # pyright: ignore  (a template may name an attribute "self")
        self, *values = args
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)  # pyright: ignore

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")
