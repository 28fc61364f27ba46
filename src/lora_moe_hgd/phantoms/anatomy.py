"""Healthy brains: tissue maps, transformed by a random affine, a smooth elastic deformation and mirroring.

The built-in maps (grey matter, white matter, brain mask; ICBM 152 2009a symmetric, McConnell Brain Imaging Centre)
come with nilearn and need no download. Axes are in RAS order: left to right, back to front, bottom to top.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .brain_maps import read_label_map
from .fluid import dig_cavities, grow_ventricles, mni152_ventricles, vary_fluid, with_fluid
from .noise import Shape, chance, gaussian_blur, log_uniform, smooth_noise, uniform
from .style import PhantomStyle
from .warp import identity_grid, sample_at_offset


@dataclass(frozen=True)
class Anatomy:
    """Anatomy of a healthy brain: tissue fractions of each voxel, in [0, 1], and the voxel grid.

    Attributes:
        tissues: CSF, grey matter and white matter, `(3, D, H, W)`. The three fractions add up to 1 inside the brain
            and to 0 outside.
        ventricles: Fraction of each voxel that is CSF inside a ventricle, `(D, H, W)`.
        scar: Strength of gliosis around old damage, `(D, H, W)` in [0, 1].
        spacing_mm: Edge of a voxel, in millimetres.
        affine: Affine, voxel to millimetre in RAS, `(4, 4)`.
    """

    tissues: Tensor
    ventricles: Tensor
    scar: Tensor
    spacing_mm: float
    affine: np.ndarray

    @property
    def voxel_ml(self) -> float:
        return self.spacing_mm**3 / 1000

    @property
    def brain(self) -> Tensor:
        return self.tissues.sum(dim=0) > 0.5

    @property
    def shape(self) -> Shape:
        return (self.tissues.shape[1], self.tissues.shape[2], self.tissues.shape[3])


# A brain on a voxel grid: tissue maps, ventricles, and the affine in RAS.
Template = tuple[Tensor, Tensor, np.ndarray]
MARGIN = 6


@functools.lru_cache(maxsize=32)
def template(spacing_mm: float, label_map: Path | None = None) -> Template:
    """Load a brain with voxels of `spacing_mm`: tissue maps `(T, D, H, W)`, ventricles `(D, H, W)` and affine.

    The T tissue maps are CSF, grey matter, white matter, and one map for each mixed structure. A mixed structure, such
    as the thalamus, consists of grey and white matter. All maps are cropped to the brain and a margin around it.

    Args:
        spacing_mm: Edge of a voxel, in millimetres.
        label_map: File with the label map of a brain, or `None` for the MNI152 template, which has no mixed
            structures.
    """
    tissues, ventricles, affine = _mni152() if label_map is None else read_label_map(label_map)
    inside = torch.nonzero(tissues.sum(dim=0))
    low = (inside.amin(dim=0) - MARGIN).clamp(min=0).tolist()
    high = (inside.amax(dim=0) + MARGIN + 1).tolist()
    box = (slice(None), *(slice(start, end) for start, end in zip(low, high, strict=True)))
    maps = torch.cat([tissues, ventricles[None]])[box]
    size = [round(edge / spacing_mm) for edge in maps.shape[1:]]
    resized = nn.functional.interpolate(maps[None], size=size, mode="area")[0]
    scale = np.array(maps.shape[1:]) / np.array(size)  # millimetres, nearly `spacing_mm`
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (np.array(low) + (scale - 1) / 2)
    affine[:3, :3] *= spacing_mm
    return resized[:-1].contiguous(), resized[-1].contiguous(), affine


def read_templates(spacing_mm: float, label_maps: Sequence[Path]) -> None:
    """Read every label map, so that an invalid label map gives an error before the first phantom is made.

    Raises:
        BadInputError: If a file is not a label map of a brain.
    """
    for path in label_maps:
        template(spacing_mm, path)


def _mni152() -> Template:
    # The import takes about a second, so import only where a phantom is made.
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    images = [
        load(resolution=1) for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    ]
    grey, white, brain = (torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32)) for image in images)
    white = torch.minimum(white.clamp(0, 1), brain)
    grey = torch.minimum(grey.clamp(0, 1), brain - white)
    fluid = brain - grey - white
    return torch.stack([fluid, grey, white]), mni152_ventricles(fluid, images[0].affine), images[0].affine


def random_anatomy(
    *, spacing_mm: float, generator: torch.Generator, style: PhantomStyle, label_maps: Sequence[Path] = ()
) -> Anatomy:
    """Draw a random brain: shape, size, folding and ventricles vary, and half of the brains are mirrored.

    Args:
        spacing_mm: Edge of a voxel, in millimetres.
        generator: Random generator for all draws.
        style: Ranges from which all properties are drawn.
        label_maps: Files with FreeSurfer-style label maps of brains. The brain is made from one of the label maps or
            from the MNI152 template, each with the same probability.
    """
    sources = (None, *label_maps)
    source = sources[int(uniform(0, len(sources), generator)) % len(sources)] if label_maps else None
    tissues, ventricles, affine = template(spacing_mm, source)
    tissues = _mix(tissues.to(torch.get_default_device()), generator)
    ventricles = ventricles.to(tissues.device)
    shape = (tissues.shape[1], tissues.shape[2], tissues.shape[3])
    offset = _affine_offset(shape, style, generator) + _elastic_offset(shape, spacing_mm, style, generator)
    if chance(style.ventricles_share, generator):
        target_ml = log_uniform(*style.ventricles_ml, generator)
        # Narrow ventricles vanish in the template. A ventricle must hold fluid before it can grow.
        tissues = with_fluid(tissues, ventricles)
        inside, brain = sample_at_offset(torch.stack([ventricles, tissues.sum(dim=0)]), offset)
        growth = grow_ventricles(inside, brain, target_ml, spacing_mm, generator)
        offset = growth + sample_at_offset(offset.movedim(-1, 0), growth).movedim(0, -1)
    warped = sample_at_offset(torch.cat([tissues, ventricles[None]]), offset)
    if chance(0.5, generator):
        warped = warped.flip(1)
    tissues, ventricles = vary_fluid(warped[:3], spacing_mm, style, generator), warped[3]
    scar = torch.zeros(shape)
    if chance(style.cavities_share, generator):
        tissues, scar = dig_cavities(tissues, spacing_mm, style, generator)
    return Anatomy(tissues, ventricles, scar, spacing_mm, affine)


def _mix(tissues: Tensor, generator: torch.Generator) -> Tensor:
    """Replace each mixed structure by grey and white matter in a random proportion; return `(3, D, H, W)`."""
    fluid, grey, white, *mixtures = tissues
    for mixture in mixtures:
        share = uniform(0.0, 1.0, generator)
        grey, white = grey + share * mixture, white + (1 - share) * mixture
    return torch.stack([fluid, grey, white])


def _affine_offset(shape: Shape, style: PhantomStyle, generator: torch.Generator) -> Tensor:
    """Offsets for `sample_at_offset`, `(D, H, W, 3)` in voxels, that rotate, shear and scale a brain at random."""
    matrix = torch.eye(3)
    for axis in range(3):
        angle = math.radians(uniform(*style.rotation_degrees, generator))
        first, second = [other for other in range(3) if other != axis]
        rotation = torch.eye(3)
        rotation[first, first] = rotation[second, second] = math.cos(angle)
        rotation[first, second], rotation[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ rotation
    shear = torch.eye(3) + torch.tensor([[uniform(*style.shear, generator) for _ in range(3)] for _ in range(3)])
    scale = torch.diag(torch.tensor([uniform(*style.scale, generator) for _ in range(3)]))
    matrix = matrix @ shear @ scale
    centred = identity_grid(shape) - (torch.tensor(shape, dtype=torch.float32) - 1) / 2
    return centred @ matrix.inverse().T - centred


def _elastic_offset(shape: Shape, spacing_mm: float, style: PhantomStyle, generator: torch.Generator) -> Tensor:
    """Smooth random offsets for `sample_at_offset`, `(D, H, W, 3)` in voxels, with bumps 45 mm and 18 mm wide."""
    strength_mm = uniform(*style.bumps_mm, generator)
    fields = [
        strength_mm * smooth_noise(shape, scale_mm=45, spacing_mm=spacing_mm, generator=generator)
        + uniform(*style.fine_bumps_mm, generator)
        * smooth_noise(shape, scale_mm=18, spacing_mm=spacing_mm, generator=generator)
        for _ in range(3)
    ]
    sigma = 4 / spacing_mm
    return torch.stack([gaussian_blur(field, (sigma, sigma, sigma)) for field in fields], dim=-1) / spacing_mm
