"""Bringing volumes onto one grid: moved where that is exact, interpolated where it is not."""

from __future__ import annotations

from typing import Literal

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..model.geometry import voxel_spacing_mm

# Corners of two grids may be this share of a voxel apart and count as the same: headers are written by many programs.
TOLERATED_VOXELS = 0.25

Step = Literal["none", "moved", "taken over", "interpolated"]


def same_grid(
    image: nib.Nifti1Image, reference: nib.Nifti1Image, *, labels: bool = False
) -> tuple[nib.Nifti1Image, Step, float]:
    """`image` on the grid of `reference`, what was done for it, and how far corners were apart in mm.

    An image whose axes run another way is moved voxel by voxel; if its corners are then within a quarter of a voxel,
    the reference's affine is taken over, otherwise values are interpolated: linearly, after smoothing where the
    reference is coarser and with the zeros around a brain left out of the mean; labels take the nearest one.
    """
    moved = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.io_orientation(reference.affine))
    )
    apart_mm = _corners_apart_mm(moved, reference)
    if moved.shape == reference.shape and apart_mm <= TOLERATED_VOXELS * min(voxel_spacing_mm(reference.affine)):
        step: Step = "none" if moved is image else "moved"
        if apart_mm > 1e-3:
            step = "taken over"
        return nib.Nifti1Image(np.asarray(moved.dataobj), reference.affine, reference.header), step, apart_mm
    values = np.asarray(image.dataobj)
    to_image = np.linalg.inv(image.affine) @ reference.affine
    if labels:
        array = _transformed(values, to_image, reference.shape, order=0)
    else:
        step_voxels = np.linalg.norm(to_image[:3, :3], axis=1)
        sigma = np.maximum(0, (step_voxels - 1) / 2)
        brain = (values != 0).astype(np.float32)
        if sigma.any():
            values, brain = (ndimage.gaussian_filter(array, sigma, mode="constant") for array in (values, brain))
        share = _transformed(brain, to_image, reference.shape, order=1)
        array = _transformed(values, to_image, reference.shape, order=1)
        array = np.where(share >= 0.5, array / np.maximum(share, 0.5), 0).astype(np.float32)
    return nib.Nifti1Image(array, reference.affine, reference.header), "interpolated", apart_mm


def _corners_apart_mm(image: nib.Nifti1Image, reference: nib.Nifti1Image) -> float:
    """Largest distance between a corner of the reference's array and the same voxel of the other."""
    corners = np.array(np.meshgrid(*((0, edge - 1) for edge in reference.shape), [1])).reshape(4, -1)
    return float(np.linalg.norm(((image.affine - reference.affine) @ corners)[:3], axis=0).max())


def _transformed(array: np.ndarray, to_image: np.ndarray, shape: tuple[int, ...], *, order: int) -> np.ndarray:
    return ndimage.affine_transform(
        array, to_image[:3, :3], to_image[:3, 3], output_shape=shape, order=order, mode="constant"
    )
