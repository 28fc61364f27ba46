"""The scanner, from a sequence's true signal to its volume: resolution, shading, contrast curve, noise, mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .anatomy import Anatomy, identity_grid, sample_at_offset
from .noise import Shape, chance, gaussian_blur, normal, smooth_noise, uniform
from .style import PhantomStyle


def coil_sensitivity(anatomy: Anatomy, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Logarithm of the sensitivity of surface coils, `(D, H, W)`: highest at the hull, at some sides of it."""
    spacing_mm = anatomy.spacing_mm
    strength = uniform(*style.coil, generator)
    if not chance(style.coil_share, generator):
        strength = 0.0
    depth = gaussian_blur(anatomy.brain.float(), (uniform(5.0, 14.0, generator) / spacing_mm,) * 3)
    side = smooth_noise(anatomy.shape, scale_mm=90, spacing_mm=spacing_mm, generator=generator)
    return strength * (2 - 2 * depth).clamp(0, 1) * torch.sigmoid(2 * side)


def acquire(
    name: str,
    z: Tensor,
    brain: Tensor,
    coil: Tensor,
    spacing_mm: float,
    generator: torch.Generator,
    style: PhantomStyle,
) -> Tensor:
    """Scanner: misregistration, resolution, bias fields, gamma, Rician noise, and the brain mask."""
    shift = normal((3,), generator) * style.misregistration_mm / spacing_mm
    z = sample_at_offset(z[None], shift.expand(*z.shape, 3))[0]
    sigma_mm = [uniform(*style.resolution_mm, generator)] * 3
    if chance(style.thick_slices_share, generator):
        # Thick slices, most often axial, interpolated to isotropic voxels by the publisher of the data.
        axis = 2 if chance(0.5, generator) else min(int(uniform(0, 3, generator)), 2)
        sigma_mm[axis] = uniform(*style.thick_slices_mm, generator)
    z = gaussian_blur(z, [sigma / spacing_mm if sigma / spacing_mm > 0.25 else 0.0 for sigma in sigma_mm])
    gain = uniform(60.0, 160.0, generator)
    floor = uniform(*style.floor[name], generator)
    signal = (floor + z).clamp(min=0.2)
    signal = floor * (signal / floor) ** uniform(*style.gamma, generator)
    if chance(style.ringing_share, generator):
        amplitude = uniform(*style.ringing, generator)
        signal = signal * (1 + amplitude * _ringing(z.shape, spacing_mm, generator, style))
    bias = smooth_noise(z.shape, scale_mm=90, spacing_mm=spacing_mm, generator=generator)
    signal = signal * torch.exp(uniform(*style.bias, generator) * bias + uniform(0.2, 1.0, generator) * coil)
    level = style.thermal[name] * uniform(*style.thermal_factor, generator)
    real, imaginary = (level * normal(z.shape, generator) for _ in range(2))
    # Interpolation to the common grid has smoothed the scanner's noise, too.
    smoothing = (0.5,) * 3
    real, imaginary = (gaussian_blur(part, smoothing) * math.sqrt(3) for part in (real, imaginary))
    return torch.where(brain, gain * torch.sqrt((signal + real) ** 2 + imaginary**2).clamp(min=1e-2), 0.0)


def _ringing(shape: Shape, spacing_mm: float, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Stripes across a random in-plane direction, as motion leaves them."""
    angle = uniform(0, math.pi, generator)
    direction = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    phase = 2 * math.pi * spacing_mm / uniform(*style.ringing_mm, generator) * (identity_grid(shape) @ direction)
    return torch.sin(phase)
