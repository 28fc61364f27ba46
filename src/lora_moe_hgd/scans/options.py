"""Options of the commands that take raw images. This module can be imported without the pip extra `scans`."""

from __future__ import annotations

import argparse
from pathlib import Path

# Options of `segment` for raw images, by their name in the parsed arguments.
SCAN_OPTIONS = ("study", "series", "brain_mask", "brain_extraction", "case_id", "deface", "on", "keep")


def add_scan_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that choose the raw images to use, and the method that removes the skull."""
    parser.add_argument(
        "--study",
        metavar="NUMBER_OR_UID",
        help="study to use if there are several: its number in the list of studies, or its UID",
    )
    parser.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="SEQUENCE=NUMBER_OR_UID",
        help="series to use for a sequence, such as t1c=5: its number in the list of series, or its UID; may be given "
        "several times",
    )
    parser.add_argument(
        "--brain-mask",
        type=Path,
        metavar="FILE",
        help="NIfTI mask of the brain, drawn on the reference sequence or registered to it; replaces brain extraction",
    )
    parser.add_argument(
        "--brain-extraction",
        metavar="HOW",
        help="how to find the brain: deepbet, none (if no sequence has a skull), or a command with {input} and "
        "{output} for the paths of image and brain mask (default: deepbet for the sequences that have a skull)",
    )
    parser.add_argument(
        "--case-id",
        metavar="NAME",
        help="name of the case (default: for DICOM files a digest of the UID of the study, for other files the "
        "name of the folder)",
    )


def given_scan_options(args: argparse.Namespace) -> list[str]:
    """Names of the options in `SCAN_OPTIONS` that the user gave to `segment`, such as `--series`."""
    return [f"--{name.replace('_', '-')}" for name in SCAN_OPTIONS if getattr(args, name)]
