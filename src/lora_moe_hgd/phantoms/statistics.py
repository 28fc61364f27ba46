"""Statistics of a labelled case, to compare synthetic with real cases before any training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from ..model.configuration_lora_moe_hgd import REGIONS

PARTS = ("necrosis", "oedema", "rim")
HULL_MM = 5.0


def case_statistics(volumes: Mapping[str, Tensor], regions: Tensor, spacing_mm: float) -> dict[str, float]:
    """All statistics of a case by name; NaN for a part of the tumour with fewer than ten voxels.

    Args:
        volumes: Sequences by name, each `(D, H, W)`, zero outside the brain.
        regions: WT, TC and ET, nested, `(3, D, H, W)` bool.
        spacing_mm: Edge of a voxel, in millimetres.
    """
    found = {}
    brain = torch.stack([volume != 0 for volume in volumes.values()]).any(dim=0)
    hull = hull_of(brain, spacing_mm)
    for region, mask in zip(REGIONS, regions, strict=True):
        found[f"{region.upper()}, mL"] = mask.sum().item() * spacing_mm**3 / 1000
        found[f"{region.upper()}, roundness"] = roundness(mask)
    found["WT, parts above 0.1 mL"] = float(_components(regions[0], 0.1, spacing_mm))
    found["rim, thickness in mm"] = thickness_mm(regions[2], spacing_mm)
    for name, volume in volumes.items():
        found[f"{name}, noise"] = noise_level(volume, regions)
        found[f"{name}, edge of WT"] = edge_contrast(volume, regions)
        found[f"{name}, rim at the oedema"], found[f"{name}, oedema at the rim"] = rim_border(volume, regions)
        found[f"{name}, brain, darkest"], found[f"{name}, brain, brightest"] = brain_range(volume, regions)
        found[f"{name}, hull"], found[f"{name}, hull, brightest"] = hull_levels(volume, hull, regions)
        for part, level, spread in zip(
            PARTS, region_levels(volume, regions), region_spreads(volume, regions), strict=True
        ):
            found[f"{name}, {part}"] = level
            found[f"{name}, {part}, spread"] = spread
        # On T1 and T1c oedema differs little from the brain, so a quotient of the two would be meaningless.
        if name in ("t2", "flair"):
            found[f"{name}, edge over oedema"] = found[f"{name}, edge of WT"] / found[f"{name}, oedema"]
    return found


def parts_of(regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Necrosis (with all other core that does not enhance), oedema and enhancing rim, each `(D, H, W)` bool."""
    whole, core, enhancing = regions
    return core & ~enhancing, whole & ~core, enhancing


def region_levels(volume: Tensor, regions: Tensor) -> list[float]:
    """Robust z of necrosis, oedema and rim in a sequence relative to the brain outside the tumour.

    The robust z is `(median of the part - median of the brain) / MAD of the brain`, where the brain consists of all
    non-zero voxels outside the tumour. A part with fewer than ten voxels gives NaN.
    """
    median, spread = _brain_scale(volume, regions)
    return [
        ((volume[mask].median() - median) / spread).item() if mask.sum() >= 10 else math.nan
        for mask in parts_of(regions)
    ]


def region_spreads(volume: Tensor, regions: Tensor) -> list[float]:
    """MAD inside necrosis, oedema and rim, divided by the MAD of the brain outside the tumour.

    A part with fewer than ten voxels gives NaN.
    """
    _, spread = _brain_scale(volume, regions)
    return [
        ((volume[mask] - volume[mask].median()).abs().median() / spread).item() if mask.sum() >= 10 else math.nan
        for mask in parts_of(regions)
    ]


def noise_level(volume: Tensor, regions: Tensor) -> float:
    """Median absolute Laplacian inside the healthy brain, divided by the brain's MAD: the grain of an image.

    The healthy brain consists of the brain voxels at least two voxels away from the brain's border and the tumour.
    """
    brain = volume != 0
    healthy = brain & ~regions[0]
    eroded = 1 - nn.functional.max_pool3d((~healthy).float()[None, None], 5, stride=1, padding=2)[0, 0]
    kernel = torch.zeros(1, 1, 3, 3, 3)
    for axis in range(3):
        for side in (0, 2):
            place = [1, 1, 1]
            place[axis] = side
            kernel[0, 0, place[0], place[1], place[2]] = 1
    kernel[0, 0, 1, 1, 1] = -6
    laplacian = nn.functional.conv3d(volume[None, None], kernel, padding=1)[0, 0]
    _, spread = _brain_scale(volume, regions)
    return (laplacian[eroded > 0].abs().median() / spread).item()


