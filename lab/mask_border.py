"""How much the border of the brain mask moves a segmentation: `python lab/mask_border.py HEAD OUT CASE ...`.

HEAD is that of `scan_road.py`: its skull and scalp are put around the brain of each case. The brain is then extracted
as in preparation (four sequences, where half of them agree), the mask is changed in several ways, and each result is
compared with the segmentation of the original files. For the first case, there are more masks, and the causes are
taken apart: mask, range of intensities, box. Needs `tests` and `lab` on the path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from scan_road import load, padded, with_head
from scipy import ndimage

from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.inference.results import CaseSegmenter, ResultOptions
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model import image_processing_lora_moe_hgd as processing
from lora_moe_hgd.model.grids import Volume
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.pretrained import DEFAULT_CHECKPOINT
from lora_moe_hgd.scans.brain_extraction import extract_brain
from lora_moe_hgd.scans.brains import agreed_brain, cut_off_findings

Masks = dict[str, Callable[[np.ndarray], np.ndarray]]


def ball(radius: int) -> np.ndarray:
    """Voxels within a distance, as a structuring element."""
    axis = np.arange(-radius, radius + 1)
    return sum(edge**2 for edge in np.meshgrid(axis, axis, axis)) <= radius**2


# Voxels measure 1 mm.
CHANGES: Masks = {
    "as it is": lambda mask: mask,
    "smoothed, 2 mm": lambda mask: ndimage.gaussian_filter(mask.astype(np.float32), 2) > 0.5,
    "closed, 3 mm": lambda mask: ndimage.binary_closing(mask, ball(3)),
    "grown by 1 mm": lambda mask: ndimage.binary_dilation(mask, ball(1)),
    "grown by 2 mm": lambda mask: ndimage.binary_dilation(mask, ball(2)),
    "shrunk by 1 mm": lambda mask: ndimage.binary_erosion(mask, ball(1)),
}


# Of these, what is tried for every case.
ALWAYS = ("as it is", "grown by 1 mm")
# Room around the brain in which the network's input is made, in voxels.
ROOM = 8


class Trial:
    """A case, its head, and the segmentation of its original files."""

    def __init__(self, segmenter: CaseSegmenter, path: Path, head: Path) -> None:
        files = find_case(path)
        self.segmenter, self.name = segmenter, files.case_id.removeprefix("BraTS-SSA-").removesuffix("-000")
        self.stripped = {name: padded(load(file)) for name, file in files.images.items()}
        self.affine = self.stripped["t1c"].affine
        labels = padded(load(files.labelled())).array
        self.truth = LABEL_SCHEMES["brats2023"].decode(np.rint(labels).astype(np.uint8))
        self.heads = with_head(self.stripped, head)
        self.own = np.logical_or.reduce([volume.array != 0 for volume in self.stripped.values()])
        index = np.argwhere(self.own)
        self.box = tuple(map(slice, index.min(axis=0) - ROOM, index.max(axis=0) + ROOM + 1))
        self.direct = self.regions(self.own, images=self.stripped)

    def regions(self, mask: np.ndarray, *, images: dict[str, Volume] | None = None) -> np.ndarray:
        """Regions of the head inside a mask, as preparation makes it."""
        sources = images or {
            name: Volume(np.where(mask, np.maximum(volume.array, 0), 0), volume.affine)
            for name, volume in self.heads.items()
        }
        case = {
            name: nib.Nifti1Image(volume.array[self.box].astype(np.float32), self.affine)
            for name, volume in sources.items()
        }
        found = np.zeros((3, *mask.shape), dtype=bool)
        found[:, *self.box] = self.segmenter.segment(case).regions
        return found

    def row(self, what: str, mask: np.ndarray, found: np.ndarray) -> None:
        """Print how a mask and its segmentation compare."""
        with_direct = " | ".join(f"{dice(*pair):.3f}" for pair in zip(found, self.direct, strict=True))
        with_truth = " | ".join(f"{dice(*pair):.3f}" for pair in zip(found, self.truth, strict=True))
        kept = (self.truth[0] & mask).sum() / self.truth[0].sum()
        print(
            f"| {self.name} | {what} | {dice(mask, self.own):.3f} | {mask.sum() / self.own.sum():.3f} | {kept:.4f} | "
            f"{with_direct} | {with_truth} |",
            flush=True,
        )


@contextmanager
def replaced(name: str, value: object) -> Iterator[None]:
    """Another function for a name of the image processor's module."""
    before = getattr(processing, name)
    setattr(processing, name, value)
    try:
        yield
    finally:
        setattr(processing, name, before)


