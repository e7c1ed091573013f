"""Runs what README.md shows, literally and in order, in an empty folder: python .ci/readme.py README.md FOLDER

The blocks marked `<!-- ci: NAME -->` are run by name, elsewhere (see `run`). The model that the README names by its hub
id is a local folder of that name here, which goes before the hub: a copy of the bundled model.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path


def main(readme: Path, folder: Path) -> None:
    import sparsevlm_jax.demo

    text = readme.read_text()
    blocks = re.findall(r"(?:<!-- ([^\n]*) -->\n)?```(bash|python)\n(.*?)```", text, re.DOTALL)
    python = "".join(code for _, language, code in blocks if language == "python")
    folder.mkdir()
    os.chdir(folder)
    hub_id = re.findall(r'sv\.load\("(.*?)"\)', python)[0]
    shutil.copytree(sparsevlm_jax.demo.CHECKPOINT, hub_id)
    for mark, language, code in blocks:
        if language == "bash" and not mark.startswith("ci:"):
            for line in code.splitlines():
                run(line, ["bash", "-euo", "pipefail", "-c", line])
    run("the blocks of Python", [sys.executable, "-c", python])


def run(name: str, command: list[str]) -> None:
    print(f"\n$ {name}", flush=True)
    start = time.monotonic()
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    print(f"({time.monotonic() - start:.0f} s)", flush=True)
    if done.returncode or done.stderr:  # nothing the README shows should need a word on standard error
        sys.exit(f"exit code {done.returncode}, expected 0 and nothing on standard error:\n{done.stderr}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
