"""Check brain masks: do the sequences agree, is the volume that of a brain, and does a mask cut off tissue?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from ..masks import bounds, dice, largest_part
from ..model.brain import LEAST_BRAIN_LITRES, cut_off_share, head_litres
from ..model.findings import BadInputError, Finding
from ..model.geometry import voxel_ml, voxel_spacing_mm
from ..model.grids import Volume, on_grid_of

# Usual volume of an adult brain, and the bounds beyond which a mask is not a brain.
LITRES, POSSIBLE_LITRES = (0.9, 1.9), (0.4, 2.6)
# Bounds for images without skull. The first is the largest share of the largest cross-section that may be on a border
# of the volume (`cut_off_share`). For 11 sequences of BraTS-Africa without skull, the share is at most 0.01. For raw
# heads of open-ms with zeros as background, also scaled to 0.75 or cut by up to 40 % from below, it is at least 0.36.
# The second bound is the least Dice between the non-zero voxels and deepbet's mask. The Dice is at least 0.92 without
# skull. It is at most 0.79 for two such raw heads in which zeros replace the part that was cut.
STRIPPED_ON_BORDER, STRIPPED_OVERLAP = 0.15, 0.88
# Dice of the masks of two sequences after registration below which there is a warning or an error. On real heads with
# known motions, the Dice is above 0.93 if the registration is correct.
WARN_BELOW, REFUSE_BELOW = 0.9, 0.75
# Bright tissue within `SHELL_MM` of the mask counts as cut off if it is connected to bright tissue in the mask, and if
# both parts have at least `LEAST_ML`.
SHELL_MM, LEAST_ML = 6.0, 0.5
# Tissue is bright if it exceeds the median of the brain by this number of robust standard deviations.
BRIGHT_SPREADS = 3.5


def agreed_brain(masks: Mapping[str, np.ndarray], reference: str) -> tuple[np.ndarray, list[Finding]]:
    """Combine the masks of all sequences on one grid: a voxel is brain if at least half of the masks contain it.

    Of two masks, one is therefore enough, because the other mask may leave out a tumour.

    Args:
        masks: Mask of each sequence on the reference's grid.
        reference: Name of the reference sequence.

    Raises:
        BadInputError: If a mask overlaps so little with the reference's mask that the registration must have failed.
    """
    findings = []
    for name, mask in masks.items():
        overlap = dice(mask, masks[reference])
        message = (
            f"After registration, the brain masks of {name} and {reference} differ: their Dice is only {overlap:.2f}. "
            "The registration or the brain extraction has failed."
        )
        if overlap < REFUSE_BELOW:
            raise BadInputError(
                name, f"{message} Leave the sequence out with --sequences, or register the sequence yourself."
            )
        if overlap < WARN_BELOW:
            findings.append(Finding(name, f"{message} Compare the two images in the prepared case."))
    votes = np.sum(list(masks.values()), axis=0)
    brain = votes * 2 >= len(masks)
    return ndimage.binary_fill_holes(largest_part(brain)), findings


def is_stripped(volume: Volume, brain: np.ndarray) -> bool:
    """Whether the skull has been removed.

    The answer is yes if the non-zero voxels have the volume of a brain, do not look like a complete head, are hardly
    cut off by the border of the image, and agree with the mask `brain`.

    Args:
        volume: Image with or without the skull.
        brain: Brain mask that deepbet found in the image.
    """
    mask = volume.array != 0
    litres = float(np.count_nonzero(mask) * volume.voxel_litres)
    if not LEAST_BRAIN_LITRES <= litres <= POSSIBLE_LITRES[1]:
        return False
    if cut_off_share(mask) > STRIPPED_ON_BORDER or dice(mask, brain) < STRIPPED_OVERLAP:
        return False
    return not head_litres(mask, volume.affine)


def check_brain(brain: np.ndarray, affine: np.ndarray, where: str) -> float:
    """Return the volume of a brain mask in litres.

    Raises:
        BadInputError: If the volume is too small or too large for a brain.
    """
    litres = np.count_nonzero(brain) * voxel_ml(affine) / 1000
    if not POSSIBLE_LITRES[0] <= litres <= POSSIBLE_LITRES[1]:
        raise BadInputError(
            where,
            f"The brain extraction found {litres:.2f} litres, which is not the volume of a brain. If this is an image "
            "of a complete head, give a mask with --brain-mask or another program with --brain-extraction.",
        )
    return litres


def volume_findings(brain: np.ndarray, affine: np.ndarray, where: str) -> list[Finding]:
    """Warn if the volume of a brain mask is unusual.

    Raises:
        BadInputError: If the volume is too small or too large for a brain.
    """
    litres = check_brain(brain, affine, where)
    if not LITRES[0] <= litres <= LITRES[1]:
        return [Finding(where, f"The brain mask has {litres:.2f} litres, which is unusual. Look at the mask.")]
    return []


def cut_off_findings(head: np.ndarray, brain: np.ndarray, affine: np.ndarray, where: str) -> list[Finding]:
    """Warn if bright tissue on FLAIR continues outside the brain mask: the mask may have cut off a tumour.

    T2 cannot replace FLAIR in this check, because the fluid around the brain is as bright as a tumour on T2.

    Args:
        head: FLAIR with the skull.
        brain: Brain mask on the grid of `head`.
        affine: Affine of the grid of `head`, `(4, 4)`.
        where: Name of the image, for the warning.
    """
    edges = voxel_spacing_mm(affine)
    inside = head[brain]
    median = float(np.median(inside))
    spread = 1.4826 * float(np.median(np.abs(inside - median)))
    box = bounds(brain, math.ceil(SHELL_MM / min(edges)) + 1)
    head, brain = head[box], brain[box]
    near = ndimage.distance_transform_edt(~brain, sampling=edges) <= SHELL_MM
    bright = near & (head > median + BRIGHT_SPREADS * spread)
    # Opening removes thin bridges, such as a rim of fluid, so that they connect nothing.
    parts, count = ndimage.label(ndimage.binary_opening(bright))
    if not count:
        return []
    numbers = np.arange(1, count + 1)
    within, beyond = (ndimage.sum(part, parts, numbers) * voxel_ml(affine) for part in (brain, ~brain))
    cut = (within >= LEAST_ML) & (beyond >= LEAST_ML)
    if not cut.any():
        return []
    return [
        Finding(
            where,
            f"{beyond[cut].sum():.1f} mL of bright tissue continue outside the brain mask. The mask may cut off a "
            "tumour. Look at the mask, and give a better mask with --brain-mask if needed.",
        )
    ]


def on_grid(mask: np.ndarray, affine: np.ndarray, reference: Volume) -> np.ndarray:
    """Resample a mask to the grid of `reference`.

    A voxel of this grid is true if the mask covers at least half of the voxel.
    """
    found = np.zeros(reference.array.shape, dtype=bool)
    # Compute only the box of the grid that the mask reaches, with a margin of one voxel for interpolation.
    own = bounds(mask, 1)
    corners = np.array(np.meshgrid(*((edge.start, edge.stop - 1) for edge in own), [1])).reshape(4, -1)
    to_reference = np.linalg.inv(reference.affine) @ affine
    reached = (to_reference @ corners)[:3]
    low = np.clip(np.floor(reached.min(axis=1)).astype(int), 0, found.shape)
    high = np.clip(np.ceil(reached.max(axis=1)).astype(int) + 1, low, found.shape)
    if not (high > low).all():
        return found
    box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    like = Volume(np.broadcast_to(np.float32(0), tuple(high - low)), _shifted(reference.affine, low))
    # Add one to all voxels, because `on_grid_of` takes zeros for background and does not average them.
    moved, _, _ = on_grid_of(Volume(1 + mask.astype(np.float32), affine), like)
    found[box] = moved.array >= 1.5
    return found


def _shifted(affine: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Affine of the part of an array that begins at the voxel with the index `voxels`."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ voxels
    return moved
