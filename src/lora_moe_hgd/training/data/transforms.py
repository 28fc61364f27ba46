"""Random crops and augmentation of a training sample.

The caller seeds a random generator per sample, so that a sample does not depend on the number of workers or processes.
A sample is a pair: `pixel_values (M, D, H, W)` and `labels (R, D, H, W)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...phantoms.noise import chance, gaussian_blur, smooth_noise, uniform

FOREGROUND_SHARE = 0.75

# Share and scales follow nnU-Net (https://arxiv.org/abs/1904.08128). The largest angle is half of nnU-Net's.
TURNED_SHARE = 0.2
MOST_TURNED = math.radians(15)
SCALES = (0.7, 1.4)


def random_crop(
    pixel_values: Tensor, labels: Tensor, size: tuple[int, int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut out a box of `size` voxels at a random position. Cases that are smaller than the box are zero-padded.

    With probability `FOREGROUND_SHARE`, the centre of the box is near a voxel of a random region. With probability
    `TURNED_SHARE`, the box is rotated and scaled.
    """
    shape = pixel_values.shape[1:]
    centre = [int(torch.randint(edge, (), generator=generator)) for edge in shape]
    if chance(FOREGROUND_SHARE, generator):
        regions = [region for region in labels if region.any()]
        if regions:
            region = regions[int(torch.randint(len(regions), (), generator=generator))]
            places = torch.nonzero(region)
            centre = places[int(torch.randint(len(places), (), generator=generator))].tolist()
            # Shift the crop, because at inference the border of a window often cuts a tumour.
            jitter = [int(torch.randint(-(edge // 4), edge // 4 + 1, (), generator=generator)) for edge in size]
            centre = [middle + shift for middle, shift in zip(centre, jitter, strict=True)]
    padding = [0] * 6
    starts = []
    for axis, (edge, length, middle) in enumerate(zip(size, shape, centre, strict=True)):
        starts.append(min(max(middle - edge // 2, 0), max(length - edge, 0)))
        short = max(edge - length, 0)
        padding[2 * (2 - axis)], padding[2 * (2 - axis) + 1] = short // 2, short - short // 2
    if chance(TURNED_SHARE, generator):
        held = torch.minimum(torch.tensor(size), torch.tensor(shape))
        box_centre = torch.tensor(starts) + (held - 1) / 2
        return turned_crop(pixel_values, labels, size, box_centre, random_turn(generator))
    box = (slice(None), *(slice(start, start + edge) for start, edge in zip(starts, size, strict=True)))
    return nn.functional.pad(pixel_values[box], padding), nn.functional.pad(labels[box], padding)


def random_turn(generator: torch.Generator) -> Tensor:
    """Random matrix `(3, 3)`: a scale for each axis, then a rotation by up to `MOST_TURNED` about each axis."""
    matrix = torch.diag(torch.tensor([uniform(*SCALES, generator) for _ in range(3)]))
    for axis in range(3):
        angle = uniform(-MOST_TURNED, MOST_TURNED, generator)
        rotation = torch.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        rotation[first, first] = rotation[second, second] = math.cos(angle)
        rotation[first, second], rotation[second, first] = -math.sin(angle), math.sin(angle)
        matrix = rotation @ matrix
    return matrix


def turned_crop(
    pixel_values: Tensor, labels: Tensor, size: tuple[int, int, int], centre: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor]:
    """Cut out a box. Its voxel at the offset `o` from its centre gets the value of the case at `centre + matrix @ o`.

    Images are interpolated linearly inside the brain and stay zero outside. Labels come from the nearest voxel.
    """
    shape = torch.tensor(pixel_values.shape[1:])
    offsets = torch.stack(
        torch.meshgrid(*(torch.arange(edge) - (edge - 1) / 2 for edge in size), indexing="ij"), dim=-1
    )
    places = centre + offsets @ matrix.T
    # `grid_sample` expects x, y, z from -1 to 1, which are the centres of the first and the last voxel.
    grid = (2 * places / (shape - 1).clamp(min=1) - 1).flip(-1)[None]

    def sample(volumes: Tensor, mode: str) -> Tensor:
        return nn.functional.grid_sample(volumes[None].float(), grid, mode=mode, align_corners=True)[0]

    brain = (pixel_values != 0).float()
    # At the border of the brain, zeros outside must not darken voxels inside.
    inside = sample(brain, "bilinear")
    image = sample(pixel_values, "bilinear") / inside.clamp(min=0.5)
    return torch.where(inside >= 0.5, image, 0.0), sample(labels, "nearest").to(labels.dtype)


def random_flip(pixel_values: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror each axis with probability one half."""
    axes = [axis for axis in (1, 2, 3) if chance(0.5, generator)]
    return pixel_values.flip(axes), labels.flip(axes)


def random_intensity(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """Randomly change scale, offset, gamma, sharpness, resolution, bias field and noise, separately for each sequence.

    Voxels outside the brain, which are exactly zero, stay zero.
    """
    return torch.stack([_one_sequence(volume, generator) for volume in pixel_values])


def _one_sequence(volume: Tensor, generator: torch.Generator) -> Tensor:
    brain = volume != 0
    if not brain.any():
        return volume
    if chance(0.2, generator):
        sigma = uniform(0.3, 0.9, generator)
        volume = gaussian_blur(volume, (sigma, sigma, sigma))
    if chance(0.15, generator):
        axis = int(torch.randint(3, (), generator=generator))
        volume = _thick_slices(volume, axis, uniform(1.5, 3.0, generator))
    if chance(0.3, generator):
        # Gamma on a scale without negative numbers; -4 is darker than nearly any brain voxel.
        shifted = (volume + 4).clamp(min=0) / 4
        volume = 4 * shifted ** uniform(0.75, 1.35, generator) - 4
    scale, offset = uniform(0.75, 1.3, generator), uniform(-0.3, 0.3, generator)
    volume = scale * volume + offset
    if chance(0.2, generator):
        field = smooth_noise(volume.shape, scale_mm=40, spacing_mm=1, generator=generator)
        volume = volume + uniform(0.1, 0.4, generator) * field
    if chance(0.3, generator):
        volume = volume + uniform(0.05, 0.35, generator) * torch.randn(volume.shape, generator=generator)
    return torch.where(brain, volume, 0.0)


def _thick_slices(volume: Tensor, axis: int, factor: float) -> Tensor:
    """Reduce the resolution along one axis by `factor`, and interpolate back to the original size."""
    size = list(volume.shape)
    size[axis] = max(2, round(size[axis] / factor))
    coarse = nn.functional.interpolate(volume[None, None], size=size, mode="area")
    return nn.functional.interpolate(coarse, size=tuple(volume.shape), mode="trilinear", align_corners=False)[0, 0]
