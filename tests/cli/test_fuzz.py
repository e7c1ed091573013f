"""Three hundred odd command lines: each ends with an answer, or with one line and exit code 2; none in a traceback."""

import io
import os
import random
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from sparsevlm_jax import cli, vlm
from sparsevlm_jax.checkpoints import sources
from sparsevlm_jax.demo import show

TEXTS = ["", " ", "?", "-", "--", "\0", "\ud800", "caf\udce9", "<image>", "<image>" * 9, "a" * 50_000, "\n", "🛑", "{}"]
NUMBERS = [
    "0",
    "1",
    "-1",
    "3",
    "2.5",
    "1e9",
    "1e99999999",
    "-inf",
    "nan",
    "9" * 30,
    "9" * 5000,
    "1/0",
    "1/3",
    "0x10",
    "٣",
    "",
]
METHODS = ["sparsevlm", "dense", "fastv", "tome", "random", "visionzip", "magic", "", "\ud800", "sparsevlm_plus"]
OPTIONS = [
    "layer=3",
    "layer=",
    "=",
    "layer=" + "9" * 400,
    "seed=-1",
    "seed=1e3",
    "power=nan",
    "x" * 10_000,
    "\0=\0",
    "dominant=0",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_checkpoint) -> dict[str, list[str]]:
    """Paths by what they are meant to be: good ones and odd ones."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "empty").mkdir()
    (folder / "noise").write_bytes(random.Random(0).randbytes(5000))
    (folder / "lines.jsonl").write_text('{"prompt": "?"}\n{"prompt": 3}\n[]\nnull\n{"prompt": "?", "image": "noise"}\n')
    (folder / "binary.jsonl").write_bytes(b"\xff\xfe\0\n\n" * 50)
    os.mkfifo(folder / "fifo")
    odd = [
        "",
        "/",
        ".",
        "\0",
        "\ud800",
        "caf\udce9",
        "a" * 5000,
        "no/such/thing",
        "owner/name",
        "https://x.invalid/a.png",
    ]
    odd += [str(folder / name) for name in ("empty", "noise", "absent", "lines.jsonl")]
    return {
        "model": [str(tiny_checkpoint)] * 8 + odd,
        "image": [*odd, "-", "/dev/null", "/dev/zero", str(folder / "fifo")],
        "out": [str(folder / name) for name in ("out", "out.png", "out.npz", "absent/out.png", "empty")] + odd[:6],
        "prompts": [str(folder / "lines.jsonl"), str(folder / "binary.jsonl"), "-", "/dev/null", *odd],
    }


def command(draw: random.Random, places: dict[str, list[str]]) -> list[str]:
    """A command line of options that exist, with values that need not make sense."""

    def some(**options: Sequence[str] | None) -> list[str]:
        chosen = [name for name in options if draw.random() < 0.15]
        words = []
        for name in chosen:
            values = options[name]
            words += [f"--{name.replace('_', '-')}", *([draw.choice(values)] if values else [])]
        return words

    name = draw.choice(["generate"] * 6 + ["demo", "convert", "export", "info", "methods", "visualize", "magic", ""])
    if name == "generate":
        asked = draw.choice([["--prompt", draw.choice(TEXTS)], ["--prompts", draw.choice(places["prompts"])], []])
        numbers = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "batch_size", "tokens")
        given: dict[str, Sequence[str] | None] = {
            **dict.fromkeys(numbers, NUMBERS),
            **dict.fromkeys(("json", "stream", "pad_to_square", "allow_http", "quiet")),
            **dict(image=places["image"], vision_tower=places["model"], trace=places["out"]),
            **dict(method=METHODS, compare=METHODS, method_option=OPTIONS, dtype=["float32", "int8"]),
        }
        options = [word for option in given for word in some(**{option: given[option]})]
        return [name, "--model", draw.choice(places["model"]), *asked, *options]
    if name == "demo":
        return [name, *some(seed=NUMBERS, tokens=NUMBERS), "--save", draw.choice(places["out"])]
    if name in ("convert", "export"):
        return [
            name,
            draw.choice(places["model"]),
            draw.choice(places["out"]),
            *some(dtype=["float16", "x"], overwrite=None),
        ]
    if name == "info":
        return [name, draw.choice(places["model"]), *some(json=None, quiet=None)]
    if name == "visualize":
        return [name, draw.choice(places["prompts"]), "--output", draw.choice(places["out"])]
    return [name, *some(json=None, quiet=None, version=None)]


def run(argv: list[str], capsys) -> tuple[int, str]:
    try:
        code = cli.main(argv)
    except SystemExit as exit_:  # argparse: help, or usage and an error
        return int(exit_.code or 0), capsys.readouterr().err.rpartition("\nsparsevlm")[2]
    return code, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_no_command_line_ends_in_a_traceback(seed, places, capsys, monkeypatch, tmp_path, tiny_checkpoint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = vlm.load(tiny_checkpoint)
    load = vlm.load

    def load_once(source=None, **options):  # a model of four layers, also where the demo's is meant
        tiny = source in (None, str(tiny_checkpoint), show.CHECKPOINT) and not any(options.values())
        return model if tiny else load(source, **options)

    monkeypatch.setattr(vlm, "load", load_once)
    monkeypatch.setattr(show, "load", load_once)
    draw = random.Random(seed)
    for _ in range(50):
        argv = command(draw, places)
        content = draw.choice([b"", b"?", b"\xff", b'{"prompt": "?"}\n', bytes(1000)])
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(content)}))
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            code, err = run(argv, capsys)
        told = f"{shlex.join(argv)[:500]!r}: {code}, {err[:2000]}"
        lines = [line for line in err.splitlines() if not line.startswith("sparsevlm: warning: ")]
        assert code in (0, 2) and len(lines) == (code == 2), told
        assert "unexpected" not in err and len(err) < 5000, told


def test_the_fuzz_reaches_what_it_is_meant_to(places):
    draw = random.Random(0)
    drawn = [command(draw, places) for _ in range(300)]
    assert {argv[0] for argv in drawn} >= {"generate", "demo", "convert", "export", "info", "methods", "visualize"}
    assert Path(places["model"][0]).is_dir() and sources.inspect_checkpoint(places["model"][0]).parameters