def causes(trial: Trial, mask: np.ndarray) -> None:
    """Take apart what a mask changes: the voxels at the border, the range of intensities, the box."""
    ranges: dict[str, list[tuple[float, float]]] = {"own": [], "mask": []}
    usual = processing.robust_z_score

    def recorded(into: list) -> Callable:
        def score(volume, *, clip):
            values = volume[volume != 0]
            median = values.median()
            into.append((median.item(), 1.4826 * (values - median).abs().median().item()))
            return usual(volume, clip=clip)

        return score

    def fixed(values: list) -> Callable:
        left = iter(values)

        def score(volume, *, clip):
            median, spread = next(left)
            scaled = ((volume - median) / spread).clamp(-clip, clip)
            return scaled.where(volume != 0, scaled.new_zeros(()))

        return score

    with replaced("robust_z_score", recorded(ranges["own"])):
        trial.regions(trial.own, images=trial.stripped)
    with replaced("robust_z_score", recorded(ranges["mask"])):
        trial.regions(mask)
    for name, (own, other) in zip(trial.heads, zip(*ranges.values(), strict=True), strict=True):
        print(f"{name}: median {own[0]:.1f} to {other[0]:.1f}, spread {own[1]:.1f} to {other[1]:.1f}", flush=True)
    with replaced("robust_z_score", fixed(ranges["mask"])):
        trial.row("original files, range of the mask", trial.own, trial.regions(trial.own, images=trial.stripped))
    with replaced("robust_z_score", fixed(ranges["own"])):
        trial.row("extracted, range of the original files", mask, trial.regions(mask))
    both = {name: Volume(volume.array * mask, volume.affine) for name, volume in trial.stripped.items()}
    trial.row("original files inside the mask", trial.own & mask, trial.regions(mask, images=both))


def shifted(trial: Trial, shift: int) -> None:
    """The original files, with a box that begins some voxels earlier: all that differs is where patches lie."""
    brain_of = processing.brain_of
    corner = np.argwhere(trial.own[trial.box]).min(axis=0) - shift

    def larger(arrays: Iterable[np.ndarray]) -> np.ndarray:
        brain = brain_of(arrays)
        brain[tuple(corner)] = True
        return brain

    with replaced("brain_of", larger):
        found = trial.regions(trial.own, images=trial.stripped)
    trial.row(f"original files, box larger by {shift} voxels at its low corner", trial.own, found)


def main(argv: list[str]) -> None:
    """Print a row for each case and mask."""
    head, out, *cases = (Path(word) for word in argv)
    out.mkdir(parents=True, exist_ok=True)
    segmenter = CaseSegmenter(DEFAULT_CHECKPOINT, ResultOptions())
    print("| case | mask | Dice of the mask | volume | tumour kept | WT, direct | TC | ET | WT, experts | TC | ET |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for number, path in enumerate(cases):
        trial = Trial(segmenter, path, head)
        trial.row("original files", trial.own, trial.direct)
        cached = out / f"{trial.name}.npy"
        if not cached.is_file():
            masks = {name: extract_brain(volume, name) for name, volume in trial.heads.items()}
            print({name: round(dice(mask, trial.own), 3) for name, mask in masks.items()}, flush=True)
            np.save(cached, agreed_brain(masks, "t1c")[0])
        mask = np.load(cached)
        print([str(finding) for finding in cut_off_findings(trial.heads["flair"].array, mask, trial.affine, "flair")])
        shifted(trial, 2)
        for what in CHANGES if number == 0 else ALWAYS:
            changed = CHANGES[what](mask)
            trial.row(f"extracted, {what}", changed, trial.regions(changed))
        if number == 0:
            trial.row("the original one on the head", trial.own, trial.regions(trial.own))
            causes(trial, mask)
            for shift in (1, 3):
                shifted(trial, shift)
            for what in ("grown by 1 mm", "shrunk by 1 mm"):
                changed = CHANGES[what](trial.own)
                trial.row(f"the original one on the head, {what}", changed, trial.regions(changed))


if __name__ == "__main__":
    main(sys.argv[1:])
