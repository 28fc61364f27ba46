"""`lora-moe-hgd completion`: a script that completes commands, options and their values in a shell.

The script contains every word that it can complete, except file names, so that the shell need not start Python when
the user presses Tab.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shtab

from lora_moe_hgd_cli import COMMANDS

from .arguments import CommandParser
from .pretrained import shipped_names
from .training import config

PROGRAM = "lora-moe-hgd"
SHELLS = ("bash", "zsh", "fish")
# Options of `train` that are paths. Their type is `str`, so that the value `null` can unset them.
TRAINING_PATHS = {
    "config": shtab.FILE,
    "task": shtab.FILE,
    "data.split_file": shtab.FILE,
    "data.root": shtab.DIRECTORY,
    "data.dataset": shtab.DIRECTORY,
    "data.label_maps": shtab.DIRECTORY,
    "data.cache_dir": shtab.DIRECTORY,
    "output_dir": shtab.DIRECTORY,
}
# Header that shtab writes. It is replaced, because it names other folders for the script than docs/use.md.
SHTAB_HEADER = re.compile(r"# AUTOMATICALLY GENERATED.*?# See also: \S+\n", re.DOTALL)
HEADER = "# Shell completion of lora-moe-hgd, made with shtab. docs/use.md says where to save this script.\n"
# Options and arguments whose value is a checkpoint.
CHECKPOINTS = ("checkpoint", "base", "adapters")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(
        description="Print a script that completes commands, options, checkpoints, label schemes and files. For bash, "
        "write the script to ~/.local/share/bash-completion/completions/lora-moe-hgd. For zsh and fish, docs/use.md "
        "says where to write the script."
    )
    parser.add_argument("shell", choices=SHELLS, help="your shell")
    return parser


def main(argv: Sequence[str]) -> None:
    """Print the completion script."""
    print(script(build_parser().parse_args(argv).shell))


def script(shell: str) -> str:
    """Completion script of all commands for `bash`, `zsh` or `fish`."""
    whole = argparse.ArgumentParser(prog=PROGRAM)
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers()
    for name, (module, purpose) in COMMANDS.items():
        own = importlib.import_module(module).build_parser()
        commands.add_parser(name, help=purpose, description=purpose, parents=[own], add_help=False)
        # Add the short names last, because argparse refuses two actions with the same name. Of two such actions here,
        # one is hidden from the help.
        if name == "train":
            _add_short_names(own)
        _complete_values(own)
    return SHTAB_HEADER.sub(HEADER, shtab.complete(whole, shell), count=1)


def _add_short_names(parser: Any) -> None:
    """Add the short names of the training options, such as `--num-workers` for `--data.num_workers`."""
    actions = {action.dest: action for action in parser._actions}
    for name, option in config.spellings(parser).items():
        text = f"--{name.replace('_', '-')}"
        if option in actions and "." not in name and text not in actions[option].option_strings:
            actions[option].option_strings.insert(0, text)


def _complete_values(parser: argparse.ArgumentParser) -> None:
    """Mark the options whose values are files, folders or checkpoints. shtab completes choices by itself."""
    for action in parser._actions:
        how: Any = None
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _complete_values(below)
        elif action.dest in CHECKPOINTS:
            how = _checkpoints()
        elif action.dest in TRAINING_PATHS:
            how = TRAINING_PATHS[action.dest]
        elif action.type is Path:
            how = shtab.DIRECTORY if action.metavar == "FOLDER" else shtab.FILE
        if how is not None:
            action.complete = how  # type: ignore[attr-defined]


def _checkpoints() -> dict[str, Any]:
    """Completion rule for a checkpoint: the names of the shipped checkpoints, and folders."""
    names, function = " ".join(shipped_names()), "_lora_moe_hgd_checkpoints"
    bash = f'{function}() {{\n  compgen -W "{names}" -- "$1"\n  compgen -d -S / -- "$1"\n}}'
    zsh = f"{function}() {{\n  _alternative 'names:shipped checkpoint:({names})' 'folders:folder:_files -/'\n}}"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{names} (__fish_complete_directories)",
        "preamble": {"bash": bash, "zsh": zsh},
    }
