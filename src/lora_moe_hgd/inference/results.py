"""A case on disk to the folder of its results."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..data.case_files import CaseFiles
from ..data.cases import read_case
from ..data.nifti import write_image
from ..loading import checkpoint_digest, checkpoint_folder, fastest_device, load_checkpoint
from ..model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import label_scheme
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .page import write_case_page
from .picture import BEST_BACKGROUND, save_overlay
from .report import make_report, write_report
from .segment import segment
from .uncertainty import expected_dice, voxel_entropy

# In the order in which those of an earlier run go: the report says that the others are whole.
RESULT_FILES = (
    "report.json",
    "report.html",
    "seg.nii.gz",
    "overlay.png",
    "probabilities.nii.gz",
    "uncertainty.nii.gz",
)
# Rims take up contrast, which T1c alone shows (docs/failures.md).
GUESSED = "without T1c, TC and ET are guesses, and their confidence is not to be believed"


@dataclass(frozen=True)
class ResultOptions:
    """What is used of a case, and what is written.

    Attributes:
        modalities: Use only these sequences; all that are there when `None`.
        label_scheme: Scheme of `seg.nii.gz`; that of the case's file names when `None`.
        reference: The sequence whose grid the result has; the first when `None`.
        strict: Refuse what would otherwise be warned of.
        mirror: Take the mean over the case and its mirror image.
        probabilities: Also write `probabilities.nii.gz`.
        uncertainty: Also write `uncertainty.nii.gz`.
        html: Also write `report.html`.
    """

    modalities: tuple[str, ...] | None = None
    label_scheme: str | None = None
    reference: str | None = None
    strict: bool = False
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

    def fingerprint(self, case: CaseFiles) -> str:
        """What results are made from, as SHA-256: weights, options, version, and the case's files."""
        files = {name: (str(path.resolve()), *_state(path)) for name, path in case.images.items()}
        about = [case.label_schemes, dict(case.channels)]
        made_from = [self.weights, asdict(self.options), version("lora-moe-hgd"), *about, files]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()

    def is_done(self, case: CaseFiles, folder: Path) -> bool:
        """Whether `folder` holds whole results of these very weights, options and files."""
        if not all((folder / name).is_file() for name in self.options.files()):
            return False
        try:
            report = json.loads((folder / "report.json").read_text())
            return isinstance(report, dict) and report.get("made_from") == self.fingerprint(case)
        except (ValueError, OSError):
            # A report or an input that cannot be read: what is wrong with the case is told when it is segmented.
            return False

    def write(self, case: CaseFiles, folder: Path, *, progress: bool = False) -> dict[str, Any]:
        """Write `seg.nii.gz`, `overlay.png`, what the options ask for, and last `report.json`, which is returned.

        Raises:
            ValueError: If the case is bad, or lacks a sequence that is asked for.
        """
        started = time.perf_counter()
        options, used = self.options, choose_sequences(case, self.options.modalities)
        reading = read_case(used, reference=options.reference).checked(strict=options.strict)
        images = reading.images
        guessed = [GUESSED] if "t1c" not in images else []
        for warning in (*map(str, reading.findings), *guessed):
            print(f"warning: {warning}", file=sys.stderr)
        network, processor = self.loaded
        found = segment(network, processor, images, mirror=options.mirror, progress=progress)
        scheme = label_scheme(options.label_scheme or (*case.label_schemes, processor.label_scheme)[0])
        like = images[reading.reference]
        report = make_report(
            case_id=case.case_id,
            checkpoint=self.checkpoint,
            mirror=options.mirror,
            made_from=self.fingerprint(case),
            sequences=list(images),
            files=used.file_names(),
            left_out=used.names_left_out(),
            scheme=scheme,
            volumes_ml=found.volumes_ml(),
            confidence=dict(zip(REGIONS, expected_dice(found.probabilities, found.regions), strict=True)),
            image=like,
            reference=reading.reference,
            interpolated=reading.interpolated,
            warnings=[f"{Path(finding.where).name}: {finding.message}" for finding in reading.findings] + guessed,
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
        save_overlay(
            folder / "overlay.png",
            images[background],
            {"segmentation": found.regions},
            title=f"{case.case_id}: from {' + '.join(images)}, shown on {background}",
        )
        if options.html:
            write_case_page(folder / "report.html", images, found.regions, report)
        write_report(folder / "report.json", report)
        return report


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns
