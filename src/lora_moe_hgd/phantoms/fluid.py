"""Fluid of the brain: ventricles from narrow to hydrocephalic, sulci, and cavities left by old damage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from .noise import Shape, chance, gaussian_blur, log_uniform, smooth_noise, uniform
from .style import PhantomStyle
from .warp import identity_grid, sample_at_offset

# Centre lines of the ventricles of the MNI152 template: points in millimetres from one end to the other, and a radius
# that includes the ventricle but no cistern. The lines are mirrored for the other hemisphere.
LATERAL = ((13, 34, 4), (10, 22, 10), (8, 8, 18), (10, -8, 24), (15, -24, 24), (23, -38, 16), (27, -44, 8))
OCCIPITAL_HORN = ((27, -44, 8), (25, -56, 6), (21, -68, 6))
TEMPORAL_HORN = ((27, -44, 8), (34, -36, -4), (34, -22, -14), (30, -10, -20))
THIRD = ((0, 6, -8), (0, -4, -4), (0, -14, 2), (0, -26, 2))
AQUEDUCT = ((0, -26, 2), (0, -34, -10), (0, -38, -20))
FOURTH = ((0, -40, -22), (0, -46, -32), (0, -48, -40))
AXES = ((LATERAL, 10.0), (OCCIPITAL_HORN, 7.0), (TEMPORAL_HORN, 4.0), (THIRD, 4.0), (AQUEDUCT, 2.0), (FOURTH, 9.0))
# Narrow ventricles vanish in the template, which is a mean of many heads. Each ventricle gets at least this radius.
LEAST_RADIUS_MM = 1.2

GROWTH_SPACING_MM = 4.0
STEP_MM, MOST_STEPS = 1.5, 40
# One voxel in this many can be the centre of a blob.
THINNED = 7
RAGGED = 0.2


def mni152_ventricles(fluid: Tensor, affine: np.ndarray) -> Tensor:
    """Fraction of each voxel that is in a ventricle, `(D, H, W)`, from the fluid map of the MNI152 template."""
    found = torch.zeros_like(fluid)
    for points, radius_mm in AXES:
        for side in (-1, 1):
            ends = np.array(points, dtype=float) * (side, 1, 1)
            places = (ends - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
            low = np.maximum(np.floor(places.min(axis=0) - radius_mm - 1), 0).astype(int)
            high = np.ceil(places.max(axis=0) + radius_mm + 2).astype(int)
            box = tuple(slice(start, end) for start, end in zip(low, high, strict=True))
            distance = _distance(fluid[box].shape, torch.from_numpy(places - low).float())
            inside = torch.where(distance < radius_mm, fluid[box], 0.0)
            found[box] = torch.maximum(
                found[box], torch.maximum(inside, (LEAST_RADIUS_MM + 0.5 - distance).clamp(0, 1))
            )
    return found


def _distance(shape: Shape, points: Tensor) -> Tensor:
    """Distance of each voxel from the polyline through `points (N, 3)`, in voxels."""
    grid = identity_grid(shape)
    distance = torch.full(tuple(shape), math.inf)
    for start, end in itertools.pairwise(points):
        along = end - start
        share = ((grid - start) @ along / along.dot(along)).clamp(0, 1)
        distance = torch.minimum(distance, (grid - start - share[..., None] * along).norm(dim=-1))
    return distance


def grow_ventricles(
    ventricles: Tensor, brain: Tensor, target_ml: float, spacing_mm: float, generator: torch.Generator
) -> Tensor:
    """Offsets for `sample_at_offset`, `(D, H, W, 3)` in voxels, that bring the ventricles to about `target_ml`.

    The walls of the ventricles move in steps along the gradient of the blurred ventricles. The brain around the
    ventricles moves too, less and less towards the brain's surface, which does not move. Some parts of the walls move
    more than others. Small steps are composed one after another, so that the deformation does not fold. The steps are
    computed on a coarse grid.

    Args:
        ventricles: Fraction of each voxel that belongs to a ventricle, `(D, H, W)`.
        brain: Fraction of each voxel that belongs to the brain, `(D, H, W)`.
        target_ml: Wanted volume of the ventricles in millilitres, larger or smaller than the present volume.
        spacing_mm: Edge of a voxel, in millimetres.
        generator: Random generator for all draws.
    """
    size = [max(4, round(edge * spacing_mm / GROWTH_SPACING_MM)) for edge in ventricles.shape]
    coarse_mm = [edge * spacing_mm / length for edge, length in zip(ventricles.shape, size, strict=True)]
    start, solid = nn.functional.interpolate(torch.stack([ventricles, brain])[None], size=size, mode="area")[0]
    voxel_ml = math.prod(coarse_mm) / 1000
    reach = [uniform(5.0, 11.0, generator) / GROWTH_SPACING_MM] * 3
    waves = smooth_noise(size, scale_mm=60, spacing_mm=GROWTH_SPACING_MM, generator=generator)
    free = ((gaussian_blur(solid, (10 / GROWTH_SPACING_MM,) * 3) - 0.6) / 0.35).clamp(0, 1)
    sign = 1 if start.sum() * voxel_ml < target_ml else -1
    speed = (sign * STEP_MM / GROWTH_SPACING_MM * free * torch.exp(0.6 * waves).clamp(max=2))[..., None]
    offset = torch.zeros(*size, 3)
    for _ in range(MOST_STEPS):
        present = sample_at_offset(start[None], offset)[0]
        if sign * (target_ml - present.sum().item() * voxel_ml) <= 0:
            break
        slope = torch.stack(torch.gradient(gaussian_blur(present, reach)), dim=-1)
        steepness = slope.norm(dim=-1, keepdim=True)
        step = speed * slope / (steepness + 0.3 * steepness.max() + 1e-9)
        offset = step + sample_at_offset(offset.movedim(-1, 0), step).movedim(0, -1)
    fine = nn.functional.interpolate(
        offset.movedim(-1, 0)[None], size=ventricles.shape, mode="trilinear", align_corners=False
    )[0]
    return fine.movedim(0, -1) * torch.tensor([length / spacing_mm for length in coarse_mm])


def vary_fluid(tissues: Tensor, spacing_mm: float, style: PhantomStyle, generator: torch.Generator) -> Tensor:
    """Change the share of fluid in each voxel: ventricles and sulci become wide, as in old age, or narrow."""
    csf, grey, white = tissues
    brain = tissues.sum(dim=0)
    share = torch.where(brain > 0, (csf / brain.clamp(min=1e-6)).clamp(0, 1), 0.0)
    if chance(style.atrophy_share, generator):
        # Sulci are wider in some lobes than in others. Subtract the trace of fluid in the template's deep grey matter,
        # which must not grow.
        waves = smooth_noise(csf.shape, scale_mm=60, spacing_mm=spacing_mm, generator=generator)
        exponent = uniform(*style.atrophy_exponent, generator) * torch.exp(uniform(0.0, 0.4, generator) * waves)
        share = ((share - 0.06) / 0.94).clamp(min=0)
        return _of_fluid(share**exponent * brain, grey, white, brain)
    share = share ** uniform(*style.fluid_exponent, generator)
    return _of_fluid(share * brain, grey, white, brain)


def with_fluid(tissues: Tensor, fluid: Tensor) -> Tensor:
    """Increase CSF, so that CSF is at least the share `fluid`, `(D, H, W)` in [0, 1], of the tissue in each voxel."""
    csf, grey, white = tissues
    brain = tissues.sum(dim=0)
    return _of_fluid(torch.maximum(csf, fluid * brain), grey, white, brain)


def _of_fluid(csf: Tensor, grey: Tensor, white: Tensor, brain: Tensor) -> Tensor:
    """Set CSF to `csf`, and scale grey and white matter so that all tissues together add up to `brain`."""
    solid = (grey + white).clamp(min=1e-6)
    return torch.stack([csf, (brain - csf) * grey / solid, (brain - csf) * white / solid])


def dig_cavities(
    tissues: Tensor, spacing_mm: float, style: PhantomStyle, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace brain by cavities of fluid (infarct, cyst, resection); return the tissues and the scar `(D, H, W)`."""
    shape = tissues.shape[1:]
    scar = torch.zeros(shape)
    for _ in range(1 + int(uniform(0, style.most_cavities, generator))):
        radius_mm = log_uniform(*style.cavity_mm, generator)
        blob = random_blob(tissues.sum(dim=0), radius_mm, spacing_mm, generator)
        cavity = gaussian_blur((blob < 1).float(), (0.8 / spacing_mm,) * 3)
        around = gaussian_blur(
            (blob < 1 + uniform(*style.scar_mm, generator) / radius_mm).float(), (1.5 / spacing_mm,) * 3
        )
        # Some cavities lose only a part of their tissue.
        lost = cavity * uniform(*style.lost_in_cavity, generator)
        tissues = with_fluid(tissues, lost)
        scar = torch.maximum(scar, (around - lost).clamp(min=0))
    return tissues, scar


