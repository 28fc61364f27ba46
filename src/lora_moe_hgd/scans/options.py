"""Options of the commands that take raw images. This needs no further package."""

from __future__ import annotations

import argparse
from pathlib import Path

# Options of `segment` for raw images, by their name in the parsed arguments.
SCAN_OPTIONS = ("study", "series", "brain_mask", "brain_extraction", "case_id", "deface", "on", "keep")


def add_scan_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that say what is used of raw images, and how the skull is removed."""
    parser.add_argument("--study", metavar="NUMBER_OR_UID", help="which study, if there are several")
    parser.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="SEQUENCE=NUMBER_OR_UID",
        help="use this series for a sequence, such as t1c=5; may be given several times",
    )
    parser.add_argument("--brain-mask", type=Path, metavar="FILE", help="brain in the reference, used as it is")
    parser.add_argument(
        "--brain-extraction",
        metavar="HOW",
        help="deepbet, none (the skull is removed already), or a command with {input} and {output}; if left out, "
        "deepbet for the sequences that show a skull",
    )
    parser.add_argument("--case-id", metavar="NAME", help="name of the case; a digest of the study if left out")


def given_scan_options(args: argparse.Namespace) -> list[str]:
    """The options for raw images that the user gave to `segment`, as they are written."""
    return [f"--{name.replace('_', '-')}" for name in SCAN_OPTIONS if getattr(args, name)]
