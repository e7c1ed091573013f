"""The examples run, and say what their text says."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_compose_prunes_in_a_decoder_that_is_not_ours():
    out = subprocess.run([sys.executable, str(EXAMPLES / "compose.py")], capture_output=True, text=True, check=True)
    assert out.stdout == "70 tokens enter, 24 go on: 6 text, 16 kept, 2 merged\n"


def test_compose_needs_under_60_lines_and_none_of_our_models():
    source = (EXAMPLES / "compose.py").read_text()
    assert len(source.splitlines()) < 60
    assert "sparsevlm_jax.models" not in source
