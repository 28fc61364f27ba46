"""Phantoms with a head: skull, scalp, eyes and the rest around the brain of a label map from `synthseg-labels`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import nn

from lora_moe_hgd.model.grids import Volume
from lora_moe_hgd.phantoms.anatomy import MARGIN, Anatomy
from lora_moe_hgd.phantoms.brain_maps import read_label_map
from lora_moe_hgd.phantoms.contrast import paint
from lora_moe_hgd.phantoms.noise import fractal_noise, gaussian_blur, smooth_noise, uniform
from lora_moe_hgd.phantoms.style import NARROW, PhantomStyle
from lora_moe_hgd.phantoms.tumour import Tumour, displace, random_tumour

SPACING_MM = 1.5
SEQUENCES = ("t1", "t1c", "t2", "flair")
# Tissue outside the brain by the codes of the label maps. The names were given by where the codes lie in the maps.
OUTSIDE = {
    "fluid": (24,),
    "vein": (514,),
    "artery": (502,),
    "eye": (506,),
    "muscle": (507, 508),
    "mucosa": (509,),
    "skin": (511,),
    "cord": (512, 530),
    "bone": (515,),
    "marrow": (516,),
}
# Lowest and highest signal, relative to the brain's median: T1, T1c, T2, FLAIR. Of muscle, a random part is fat.
LEVELS = {
    "fluid": ((0.2, 0.4), (0.2, 0.4), (1.8, 3.0), (0.1, 0.4)),
    "vein": ((0.3, 0.9), (1.4, 2.4), (0.2, 0.7), (0.2, 0.7)),
    "artery": ((0.2, 0.8), (1.2, 2.2), (0.1, 0.4), (0.1, 0.5)),
    "eye": ((0.2, 0.4), (0.2, 0.4), (2.0, 3.2), (0.1, 0.5)),
    "muscle": ((0.5, 0.9), (0.7, 1.2), (0.3, 0.7), (0.4, 0.8)),
    "mucosa": ((0.6, 1.0), (1.2, 2.0), (1.3, 2.5), (1.0, 1.8)),
    "skin": ((0.8, 1.5), (0.9, 1.6), (0.5, 1.2), (0.6, 1.3)),
    "cord": ((0.8, 1.1), (0.8, 1.1), (0.7, 1.1), (0.8, 1.1)),
    "bone": ((0.03, 0.2), (0.03, 0.2), (0.03, 0.2), (0.03, 0.2)),
    "marrow": ((0.5, 1.6), (0.6, 1.7), (0.4, 1.2), (0.4, 1.2)),
    "fat": ((1.4, 2.2), (1.4, 2.2), (0.7, 1.8), (0.7, 1.8)),
}
STYLE = replace(NARROW, whole_tumour_ml=(70.0, 0.7))
# Tumours among which the outermost is taken.
DRAWN = 4


def anatomy_of(path: Path, generator: torch.Generator) -> tuple[Anatomy, torch.Tensor]:
    """The brain of a label map at `SPACING_MM`, and the fraction of each tissue outside it, `(T, D, H, W)`."""
    tissues, ventricles, affine = read_label_map(path)
    codes = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj).astype(int)
    brain = tissues.sum(dim=0) > 0
    outside = torch.stack([torch.from_numpy(np.isin(codes, group)) & ~brain for group in OUTSIDE.values()]).float()
    maps = torch.cat([tissues, ventricles[None], outside])
    size = [round(edge / SPACING_MM) for edge in maps.shape[1:]]
    maps = nn.functional.interpolate(maps[None], size=size, mode="area")[0]
    fluid, grey, white, *mixed = maps[: len(tissues)]
    for part in mixed:
        share = uniform(0.3, 0.7, generator)
        grey, white = grey + share * part, white + (1 - share) * part
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3].sum(axis=1) * (SPACING_MM - 1) / 2
    affine[:3, :3] *= SPACING_MM
    anatomy = Anatomy(torch.stack([fluid, grey, white]), maps[len(tissues)], torch.zeros(size), SPACING_MM, affine)
    return anatomy, maps[len(tissues) + 1 :]


def cropped(anatomy: Anatomy) -> tuple[Anatomy, tuple[slice, ...]]:
    """The brain alone, and its box."""
    index = np.argwhere(anatomy.brain.numpy())
    box = tuple(
        slice(max(0, low - MARGIN), high + MARGIN + 1)
        for low, high in zip(index.min(axis=0), index.max(axis=0), strict=True)
    )
    affine = anatomy.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([part.start for part in box])
    parts = anatomy.tissues[:, *box], anatomy.ventricles[box], anatomy.scar[box]
    return Anatomy(*(part.contiguous() for part in parts), SPACING_MM, affine), box


def at_the_surface(tumour: Tumour, anatomy: Anatomy) -> float:
    """Share of the tumour that lies within 5 mm of the outside."""
    depth = ndimage.distance_transform_edt(anatomy.brain.numpy(), sampling=SPACING_MM)
    whole = tumour.regions[0].numpy()
    return float((depth[whole] < 5).mean()) if whole.any() else 0.0


def head_around(
    brain: torch.Tensor, inside: torch.Tensor, outside: torch.Tensor, column: int, generator: torch.Generator
) -> torch.Tensor:
    """A volume with a head around its brain.

    Args:
        brain: A sequence without skull, `(D, H, W)`.
        inside: Share of brain in each voxel.
        outside: Shares of the tissues outside.
        column: Of `LEVELS`.
        generator: For all draws.
    """
    unit = float(brain[brain > 0].median())
    fat = torch.sigmoid(6 * smooth_noise(brain.shape, scale_mm=20, spacing_mm=SPACING_MM, generator=generator))
    head = torch.zeros_like(brain)
    for share, name in zip(outside, OUTSIDE, strict=True):
        level = torch.full_like(brain, uniform(*LEVELS[name][column], generator))
        if name == "muscle":
            level = level * (1 - fat) + fat * uniform(*LEVELS["fat"][column], generator)
        texture = fractal_noise(brain.shape, scales_mm=(3, 6, 12), spacing_mm=SPACING_MM, generator=generator)
        head += share * level * (1 + 0.12 * texture)
    head = gaussian_blur(head * unit, (0.5,) * 3)
    whole = torch.where((inside > 0.5) & (brain > 0), brain, head)
    soft = gaussian_blur((inside > 0.5).float(), (0.5,) * 3)
    whole = whole * soft + (1 - soft) * torch.where(inside > 0.5, torch.minimum(whole, brain), head)
    noise = 0.02 * unit * torch.randn(2, *brain.shape, generator=generator)
    return ((whole + noise[0]) ** 2 + noise[1] ** 2).sqrt()


def make_head(path: Path, seed: int) -> tuple[dict[str, Volume], np.ndarray, np.ndarray, float]:
    """Sequences with the head, WT, TC and ET, the brain, and the share of the tumour at the surface.

    Args:
        path: Label map.
        seed: Of all draws. If it is odd, the outermost of several tumours is taken.
    """
    generator = torch.Generator().manual_seed(seed)
    head, outside = anatomy_of(path, generator)
    return painted_head(head, outside, generator, style=STYLE, drawn=DRAWN if seed % 2 else 1)


def painted_head(
    head: Anatomy, outside: torch.Tensor, generator: torch.Generator, *, style: PhantomStyle, drawn: int
) -> tuple[dict[str, Volume], np.ndarray, np.ndarray, float]:
    """As `make_head`, in an anatomy that was read before.

    Args:
        head: Brain in the field of view of the head.
        outside: Shares of the tissues outside.
        generator: For all draws.
        style: Of tumour and contrast.
        drawn: Number of tumours of which the outermost is taken.
    """
    anatomy, box = cropped(head)
    tumours = [random_tumour(anatomy, generator=generator, style=style) for _ in range(drawn)]
    tumour = max(tumours, key=lambda one: at_the_surface(one, anatomy))
    # The mask of a stripping tool plays no part here: the brain is painted as far as it goes.
    style = replace(style, stripped_level=(0.1, 0.1), stripping_fails_share=0.0)
    painted = paint(displace(anatomy, tumour), tumour, generator=generator, style=style)
    inside = head.tissues.sum(dim=0)
    volumes = {}
    for column, name in enumerate(SEQUENCES):
        brain = torch.zeros_like(inside)
        brain[box] = painted[name]
        volume = head_around(brain, inside, outside, column, generator)
        volumes[name] = Volume(volume.numpy(), head.affine)
    regions = np.zeros((3, *inside.shape), dtype=bool)
    regions[:, *box] = (tumour.regions & anatomy.brain).numpy()
    return volumes, regions, (inside > 0.5).numpy(), at_the_surface(tumour, anatomy)
