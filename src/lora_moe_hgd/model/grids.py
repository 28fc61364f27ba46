"""Grids of volumes: check affines, compare two grids, and resample from one grid to another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .findings import BadInputError
from .geometry import orientation, voxel_ml, voxel_spacing_mm

# Grids count as equal if their corners differ by at most this share of a voxel, because programs round differently.
TOLERATED_VOXELS = 0.25
VOXEL_MM = (0.1, 20.0)
MAX_FIELD_MM = 600.0
MAX_ORIGIN_MM = 1e5

Step = Literal["none", "moved", "taken over", "interpolated"]


@dataclass(frozen=True)
class Volume:
    """Voxels of an image or a label map, with their affine.

    Attributes:
        array: `(D, H, W)`.
        affine: Affine, voxel to millimetre in RAS, `(4, 4)`.
        has_geometry: True if the source stated the affine, false if the affine is an assumption.
        oddities: Warnings about the header of the source.
    """

    array: np.ndarray
    affine: np.ndarray
    has_geometry: bool = True
    oddities: tuple[str, ...] = ()

    @property
    def voxel_litres(self) -> float:
        return voxel_ml(self.affine) / 1000


def check_affine(where: Path | str, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse an affine that is implausible for an image of a head.

    Raises:
        BadInputError: If the affine is singular or not finite, or if voxel size, field of view or origin is
            implausible.
    """
    with np.errstate(all="ignore"):
        edges_mm = np.linalg.norm(affine[:3, :3], axis=0)
        # Volume of a voxel divided by the product of its edges: 1 for orthogonal axes, 0 for a singular affine.
        share = abs(np.linalg.det(affine[:3, :3] / edges_mm)) if np.isfinite(affine).all() and edges_mm.all() else 0.0
    if not np.isfinite(share) or share < 1e-2:
        raise BadInputError(
            where,
            f"The affine is singular or not finite: {affine[:3].tolist()}. Correct the sform or the qform of the "
            "header.",
        )
    if edges_mm.min() < VOXEL_MM[0] or edges_mm.max() > VOXEL_MM[1]:
        raise BadInputError(
            where,
            f"The voxels measure {_times(edges_mm)} mm, but {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm are allowed. "
            "Correct the header: lengths must be in millimetres.",
        )
    field_mm = edges_mm * shape[:3]
    if field_mm.max() > MAX_FIELD_MM:
        raise BadInputError(
            where,
            f"The volume covers {_times(field_mm)} mm, but at most {MAX_FIELD_MM:g} mm along an axis are allowed. "
            "Correct the voxel size in the header, or crop the volume.",
        )
    if np.abs(affine[:3, 3]).max() > MAX_ORIGIN_MM:
        raise BadInputError(
            where, f"The origin is at {_times(affine[:3, 3])} mm, more than 100 m away. Correct the header."
        )


