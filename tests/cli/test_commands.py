"""The command line: what it prints, and that whatever a user gets wrong ends in one line and exit code 2."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from PIL import Image

import sparsevlm_jax as sv
from sparsevlm_jax import SparsityConfig, cli, methods
from sparsevlm_jax.runtime import compilation_cache
from tests.tiny import random_image


@pytest.fixture
def checkpoint(tiny_checkpoint) -> Path:
    return tiny_checkpoint


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(random_image()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in argv])
    return code, *capsys.readouterr()


def assert_one_line_error(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("sparsevlm: error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


@pytest.mark.parametrize("command", ["", "demo", "generate", "convert", "export", "info", "methods", "visualize"])
def test_help_shows_examples_and_loads_nothing_heavy(command):
    arguments = [*command.split(), "--help"]
    script = f"import sys; sys.modules['jax'] = None; from sparsevlm_jax import cli; cli.main({arguments})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"sparsevlm {command or 'generate'} " in done.stdout.partition("examples:" if command else "arXiv")[2]


def test_the_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^    (\w+)", capsys.readouterr().out.partition("COMMAND\n")[2], re.MULTILINE)
    assert listed == [add.__name__.removeprefix("add_") for add in cli.COMMANDS]


@pytest.mark.parametrize("line", ["", "fly", "generate", "info", "generate --model x --prompt ? --top-k a"])
def test_a_command_line_that_does_not_parse_exits_with_usage(line, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(line.split())
    assert exit_.value.code == 2 and capsys.readouterr().err.startswith("usage: sparsevlm")


def ask(capsys, checkpoint: Path, photo: Path, *options: object) -> str:
    common = ("--model", checkpoint, "--prompt", "What is it?", "--max-new-tokens", 6)
    code, out, err = run(capsys, "generate", *common, "--image", photo, *options)
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize(("method", "sparsity"), [("sparsevlm", SparsityConfig.sparsevlm("1/4")), ("dense", None)])
def test_generate_prints_what_the_library_answers(checkpoint, photo, capsys, method, sparsity):
    expected = sv.generate(sv.load(checkpoint), "What is it?", photo, sparsity=sparsity, max_new_tokens=6).text
    options = ("--method", method, "--tokens", "1/4")
    assert ask(capsys, checkpoint, photo, *options) == expected + "\n"
    assert ask(capsys, checkpoint, photo, *options, "--stream") == expected + "\n"


def test_generate_json_is_one_object_with_text_and_report(checkpoint, photo, capsys):
    out = ask(capsys, checkpoint, photo, "--json")
    assert out.count("\n") == 1
    answer = json.loads(out)
    assert answer["text"] + "\n" == ask(capsys, checkpoint, photo)
    assert answer["report"]["method"] == "sparsevlm" and answer["report"]["visual_tokens"][0] == 16


@pytest.mark.slow
def test_the_dtype_is_what_the_model_computes_in(checkpoint, photo, capsys):
    single, half = (
        json.loads(ask(capsys, checkpoint, photo, "--json", "--dtype", dtype))["report"]["kv_bytes"]
        for dtype in ("float32", "bfloat16")
    )
    assert single == 2 * half > 0


def test_a_seed_gives_the_same_draws_and_another_seed_others(checkpoint, photo, capsys):
    first, again, other = (ask(capsys, checkpoint, photo, "--temperature", 1, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.slow
def test_two_images_stand_where_their_marks_are(checkpoint, photo, capsys):
    common = ("generate", "--model", checkpoint, "--prompt", "Is <image> like <image>?", "--max-new-tokens", 2)
    assert run(capsys, *common, "--image", photo, photo)[0] == 0
    assert run(capsys, *common, "--image", photo, "--image", photo)[0] == 0
    assert_one_line_error(run(capsys, *common, "--image", photo), "2 <image> marks, got 1 images")


def test_info_tells_the_model_and_its_layout(checkpoint, capsys):
    code, out, err = run(capsys, "info", checkpoint)
    assert (code, err) == (0, "")
    assert f"{checkpoint}: huggingface checkpoint, names of layout A" in out
    assert "56 pixels in patches of 14: 16 tokens an image" in out


def test_info_json_is_one_object(checkpoint, capsys):
    code, out, err = run(capsys, "info", checkpoint, "--json")
    info = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert info["config"]["vision"]["image_size"] == 56 and info["dtypes"] == {"float32": info["parameters"]}


def test_convert_writes_a_folder_that_info_knows_and_does_not_write_it_twice(checkpoint, tmp_path, capsys):
    target = tmp_path / "converted"
    assert run(capsys, "convert", checkpoint, target)[:2] == (0, f"converted: {target}\n")
    assert "converted checkpoint" in run(capsys, "info", target)[1]
    assert_one_line_error(run(capsys, "convert", checkpoint, target), str(target), "exists")
    assert run(capsys, "convert", checkpoint, target, "--overwrite")[0] == 0


@pytest.mark.parametrize("command", ["info", "convert"])
def test_a_checkpoint_that_is_not_there_is_one_line(command, tmp_path, capsys):
    target = [tmp_path / "out"] if command == "convert" else []
    assert_one_line_error(run(capsys, command, tmp_path / "absent", *target), str(tmp_path / "absent"))
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_can_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEVLM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="absent"):
        cli.main(["info", str(tmp_path / "absent")])


def test_compiled_programs_are_kept_where_the_user_keeps_caches(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation_cache, "_executables", None)
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    try:
        run(capsys, "info", checkpoint)
        assert getattr(jax.config, name) == str(tmp_path / "sparsevlm-jax")
    finally:
        jax.config.update(name, before)


def test_a_reader_that_goes_away_is_no_error(checkpoint):
    command = f"{sys.executable} -m sparsevlm_jax.cli info {checkpoint} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_methods_lists_every_method_with_a_line_about_it(capsys):
    code, out, err = run(capsys, "methods")
    listed = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (code, err) == (0, "") and listed.keys() == methods.METHODS.keys() and "fastv" in listed
    assert all(len(line) <= 120 for line in out.splitlines())


def test_an_unknown_method_is_one_line_that_names_the_others(capsys):
    answer = run(capsys, "generate", "--model", "nowhere", "--prompt", "?", "--method", "magic")
    assert_one_line_error(answer, "'magic'", "divprune", "sparsevlm-diverse")
