"""Options that several commands share, so that each has one name and one meaning."""

from __future__ import annotations

import argparse
from pathlib import Path

from .pretrained import DEFAULT_CHECKPOINT


def add_in_path(parser: argparse._ActionsContainer, *, help: str, required: bool = False) -> None:
    """Add `--in-path`, also called `--data`."""
    parser.add_argument("--in-path", "--data", type=Path, metavar="PATH", required=required, help=help)


def add_out_path(parser: argparse._ActionsContainer, *, help: str, required: bool = True) -> None:
    """Add `--out-path`, also called `--out`."""
    parser.add_argument("--out-path", "--out", type=Path, metavar="FOLDER", required=required, help=help)


def add_checkpoint(parser: argparse._ActionsContainer) -> None:
    """Add `--checkpoint` and `--base`."""
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        help=f"shipped name, folder or Hub id of a network or an adapter; {DEFAULT_CHECKPOINT} if left out",
    )
    add_base(parser)


def add_base(parser: argparse._ActionsContainer) -> None:
    """Add `--base`, the place of an adapter's base."""
    parser.add_argument("--base", help="folder or Hub id of an adapter's base; where the adapter says if left out")


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="where to compute, such as cpu or cuda:0; a GPU if left out and there is one")


def add_quiet(parser: argparse._ActionsContainer) -> None:
    """Add `--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only, and no progress")


def add_allowances(parser: argparse._ActionsContainer) -> None:
    """Add `--allow-skull` and `--allow-partial`."""
    parser.add_argument("--allow-skull", action="store_true", help="accept heads with their skull; expect nonsense")
    parser.add_argument("--allow-partial", action="store_true", help="accept images that show a part of a brain")
