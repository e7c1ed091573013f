"""What the README shows in Python runs as it stands, on a tiny checkpoint in the place of the real one."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import random_image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(mark: str, language: str) -> list[str]:
    return re.findall(rf"<!-- {mark} -->\n```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_python_examples_run_in_their_order(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_checkpoint, tmp_path / "llava-hf" / "llava-1.5-7b-hf")  # a local folder goes before the hub
    for seed, name in enumerate(("street.png", "other.png")):
        Image.fromarray(random_image(seed)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    examples = blocks("test", "python")
    assert len(examples) == README.count("```python")
    names: dict = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert len(names["answers"]) == 2
    assert names["out"].report.visual_tokens == (16, 16, 10, 6)  # 9 kept and 1 merged, then 5 and 1
    assert capsys.readouterr().out


@pytest.mark.parametrize("mark", ["ci: main", "ci: test"])
def test_each_command_that_ci_runs_is_there_once_and_is_one_line(mark):
    (command,) = blocks(mark, "bash")
    assert command.count("\n") == 1


def test_every_file_the_readme_names_is_there():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    for name in linked + re.findall(r"`((?:sparsevlm_jax|convert|tests)/[\w./]*)`", README):
        assert (ROOT / name).exists(), name