def _times(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def on_grid_of(volume: Volume, reference: Volume, *, labels: bool = False) -> tuple[Volume, Step, float]:
    """Resample a volume to the grid of a reference volume.

    First, the axes of the volume are brought into the order and the direction of the reference's axes, without
    interpolation. If both arrays now have the same shape, and corresponding corners are at most a quarter of a voxel
    apart, the values stay unchanged and the volume gets the affine of the reference. Otherwise, values are
    interpolated linearly. If the reference is coarser, values are smoothed before the interpolation. Zeros around a
    brain do not darken its border. Label maps are resampled by nearest-neighbour interpolation.

    Returns:
        The volume on the reference's grid, the kind of change (`Step`), and the largest distance between corresponding
        corners after the axes were reordered, in millimetres. The distance is infinite if the shapes differ.
    """
    moved, was_moved = _reoriented(volume, reference.affine)
    apart_mm = corners_apart_mm(moved, reference)
    if apart_mm <= TOLERATED_VOXELS * min(voxel_spacing_mm(reference.affine)):
        step: Step = "moved" if was_moved else "none"
        if apart_mm > 1e-3:
            step = "taken over"
        return Volume(moved.array, reference.affine), step, apart_mm
    to_volume = np.linalg.inv(volume.affine) @ reference.affine
    shape = reference.array.shape
    if labels:
        return Volume(_nearest(volume.array, to_volume, shape), reference.affine), "interpolated", apart_mm
    values = torch.from_numpy(np.ascontiguousarray(volume.array, dtype=np.float32))
    step_voxels = np.linalg.norm(to_volume[:3, :3], axis=1)
    sigma = np.maximum(0, (step_voxels - 1) / 2)
    values, brain = _linear(_blurred(torch.stack([values, (values != 0).float()]), sigma), to_volume, shape)
    array = torch.where(brain >= 0.5, values / brain.clamp(min=0.5), 0.0).numpy()
    return Volume(array, reference.affine), "interpolated", apart_mm


def corners_apart_mm(first: Volume, second: Volume) -> float:
    """Largest distance between corresponding corners of two volumes, in mm; infinite if their shapes differ."""
    if first.array.shape != second.array.shape:
        return math.inf
    corners = np.array(np.meshgrid(*((0, edge - 1) for edge in first.array.shape), [1])).reshape(4, -1)
    return float(np.linalg.norm(((first.affine - second.affine) @ corners)[:3], axis=0).max())


def centres_apart_mm(first: Volume, second: Volume) -> float:
    """Distance between the centres of two fields of view, in millimetres."""
    centres = [
        volume.affine[:3, :3] @ ((np.array(volume.array.shape) - 1) / 2) + volume.affine[:3, 3]
        for volume in (first, second)
    ]
    return float(np.linalg.norm(centres[0] - centres[1]))


def _reoriented(volume: Volume, like: np.ndarray) -> tuple[Volume, bool]:
    """Reorder and flip the axes to match the affine `like`; return the volume and whether voxels were moved."""
    own_axes, own_flips = orientation(volume.affine)
    axes, flips = orientation(like)
    # Array axis `axes[a]` of the target and array axis `own_axes[a]` of the volume both run along anatomical axis `a`.
    order = [0, 0, 0]
    flipped = [False, False, False]
    for anatomical in range(3):
        order[axes[anatomical]] = own_axes[anatomical]
        flipped[axes[anatomical]] = own_flips[anatomical] != flips[anatomical]
    if order == [0, 1, 2] and not any(flipped):
        return volume, False
    array = np.flip(np.transpose(volume.array, order), tuple(axis for axis in range(3) if flipped[axis]))
    to_own = np.zeros((4, 4))
    to_own[3, 3] = 1
    for axis in range(3):
        to_own[order[axis], axis] = -1 if flipped[axis] else 1
        to_own[order[axis], 3] = array.shape[axis] - 1 if flipped[axis] else 0
    return Volume(np.ascontiguousarray(array), volume.affine @ to_own, volume.has_geometry), True


def _coordinates(to_volume: np.ndarray, shape: tuple[int, ...], first: int) -> np.ndarray:
    """Positions `(H, W, 3)` of the voxels in plane `first` of the reference, in voxel coordinates of the volume."""
    rows = np.arange(shape[1])[:, None, None] * to_volume[:3, 1]
    columns = np.arange(shape[2])[None, :, None] * to_volume[:3, 2]
    return first * to_volume[:3, 0] + rows + columns + to_volume[:3, 3]


def _nearest(array: np.ndarray, to_volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Nearest value of `array` at each voxel of the reference; zero outside `array`."""
    result = np.zeros(shape, dtype=array.dtype)
    for plane in range(shape[0]):
        index = np.rint(_coordinates(to_volume, shape, plane)).astype(np.int64)
        inside = ((index >= 0) & (index < array.shape)).all(axis=-1)
        result[plane][inside] = array[tuple(index[inside].T)]
    return result


def _linear(volumes: Tensor, to_volume: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Trilinear interpolation of `volumes (C, D, H, W)` at each voxel of the reference; zero outside `volumes`."""
    # `grid_sample` needs two voxels per axis. Zeros around a single slice let it fade out within one voxel.
    single = [int(edge == 1) for edge in volumes.shape[1:]]
    volumes = nn.functional.pad(volumes, [pad for pad in reversed(single) for _ in range(2)])
    edges = np.array(volumes.shape[1:]) - 1
    # Coordinates of the first plane in [-1, 1], last axis first. The other planes differ only by a shift.
    first = (2 * (_coordinates(to_volume, shape, 0) + single) / edges - 1)[..., ::-1]
    shift = (2 * to_volume[:3, 0] / edges)[::-1]
    planes = []
    for plane in range(shape[0]):
        grid = torch.from_numpy((first + plane * shift).astype(np.float32))[None, None]
        planes.append(nn.functional.grid_sample(volumes[None], grid, align_corners=True)[0, :, 0])
    return torch.stack(planes, dim=1)


def _blurred(volumes: Tensor, sigma_voxels: np.ndarray) -> Tensor:
    """Separable Gaussian blur of `(C, D, H, W)`, with zeros beyond the border. An axis with sigma 0 is not blurred."""
    for axis, sigma in enumerate(sigma_voxels, start=1):
        if sigma <= 0:
            continue
        radius = max(1, math.ceil(4 * sigma))
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / float(sigma)) ** 2)
        padding = [0, 0] * (volumes.ndim - 1 - axis) + [radius, radius]
        padded, length = nn.functional.pad(volumes, padding), volumes.shape[axis]
        # Sums of shifted volumes take a fraction of the time that `conv3d` takes for one channel.
        volumes = torch.zeros_like(volumes)
        for offset, weight in enumerate((kernel / kernel.sum()).tolist()):
            volumes.add_(padded.narrow(axis, offset, length), alpha=weight)
    return volumes
