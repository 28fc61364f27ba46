"""The commands of the documents, run in a workspace of their own."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from accelerate.state import AcceleratorState

import lora_moe_hgd_cli

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
    "evaluate": ["--subsets", "all"],
    "plot": [],
    "segment": [],
    "prepare": [],
    "check": [],
    "convert": [],
    "list": [],
    "merge": [],
    "export": [],
    "exported/onnx/run.py": [],
    "examples/serve.py": [],
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


def call(words: Sequence[str], folder: Path) -> str:
    """Run `python FILE ...` or `lora-moe-hgd ...` in this process, which has imported torch; return what it prints."""
    program, *arguments = words
    printed = io.StringIO()
    # Prepared cases go below the home.
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(mock.patch.dict(os.environ, {"HOME": str(folder)}))
        stack.enter_context(mock.patch.object(sys, "argv", list(words) if program == "lora-moe-hgd" else arguments))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        # Accelerate keeps the precision of the first run of a process otherwise.
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        try:
            if program == "lora-moe-hgd":
                lora_moe_hgd_cli.main()
            else:
                # A program finds the files beside it.
                stack.enter_context(mock.patch.object(sys, "path", [str(Path(arguments[0]).parent), *sys.path]))
                runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as stopped:
            if stopped.code:
                raise AssertionError(f"{shlex.join(words)}\n{printed.getvalue()}") from None
    return printed.getvalue()


def launch(words: Sequence[str], folder: Path, **variables: str) -> str:
    """Run a command in a process of its own, with further environment variables; return what it prints."""
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    environment |= variables
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=3000
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def execute(command: str, folder: Path, *, options: Sequence[str] = (), **variables: str) -> str:
    """Run a command with further options; in a process of its own if it starts others or needs environment variables.

    The clients of the Hub read their environment when they are imported.
    """
    words = [*shlex.split(command), *options]
    if variables or words[0] not in ("python", "lora-moe-hgd"):
        return launch(words, folder, **variables)
    return call(words, folder)


def execute_cheaply(command: str, folder: Path, **variables: str) -> str:
    """Run a command with what makes it cheap; each must be known."""
    words = shlex.split(command)
    (options,) = (cheaper for name, cheaper in CHEAPER.items() if name in words)
    if "evaluate" in words and {"--compare", "--predictions"} & set(words):
        # No network is run.
        options = []
    if "train.py" in words and "reconstruct" not in words:
        options = [*options, "--subsets", "[flair]"]
    if "--continue" in words:
        # One epoch more than the run has done.
        options = [*options, "--epochs", "2"]
    return execute(command, folder, options=options, **variables)
