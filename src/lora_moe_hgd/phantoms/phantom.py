"""Phantoms: synthetic glioma cases with exact labels, for tests, demonstrations and training."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..arguments import CommandParser
from ..files import counted
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.label_schemes import LABEL_SCHEMES
from .anatomy import random_anatomy, read_templates
from .brain_maps import label_map_files
from .contrast import paint
from .noise import chance
from .style import NARROW, WIDE, PhantomStyle
from .tumour import displace, random_tumour

# From this seed on, the first cases have tumours of usual size, and no rule warns about their images.
ORDINARY_SEED = 1_000_049
FILE_STEMS = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}


@dataclass(frozen=True)
class Phantom:
    """One synthetic case.

    Attributes:
        volumes: One `(D, H, W)` float32 volume per sequence, positive inside the brain, exactly zero outside.
        regions: WT, TC and ET, nested, `(3, D, H, W)` bool; never outside the brain.
        affine: Voxel to millimetre in RAS, `(4, 4)`.
    """

    volumes: dict[str, Tensor]
    regions: Tensor
    affine: np.ndarray


def make_phantom(
    seed: int,
    *,
    spacing_mm: float = 1.0,
    label_maps: Sequence[Path] = (),
    style: PhantomStyle = WIDE,
    device: str | torch.device = "cpu",
) -> Phantom:
    """Make phantom number `seed` on isotropic voxels; the same seed, spacing, maps and style give the same phantom.

    Random numbers are drawn on the CPU, and everything else is computed on `device`. So results on different devices
    agree up to rounding.

    Args:
        seed: Number of the phantom.
        spacing_mm: Edge of a voxel.
        label_maps: FreeSurfer-style label maps of brains. One of them or the built-in MNI152 template is the start.
        style: Ranges of everything that differs between phantoms.
        device: Where to compute.

    Raises:
        ValueError: If `spacing_mm` is outside 1 to 4 mm. The template has 1 mm voxels, and tumours vanish above 4 mm.
    """
    if not 1.0 <= spacing_mm <= 4.0:
        raise ValueError(f"`spacing_mm` must be between 1 and 4, got {spacing_mm}.")
    generator = torch.Generator().manual_seed(seed)
    if chance(style.narrow_share, generator):
        style = NARROW
    # All functions of this package create their tensors on the default device.
    with torch.device(device):
        anatomy = random_anatomy(spacing_mm=spacing_mm, generator=generator, style=style, label_maps=label_maps)
        tumour = random_tumour(anatomy, generator=generator, style=style)
        volumes = paint(displace(anatomy, tumour), tumour, generator=generator, style=style)
    brain = volumes["t1"] != 0
    return Phantom(volumes=volumes, regions=tumour.regions & brain, affine=anatomy.affine)


def write_phantom_case(phantom: Phantom, folder: Path, *, file_format: Literal["nii.gz", "npy"] = "nii.gz") -> None:
    """Write `{T1,T1c,T2,FLAIR,seg}` into a new `folder`, which appears only when it is complete.

    Labels: 0 background, 1 in WT only, 2 in TC but not ET, 3 ET.

    Raises:
        FileExistsError: If `folder` exists. Nothing is overwritten.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another --root or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    arrays = {FILE_STEMS[name]: phantom.volumes[name].cpu().numpy() for name in MODALITIES}
    arrays["seg"] = LABEL_SCHEMES["msd"].encode(phantom.regions.cpu().numpy())
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        for stem, array in arrays.items():
            if file_format == "npy":
                np.save(whole / f"{stem}.npy", array)
            else:
                nib.save(nib.Nifti1Image(array, phantom.affine), whole / f"{stem}.nii.gz")
        whole.rename(folder)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(description="Write phantom cases with ground truth.")
    parser.add_argument("--root", type=Path, required=True, help="folder that gets case_000, case_001, ...")
    parser.add_argument("--n", type=int, default=4, help="number of cases")
    parser.add_argument("--seed", type=int, default=ORDINARY_SEED, help="seed of the first case")
    parser.add_argument("--spacing-mm", type=float, help="edge of a voxel in mm (default: 2; npy: always 1)")
    parser.add_argument(
        "--label-maps",
        type=Path,
        help="folder of FreeSurfer-style label maps of brains; each case starts from one of them or from the "
        "built-in brain, all equally likely",
    )
    parser.add_argument(
        "--wide",
        action="store_true",
        help="draw from the ranges of the training data, which are far wider than those of real cases; one case in "
        "six has no tumour",
    )
    parser.add_argument("--format", choices=["nii.gz", "npy"], default="nii.gz", help="file format")
    return parser


def main(argv: Sequence[str]) -> None:
    """Write phantom cases into a folder."""
    args = build_parser().parse_args(argv)
    if args.format == "npy" and args.spacing_mm not in (None, 1.0):
        raise ValueError(
            f"--spacing-mm must be 1 for npy, got {args.spacing_mm}. "
            "An npy file stores no voxel size and is read as 1 mm."
        )
    spacing_mm = args.spacing_mm or (1.0 if args.format == "npy" else 2.0)
    label_maps = label_map_files(args.label_maps) if args.label_maps else ()
    folders = [args.root / f"case_{index:03d}" for index in range(args.n)]
    for folder in folders:
        if folder.exists():
            raise FileExistsError(f"{folder} exists already; choose another --root or remove it.")
    read_templates(spacing_mm, label_maps)
    for index, folder in enumerate(tqdm(folders, desc="phantoms", unit="case")):
        style = WIDE if args.wide else NARROW
        phantom = make_phantom(args.seed + index, spacing_mm=spacing_mm, label_maps=label_maps, style=style)
        write_phantom_case(phantom, folder, file_format=args.format)
    print(f"{counted(args.n, 'case')} in {args.root}")
