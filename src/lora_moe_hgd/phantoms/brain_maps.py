"""Anatomies of individuals, from a folder of FreeSurfer-style label maps such as those of SynthSeg.

The label maps use the codes of FreeSurfer's colour table. Voxels with other codes count as CSF if they are inside the
brain.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..cases.nifti import read_image
from ..model.findings import BadInputError
from ..model.geometry import voxel_spacing_mm
from .noise import gaussian_blur

WHITE = (2, 7, 25, 41, 46, 57, 77, 85, 251, 252, 253, 254, 255)
VENTRICLES = (4, 5, 14, 15, 43, 44)
GREY = (3, 8, 11, 12, 17, 18, 26, 42, 47, 50, 51, 53, 54, 58)
# Structures that look like a mixture of grey and white matter: thalamus, pallidum, and brainstem with ventral
# diencephalon. Each mixed structure gets its own random proportion.
MIXED = ((10, 49), (13, 52), (16, 28, 60))
# A label map with less grey and white matter than this, in mL, does not show a brain.
LEAST_BRAIN_ML = 300.0
# Tumours begin in white matter, either in the lowest third of the brain or above it. Both parts need at least this
# much white matter, in mL.
LEAST_WHITE_ML = 1.0


def label_map_files(folder: Path) -> list[Path]:
    """Return the paths of the label maps in a folder, sorted by name.

    Raises:
        BadInputError: If the folder holds no label map.
    """
    found = sorted(path for path in folder.glob("*") if path.name.endswith((".nii", ".nii.gz")))
    if not found:
        raise BadInputError(folder, "The folder holds no label map (.nii or .nii.gz).")
    return found


def read_label_map(path: Path) -> tuple[Tensor, Tensor, np.ndarray]:
    """Read tissues `(6, D, H, W)`, ventricles `(D, H, W)`, both float 0 or 1, and the RAS affine from a label map.

    The six tissues are CSF, grey matter, white matter and the three structures of `MIXED`. All other voxels inside the
    brain are CSF.

    Raises:
        BadInputError: If voxels are not 1 mm wide, if there is too little grey and white matter for a brain, or if
            there is too little white matter in the lowest third of the brain or in the other two thirds.
    """
    image = nib.as_closest_canonical(read_image(path).image)
    sizes_mm = voxel_spacing_mm(image.affine)
    if not np.allclose(sizes_mm, 1.0, atol=0.05):
        found = " x ".join(f"{size:.4g}" for size in sizes_mm)
        raise BadInputError(path, f"The voxels measure {found} mm. Resample the label map to 1 mm.")
    codes = np.asarray(image.dataobj).astype(np.int64)
    grey, white, *mixed = (torch.from_numpy(np.isin(codes, group)) for group in (GREY, WHITE, *MIXED))
    solid = grey | white | torch.stack(mixed).any(dim=0)
    # Messages round down, so that they never show the limit itself as too little.
    if solid.sum() < 1000 * LEAST_BRAIN_ML:
        raise BadInputError(
            path,
            f"The label map has {int(solid.sum()) // 1000} mL of grey and white matter, but a brain has at least "
            f"{LEAST_BRAIN_ML:g} mL. Use label maps of whole brains with FreeSurfer's codes.",
        )
    heights = torch.nonzero(solid.any(dim=0).any(dim=0))
    third = int(heights[0] + (heights[-1] - heights[0]) // 3)
    for where, part in (("in the lowest third", white[:, :, :third]), ("above the lowest third", white[:, :, third:])):
        if part.sum() < 1000 * LEAST_WHITE_ML:
            raise BadInputError(
                path,
                f"The label map has {int(part.sum()) // 100 / 10:.1f} mL of white matter {where} of the brain, but "
                f"needs at least {LEAST_WHITE_ML:g} mL. Use label maps of whole brains with FreeSurfer's codes.",
            )
    hull = solid | (gaussian_blur(solid.float(), (5.0,) * 3) > 0.3)
    # The inside of wide ventricles is far from solid tissue, so fill the holes of the hull.
    hull = torch.from_numpy(ndimage.binary_fill_holes(hull.numpy()))
    tissues = torch.stack([hull & ~solid, grey, white, *mixed])
    ventricles = torch.from_numpy(np.isin(codes, VENTRICLES)) & tissues[0]
    return tissues.float(), ventricles.float(), image.affine
