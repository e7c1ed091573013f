"""Rivals choose and merge what their authors' code did: the repository's recordings, and SPARSEVLM_GOLDEN_METHODS'."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.golden import check_methods
from tests.marks import quick

RECORDINGS = Path(__file__).parent / "methods"
#: Recorded for methods that are not here yet.
LATER = {"scope", "vcast", "vidcom2"}
QUICK = {f"{name}_0" for name in check_methods.CHECKS}


def cases() -> list[Path]:
    """The repository's, and those of the folder named by SPARSEVLM_GOLDEN_METHODS that are not the same files."""
    ours = check_methods.recordings(RECORDINGS)
    more = check_methods.recordings(Path(folder)) if (folder := os.environ.get("SPARSEVLM_GOLDEN_METHODS")) else []
    known = {case.name: case.read_bytes() for case in ours}
    found = [*ours, *(case for case in more if known.get(case.name) != case.read_bytes())]
    return [case for case in found if check_methods.method_of(case) not in LATER]


@pytest.mark.parametrize("recording", quick(cases(), QUICK, name=lambda path: path.stem))
def test_recording_is_reproduced(recording):
    assert check_methods.failures(recording) == []


@pytest.mark.parametrize("name", sorted(check_methods.CHECKS))
def test_another_outcome_is_noticed(name, tmp_path):
    """Whatever the recorded outputs are, others of the same shape do not pass."""
    with np.load(RECORDINGS / f"{name}_0.npz") as file:
        arrays = dict(file)
    for key in OUTPUTS[name]:
        damaged = tmp_path / f"{name}_0.npz"
        np.savez(damaged, **{**arrays, key: _changed(arrays[key])})
        assert check_methods.failures(damaged), f"{key} may be anything"


#: Outputs of each recording that the check compares.
OUTPUTS = {
    "visionzip": ["all_indices", "tokens"],
    "prumerge-plus": ["top_indices", "tokens"],
    "tome": ["group_1", "x_1", "size_1"],
    "divprune": ["order"],
    "cdpruner": ["indices"],
    "dart": ["retained", "angelslim_retained"],
    "fastv": ["keep_indexs"],
    "pyramiddrop": ["keep_indexs"],
}


def _changed(array: np.ndarray) -> np.ndarray:
    """Another index in the first place; a value off by a thousandth of the largest."""
    other = array.copy()
    flat = other.reshape(-1)
    flat[0] += 1 if np.issubdtype(array.dtype, np.integer) else 1e-3 * np.abs(array).max()
    return other


def test_a_folder_of_recordings_is_told_line_by_line(tmp_path, capsys):
    assert check_methods.main([str(tmp_path)]) == 1
    (tmp_path / "nosuch_0.npz").write_bytes((RECORDINGS / "fastv_0.npz").read_bytes())
    assert check_methods.main([str(tmp_path)]) == 1
    assert "no method 'nosuch'" in capsys.readouterr().out
    (tmp_path / "nosuch_0.npz").rename(tmp_path / "fastv_7.npz")
    assert check_methods.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "pass  fastv_7\n"
