"""What brain extraction keeps of tumours in phantoms with a head: `python lab/head_tumours.py LABELS OUT [N]`.

LABELS is the folder `synthseg-labels`. A phantom is made in the brain of each of the first N label maps, and its head
is painted around it (`tests/phantom_heads.py`, which must be on the path). The brain is extracted as in preparation:
on each of four sequences, where half of them agree. Every second tumour is the outermost of several that were drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from phantom_heads import SPACING_MM, make_head
from scipy import ndimage

from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.grids import Volume
from lora_moe_hgd.phantoms.brain_maps import label_map_files
from lora_moe_hgd.scans.brain_extraction import extract_brain
from lora_moe_hgd.scans.brains import agreed_brain, cut_off_findings

# Depths, in millimetres, to which the mask is cut away at the tumour, to see whether that is noticed.
CUTS_MM = (3, 6, 9, 12)
BESIDE_MM = 10


def with_cuts(flair: np.ndarray, mask: np.ndarray, whole: np.ndarray, affine: np.ndarray) -> str:
    """Share of the tumour that is lost to each cut, with an asterisk where the package warns of it."""
    depth = ndimage.distance_transform_edt(mask, sampling=SPACING_MM)
    beside = ndimage.distance_transform_edt(~whole, sampling=SPACING_MM) < BESIDE_MM
    words = []
    for cut_mm in CUTS_MM:
        cut = mask & ~(beside & (depth < cut_mm))
        lost = (whole & ~cut).sum() / whole.sum()
        words.append(f"{lost:.3f}{'*' * bool(cut_off_findings(flair, cut, affine, 'flair'))}")
    return " ".join(words)


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
    columns = "phantom | WT in mL | at the surface | brain, Dice | WT kept | TC | ET | WT by sequence | warned | cuts"
    print(f"| {columns} |\n|{'---|' * 10}")
    for seed, path in enumerate(files):
        torch.manual_seed(seed)
        volumes, regions, brain, surface = make_head(path, seed)
        affine = volumes["t1"].affine
        masks = {name: extract_brain(volume, name) for name, volume in volumes.items()}
        mask, findings = agreed_brain(masks, "t1c")
        picture(out / f"{seed:02d}.png", volumes, regions, brain, mask)
        findings += cut_off_findings(volumes["flair"].array, mask, affine, "flair")
        kept = ["-" if not region.any() else f"{(region & mask).sum() / region.sum():.4f}" for region in regions]
        each = " ".join(f"{(regions[0] & one).sum() / regions[0].sum():.4f}" for one in masks.values())
        millilitres = regions[0].sum() * SPACING_MM**3 / 1000
        warned = "; ".join(str(finding)[:60] for finding in findings) or "no"
        cuts = with_cuts(volumes["flair"].array, mask, regions[0], affine)
        print(
            f"| {seed} ({path.name[-9:-7]}) | {millilitres:.0f} | {surface:.2f} | {dice(mask, brain):.3f} | "
            f"{' | '.join(kept)} | {each} | {warned} | {cuts} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
