"""Phantoms: synthetic glioma cases with exact labels, for tests, demonstrations and training."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.label_schemes import LABEL_SCHEMES
from .anatomy import random_anatomy
from .contrast import paint
from .noise import chance
from .style import NARROW, WIDE, PhantomStyle
from .tumour import displace, random_tumour

FILE_STEMS = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}


@dataclass(frozen=True)
class Phantom:
    """One synthetic case.

    Attributes:
        volumes: One `(D, H, W)` float32 volume per sequence, positive inside the brain, exactly zero outside.
        regions: WT, TC and ET, nested, `(3, D, H, W)` bool, false outside the brain.
        affine: Affine, voxel to millimetre in RAS, `(4, 4)`.
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
    """Make phantom number `seed` on isotropic voxels; equal seed, spacing, maps and style give the same phantom.

    Random numbers are drawn on the CPU, and everything else is computed on `device`. Therefore, results on different
    devices agree up to rounding.

    Args:
        seed: Number of the phantom, which is the seed of all its random numbers.
        spacing_mm: Edge of a voxel, in millimetres.
        label_maps: Files with FreeSurfer-style label maps of brains. The brain is made from one of the label maps or
            from the MNI152 template, each with the same probability.
        style: Ranges from which all properties are drawn.
        device: Device on which the phantom is computed.

    Raises:
        ValueError: If `spacing_mm` is outside 1 to 4 mm. The template has voxels of 1 mm, and tumours vanish in voxels
            above 4 mm.
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
    """Write T1, T1c, T2, FLAIR and seg into a new `folder`, which appears only when all files are complete.

    Labels in seg: 0 background, 1 WT outside TC, 2 TC outside ET, 3 ET.

    Raises:
        FileExistsError: If `folder` exists. Nothing is overwritten.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already. Choose another --root, or remove this folder.")
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
