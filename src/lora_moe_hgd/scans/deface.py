"""Remove the face from images before they are shown: only the brain and the tissue near the brain remain."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from ..masks import bounds
from ..model.geometry import voxel_spacing_mm

# In six raw images of open-ms, at most 0.02 % of the skin is within 5 mm of the published brain masks. Up to 26 % of
# the skin is within 10 mm, and half of it within 15 mm.
MARGIN_MM = 5.0


def without_face(head: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Set all voxels farther than `MARGIN_MM` from the brain to zero. Brain voxels do not change.

    The face is not blurred, because a blurred face would keep its shape. If the brain mask is correct, hardly any skin
    is within the margin.

    Args:
        head: Image with the skull, `(D, H, W)`.
        brain: Brain mask in the shape of `head`.
        affine: Affine of the grid of `head`, `(4, 4)`.
    """
    spacing_mm = voxel_spacing_mm(affine)
    box = bounds(brain, math.ceil(MARGIN_MM / min(spacing_mm)))
    near = ndimage.distance_transform_edt(~brain[box], sampling=spacing_mm) <= MARGIN_MM
    found = np.zeros_like(head)
    found[box] = np.where(near, head[box], 0)
    return found
