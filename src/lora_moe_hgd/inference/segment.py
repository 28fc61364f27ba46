"""Segment one case in its own space, from whichever sequences it has."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..data.layouts import CaseFiles, find_case
from ..data.nifti import read_image, write_image
from ..loading import fastest_device, load_checkpoint
from ..model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import LABEL_SCHEMES, label_scheme
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .picture import BEST_BACKGROUND, save_overlay
from .report import make_report, write_report
from .uncertainty import expected_dice, voxel_entropy


@dataclass(frozen=True)
class Segmentation:
    """What was found in a case, on the case's own grid.

    Attributes:
        regions: WT, TC and ET, nested, `(3, D, H, W)` bool.
        probabilities: Of the same regions, float32 in [0, 1].
        voxel_ml: Volume of a voxel in millilitres.
    """

    regions: np.ndarray
    probabilities: np.ndarray
    voxel_ml: float

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each region in millilitres."""
        return {name: float(region.sum()) * self.voxel_ml for name, region in zip(REGIONS, self.regions, strict=True)}


def segment(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    images: Mapping[str, nib.Nifti1Image],
    *,
    progress: bool = False,
) -> Segmentation:
    """Segment the case whose present sequences are `images`.

    Raises:
        ValueError: If there is no sequence, or they do not lie on one grid.
    """
    return segment_inputs(network, processor, processor(images), progress=progress)


def segment_inputs(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    inputs: Mapping[str, Any],
    *,
    progress: bool = False,
) -> Segmentation:
    """Segment a case that has been preprocessed; absent sequences may lie in `pixel_values` and are not read."""
    logits = network.segment_volume(
        inputs["pixel_values"].to(network.device), inputs["modality_mask"].to(network.device), progress=progress
    )
    ((_, probabilities),) = processor.post_process_semantic_segmentation(
        logits, inputs["geometry"], return_probabilities=True
    )
    return Segmentation(
        regions=probabilities > 0.5, probabilities=probabilities, voxel_ml=inputs["geometry"][0].voxel_ml
    )


def choose_sequences(case: CaseFiles, names: str | None) -> dict[str, Path]:
    """The files of the sequences to use: those named, separated by commas, or all that are there.

    Raises:
        ValueError: If a name is unknown or the case lacks it.
    """
    if names is None:
        return case.images
    wanted = [name.strip().lower() for name in names.split(",")]
    unknown = sorted(set(wanted) - set(MODALITIES))
    if unknown:
        raise ValueError(f"--modalities takes {', '.join(MODALITIES)}, separated by commas, got {', '.join(unknown)}.")
    lacking = [name for name in wanted if name not in case.images]
    if lacking:
        raise ValueError(f"{case.folder} lacks {', '.join(lacking)}; it has {', '.join(case.images)}.")
    return {name: path for name, path in case.images.items() if name in wanted}


def main(argv: Sequence[str]) -> None:
    """Segment a case and write `seg.nii.gz`, `overlay.png` and `report.json`."""
    parser = argparse.ArgumentParser(
        description="Segment the tumour of a case that may lack sequences. Research use, not a medical device."
    )
    parser.add_argument("--in-path", type=Path, required=True, help="folder of the case")
    parser.add_argument("--out-path", type=Path, required=True, help="folder for the results")
    parser.add_argument("--checkpoint", default="tiny", help="shipped name, folder or Hub id; an adapter's, too")
    parser.add_argument("--modalities", help="use only these sequences, such as t1c,flair")
    parser.add_argument(
        "--label-scheme",
        choices=list(LABEL_SCHEMES),
        help="scheme of seg.nii.gz; that of the case's file names if left out",
    )
    parser.add_argument("--probabilities", action="store_true", help="also write probabilities.nii.gz: WT, TC, ET")
    parser.add_argument("--uncertainty", action="store_true", help="also write uncertainty.nii.gz: entropy in bits")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    case = find_case(args.in_path)
    if args.out_path.resolve() == args.in_path.resolve():
        raise ValueError(
            f"--out-path must not be the folder of the case, which may hold a segmentation: {args.in_path}"
        )
    chosen = choose_sequences(case, args.modalities)
    images = {name: read_image(path) for name, path in chosen.items()}
    network, processor = load_checkpoint(args.checkpoint, device=fastest_device())
    args.out_path.mkdir(parents=True, exist_ok=True)
    found = segment(network, processor, images, progress=True)
    scheme = label_scheme(args.label_scheme or case.label_scheme)
    like = next(iter(images.values()))
    report = make_report(
        case_id=case.case_id,
        checkpoint=args.checkpoint,
        sequences=list(images),
        scheme=scheme,
        volumes_ml=found.volumes_ml(),
        confidence=dict(zip(REGIONS, expected_dice(found.probabilities), strict=True)),
        image=like,
        seconds=time.perf_counter() - started,
    )
    # The report says that the others are whole, so it goes first and comes last.
    for name in ("report.json", "probabilities.nii.gz", "uncertainty.nii.gz"):
        (args.out_path / name).unlink(missing_ok=True)
    write_image(args.out_path / "seg.nii.gz", scheme.encode(found.regions), like=like)
    if args.probabilities:
        write_image(args.out_path / "probabilities.nii.gz", np.moveaxis(found.probabilities, 0, -1), like=like)
    if args.uncertainty:
        write_image(args.out_path / "uncertainty.nii.gz", voxel_entropy(found.probabilities), like=like)
    background = next(name for name in BEST_BACKGROUND if name in images)
    save_overlay(
        args.out_path / "overlay.png",
        images[background],
        {"segmentation": found.regions},
        title=f"{case.case_id}: from {' + '.join(images)}, shown on {background}",
    )
    write_report(args.out_path / "report.json", report)
    _print_result(report, args.out_path)


def _print_result(report: Mapping[str, object], folder: Path) -> None:
    volumes = report["volumes_ml"]
    assert isinstance(volumes, dict)
    if report["tumour_found"]:
        print("  ".join(f"{name.upper()} {volume:.1f} mL" for name, volume in volumes.items()))
    else:
        print("No tumour was found.")
    print(f"Results are in {folder}: seg.nii.gz, overlay.png, report.json.")
