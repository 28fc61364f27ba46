"""Options of the commands that take raw images. This needs no further package."""

from __future__ import annotations

import argparse
from pathlib import Path

# Options of `segment` for raw images, by their name in the parsed arguments.
SCAN_OPTIONS = ("study", "series", "brain_mask", "brain_extraction", "case_id", "deface", "on", "keep")


def add_scan_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that say what is used of raw images, and how the skull is removed."""
    parser.add_argument("--study", metavar="NUMBER_OR_UID", help="study to use, if there are several")
    parser.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="SEQUENCE=NUMBER_OR_UID",
        help="use this series for a sequence, such as t1c=5; may be given several times",
    )
    parser.add_argument(
        "--brain-mask",
        type=Path,
        metavar="FILE",
        help="NIfTI mask of the brain on the reference, instead of brain extraction",
    )
    parser.add_argument(
        "--brain-extraction",
        metavar="HOW",
        help="deepbet, none (if no sequence has a skull), or a command with {input} and {output} (default: deepbet "
        "for the sequences that have a skull)",
    )
    parser.add_argument("--case-id", metavar="NAME", help="name of the case (default: a digest of the study)")


def given_scan_options(args: argparse.Namespace) -> list[str]:
    """Options for raw images that the user gave to `segment`, with their dashes."""
    return [f"--{name.replace('_', '-')}" for name in SCAN_OPTIONS if getattr(args, name)]
