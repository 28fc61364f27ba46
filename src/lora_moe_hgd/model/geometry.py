"""Geometry of a volume: orientation, voxel size and resampling.

The axes of canonical volumes are in RAS order: left to right, back to front, bottom to top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class CaseGeometry:
    """Everything that is needed to convert a prediction to the case's own grid.

    The case's own grid is the grid of one of its sequences. `case_rules.settle` resamples all sequences to this grid.

    Attributes:
        shape: Shape of the case's own grid.
        affine: Affine of the case's own grid, voxel to millimetre, `(4, 4)`.
        box: Bounding box of the brain in voxels: `(first, last + 1)` along each canonical axis.
        resampled_shape: Shape of the bounding box after resampling to the network's voxel size, before padding.
        brain: Brain mask inside the box, bool, in canonical order. The prediction is zero outside the brain mask.
        warnings: Warnings about the case.
    """

    shape: Shape
    affine: np.ndarray
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    resampled_shape: Shape
    brain: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def box_shape(self) -> Shape:
        (d0, d1), (h0, h1), (w0, w1) = self.box
        return (d1 - d0, h1 - h0, w1 - w0)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel of the case's own grid, in millilitres."""
        return voxel_ml(self.affine)

    def to_own_grid(self, volumes: np.ndarray) -> np.ndarray:
        """Extend volumes from the brain's bounding box to the case's own grid, with zeros outside the box.

        Args:
            volumes: Volumes that cover the bounding box, in canonical order, `(..., D, H, W)`, with any number of
                leading axes.
        """
        own = np.zeros((*volumes.shape[:-3], *self.shape), dtype=volumes.dtype)
        (d0, d1), (h0, h1), (w0, w1) = self.box
        canonical_view(own, self.affine)[..., d0:d1, h0:h1, w0:w1] = volumes
        return own


def orientation(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return the axes and flips that bring an array into RAS order.

    To get RAS order, apply `np.transpose(array, axes)`, then flip each axis whose flag is set.

    Each anatomical axis is matched with one array axis: first the pair of axes with the closest directions, then the
    closest pair of the remaining axes, then the last pair.

    Raises:
        ValueError: If the affine is singular or not finite.

    Example:
        >>> orientation(np.diag([-1.0, -1.0, 1.0, 1.0]))  # LPS
        ((0, 1, 2), (True, True, False))
    """
    directions = np.asarray(affine, dtype=np.float64)[:3, :3]
    if not np.isfinite(directions).all() or abs(np.linalg.det(directions)) < 1e-9:
        raise ValueError(f"The affine must be finite and not singular, got {np.asarray(affine).tolist()}.")
    closeness = np.abs(directions / np.linalg.norm(directions, axis=0))
    axes = [0, 0, 0]
    for _ in range(3):
        anatomical, array_axis = np.unravel_index(np.argmax(closeness), (3, 3))
        axes[anatomical] = int(array_axis)
        closeness[anatomical, :] = -1
        closeness[:, array_axis] = -1
    flips = [bool(directions[anatomical, axes[anatomical]] < 0) for anatomical in range(3)]
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def canonical_view(volumes: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return a view in RAS order of arrays `(..., D, H, W)` that share one affine. Nothing is copied."""
    axes, flips = orientation(affine)
    lead = volumes.ndim - 3
    moved = np.transpose(volumes, (*range(lead), *(lead + axis for axis in axes)))
    return np.flip(moved, axis=tuple(lead + axis for axis in range(3) if flips[axis]))


def to_canonical(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the array in RAS order. Voxels are moved, not interpolated."""
    return np.ascontiguousarray(canonical_view(volume, affine))


def voxel_spacing_mm(affine: np.ndarray) -> Spacing:
    """Distance between voxel centres along the array's own axes, in millimetres."""
    first, second, third = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return (float(first), float(second), float(third))


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of one voxel in millilitres."""
    return float(abs(np.linalg.det(np.asarray(affine)[:3, :3]))) / 1000


def canonical_spacing_mm(affine: np.ndarray) -> Spacing:
    """Distance between voxel centres along the canonical axes, in millimetres."""
    axes, _ = orientation(affine)
    spacing = voxel_spacing_mm(affine)
    return (spacing[axes[0]], spacing[axes[1]], spacing[axes[2]])


def close_gaps(mask: np.ndarray, spacing_mm: Spacing, *, gap_mm: float = 6.0) -> np.ndarray:
    """Fill holes and clefts of a mask that are up to `gap_mm` wide: morphological closing with a box."""
    radii = [round(gap_mm / 2 / spacing) for spacing in spacing_mm]
    # Without padding, the strip between the brain and the border of the volume would be treated as a gap.
    padding = [radius for radius in reversed(radii) for _ in range(2)]
    grown = _grow(nn.functional.pad(torch.from_numpy(mask).float(), padding), radii)
    closed = _grow(1 - nn.functional.pad(grown, padding), radii) == 0
    inner = tuple(slice(2 * radius, 2 * radius + edge) for radius, edge in zip(radii, mask.shape, strict=True))
    return closed[inner].numpy()


def _grow(mask: Tensor, radii: list[int]) -> Tensor:
    """Dilate a mask by `radii` voxels along each axis."""
    for axis, radius in enumerate(radii):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * radius + 1, radius
        mask = nn.functional.max_pool3d(mask[None, None], kernel, stride=1, padding=padding)[0, 0]
    return mask


def resampled_shape(shape: Shape, spacing_mm: tuple[float, ...], target_mm: tuple[float, ...]) -> Shape:
    """Shape that a volume of `shape` voxels of `spacing_mm` gets when it is resampled to voxels of about `target_mm`.

    Each axis has at least one voxel.
    """
    edges = [
        max(1, round(edge * spacing / target))
        for edge, spacing, target in zip(shape, spacing_mm, target_mm, strict=True)
    ]
    return (edges[0], edges[1], edges[2])


def resample(volume: Tensor, shape: Shape) -> Tensor:
    """Resample `(..., D, H, W)` to `shape` over the same field of view.

    Along an axis that gets coarser, each new voxel is the mean of the voxels that it covers, as in a coarser scan.
    Along an axis that gets finer, values are interpolated linearly between voxel centres. Along an axis of equal
    length, values do not change.
    """
    # Resample in the volume's own precision even under autocast, because bf16 has too few bits for an image.
    with torch.autocast(volume.device.type, enabled=False):
        for axis, size in zip((-3, -2, -1), shape, strict=True):
            if volume.shape[axis] != size:
                weights = _axis_weights(volume.shape[axis], size).to(volume)
                volume = torch.movedim(torch.movedim(volume, axis, -1) @ weights.T, -1, axis)
    return volume.contiguous()


def _axis_weights(old: int, new: int) -> Tensor:
    """Resampling matrix of one axis, `(new length, old length)`. Each row adds up to 1."""
    step = old / new
    if new < old:
        edges = torch.arange(new + 1, dtype=torch.float64) * step
        cells = torch.arange(old, dtype=torch.float64)
        overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
        return overlap.clamp(min=0) / step
    centres = ((torch.arange(new, dtype=torch.float64) + 0.5) * step - 0.5).clamp(0, old - 1)
    low = centres.floor().long().clamp(max=max(old - 2, 0))
    weights = torch.zeros(new, old, dtype=torch.float64)
    rows = torch.arange(new)
    weights[rows, low] = 1 - (centres - low)
    if old > 1:
        weights[rows, low + 1] = centres - low
    return weights
