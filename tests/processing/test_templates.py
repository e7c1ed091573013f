"""Chat templates are found where Hugging Face finds them, render as there, and cannot use the process up."""

import contextlib
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from sparsevlm_jax.errors import CheckpointError
from sparsevlm_jax.processing import LLAVA_1_5, VICUNA_V1, meter
from sparsevlm_jax.processing.templates import (
    TemplateError,
    check_template,
    find_template,
    render_template,
    wants_parts,
)

REAL = os.environ.get("SPARSEVLM_REAL")
TOKENS: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


CHATS = [
    [{"role": "user", "content": [{"type": "image"}, text("What? \u00e9<>&'\"")]}],
    [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [text("a  \n")]},
        {"role": "assistant", "content": [text("b")]},
        {"role": "user", "content": [text("c"), {"type": "image"}]},
    ],
    [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": " yes<think>x</think>b"},
        {"role": "user", "content": "q"},
    ],
]
OWN = {
    "llava": LLAVA_1_5,
    "vicuna": VICUNA_V1,
    "whitespace": "{% for m in messages %}\n  {% if m.role == 'user' %}\n  {{ m.role }}\n  {% endif %}\n{% endfor %}\n",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "break": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% generation %}{{ messages[0].role }}{% endgeneration %}",
    "tojson": "{{ messages | tojson }}{{ {'b': 1, 'a': [1, 'é<']} | tojson(indent=2, sort_keys=true) }}",
    "macro": "{% macro f(c) %}{{ c | string | length }}{% endmacro %}{{ f(messages[::-1][0].content) }}",
    "methods": "{{ 'a b'.split(' ')[-1].upper().center(9) ~ 'x'.join(['a', 'b']) }}",
    "formats": "{{ '{:>5}{}'.format(1, 'y') ~ '%3d' % 7 ~ '%s|%s' | format('a', 2) }}",
    "filters": "{{ [3, 1] | sort | join(',') }}{{ 'ab' | replace('a', 'c') | indent(2, true) | trim }}",
    "items": "{{ dict(a=1) | items | list }}{% for key, value in {'b': 2}.items() %}{{ key }}{{ value }}{% endfor %}",
    "specials": "{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}",
    "loop": "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ loop.last }}{% endfor %}",
    "fails": "{{ raise_exception('roles must alternate') }}",
}


def theirs(template: str, chat: list) -> str:
    return render_jinja_template([chat], chat_template=template, add_generation_prompt=True, **TOKENS)[0][0]


def assert_renders_alike(template: str) -> None:
    for chat in CHATS:
        try:
            expected = theirs(template, chat)
        except Exception:  # a template may refuse a chat; then ours does
            with pytest.raises(TemplateError):
                render_template(template, chat, TOKENS)
        else:
            assert render_template(template, chat, TOKENS) == expected


@pytest.mark.parametrize("template", OWN.values(), ids=OWN.keys())
def test_a_template_renders_as_in_transformers(template):
    assert_renders_alike(template)


def published() -> dict[str, str]:
    templates = {}
    for path in sorted(Path(REAL or "nowhere").glob("*/*")):
        if path.name == "chat_template.jinja":
            templates[path.parent.name] = path.read_text()
        elif path.name in ("chat_template.json", "tokenizer_config.json"):
            value = json.loads(path.read_text()).get("chat_template")
            templates |= {f"{path.parent.name}/{path.stem}": value} if isinstance(value, str) else {}
    return templates


