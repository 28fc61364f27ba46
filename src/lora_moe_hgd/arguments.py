"""Options that several commands share, with the same name and meaning in every command."""

from __future__ import annotations

import argparse
import re
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
    "subsets": ". Write one subset with plus signs, such as t1c+flair, or several subsets with commas, such as "
    "t1c,flair, in both cases without spaces.",
}
SEQUENCES_HELP = "use only these sequences together, separated by commas, such as t1c,flair (default: all)"


class CommandParser(argparse.ArgumentParser):
    """Parser whose error messages suggest the most similar option or choice."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse the options. If a list of sequences was written with spaces, the error message says so."""
        found, rest = self.parse_known_args(args, namespace)
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

    def _are_sequences(self, words: Sequence[str]) -> bool:
        """Whether the words are names of sequences, each of which may end with a comma."""
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
    """Add `--base`, the folder or Hub id of an adapter's base."""
    parser.add_argument(
        "--base", help="folder or Hub id of an adapter's base (default: the base that the adapter names)"
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="device such as cpu or cuda:0 (default: a GPU if there is one)")


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
