"""Rigid registration of one sequence to another, with SimpleITK.

Mattes mutual information (Mattes et al. 2003, doi 10.1109/TMI.2003.809072) does not depend on how bright a tissue
is in either image. Mutual information has local optima, so the search begins with coarse voxels and many start
positions.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that its documentation uses
from scipy import ndimage

from ..model.grids import Volume

# Voxel edge of the coarse and of the fine grid, to which both images are resampled. Voxels are cubes.
COARSE_MM, FINE_MM = 4.0, 2.0
# Histogram bins of the mutual information on each grid.
BINS = {COARSE_MM: 20, FINE_MM: 32}
# Share of the voxels that the mutual information samples, and seed of the sampling.
SHARE, SEED = 0.25, 1
# Rotations to start from, in degrees about the left-right, the front-back and the vertical axis.
TURNS = tuple(itertools.product((-20.0, -10.0, 0.0, 10.0, 20.0), (-10.0, 0.0, 10.0), (-10.0, 0.0, 10.0)))
# Number of starts that are optimised on the coarse grid, and number of results that are then optimised on the fine
# grid. Those with the highest mutual information are chosen.
FOLLOWED, REFINED = 4, 1
# Number of threads. It is fixed, so that sums are added in the same order on every machine.
WORK_UNITS = 4
# A motion below `SMALL_DEGREES` and `SMALL_MM` is used only if it raises the mutual information by the share
# `LEAST_GAIN`. For smaller gains, the position from the scanner is more often correct.
LEAST_GAIN, SMALL_DEGREES, SMALL_MM = 0.01, 0.3, 0.3
# Margin around the brain in which the images are also compared.
MARGIN_MM = 12.0
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Motion:
    """Rigid motion that registers one image, the moving image, to another, the reference.

    Attributes:
        matrix: Matrix that maps points of the moving image to points of the reference, in millimetres (RAS), `(4, 4)`.
        before: Mutual information at the position that the headers give.
        after: Mutual information after the motion.
        turn_degrees: Angle of the rotation.
        shift_mm: Length of the movement at the centre of the reference, in millimetres.
    """

    matrix: np.ndarray
    before: float
    after: float
    turn_degrees: float
    shift_mm: float

    @property
    def is_none(self) -> bool:
        """Whether the image keeps the position that its header gives."""
        return np.array_equal(self.matrix, np.eye(4))

    def moved(self, volume: Volume) -> Volume:
        """The volume at its new position. Only the affine changes, so no voxel is interpolated."""
        return Volume(volume.array, self.matrix @ volume.affine)


def register(
    reference: Volume, moving: Volume, *, brain: np.ndarray | None = None, moving_brain: np.ndarray | None = None
) -> Motion:
    """Find the rigid motion that registers `moving` to `reference`.

    The result is the identity if no motion has a higher mutual information than the position that the headers give, or
    if the motion is small and raises the mutual information only a little.

    Args:
        reference: Fixed image, with the skull.
        moving: Moving image, with the skull.
        brain: Brain mask of the reference. With this mask, the images are compared only in and near the brain.
        moving_brain: Brain mask of the moving image. With both masks, the search also starts from the position at
            which the centres of both brains coincide.
    """
    found = optimum(reference, moving, brain=brain, moving_brain=moving_brain)
    is_small = found.turn_degrees < SMALL_DEGREES and found.shift_mm < SMALL_MM
    if found.after <= found.before * (1 + LEAST_GAIN * is_small):
        return Motion(np.eye(4), found.before, found.before, 0.0, 0.0)
    return found


def optimum(
    reference: Volume, moving: Volume, *, brain: np.ndarray | None = None, moving_brain: np.ndarray | None = None
) -> Motion:
    """Find the motion with the highest mutual information near the start positions.

    Unlike `register`, this function does not prefer the position that the headers give.

    Mutual information has artefacts at positions where the grids of both images are parallel (Pluim et al. 2000, doi
    10.1006/cviu.1999.0816). The position that the headers give may therefore have a higher mutual information than the
    result.

    Args:
        reference: Fixed image, with the skull.
        moving: Moving image, with the skull.
        brain: Brain mask of the reference, bool in the shape of the reference. With this mask, the images are compared
            only in the brain and a margin around the brain, where the head moves as a rigid body.
        moving_brain: Brain mask of the moving image. With `brain` and `moving_brain`, the search also starts from the
            position at which the centres of both brains coincide.
    """
    coarse, fine = (_Pair.of(reference, moving, brain, edge_mm) for edge_mm in (COARSE_MM, FINE_MM))
    centre = _centre(fine.fixed, fine.mask)
    shift = np.zeros(3)
    # If the images come from different studies, the heads may be far apart.
    if brain is not None and moving_brain is not None:
        apart = _mask_centre(moving, moving_brain) - _mask_centre(reference, brain)
    else:
        apart = _centre(fine.moving, None) - _centre(fine.fixed, None)
    starts = [_transform(centre, turn, by) for by in (shift, apart) for turn in TURNS]
    followed = [_climbed(coarse, start) for start in _best(coarse, starts, FOLLOWED)]
    refined = [_climbed(fine, start) for start in _best(coarse, followed, REFINED)]
    (found,) = _best(fine, refined, 1)
    before, after = (fine.information(candidate) for candidate in (_transform(centre, (0.0, 0.0, 0.0), shift), found))
    # The transform takes points of the fixed image to the moving one, in LPS.
    matrix = np.eye(4)
    rotation = np.array(found.GetMatrix()).reshape(3, 3)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
    turn = math.degrees(math.acos(float(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
    shift_mm = float(np.linalg.norm(np.array(found.TransformPoint(tuple(centre))) - centre))
    return Motion(TO_LPS @ np.linalg.inv(matrix) @ TO_LPS, before, after, turn, shift_mm)


@dataclass(frozen=True)
class _Pair:
    """Two images on grids of cubic voxels, and the mask in which they are compared."""

    fixed: sitk.Image
    moving: sitk.Image
    mask: sitk.Image | None
    edge_mm: float

    @classmethod
    def of(cls, reference: Volume, moving: Volume, brain: np.ndarray | None, edge_mm: float) -> _Pair:
        fixed = _cubes(reference, edge_mm)
        mask = None
        if brain is not None:
            mask = _cubes(Volume(brain.astype(np.float32), reference.affine), edge_mm)
            mask = sitk.SmoothingRecursiveGaussian(mask, MARGIN_MM / 2) > 0.02
            mask.CopyInformation(fixed)
        return cls(fixed, _cubes(moving, edge_mm), mask, edge_mm)

    def method(self) -> sitk.ImageRegistrationMethod:
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfWorkUnits(WORK_UNITS)
        method.SetMetricAsMattesMutualInformation(BINS[self.edge_mm])
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(SHARE, SEED)
        method.SetInterpolator(sitk.sitkLinear)
        if self.mask is not None:
            method.SetMetricFixedMask(self.mask)
        return method

    def information(self, transform: sitk.Euler3DTransform) -> float:
        """Mutual information at a position; 0 if the images do not overlap there."""
        method = self.method()
        method.SetInitialTransform(transform)
        try:
            return -float(method.MetricEvaluate(self.fixed, self.moving))
        except RuntimeError:
            return 0.0


def _climbed(pair: _Pair, start: sitk.Euler3DTransform) -> sitk.Euler3DTransform:
    """Search from a start position for the nearest optimum of mutual information, by gradient ascent."""
    found = sitk.Euler3DTransform(start)
    method = pair.method()
    # On real heads, a relaxation of 0.5 stops up to 3 mm short of the optimum.
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=pair.edge_mm / 2, minStep=0.001, numberOfIterations=200, relaxationFactor=0.7
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(found, inPlace=True)
    try:
        method.Execute(pair.fixed, pair.moving)
    except RuntimeError:
        # The images no longer overlap. This does not happen from a start near the correct position.
        return start
    return found


def _best(pair: _Pair, candidates: list[sitk.Euler3DTransform], count: int) -> list[sitk.Euler3DTransform]:
    """Return the `count` candidates with the highest mutual information."""
    return sorted(candidates, key=lambda candidate: -pair.information(candidate))[:count]


def _cubes(volume: Volume, edge_mm: float) -> sitk.Image:
    """Resample a volume to cubic voxels along its own axes.

    If the voxels of the volume are smaller than the cubes, the volume is smoothed first. The brightest voxels are
    clipped.
    """
    edges = np.linalg.norm(volume.affine[:3, :3], axis=0)
    # The nearest rotation replaces axes that are not perpendicular, because header values are rounded.
    left, _, right = np.linalg.svd(volume.affine[:3, :3] / edges)
    sigma = np.maximum(0.0, edge_mm / edges - 1) / 2
    array = ndimage.gaussian_filter(np.asarray(volume.array, dtype=np.float32), sigma)
    array = np.clip(array, min(0.0, float(array.min())), np.percentile(array, 99.5))
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing([float(edge) for edge in edges])
    image.SetOrigin([float(value) for value in TO_LPS[:3, :3] @ volume.affine[:3, 3]])
    image.SetDirection([float(value) for value in (TO_LPS[:3, :3] @ left @ right).ravel()])
    shape = [max(4, math.ceil(count * edge / edge_mm)) for count, edge in zip(array.shape, edges, strict=True)]
    return sitk.Resample(
        image,
        shape,
        sitk.Transform(),
        sitk.sitkLinear,
        image.GetOrigin(),
        [edge_mm] * 3,
        image.GetDirection(),
        0.0,
        sitk.sitkFloat32,
    )


def _centre(image: sitk.Image, mask: sitk.Image | None) -> np.ndarray:
    """Centre of mass of the mask, or of the image if there is no mask, in millimetres (LPS)."""
    array = sitk.GetArrayViewFromImage(image if mask is None else mask).astype(np.float32)
    index = ndimage.center_of_mass(array)[::-1] if array.any() else (np.array(image.GetSize()) - 1) / 2
    return np.array(image.TransformContinuousIndexToPhysicalPoint([float(value) for value in index]))


def _mask_centre(volume: Volume, mask: np.ndarray) -> np.ndarray:
    """Centre of mass of a mask, in millimetres (LPS)."""
    return (TO_LPS @ volume.affine @ [*ndimage.center_of_mass(mask), 1])[:3]


def _transform(centre: np.ndarray, degrees: tuple[float, float, float], shift: np.ndarray) -> sitk.Euler3DTransform:
    transform = sitk.Euler3DTransform()
    transform.SetCenter([float(value) for value in centre])
    transform.SetRotation(*(math.radians(value) for value in degrees))
    transform.SetTranslation([float(value) for value in shift])
    return transform
