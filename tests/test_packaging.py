"""The wheel holds what is tracked, takes one import name, and works from any directory."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout knows which files are tracked")
    return [name for name in run("git", "ls-files").splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel(tracked, tmp_path_factory) -> Path:
    """Built from a copy of the tracked files, so that nothing else lying about can get in."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked:
        if not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source)
    return next(target.glob("*.whl"))


def test_the_wheel_holds_the_tracked_files_and_no_others(wheel, tracked):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {name for name in tracked if name.startswith("sparsevlm_jax/") and (ROOT / name).is_file()}
    expected |= {f"sparsevlm_jax/{name}" for name in tracked if name.startswith("convert/")}
    assert names == expected


def test_the_only_import_name_is_sparsevlm_jax(wheel):
    tops = {PurePosixPath(name).parts[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sparsevlm_jax"}


def test_the_installed_wheel_runs_from_any_directory(wheel, tmp_path):
    """In an environment of its own, with only the dependencies borrowed from this one."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = next(environment.glob("lib/python*/site-packages"))
    # A path in a .pth file does not process the .pth files there: an editable install of this checkout stays unseen.
    (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "sparsevlm generate" in run(environment / "bin" / "sparsevlm", "--help", cwd=elsewhere)
    where = "import sparsevlm_jax, sparsevlm_jax.convert as c; print(sparsevlm_jax.__file__, c.__file__)"
    for file in run(python, "-c", where, cwd=elsewhere).split():
        assert Path(file).is_relative_to(site), file


def test_importing_the_package_is_quick_and_silent():
    script = "import sys, sparsevlm_jax; assert not {'torch', 'transformers', 'orbax'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
