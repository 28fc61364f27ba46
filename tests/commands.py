"""The commands of the documents, run in a workspace of their own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

MAKE_DATA = "python scripts/make_dummy_data.py --root data/brats2018 --n 4"
# What makes a command cheap without changing what it does; of an option given twice the last counts.
CHEAPER = {
    "scripts/make_dummy_data.py": ["--spacing-mm", "4"],
    "train.py": [
        *("--epochs", "1", "--crop-size", "[32, 32, 32]", "--crops-per-case", "1"),
        *("--num-workers", "0"),
    ],
    "infer.py": [],
    "evaluate": ["--subsets", "flair"],
    "plot": [],
    "segment": [],
    "check": [],
    "convert": [],
    "list": [],
    "merge": [],
    "compare": ["--subsets", "flair"],
    "push": [],
    "pull": [],
    "phantom": ["--n", "1", "--spacing-mm", "4"],
}


def workspace(folder: Path) -> Path:
    """The launchers and configurations of the repository, and nothing that a command writes."""
    for name in ("train.py", "infer.py", "scripts", "configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def execute(command: str, folder: Path, *, options: list[str], **variables: str) -> str:
    """Run a command as it is, with further options and environment variables; return what it prints."""
    words = shlex.split(command) + options
    programs = Path(sys.executable).parent
    # Prepared cases go below the home.
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    environment |= variables
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=3000
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def execute_cheaply(command: str, folder: Path, **variables: str) -> str:
    """Run a command with what makes it cheap; each must be known."""
    words = shlex.split(command)
    (options,) = (cheaper for name, cheaper in CHEAPER.items() if name in words)
    if words[:3] == ["lora-moe-hgd", "evaluate", "--compare"]:
        # Earlier scores are compared as they are.
        options = []
    if "--continue" in words:
        # One epoch more than the run has done.
        options = [*options, "--epochs", "2"]
    return execute(command, folder, options=options, **variables)
