"""A case on disk to the folder of its results."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..cases.case_files import CaseFiles
from ..cases.nifti import write_image
from ..cases.reading import read_case
from ..fingerprints import case_fingerprint, code_fingerprint, fingerprint
from ..loading import checkpoint_digest, checkpoint_folder, fastest_device, load_checkpoint
from ..model.case_rules import result_warnings
from ..model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import label_scheme
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..pictures import BEST_BACKGROUND, save_overlay
from .page import write_case_page
from .report import make_report, not_at_the_cost_of_the_result, write_report
from .segment import segment
from .uncertainty import expected_dice, voxel_entropy

# Deletion order. `report.json` goes first: its presence marks the folder as complete.
RESULT_FILES = (
    "report.json",
    "report.html",
    "seg.nii.gz",
    "overlay.png",
    "probabilities.nii.gz",
    "uncertainty.nii.gz",
)
# A value of `ResultOptions.label_scheme`: the scheme of the case's own ground truth, as its file names tell.
INPUT_SCHEME = "input"


@dataclass(frozen=True)
class ResultOptions:
    """What is used of a case, and what is written.

    Attributes:
        modalities: Use only these sequences; all that are there when `None`.
        label_scheme: Scheme of `seg.nii.gz`; the checkpoint's when `None`, that of the case's file names when `input`.
        reference: The sequence whose grid the result has; the first when `None`.
        strict: Refuse what would otherwise be warned of.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.
        mirror: Take the mean over the case and its mirror image.
        probabilities: Also write `probabilities.nii.gz`.
        uncertainty: Also write `uncertainty.nii.gz`.
        html: Also write `report.html`.
    """

    modalities: tuple[str, ...] | None = None
    label_scheme: str | None = None
    reference: str | None = None
    strict: bool = False
    allow_skull: bool = False
    allow_partial: bool = False
    mirror: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    html: bool = False

    def files(self) -> tuple[str, ...]:
        """Names of the files that are written."""
        asked = {
            "report.html": self.html,
            "probabilities.nii.gz": self.probabilities,
            "uncertainty.nii.gz": self.uncertainty,
        }
        return tuple(name for name in RESULT_FILES if asked.get(name, True))


def parse_modalities(names: str) -> tuple[str, ...]:
    """Names of sequences, separated by commas.

    Raises:
        ValueError: If one is unknown.
    """
    wanted = tuple(name.strip().lower() for name in names.split(","))
    unknown = sorted(set(wanted) - set(MODALITIES))
    if unknown:
        raise ValueError(f"--modalities takes {', '.join(MODALITIES)}, separated by commas, got {', '.join(unknown)}.")
    return wanted


def choose_sequences(case: CaseFiles, wanted: tuple[str, ...] | None) -> CaseFiles:
    """The case with the sequences to use, all of them when `wanted` is `None`.

    Raises:
        ValueError: If the case lacks one.
    """
    if wanted is None:
        return case
    lacking = [name for name in wanted if name not in case.images]
    if lacking:
        raise ValueError(f"{case.folder} lacks {', '.join(lacking)}; it has {', '.join(case.images)}.")
    return case.only(wanted)


class CaseSegmenter:
    """A checkpoint, loaded once when it is first needed, and what is to be written of each case.

    Args:
        checkpoint: Shipped name, folder or Hub id; an adapter's, too.
        options: What is used and written.
        device: Where to compute; the fastest there is when `None`.

    Raises:
        ValueError: If there is no such checkpoint.
    """

    def __init__(self, checkpoint: str, options: ResultOptions, *, device: str | None = None) -> None:
        folder = checkpoint_folder(checkpoint)
        self.checkpoint, self.options = checkpoint, options
        self.folder, self.weights = folder, checkpoint_digest(folder)
        self.device = device or fastest_device()

    @cached_property
    def loaded(self) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
        """Network and processor."""
        return load_checkpoint(self.folder, device=self.device)

    def fingerprint(self, case: CaseFiles) -> str | None:
        """Fingerprint of everything that results are made from: weights, options, code, and the files that are used.

        `None` if a file cannot be read: reading the case says why, and nothing equals it.
        """
        wanted = self.options.modalities
        try:
            files = case_fingerprint(case if wanted is None else case.only(wanted), labels=False)
        except OSError:
            return None
        return fingerprint(self.weights, asdict(self.options), files, code_fingerprint(__name__))

    def is_done(self, case: CaseFiles, folder: Path) -> bool:
        """Whether `folder` holds complete results of exactly these weights, options, code and files."""
        try:
            report = json.loads((folder / "report.json").read_text())
            made_from, not_written = report["made_from"], report["not_written"]
        except (ValueError, LookupError, TypeError, RecursionError, OSError):
            # There is no report, or it is damaged or of another version.
            return False
        complete = all((folder / name).is_file() for name in self.options.files() if name not in not_written)
        return complete and made_from is not None and made_from == self.fingerprint(case)

    def write(self, case: CaseFiles, folder: Path, *, progress: bool = False) -> dict[str, Any]:
        """Write `seg.nii.gz`, `overlay.png`, what the options ask for, and last `report.json`, which is returned.

        Raises:
            ValueError: If the case is bad, or lacks a sequence that is asked for.
        """
        started = time.perf_counter()
        options, used = self.options, choose_sequences(case, self.options.modalities)
        # Before reading: if a file changes meanwhile, these results do not pass for those of the new file.
        made_from = self.fingerprint(case)
        reading = read_case(
            used,
            reference=options.reference,
            allow_skull=options.allow_skull,
            allow_partial=options.allow_partial,
        ).checked(strict=options.strict)
        images = reading.images
        for finding in (*reading.findings, *result_warnings(images)):
            print(f"warning: {finding}", file=sys.stderr)
        scheme_name = _output_scheme(options.label_scheme, case)
        network, processor = self.loaded
        scheme = label_scheme(scheme_name or processor.label_scheme)
        found = segment(network, processor, reading.settled, mirror=options.mirror, progress=progress)
        like = images[reading.reference]
        report = make_report(
            case_id=case.case_id,
            checkpoint=self.checkpoint,
            mirror=options.mirror,
            made_from=made_from,
            sequences=list(images),
            files=used.file_names(),
            left_out=used.names_left_out(),
            scheme=scheme,
            volumes_ml=found.volumes_ml(),
            confidence=dict(zip(REGIONS, expected_dice(found.probabilities, found.regions), strict=True)),
            image=like,
            reference=reading.reference,
            interpolated=reading.interpolated,
            warnings=list(found.warnings),
            seconds=time.perf_counter() - started,
        )
        folder.mkdir(parents=True, exist_ok=True)
        for name in RESULT_FILES:
            (folder / name).unlink(missing_ok=True)
        write_image(folder / "seg.nii.gz", scheme.encode(found.regions), like=like)
        if options.probabilities:
            write_image(folder / "probabilities.nii.gz", np.moveaxis(found.probabilities, 0, -1), like=like)
        if options.uncertainty:
            write_image(folder / "uncertainty.nii.gz", voxel_entropy(found.probabilities), like=like)
        background = next(name for name in BEST_BACKGROUND if name in images)
        with not_at_the_cost_of_the_result("overlay.png", report):
            save_overlay(
                folder / "overlay.png",
                images[background],
                {"segmentation": found.regions},
                title=f"{case.case_id}: from {' + '.join(images)}, shown on {background}",
            )
        if options.html:
            with not_at_the_cost_of_the_result("report.html", report):
                write_case_page(folder / "report.html", images, found.regions, report)
        write_report(folder / "report.json", report)
        return report


def _output_scheme(name: str | None, case: CaseFiles) -> str | None:
    """Name of the scheme to write labels in; the checkpoint's when `None`.

    Raises:
        ValueError: If the case's own is asked for and its file names do not tell it.
    """
    if name != INPUT_SCHEME:
        return name
    if not case.label_schemes:
        raise ValueError(f"The file names of {case.case_id} do not tell a label scheme. Name one with --label-scheme.")
    return case.label_schemes[0]
