"""Structures that look like tumour but are not: white-matter disease, scars, vessels and flowing fluid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .anatomy import Anatomy
from .fluid import random_blob
from .noise import chance, fractal_noise, gaussian_blur, smooth_noise, uniform
from .style import PhantomStyle
from .tumour import Tumour


@dataclass(frozen=True)
class Mimics:
    """Structures that look like tumour.

    Each array `(D, H, W)` holds the fraction of each voxel that one kind of structure fills, from 0 to 1.

    Attributes:
        vessels: Vessels, choroid plexus and meninges, bright on T1c.
        water: Lesions rich in water (spots, plaques, caps and scars), bright on T2 and FLAIR, dark on T1.
        flow: Flowing fluid, bright on FLAIR, dark on T2.
    """

    vessels: Tensor
    water: Tensor
    flow: Tensor


def random_mimics(anatomy: Anatomy, tumour: Tumour, *, generator: torch.Generator, style: PhantomStyle) -> Mimics:
    """Draw all structures of a case that look like tumour. Spots, plaques, caps and scars stay outside the tumour."""
    vessels = _vessels(anatomy, generator)
    spots, others, flow = (torch.zeros(anatomy.shape) for _ in range(3))
    if chance(style.spots_share, generator):
        spots = _spots(anatomy, tumour, generator, style)
    if chance(style.caps_share, generator):
        others = _caps(anatomy, generator, style)
    if chance(style.plaques_share, generator):
        others = torch.maximum(others, _plaques(anatomy, generator, style))
    others = torch.maximum(others, anatomy.scar * anatomy.tissues[1:].sum(dim=0).clamp(0, 1))
    whole = gaussian_blur(tumour.regions[0].float(), (1.0 / anatomy.spacing_mm,) * 3)
    if chance(style.flow_share, generator):
        flow = _flow(anatomy, generator)
    return Mimics(vessels, torch.maximum(spots, others * (1 - whole)), flow)


def _vessels(anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """Vessels (thin curves where two smooth fields are both near zero), parts of the meninges, and choroid plexus."""
    shape, spacing_mm = anatomy.shape, anatomy.spacing_mm
    first, second, where = (
        smooth_noise(shape, scale_mm=scale, spacing_mm=spacing_mm, generator=generator) for scale in (14, 14, 30)
    )
    curves = torch.exp(-(first**2 + second**2) / 0.05) * (anatomy.tissues[0] + 0.3 * anatomy.tissues[1])
    brain = anatomy.brain.float()
    depth = gaussian_blur(brain, (4 / spacing_mm,) * 3)
    hull = ((depth < 0.72) & (where > 0.7)).float()
    plexus = ((anatomy.tissues[0] > 0.8) & (depth > 0.98) & (where.abs() > 1.0)).float()
    drawn = curves + uniform(0, 0.3, generator) * hull + uniform(0, 0.8, generator) * plexus
    return gaussian_blur(drawn, (0.7 / spacing_mm,) * 3).clamp(0, 1)


def _spots(anatomy: Anatomy, tumour: Tumour, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Leukoaraiosis in white matter, from a few spots to confluent areas, denser near fluid."""
    spacing_mm = anatomy.spacing_mm
    noise = fractal_noise(anatomy.shape, scales_mm=(6, 12), spacing_mm=spacing_mm, generator=generator)
    near_fluid = gaussian_blur(anatomy.tissues[0], (4 / spacing_mm,) * 3)
    field = anatomy.tissues[2] * (0.5 * noise + 3 * near_fluid.clamp(max=0.4))
    spots = (field > uniform(*style.spots_level, generator)) & ~tumour.regions[0]
    return gaussian_blur(spots.float(), (1.0 / spacing_mm,) * 3)


def _caps(anatomy: Anatomy, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Bright matter around the ventricles: thin rims, caps at the horns, confluent disease, transependymal oedema."""
    spacing_mm = anatomy.spacing_mm
    width_mm = uniform(*style.caps_mm, generator)
    near = gaussian_blur(anatomy.ventricles, (width_mm / spacing_mm,) * 3)
    ragged = fractal_noise(anatomy.shape, scales_mm=(6, 12, 24), spacing_mm=spacing_mm, generator=generator)
    level = uniform(0.08, 0.3, generator)
    caps = ((near * (1 + uniform(0.1, 0.6, generator) * ragged) - level) / (0.6 * level)).clamp(0, 1)
    white, solid = anatomy.tissues[2], anatomy.tissues[1:].sum(dim=0)
    return caps * (0.7 * white + 0.3 * solid).clamp(0, 1)


def _plaques(anatomy: Anatomy, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Round and oval lesions of white matter as in multiple sclerosis, denser near the ventricles."""
    spacing_mm = anatomy.spacing_mm
    where = anatomy.tissues[2] * (0.1 + gaussian_blur(anatomy.ventricles, (12 / spacing_mm,) * 3))
    plaques = torch.zeros(anatomy.shape)
    for _ in range(int(uniform(*style.plaques, generator))):
        blob = random_blob(where, uniform(*style.plaque_mm, generator), spacing_mm, generator)
        plaques = torch.maximum(plaques, (blob < 1).float())
    return gaussian_blur(plaques, (0.8 / spacing_mm,) * 3) * anatomy.tissues[1:].sum(dim=0).clamp(0, 1)


def _flow(anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """Flowing parts of the fluid in ventricles and cisterns."""
    noise = smooth_noise(anatomy.shape, scale_mm=25, spacing_mm=anatomy.spacing_mm, generator=generator)
    return anatomy.tissues[0] * ((noise - uniform(-0.5, 1.2, generator)) / 0.5).clamp(0, 1)
