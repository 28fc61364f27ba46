"""Smooth random fields and blurring, the building blocks of phantoms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Shape = Sequence[int]


def normal(shape: Shape, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, drawn on the generator's device, then moved to the default device.

    So a seed gives the same numbers on every device.
    """
    drawn = torch.randn(tuple(shape), generator=generator, device=generator.device)
    return drawn.to(torch.get_default_device())


def smooth_noise(shape: Shape, *, scale_mm: float, spacing_mm: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of unit variance, `(D, H, W)`, whose bumps are about `scale_mm` wide."""
    coarse = [max(2, math.ceil(edge * spacing_mm / scale_mm) + 1) for edge in shape]
    field = normal((1, 1, *coarse), generator)
    field = nn.functional.interpolate(field, size=shape, mode="trilinear", align_corners=True)[0, 0]
    # Interpolation averages neighbours, which lowers the variance between the coarse points.
    return field / field.std().clamp(min=1e-6)


def fractal_noise(
    shape: Shape, *, scales_mm: tuple[float, ...], spacing_mm: float, generator: torch.Generator
) -> Tensor:
    """Sum of smooth noise at several scales, `(D, H, W)`, with unit variance; larger scales have larger weights."""
    total = torch.zeros(shape)
    for scale_mm in scales_mm:
        total += scale_mm * smooth_noise(shape, scale_mm=scale_mm, spacing_mm=spacing_mm, generator=generator)
    return total / total.std().clamp(min=1e-6)


def gaussian_blur(volume: Tensor, sigma_voxels: Sequence[float]) -> Tensor:
    """Separable Gaussian blur of `(D, H, W)`. An axis with a sigma of zero is not blurred. Borders are replicated."""
    blurred = volume[None, None]
    for axis, sigma in enumerate(sigma_voxels):
        if sigma <= 0:
            continue
        radius = max(1, math.ceil(3 * sigma))
        offsets = torch.arange(-radius, radius + 1, device=volume.device, dtype=volume.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(kernel)
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        padded = nn.functional.pad(blurred, padding, mode="replicate")
        blurred = nn.functional.conv3d(padded, (kernel / kernel.sum()).reshape(shape))
    return blurred[0, 0]


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number between `low` and `high`. If both limits are equal, no random number is drawn."""
    if low == high:
        return low
    return low + (high - low) * torch.rand((), generator=generator, device=generator.device).item()


def log_uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number between `low` and `high`, both positive, whose logarithm is uniformly distributed."""
    return math.exp(uniform(math.log(low), math.log(high), generator))


def chance(probability: float, generator: torch.Generator) -> bool:
    """Return true with the given probability.

    For the probabilities 0 and 1 no random number is drawn, so an effect that is switched off does not change later
    draws.
    """
    if probability in (0, 1):
        return probability == 1
    return torch.rand((), generator=generator, device=generator.device).item() < probability
