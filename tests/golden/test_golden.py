"""This library computes what the official code computed: every recording of the repository, and of SPARSEVLM_GOLDEN."""

import filecmp
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden import check

RECORDINGS = Path(__file__).parent / "recordings"
CASE = RECORDINGS / "v15_64"  # a case that is also replayed damaged; its programs are compiled once


def cases() -> list[Path]:
    """The repository's recordings, and those of the folder named by SPARSEVLM_GOLDEN that are not the same files."""
    ours = {case.name: case for case in check.find_cases(RECORDINGS)}
    more = check.find_cases(Path(folder)) if (folder := os.environ.get("SPARSEVLM_GOLDEN")) else []
    known = {case.name for case in more if case.name in ours and _same(case, ours[case.name])}
    return [*ours.values(), *(case for case in more if case.name not in known)]


def _same(one: Path, other: Path) -> bool:
    files = ["golden.npz", *(name for name in ("meta.json", "index.json") if (one / name).is_file())]
    return filecmp.cmpfiles(one, other, files, shallow=False)[0] == files


QUICK = {"e2e_v15_128", "v10_rank"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow) for case in cases()],
)
def test_recording_is_reproduced(case):
    comparison = check.check(case)
    assert not comparison.failures, "\n".join(comparison.failures)
    assert comparison.compared > 0


def damaged(folder: Path, change) -> Path:
    """A copy of CASE in `folder` whose arrays went through `change`; it finds the model where the original does."""
    folder.mkdir()
    meta = json.loads((CASE / "meta.json").read_text())
    meta["model"] = str((CASE / meta["model"]).resolve())
    (folder / "meta.json").write_text(json.dumps(meta))
    with np.load(CASE / "golden.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez(folder / "golden.npz", **arrays)
    return folder


def move_one_kept_index(arrays):
    dropped = np.setdiff1d(np.arange(576), arrays["L2.kept_idx"])
    arrays["L2.kept_idx"] = np.sort(np.append(arrays["L2.kept_idx"][1:], dropped[0]))


def shift_logits(arrays):
    arrays["gen_logits"] = arrays["gen_logits"] + 1e-3 * np.abs(arrays["gen_logits"]).max()


def change_last_token(arrays):
    arrays["gen_ids"][-1] += 1


def move_hidden_state(arrays):
    arrays["L15.hidden_after"] = arrays["L15.hidden_after"] * (1 + 1e-4)


def miscount_flops(arrays):
    arrays["flops_counter"] = arrays["flops_counter"] + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (None, None),
        (move_one_kept_index, "L2.kept_idx"),
        (shift_logits, "gen_logits"),
        (change_last_token, "gen_ids"),
        (move_hidden_state, "L15.hidden_after"),
        (miscount_flops, "flops_counter"),
    ],
)
def test_check_fails_on_a_damaged_recording_and_names_what_differs(tmp_path, capsys, change, named):
    case = damaged(tmp_path / "case", change or (lambda arrays: None))
    status = check.main([str(case)])
    lines = capsys.readouterr().out.splitlines()
    if named is None:
        assert (status, len(lines)) == (0, 1) and lines[0].startswith("pass")
    else:
        assert status == 1 and lines[0].startswith("FAIL")
        assert [line for line in lines[1:] if line.strip().startswith(named)]


def test_unknown_kinds_fail_unless_allowed(tmp_path, capsys):
    unknown = tmp_path / "next_version"
    unknown.mkdir()
    shutil.copy(RECORDINGS / "functional" / "golden.npz", unknown)
    (unknown / "meta.json").write_text(json.dumps({"version": "v99"}))
    assert check.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == "FAIL  next_version: unsupported: version 'v99'\n"
    assert check.main([str(tmp_path), "--allow-unsupported"]) == 0
    assert capsys.readouterr().out.startswith("skip  next_version")


def test_an_unknown_function_is_an_unsupported_kind(tmp_path):
    folder = tmp_path / "functions"
    folder.mkdir()
    shutil.copy(RECORDINGS / "functional" / "golden.npz", folder)
    (folder / "index.json").write_text(json.dumps({"entries": [{"name": "x0", "fn": "of the future"}]}))
    with pytest.raises(NotImplementedError, match="of the future"):
        check.check(folder)


def test_a_folder_without_recordings_fails(tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 1
    assert "no recorded case" in capsys.readouterr().out