@pytest.mark.skipif(not REAL, reason="SPARSEVLM_REAL names no folder of published files")
def test_published_templates_render_as_in_transformers_and_want_the_right_form_of_content():
    texts_only = {
        "internvl2-8b/tokenizer_config",
        "internvl3/tokenizer_config",
        "qwen2.5-vl-3b-instruct/tokenizer_config",
    }
    templates = published()
    assert len(templates) > 20
    for name, template in templates.items():
        assert_renders_alike(template)
        assert wants_parts(template) == (name not in texts_only), name


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAVA_1_5, True),
        (VICUNA_V1, True),
        ("{% for m in messages %}{{ m['role'] }}{{ m['content'] }}{% endfor %}", False),
        ("{# the type of a part #}{% for m in messages %}{{ m.content | trim }}{% endfor %}", False),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% set c = messages[0]['content'] %}{% for p in c if p.text %}{{ p.text }}{% endfor %}", True),
        ("{% macro show(c) %}{% for p in c %}{{ p }}{% endfor %}{% endmacro %}{{ show(messages[0].content) }}", True),
        ("{% macro show(c) %}{{ c }}{% endmacro %}{{ show(messages[0].content) }}", False),
        ("{{ messages[0].content[0].text }}", True),
        ("{{ messages[0]['content'][0]['type'] }}", True),
        ("{% for m in messages %}{% for p in m.get('content') %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{{ m.get('content', '') | trim }}{{ m.get('role')[0].text }}{% endfor %}", False),
        ("{% for i in range(2) %}{{ messages[0].content[i].text }}{% endfor %}", True),
        ("{% for i in range(2) %}{{ messages[0].content[i] }}{{ messages[i].role.text }}{% endfor %}", False),
        ("{{ messages[0].content[0] }}{{ messages[0].content[1:] }}", False),
        ("{{ messages[0].content | map(attribute='text') | join }}", True),
        ("{% for p in messages[0].content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}", True),
        ("{% if c.content is string %}{{ c.content }}{% else %}{% for p in c.content %}{% endfor %}{% endif %}", True),
        ("{% for m in messages[1:] %}{{ m.content.split('x')[0].strip() }}{% endfor %}", False),
    ],
)  # fmt: skip
def test_the_syntax_tree_says_what_form_of_content_a_template_wants(template, expected):
    assert wants_parts(template) == expected