def random_blob(where: Tensor, radius_mm: float, spacing_mm: float, generator: torch.Generator) -> Tensor:
    """Draw a ragged ellipsoid: a map `(D, H, W)` that is 0 at its centre, 1 at its surface, and above 1 outside.

    `where`, `(D, H, W)`, is the relative probability of each voxel to be the centre.
    """
    # `multinomial` takes at most 2^24 weights, and a volume at 1 mm has nearly as many voxels.
    weight = where.clamp(min=0).flatten()[::THINNED] + 1e-12
    seed = THINNED * int(torch.multinomial(weight.to(generator.device), 1, generator=generator))
    squares = torch.zeros(where.shape)
    for axis, centre in enumerate(np.unravel_index(seed, where.shape)):
        radius = uniform(0.6, 1.4, generator) * radius_mm / spacing_mm
        along = ((torch.arange(where.shape[axis]) - int(centre)) / radius) ** 2
        squares = squares + along.reshape([-1 if other == axis else 1 for other in range(3)])
    scale_mm = max(radius_mm, 2 * spacing_mm)
    ragged = smooth_noise(where.shape, scale_mm=scale_mm, spacing_mm=spacing_mm, generator=generator)
    # Limit the rare extremes of the noise, which would put parts of the blob far from its centre.
    return squares.sqrt() * (1 + RAGGED * ragged).clamp(0.5, 1.5)
