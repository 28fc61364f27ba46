"""`lora-moe-hgd phantom`: write synthetic cases with ground truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..arguments import CommandParser
from ..files import counted
from .anatomy import read_templates
from .brain_maps import label_map_files
from .phantom import make_phantom, write_phantom_case
from .style import NARROW, WIDE

# The first cases from this seed on have tumours of usual size, and their images give no warning.
ORDINARY_SEED = 1_000_049


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(description="Write phantom cases with ground truth.")
    parser.add_argument("--root", type=Path, required=True, help="output folder for the cases case_000, case_001, ...")
    parser.add_argument("--n", type=int, default=4, help="number of cases")
    parser.add_argument(
        "--seed",
        type=int,
        default=ORDINARY_SEED,
        help="random seed of the first case; each further case adds 1 to it",
    )
    parser.add_argument("--spacing-mm", type=float, help="edge of a voxel in mm (default: 2, or 1 with --format npy)")
    parser.add_argument(
        "--label-maps",
        type=Path,
        help="folder of FreeSurfer-style label maps of brains; each case is made from one of the maps or from "
        "the built-in brain, each with the same probability",
    )
    parser.add_argument(
        "--wide",
        action="store_true",
        help="draw all properties of a case from the ranges of the training data, which are far wider than the ranges "
        "of real cases; one case in six has no tumour",
    )
    parser.add_argument("--format", choices=["nii.gz", "npy"], default="nii.gz", help="format of the image files")
    return parser


def main(argv: Sequence[str]) -> None:
    """Write phantom cases into a folder."""
    args = build_parser().parse_args(argv)
    if args.format == "npy" and args.spacing_mm not in (None, 1.0):
        raise ValueError(
            f"--spacing-mm must be 1 for --format npy, got {args.spacing_mm}. "
            "An npy file stores no voxel size, so all commands assume 1 mm."
        )
    spacing_mm = args.spacing_mm or (1.0 if args.format == "npy" else 2.0)
    label_maps = label_map_files(args.label_maps) if args.label_maps else ()
    folders = [args.root / f"case_{index:03d}" for index in range(args.n)]
    for folder in folders:
        if folder.exists():
            raise FileExistsError(f"{folder} exists already. Choose another --root, or remove this folder.")
    read_templates(spacing_mm, label_maps)
    for index, folder in enumerate(tqdm(folders, desc="phantoms", unit="case")):
        style = WIDE if args.wide else NARROW
        phantom = make_phantom(args.seed + index, spacing_mm=spacing_mm, label_maps=label_maps, style=style)
        write_phantom_case(phantom, folder, file_format=args.format)
    print(f"{counted(args.n, 'case')} in {args.root}")