LARGE = "'x'|center(1000)|replace(' ','" + "y" * 90 + "')|replace('y','zzzzzzzzzz')"  # 900,000 characters
GROW = "{%% set ns = namespace(x='ab', y=['a']) %%}{%% for i in range(60) %%}%s{%% endfor %%}%s"
HOSTILE = {
    "a long text": "{{ 'a' * 3000000000 }}",
    "a long list": "{{ [0] * 10 ** 9 }}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "empty nested ranges": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "ljust": "{{ 'x'.ljust(10 ** 10) }}",
    "center": "{{ 'x' | center(10 ** 10) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 9, 1) }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format('x', 10 ** 10) }}",
    "power": "{{ 2 ** (2 ** 40) }}",
    "digits": GROW % ("{% set ns.x = (ns.x | length + 3) ** 99 %}", "{{ ns.x ** 999 }}"),
    "doubling with ~": GROW % ("{% set ns.x = ns.x ~ ns.x %}", "{{ ns.x }}"),
    "doubling with +": GROW % ("{% set ns.x = ns.x + ns.x %}", "{{ ns.x }}"),
    "doubling with join": GROW % ("{% set ns.x = [ns.x, ns.x] | join %}", ""),
    "doubling with str.join": GROW % ("{% set ns.x = ''.join([ns.x, ns.x]) %}", ""),
    "doubling blocks": GROW % ("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}", ""),
    "doubling lists, shown": GROW % ("{% set ns.y = [ns.y, ns.y] %}", "{{ ns.y }}"),
    "doubling lists, as JSON": GROW % ("{% set ns.y = [ns.y, ns.y] %}", "{{ ns.y | tojson }}"),
    "doubling lists, compared": GROW % ("{% set ns.y = [ns.y, ns.y] %}", "{{ ns.y == ns.y[:] }}"),
    "doubling namespaces": GROW % ("{% set ns.y = namespace(a=ns.y, b=ns.y) %}", "{{ ns.y }}"),
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "text in a loop": "{% set x %}{% for i in range(99999) %}" + "A" * 50_000 + "{% endfor %}{% endset %}",
    "replace": "{% set x = 'a' * 100000 %}{{ x | replace('a', x) }}",
    "str.replace": "{% set x = 'a' * 100000 %}{{ x.replace('', x) }}",
    "indent": "{{ ('\\n' * 100000) | indent('a' * 100000) }}",
    "JSON indent": "{{ [[1]] | tojson(indent=10 ** 9) }}",
    "bytes of a number": "{{ (1).to_bytes(3000000000, 'big') }}",
    "round": "{{ 7 | round(-1000000000) }}",
    "sorting for ever": "{% set x = range(9000) | list %}{% for i in range(99999) %}{% set y = x | sort %}{% endfor %}",
    "searching for ever": "{% set x = range(9000) | list %}{% for i in range(99999) %}{{ -1 in x }}{% endfor %}",
    "slicing for ever": "{% set x = 'a' * 900000 %}{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}",
    "adding lists": "{{ [[1]] * 1000 | sum(start=[]) }}",
    "nested brackets": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "a long sum": "{{ " + "+".join(["a"] * 9000) + " }}",
    "constants": f"{{{{ {LARGE} }}}}" * 430,
    "a constant through many filters": f"{{{{ ({LARGE}){'|title' * 60} }}}}" * 60,
    "constant lists": f"{{% for x in ({LARGE})|list %}}{{% endfor %}}" * 300,
    "a constant that is computed to compile": f"{{% autoescape ({LARGE}){'|title' * 60} %}}{{% endautoescape %}}" * 60,
    "a long source": "{{ a }}" * 30_000,
    "a long message": "{{ raise_exception('x' * 900000) }}",
    "Python": "{{ ''.__class__.__mro__ }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_ends_within_seconds_and_megabytes_in_one_error(template):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(TemplateError) as caught:
        render_template(template, CHATS[0], TOKENS)
    assert time.thread_time() - start < 3 * meter.SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_reading_a_hostile_template_ends_within_seconds_and_megabytes(template):
    """When a checkpoint is loaded, and when it is asked which form of content it wants."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    for read in (lambda template: check_template(template, "here"), wants_parts):
        with contextlib.suppress(CheckpointError, TemplateError):
            read(template)
    assert time.thread_time() - start < 3 * meter.SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


def test_a_source_that_is_too_long_is_not_even_parsed():
    with pytest.raises(TemplateError, match="65537 characters, at most 65536 are read"):
        wants_parts("a" * 65_537)


def test_a_long_chat_is_rendered_all_the_same():
    chat = CHATS[1] * 500 + [{"role": "user", "content": [text("long " * 50_000)]}]
    for template in (
        LLAVA_1_5,
        "{% for m in messages %}{{ messages[loop.index0].role }}{{ messages | length }}{% endfor %}",
    ):
        assert render_template(template, chat, TOKENS) == theirs(template, chat)


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_of_several_places_the_first_that_hugging_face_looks_in_counts(tmp_path):
    """`ProcessorMixin.get_processor_dict`: its own config, the legacy JSON, the Jinja file; else the tokenizer's."""
    assert find_template(tmp_path, None) is None
    assert find_template(tmp_path, "of the tokenizer") == "of the tokenizer"
    write(tmp_path, chat_template_jinja="in Jinja")
    assert find_template(tmp_path, "of the tokenizer") == "in Jinja"
    write(tmp_path, chat_template_json={"chat_template": "in JSON"})
    assert find_template(tmp_path, "of the tokenizer") == "in JSON"
    write(tmp_path, processor_config_json={"chat_template": None})
    assert find_template(tmp_path, "of the tokenizer") == "in JSON"
    write(tmp_path, processor_config_json={"chat_template": "of the processor"})
    assert find_template(tmp_path, "of the tokenizer") == "of the processor"


NAMED = {"default": "the default", "tool_use": "another"}
LISTED = [{"name": name, "template": template} for name, template in NAMED.items()]


@pytest.mark.parametrize("value", [NAMED, LISTED], ids=["table", "list"])
def test_of_named_templates_the_default_is_taken(tmp_path, value):
    assert find_template(tmp_path, value) == "the default"
    assert find_template(write(tmp_path, processor_config_json={"chat_template": value}), None) == "the default"
    assert find_template(write(tmp_path, chat_template_json={"chat_template": value}), None) == "the default"


@pytest.mark.parametrize(
    "value", [3, True, [], [3], [{}], {}, {"default": 3}, {"other": "x"}, [{"name": "default"}], ["x"]]
)
def test_a_template_of_the_wrong_type_is_this_librarys_error(tmp_path, value):
    with pytest.raises(CheckpointError, match="chat"):
        find_template(tmp_path, value)
    for name in ("processor_config_json", "chat_template_json"):
        with pytest.raises(CheckpointError, match="chat"):
            find_template(write(tmp_path, **{name: {"chat_template": value}}), None)


@pytest.mark.parametrize("value", ["[1]", "{", "{}", "\udce9"])
def test_a_damaged_file_of_a_template_is_named(tmp_path, value):
    (tmp_path / "chat_template.json").write_bytes(value.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"chat_template\.json"):
        find_template(tmp_path, None)


def test_a_template_that_is_no_jinja_is_refused_when_it_is_read():
    with pytest.raises(CheckpointError, match=r"the chat template of here cannot be read"):
        check_template("{% for", "here")
