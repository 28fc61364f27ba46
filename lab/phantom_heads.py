"""Phantoms with a head, and what brain extraction keeps of tumours: `python lab/phantom_heads.py LABELS OUT [N]`.

LABELS is the folder `synthseg-labels`, whose label maps hold skull, scalp, eyes and other tissue outside the brain. A
phantom is made in the brain of each and its head is painted around it. The brain is extracted as in preparation: on
each of four sequences, where half of them agree. Every second tumour is the outermost of several that were drawn.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import nn

from lora_moe_hgd.model.grids import Volume
from lora_moe_hgd.phantoms.anatomy import MARGIN, Anatomy
from lora_moe_hgd.phantoms.brain_maps import label_map_files, read_label_map
from lora_moe_hgd.phantoms.contrast import paint
from lora_moe_hgd.phantoms.noise import fractal_noise, gaussian_blur, smooth_noise, uniform
from lora_moe_hgd.phantoms.style import NARROW
from lora_moe_hgd.phantoms.tumour import Tumour, displace, random_tumour
from lora_moe_hgd.scans.brain_extraction import extract_brain
from lora_moe_hgd.scans.brains import agreed_brain, cut_off_findings, dice

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


def make(path: Path, seed: int) -> tuple[dict[str, Volume], np.ndarray, np.ndarray, float]:
    """Sequences with the head, WT, TC and ET, the brain, and the share of the tumour at the surface."""
    generator = torch.Generator().manual_seed(seed)
    head, outside = anatomy_of(path, generator)
    anatomy, box = cropped(head)
    style = replace(NARROW, whole_tumour_ml=(70.0, 0.7))
    drawn = [random_tumour(anatomy, generator=generator, style=style) for _ in range(DRAWN if seed % 2 else 1)]
    tumour = max(drawn, key=lambda one: at_the_surface(one, anatomy))
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
    return volumes, regions, ndimage.binary_fill_holes((inside > 0.5).numpy()), at_the_surface(tumour, anatomy)


def picture(path: Path, volumes: dict[str, Volume], regions: np.ndarray, brain: np.ndarray, mask: np.ndarray) -> None:
    """Slices through the tumour's centre, with the outlines of brain (blue), found mask (green) and tumour (red)."""
    centre = [int(value) for value in np.argwhere(regions[0]).mean(axis=0)]
    figure, axes = plt.subplots(3, 4, figsize=(16, 13))
    for column, (name, volume) in enumerate(volumes.items()):
        for row in range(3):
            cut = [slice(None)] * 3
            cut[row] = centre[row]
            axes[row, column].imshow(
                volume.array[tuple(cut)].T, origin="lower", cmap="gray", vmax=np.percentile(volume.array, 99.5)
            )
            for part, colour in ((brain, "deepskyblue"), (mask, "lime"), (regions[0], "red")):
                axes[row, column].contour(part[tuple(cut)].T, [0.5], colors=colour, linewidths=0.8)
            axes[row, column].set_axis_off()
        axes[0, column].set_title(name)
    figure.tight_layout()
    figure.savefig(path, dpi=60)
    plt.close(figure)


def main(argv: list[str]) -> None:
    """Print a row for each phantom, and draw it."""
    labels, out = Path(argv[0]), Path(argv[1])
    out.mkdir(parents=True, exist_ok=True)
    files = label_map_files(labels)[: int(argv[2]) if len(argv) > 2 else 12]
    print("| phantom | WT in mL | at the surface | brain, Dice | WT kept | TC | ET | each sequence | warned |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed, path in enumerate(files):
        torch.manual_seed(seed)
        volumes, regions, brain, surface = make(path, seed)
        affine = volumes["t1"].affine
        masks = {name: extract_brain(volume, name) for name, volume in volumes.items()}
        mask, findings = agreed_brain(masks, "t1c")
        heads = {f"head_{name}": volume.array.astype(np.float16) for name, volume in volumes.items()}
        found = {f"mask_{name}": one for name, one in masks.items()}
        np.savez(out / f"{seed:02d}.npz", regions=regions, brain=brain, mask=mask, affine=affine, **heads, **found)
        picture(out / f"{seed:02d}.png", volumes, regions, brain, mask)
        findings += cut_off_findings(volumes["flair"].array, mask, affine, "flair")
        kept = ["-" if not region.any() else f"{(region & mask).sum() / region.sum():.4f}" for region in regions]
        each = " ".join(f"{(regions[0] & one).sum() / regions[0].sum():.4f}" for one in masks.values())
        millilitres = regions[0].sum() * SPACING_MM**3 / 1000
        warned = "; ".join(str(finding)[:60] for finding in findings) or "no"
        print(
            f"| {seed} ({path.name[-9:-7]}) | {millilitres:.0f} | {surface:.2f} | {dice(mask, brain):.3f} | "
            f"{' | '.join(kept)} | {each} | {warned} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