def edge_contrast(volume: Tensor, regions: Tensor) -> float:
    """Robust z of the tumour's outermost voxel layer minus the robust z of the adjacent layer of the brain."""
    whole = regions[0]
    inside, outside = _levels_at_border(volume, regions, whole, (volume != 0) & ~whole)
    return inside - outside


def rim_border(volume: Tensor, regions: Tensor) -> tuple[float, float]:
    """Robust z of the rim's voxel layer next to the oedema, and of the oedema's voxel layer next to the rim.

    The closer the two z-scores are, the farther the label of the rim extends beyond the bright part of the rim.
    """
    _, oedema, rim = parts_of(regions)
    return _levels_at_border(volume, regions, rim, oedema)


def brain_range(volume: Tensor, regions: Tensor) -> tuple[float, float]:
    """Robust z of the 1st and the 99th percentile of the brain outside the tumour."""
    return _percentiles(volume, regions, (volume != 0) & ~regions[0], (1, 99))


def hull_of(brain: Tensor, spacing_mm: float) -> Tensor:
    """Outermost layer of a brain, `HULL_MM` thick, `(D, H, W)` bool. Holes inside the brain are ignored."""
    # The padding counts voxels beyond the array as background.
    solid = np.pad(ndimage.binary_fill_holes(brain.numpy()), 1)
    depth_mm = ndimage.distance_transform_edt(solid, sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    return torch.from_numpy((depth_mm > 0) & (depth_mm <= HULL_MM))


def hull_levels(volume: Tensor, hull: Tensor, regions: Tensor) -> tuple[float, float]:
    """Robust z of the median and the 97th percentile of the brain's outermost layer (`hull`) outside the tumour."""
    outside = hull & ~regions[0]
    if not outside.any():
        return math.nan, math.nan
    return _percentiles(volume, regions, outside, (50, 97))


def roundness(mask: Tensor) -> float:
    """Surface of a ball with the mask's volume, divided by the mask's surface in voxel faces. A ball gives 1."""
    volume = mask.sum().item()
    if volume < 10:
        return math.nan
    padded = nn.functional.pad(mask, (1,) * 6)
    faces = sum((padded.diff(dim=axis)).sum().item() for axis in range(3))
    # A digital ball of radius r shows 6 pi r^2 faces.
    radius = (3 * volume / (4 * math.pi)) ** (1 / 3)
    return 6 * math.pi * radius**2 / faces


def thickness_mm(mask: Tensor, spacing_mm: float) -> float:
    """Thickness of a mask: four times the mean depth below its surface. The thickness of a plate is exact."""
    if mask.sum() < 10:
        return math.nan
    # Split each voxel into halves: those of a voxel in the middle of a plate are nearest to opposite sides.
    halves = mask[ndimage.find_objects(mask.numpy().astype(np.uint8))[0]].numpy()
    for axis in range(3):
        halves = halves.repeat(2, axis)
    depth_mm = ndimage.distance_transform_edt(np.pad(halves, 1), sampling=spacing_mm / 2)
    # The distance is measured to the centre of a half voxel, which is a quarter of a voxel beyond the surface.
    return float(4 * (depth_mm[depth_mm > 0].mean() - spacing_mm / 4))


def _brain_scale(volume: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Median and MAD of the brain outside the tumour."""
    brain = volume[(volume != 0) & ~regions[0]]
    median = brain.median()
    return median, (brain - median).abs().median()


def _levels_at_border(volume: Tensor, regions: Tensor, inside: Tensor, outside: Tensor) -> tuple[float, float]:
    """Robust z of the voxel layers on both sides of the border of two masks; NaN if a layer has under ten voxels."""
    inner, outer = inside & _dilated(outside), outside & _dilated(inside)
    if min(inner.sum(), outer.sum()) < 10:
        return math.nan, math.nan
    median, spread = _brain_scale(volume, regions)
    return ((volume[inner].median() - median) / spread).item(), ((volume[outer].median() - median) / spread).item()


def _percentiles(
    volume: Tensor, regions: Tensor, mask: Tensor, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Robust z of two percentiles of the voxels in a mask."""
    median, spread = _brain_scale(volume, regions)
    low, high = np.percentile(volume[mask].numpy(), percentiles)
    return ((low - median) / spread).item(), ((high - median) / spread).item()


def _dilated(mask: Tensor) -> Tensor:
    """Mask that also contains all voxels that share a face, an edge or a corner with a voxel of `mask`."""
    return nn.functional.max_pool3d(mask.float()[None, None], 3, stride=1, padding=1)[0, 0] > 0


def _components(mask: Tensor, least_ml: float, spacing_mm: float) -> int:
    labelled, number = ndimage.label(mask.numpy())
    sizes = torch.bincount(torch.from_numpy(labelled).flatten().long(), minlength=number + 1)[1:]
    return int((sizes * spacing_mm**3 / 1000 >= least_ml).sum())
