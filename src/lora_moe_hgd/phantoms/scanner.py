"""Simulated scanner: add blur, shading, a contrast curve and noise to a true signal; set the background to zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .noise import Shape, chance, gaussian_blur, log_uniform, normal, smooth_noise, uniform
from .style import PhantomStyle
from .warp import identity_grid, sample_at_offset

WARP_PIECES = 8


def coil_sensitivity(anatomy: Anatomy, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Logarithm of the sensitivity of surface coils, `(D, H, W)`, highest at some parts of the brain's surface."""
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
    """Convert the true signal `z` to the volume of a sequence: positive inside `brain`, exactly zero outside."""
    shift = normal((3,), generator) * style.misregistration_mm / spacing_mm
    z = sample_at_offset(z[None], shift.expand(*z.shape, 3))[0]
    sigma_mm = [uniform(*style.resolution_mm, generator)] * 3
    if chance(style.thick_slices_share, generator):
        # Public data sets were often acquired in thick, mostly axial slices and then interpolated to isotropic voxels.
        axis = 2 if chance(0.5, generator) else min(int(uniform(0, 3, generator)), 2)
        sigma_mm[axis] = uniform(*style.thick_slices_mm, generator)
    z = gaussian_blur(z, [sigma / spacing_mm if sigma / spacing_mm > 0.25 else 0.0 for sigma in sigma_mm])
    if chance(style.partial_volume_share, generator):
        z = _in_slices(z, uniform(*style.partial_volume_mm, generator) / spacing_mm, generator)
    gain = uniform(60.0, 160.0, generator)
    floor = uniform(*style.floor[name], generator)
    signal = (floor + z).clamp(min=0.2)
    signal = floor * (signal / floor) ** uniform(*style.gamma, generator)
    if chance(style.warp_share, generator):
        signal = _monotone_warp(signal, brain, uniform(*style.warp, generator), generator)
    if chance(style.local_contrast_share, generator):
        around = gaussian_blur(signal, (uniform(10, 25, generator) / spacing_mm,) * 3)
        signal = signal * (signal[brain].mean() / around) ** uniform(*style.local_contrast, generator)
    if chance(style.ringing_share, generator):
        amplitude = uniform(*style.ringing, generator)
        signal = signal * (1 + amplitude * _ringing(z.shape, spacing_mm, generator, style))
    if chance(style.ghost_share, generator):
        axis = min(int(uniform(0, 3, generator)), 2)
        ghost = signal.roll(round(uniform(0.25, 0.5, generator) * signal.shape[axis]), axis)
        signal = signal + uniform(*style.ghost, generator) * ghost
    bias = smooth_noise(z.shape, scale_mm=90, spacing_mm=spacing_mm, generator=generator)
    signal = signal * torch.exp(uniform(*style.bias, generator) * bias + uniform(0.2, 1.0, generator) * coil)
    if chance(style.shading_share, generator):
        signal = signal * _shading(brain, spacing_mm, generator, style)
    level = style.thermal[name] * uniform(*style.thermal_factor, generator)
    real, imaginary = (level * normal(z.shape, generator) for _ in range(2))
    # In public data sets, interpolation to the common grid has also smoothed the scanner's noise.
    smoothing = (0.5,) * 3
    real, imaginary = (gaussian_blur(part, smoothing) * math.sqrt(3) for part in (real, imaginary))
    signal = torch.sqrt((signal + real) ** 2 + imaginary**2)
    if chance(style.window_share, generator):
        signal = _window(signal, brain, generator, style)
    return torch.where(brain, gain * signal.clamp(min=1e-2), 0.0)


def _in_slices(z: Tensor, thickness: float, generator: torch.Generator) -> Tensor:
    """Average `z` over slices of `thickness` voxels along a random axis (mostly the third), and interpolate back."""
    if thickness <= 1:
        return z
    axis = 2 if chance(0.5, generator) else min(int(uniform(0, 3, generator)), 2)
    size = list(z.shape)
    size[axis] = max(2, round(size[axis] / thickness))
    coarse = nn.functional.interpolate(z[None, None], size=size, mode="area")
    return nn.functional.interpolate(coarse, size=tuple(z.shape), mode="trilinear", align_corners=False)[0, 0]


def _monotone_warp(signal: Tensor, brain: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Apply a rising, piecewise linear contrast curve with random slopes; lowest and highest value do not change."""
    values = signal[brain]
    low, high = values.min(), values.max()
    slopes = torch.exp(strength * normal((WARP_PIECES,), generator))
    knots = torch.cat([slopes.new_zeros(1), slopes.cumsum(0) / slopes.sum()])
    place = ((signal - low) / (high - low)).clamp(0, 1) * WARP_PIECES
    piece = place.long().clamp(max=WARP_PIECES - 1)
    return low + (high - low) * (knots[piece] + (place - piece) * (knots[piece + 1] - knots[piece]))


def _shading(brain: Tensor, spacing_mm: float, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Shading as a factor of the signal, `(D, H, W)`: a ramp in a random direction, or a smooth field."""
    factor = log_uniform(*style.shading, generator)
    if chance(0.5, generator):
        field = identity_grid(brain.shape) @ nn.functional.normalize(normal((3,), generator), dim=0)
    else:
        scale_mm = uniform(60, 120, generator)
        field = smooth_noise(brain.shape, scale_mm=scale_mm, spacing_mm=spacing_mm, generator=generator)
    low, high = field[brain].min(), field[brain].max()
    return factor ** ((field - low) / (high - low) - 0.5)


def _window(signal: Tensor, brain: Tensor, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Clip the signal to a display window."""
    # About 100,000 voxels are enough to estimate quantiles.
    values = signal[brain][:: max(1, int(brain.sum()) // 100_000)]
    low = values.quantile(uniform(*style.window_low, generator))
    return signal.clamp(low, values.quantile(uniform(*style.window_high, generator)))


def _ringing(shape: Shape, spacing_mm: float, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Stripes like those caused by motion and spikes, `(D, H, W)` in [-1, 1], in a random, mostly axial direction."""
    angle = uniform(0, math.pi, generator)
    direction = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    if chance(style.oblique_share, generator):
        direction = nn.functional.normalize(normal((3,), generator), dim=0)
    phase = 2 * math.pi * spacing_mm / uniform(*style.ringing_mm, generator) * (identity_grid(shape) @ direction)
    return torch.sin(phase)
