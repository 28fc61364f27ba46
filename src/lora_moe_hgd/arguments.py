"""Options that several commands share, with the same name and meaning in every command."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .model.configuration_lora_moe_hgd import MODALITIES
from .pretrained import DEFAULT_CHECKPOINT
from .sequence_names import role_of, sequence_hint

# Error message of `argparse` for a value that is not among the choices of an option. Python 3.12 and later write the
# choices without quotes.
WRONG_CHOICE = re.compile(r"invalid choice: '(?P<value>.*)' \(choose from (?P<known>.*)\)", re.DOTALL)
UNKNOWN_OPTION = re.compile(r"unrecognized arguments: (?P<value>--[^\s=]+)")
# Attributes of the parsed options whose value is a list, with the advice for a list that was written with spaces.
WITH_COMMAS = ". Write a list with commas and without spaces, such as t1c,flair."
LISTS = {
    "sequences": WITH_COMMAS,
    "channel_order": WITH_COMMAS,
    "subsets": ". To use sequences together, join their names by plus signs, such as t1c+flair. To use each sequence "
    "alone, separate the names by commas, such as t1c,flair. Write no spaces.",
}
SEQUENCES_HELP = "use only these sequences together, separated by commas, such as t1c,flair (default: all)"


class CommandParser(argparse.ArgumentParser):
    """Parser whose error messages suggest the most similar option or choice."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse the options. For a path without its option, or a list with spaces, the error says what to type."""
        words = sys.argv[1:] if args is None else list(args)
        self._refuse_bare_path(words)
        found, rest = self.parse_known_args(words, namespace)
        if rest:
            hints = [hint for name, hint in LISTS.items() if getattr(found, name, None)]
            spaced = self._are_sequences(rest)
            self.error(f"unrecognized arguments: {' '.join(rest)}{hints[0] if hints and spaced else ''}")
        return found

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with code 2."""
        if wrong := WRONG_CHOICE.search(message):
            message += "." + sequence_hint([wrong["value"]], re.findall(r"[^\s',]+", wrong["known"]))
        elif wrong := UNKNOWN_OPTION.search(message):
            message += "." + sequence_hint([wrong["value"]], [*self._option_string_actions])
        super().error(message)

    def _refuse_bare_path(self, words: Sequence[str]) -> None:
        """If the command line begins with a path instead of an option, print the right command and exit.

        Commands without a required option, such as `app`, need no path, so this function does nothing for them.
        """
        option = next((name for name in ("--in-path", "--checkpoint") if name in self._option_string_actions), None)
        positional = any(not action.option_strings for action in self._actions)
        needs_options = any(action.required for action in self._actions)
        if not words or words[0].startswith("-") or option is None or positional or not needs_options:
            return
        words = list(words)
        outputs = {"--out-path", "--out"} & {*self._option_string_actions}
        two_paths = len(words) > 1 and not words[1].startswith("-")
        if two_paths and outputs and not outputs & {word.partition("=")[0] for word in words}:
            words.insert(1, "--out-path")
        given = {word.partition("=")[0] for word in words}
        needed = [
            word
            for action in self._actions
            if action.required and not given & {option, *action.option_strings} and option not in action.option_strings
            for word in (action.option_strings[0], action.metavar or action.dest.upper())
        ]
        command = f"{self.prog} {shlex.join([option, *words, *map(str, needed)])}"
        self.exit(2, f"error: '{words[0]}' must follow an option, such as {option}. Type:\n  {command}\n")

    def _are_sequences(self, words: Sequence[str]) -> bool:
        """Whether each of `words` is the name of a sequence. Commas around the names are ignored."""
        # The choices of --reference are the sequences of the task.
        reference = self._option_string_actions.get("--reference")
        known = {*MODALITIES, *((reference and reference.choices) or ())}
        return all(name in known or role_of(name) in known for name in (word.strip(",") for word in words))


def add_in_path(parser: argparse._ActionsContainer, *, help: str, required: bool = False) -> None:
    """Add `--in-path` and its alias `--data`."""
    parser.add_argument("--in-path", "--data", type=Path, metavar="PATH", required=required, help=help)


def add_out_path(parser: argparse._ActionsContainer, *, help: str, required: bool = True) -> None:
    """Add `--out-path` and its alias `--out`."""
    parser.add_argument("--out-path", "--out", type=Path, metavar="FOLDER", required=required, help=help)


def add_checkpoint(parser: argparse._ActionsContainer) -> None:
    """Add `--checkpoint` and `--base`."""
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        help=f"name of a shipped checkpoint, or folder or Hub id of a network or an adapter (default: "
        f"{DEFAULT_CHECKPOINT})",
    )
    add_base(parser)


def add_task(parser: argparse._ActionsContainer) -> None:
    """Add `--task`."""
    parser.add_argument(
        "--task", type=Path, metavar="FILE", help="YAML file that defines your own task (default: brain tumour)"
    )


def add_base(parser: argparse._ActionsContainer) -> None:
    """Add `--base`, the base network of an adapter."""
    parser.add_argument(
        "--base",
        help="for an adapter: folder or Hub id of its base (default: the base that adapter_config.json names)",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="device such as cpu or cuda:0 (default: a GPU if there is one)")


def add_channel_order(parser: argparse._ActionsContainer) -> None:
    """Add `--channel-order`."""
    parser.add_argument(
        "--channel-order",
        metavar="NAMES",
        help="for numbered files (CASE_0000.nii.gz) and 4-D files only: sequence of each file or channel, in "
        "ascending order, such as flair,t1,t1c,t2",
    )


def add_mirror(parser: argparse._ActionsContainer) -> None:
    """Add `--mirror`."""
    parser.add_argument(
        "--mirror",
        action="store_true",
        help="average the logits of the case and of its left-right mirror image; takes twice as long",
    )


def add_bf16(parser: argparse._ActionsContainer) -> None:
    """Add `--bf16`."""
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="compute in bfloat16: faster on most GPUs and on recent processors, with almost the same result",
    )


def add_quiet(parser: argparse._ActionsContainer) -> None:
    """Add `--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="print only warnings and errors")


def add_allowances(parser: argparse._ActionsContainer) -> None:
    """Add `--allow-skull` and `--allow-partial`."""
    parser.add_argument("--allow-skull", action="store_true", help="accept images with the skull; results are poor")
    parser.add_argument("--allow-partial", action="store_true", help="accept images of only a part of a brain")
