"""Segment one case in its own space, from whichever sequences it has."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..data.case_files import CaseFiles, given_case
from ..data.cases import read_case
from ..data.channels import parse_channel_order
from ..data.layouts import find_case
from ..data.nifti import write_image
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


def choose_sequences(case: CaseFiles, names: str | None) -> CaseFiles:
    """The case with the sequences to use: those named, separated by commas, or all that are there.

    Raises:
        ValueError: If a name is unknown or the case lacks it.
    """
    if names is None:
        return case
    wanted = [name.strip().lower() for name in names.split(",")]
    unknown = sorted(set(wanted) - set(MODALITIES))
    if unknown:
        raise ValueError(f"--modalities takes {', '.join(MODALITIES)}, separated by commas, got {', '.join(unknown)}.")
    lacking = [name for name in wanted if name not in case.images]
    if lacking:
        raise ValueError(f"{case.folder} lacks {', '.join(lacking)}; it has {', '.join(case.images)}.")
    return case.only(wanted)


def main(argv: Sequence[str]) -> None:
    """Segment a case and write `seg.nii.gz`, `overlay.png` and `report.json`."""
    parser = argparse.ArgumentParser(
        description="Segment the tumour of a case that may lack sequences. Research use, not a medical device."
    )
    parser.add_argument("--in-path", type=Path, help="the case: its folder, or its file with four axes")
    for name in MODALITIES:
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"or file by file: {name}")
    parser.add_argument("--out-path", type=Path, required=True, help="folder for the results")
    parser.add_argument("--checkpoint", default="tiny", help="shipped name, folder or Hub id; an adapter's, too")
    parser.add_argument("--modalities", help="use only these sequences, such as t1c,flair")
    parser.add_argument(
        "--label-scheme",
        choices=list(LABEL_SCHEMES),
        help="scheme of seg.nii.gz; that of the case's file names if left out",
    )
    parser.add_argument(
        "--channel-order", metavar="NAMES", help="sequences of numbered channels, such as flair,t1,t1c,t2"
    )
    parser.add_argument(
        "--reference", choices=MODALITIES, help="whose grid the result has; that of the first if left out"
    )
    parser.add_argument("--strict", action="store_true", help="refuse what would otherwise be warned of")
    parser.add_argument("--probabilities", action="store_true", help="also write probabilities.nii.gz: WT, TC, ET")
    parser.add_argument("--uncertainty", action="store_true", help="also write uncertainty.nii.gz: entropy in bits")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    case = choose_sequences(_case_of(args), args.modalities)
    if args.out_path.resolve() == case.folder.resolve():
        raise ValueError(
            f"--out-path must not be the folder of the case, which may hold a segmentation: {case.folder}"
        )
    reading = read_case(case, reference=args.reference).checked(strict=args.strict)
    for finding in reading.findings:
        print(f"warning: {finding}", file=sys.stderr)
    images = reading.images
    network, processor = load_checkpoint(args.checkpoint, device=fastest_device())
    args.out_path.mkdir(parents=True, exist_ok=True)
    found = segment(network, processor, images, progress=True)
    scheme = label_scheme(args.label_scheme or (*case.label_schemes, processor.label_scheme)[0])
    like = images[reading.reference]
    report = make_report(
        case_id=case.case_id,
        checkpoint=args.checkpoint,
        sequences=list(images),
        scheme=scheme,
        volumes_ml=found.volumes_ml(),
        confidence=dict(zip(REGIONS, expected_dice(found.probabilities), strict=True)),
        image=like,
        reference=reading.reference,
        interpolated=reading.interpolated,
        warnings=[f"{finding.path.name}: {finding.rule}, got {finding.value}" for finding in reading.findings],
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


def _case_of(args: argparse.Namespace) -> CaseFiles:
    """The case that the command line names, by its place or file by file."""
    given = {name: getattr(args, name) for name in MODALITIES if getattr(args, name) is not None}
    if bool(given) == (args.in_path is not None):
        options = ", ".join(f"--{name}" for name in MODALITIES)
        raise ValueError(
            f"A case is given by --in-path or by some of {options}, got {'both' if given else 'neither'}."
        )
    if given:
        return given_case(given)
    return find_case(args.in_path, channel_order=args.channel_order and parse_channel_order(args.channel_order))


def _print_result(report: Mapping[str, object], folder: Path) -> None:
    volumes = report["volumes_ml"]
    assert isinstance(volumes, dict)
    if report["tumour_found"]:
        print("  ".join(f"{name.upper()} {volume:.1f} mL" for name, volume in volumes.items()))
    else:
        print("No tumour was found.")
    print(f"Results are in {folder}: seg.nii.gz, overlay.png, report.json.")
