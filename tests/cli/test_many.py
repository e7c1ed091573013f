"""`generate --prompts`: each line is answered as it would be alone, and a bad line hurts none but itself."""

import io
import json
import shutil
import sys

import pytest

import sparsevlm_jax as sv
from sparsevlm_jax import vlm

pytestmark = pytest.mark.slow


@pytest.fixture
def ask(run, tiny_checkpoint, tmp_path):
    """Writes the lines to a file and runs the command on it; exit code, results, standard error."""

    def ask(lines: list, *options: object, name: object = None):
        (tmp_path / "prompts.jsonl").write_bytes(
            b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        )
        code, out, err = run(
            "generate",
            *("--model", tiny_checkpoint, "--max-new-tokens", 4, "--prompts", name or tmp_path / "prompts.jsonl"),
            *options,
        )
        return code, [json.loads(line) for line in out.splitlines()], err

    return ask


@pytest.fixture
def lines(photo, tmp_path) -> list:
    (tmp_path / "more").mkdir()
    shutil.copy(photo, tmp_path / "more" / "b.png")
    return [
        {"prompt": "What is it?", "image": "photo.png"},
        {"prompt": "Is <image> like <image>?", "image": ["photo.png", "more/b.png"]},
        {"prompt": "What is written on the sign?"},
    ]


@pytest.mark.parametrize(
    "batch_size", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_every_line_is_answered_as_it_would_be_alone(ask, lines, tiny_checkpoint, photo, batch_size):
    code, results, err = ask(lines, "--batch-size", batch_size)
    model = sv.load(tiny_checkpoint)
    images = [photo, [photo, photo], None]
    alone = [
        sv.generate(model, line["prompt"], image, max_new_tokens=4).text
        for line, image in zip(lines, images, strict=True)
    ]
    assert (code, err) == (0, "")
    assert [result["text"] for result in results] == alone
    assert [result["line"] for result in results] == [1, 2, 3]
    assert results[0]["report"]["visual_tokens"][0] == 16


def test_bad_lines_are_told_each_and_counted(ask, lines):
    bad = [
        (b"{", "not a line of JSON"),
        (b"\xff", "not a line of JSON"),
        (b"[" * 100_000, "not a line of JSON"),
        (["What?"], "expected an object"),
        ({"image": "photo.png"}, "expected an object"),
        ({"prompt": "?", "picture": "photo.png"}, "unknown keys 'picture'"),
        ({"prompt": "?", "image": 3}, "expected the name of a file"),
        ({"prompt": "?", "image": "absent.png"}, "absent.png"),
        ({"prompt": "Is <image> like <image>?", "image": "photo.png"}, "2 <image> marks, got 1 images"),
        ({"prompt": 3}, "expected a text or a list of chat messages as prompt, got 3"),
        ({"prompt": {"role": "user", "content": "?"}}, "as prompt, got {'content': '?', 'role': 'user'}"),
        ({"prompt": None}, "as prompt, got None"),
        ({"prompt": ["?"]}, "expected a message with a role"),
        ({"prompt": [{"role": "user", "content": [3]}]}, "expected a part of type 'text'"),
        ({"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "expected a part of"),
    ]
    code, results, err = ask([lines[0], *(line for line, _ in bad), b"", lines[0]], "--batch-size", 4)
    assert code == 2 and err.count("\n") == 1 and f"{len(bad)} of {len(bad) + 2} prompts" in err
    assert results[0]["text"] == results[-1]["text"] and results[-1]["line"] == len(bad) + 3  # empty lines count
    for result, (_, words) in zip(results[1:-1], bad, strict=True):
        assert words in result["error"]


def test_the_model_is_loaded_once(ask, lines, monkeypatch):
    loads = []

    def load(*args, **options):
        loads.append(args)
        return loaded(*args, **options)

    loaded = vlm.load
    monkeypatch.setattr(vlm, "load", load)
    ask(lines)
    assert len(loads) == 1


def test_questions_share_the_picture_of_the_command_line(ask, lines, photo):
    alone = ask(lines[:1])[1]
    shared = ask([{"prompt": lines[0]["prompt"]}], "--image", photo)[1]
    assert [result["text"] for result in shared] == [result["text"] for result in alone]


def test_a_line_that_says_no_picture_gets_none(ask, photo):
    lines = [{"prompt": "What is it?"} | image for image in ({}, {"image": None}, {"image": []})]
    code, results, _ = ask(lines, "--image", photo)
    assert code == 0 and [result["report"]["visual_tokens"][0] for result in results] == [16, 16, 0]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "more/b.png"},
        {"type": "image", "path": "more/b.png"},
        {"type": "image", "url": "more/b.png"},
        {"type": "image_url", "image_url": "more/b.png"},
        {"type": "image_url", "image_url": {"url": "more/b.png"}},
    ],
    ids=lambda part: "-".join(part),
)
def test_paths_in_a_chat_count_from_the_files_folder(ask, lines, part):
    """As `image` does; the working directory has no such file."""
    content = [part, {"type": "text", "text": "What is it?"}]
    code, results, err = ask([{"prompt": [{"role": "user", "content": content}]}])
    assert (code, err) == (0, "") and results[0]["report"]["visual_tokens"][0] == 16


def test_lines_come_from_standard_input(ask, lines, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    class Stdin:
        buffer = io.BytesIO(json.dumps(lines[0]).encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    code, results, _ = ask([], name="-")
    assert code == 0 and len(results) == 1 and results[0]["text"]


def test_no_prompts_at_all_is_an_error(ask, tmp_path):
    assert ask([])[0] == 2
    code, results, err = ask([], name=tmp_path / "absent.jsonl")
    assert (code, results, err.count("\n")) == (2, [], 1) and "absent.jsonl" in err


@pytest.mark.parametrize("option", ["--trace=x.npz", "--stream", "--compare=dense"])
def test_what_is_for_one_prompt_is_refused(ask, lines, option):
    code, results, err = ask(lines, option)
    assert (code, results) == (2, []) and "--prompts goes with neither" in err
