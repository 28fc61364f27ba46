"""A case, on disk or in memory, to its segmentation and the folder of its results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..cases.case_files import CaseFiles
from ..cases.nifti import image_like
from ..cases.reading import read_case, read_sources
from ..fingerprints import case_fingerprint, code_fingerprint, fingerprint
from ..loading import checkpoint_digest, checkpoint_folder, load_checkpoint, usable_device
from ..model.case_rules import result_warnings
from ..model.confidence import confidence_warnings
from ..model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from ..model.findings import Finding
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import label_scheme
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .report import make_report
from .segment import find_regions
from .segmentation import RESULT_FILES, Segmentation

# A value of `ResultOptions.label_scheme`: the scheme of the case's own ground truth, as its file names tell.
INPUT_SCHEME = "input"

Case = CaseFiles | Mapping[str, Any]
"""The files of a case, or its sequences by name, at least one of them in memory."""


@dataclass(frozen=True)
class ResultOptions:
    """Options for the input and the output of a case.

    Attributes:
        sequences: Use only these sequences; all that are there when `None`.
        label_scheme: Scheme of the label map; the checkpoint's when `None`, that of the file names when `input`.
        reference: The sequence whose grid the result has; the first when `None`.
        strict: Refuse a case whose images give a warning.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.
        mirror: Take the mean over the case and its mirror image.
        probabilities: Also write `probabilities.nii.gz`.
        uncertainty: Also write `uncertainty.nii.gz`.
        html: Also write `report.html`.

    Raises:
        ValueError: If a sequence or the label scheme is unknown.
    """

    sequences: tuple[str, ...] | None = None
    label_scheme: str | None = None
    reference: str | None = None
    strict: bool = False
    allow_skull: bool = False
    allow_partial: bool = False
    mirror: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    html: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.sequences or ()) - set(MODALITIES))
        if unknown:
            raise ValueError(f"Unknown sequence {', '.join(unknown)}. The names are {', '.join(MODALITIES)}.")
        if self.sequences == ():
            raise ValueError(f"No sequence is to be used. Name at least one of {', '.join(MODALITIES)}.")
        if self.label_scheme not in (None, INPUT_SCHEME):
            label_scheme(str(self.label_scheme))

    def files(self) -> tuple[str, ...]:
        """Names of the files that are written."""
        asked = {
            "report.html": self.html,
            "probabilities.nii.gz": self.probabilities,
            "uncertainty.nii.gz": self.uncertainty,
        }
        return tuple(name for name in RESULT_FILES if asked.get(name, True))


def parse_sequences(names: str) -> tuple[str, ...]:
    """Names of sequences, separated by commas.

    Example:
        >>> parse_sequences("t1c, FLAIR")
        ('t1c', 'flair')
    """
    return tuple(name.strip().lower() for name in names.split(","))


def choose_sequences(case: CaseFiles, wanted: Sequence[str] | None) -> CaseFiles:
    """The case with the sequences to use, all of them when `wanted` is `None`.

    Raises:
        ValueError: If the case lacks one.
    """
    if wanted is None:
        return case
    _require_sequences(str(case.folder), list(case.images), wanted)
    return case.only(wanted)


def _require_sequences(where: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    lacking = [name for name in wanted if name not in present]
    if lacking:
        raise ValueError(f"{where} lacks {', '.join(lacking)}; it has {', '.join(present)}.")


class CaseSegmenter:
    """A checkpoint, loaded once when it is first needed, and how it segments cases.

    Args:
        checkpoint: Shipped name, folder or Hub id; an adapter's, too.
        options: What is used and written.
        device: Where to compute, such as `cpu` or `cuda:1`; the fastest there is when `None`.
        base: Where to look for the base of an adapter, instead of where the adapter says.

    Raises:
        ValueError: If there is no such checkpoint, or the device cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        options: ResultOptions,
        *,
        device: str | None = None,
        base: str | Path | None = None,
    ) -> None:
        folder = checkpoint_folder(checkpoint)
        self.checkpoint, self.options, self.base = str(checkpoint), options, base
        self.folder, self.weights = folder, checkpoint_digest(folder, base=base)
        self.device = usable_device(device)

    @cached_property
    def loaded(self) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
        """Network and processor."""
        return load_checkpoint(self.folder, device=self.device, base=self.base)

    def fingerprint(self, case: CaseFiles) -> str | None:
        """Fingerprint of everything that results are made from: weights, options, code, and the files that are used.

        `None` if a file cannot be read: reading the case says why, and nothing equals it.
        """
        wanted = self.options.sequences
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

    def segment(
        self, case: Case, *, progress: bool = False, warn: Callable[[Finding], object] | None = None
    ) -> Segmentation:
        """Segment a case.

        Args:
            case: What to segment.
            progress: Show a progress bar.
            warn: Called with each finding about the case before the network runs, and about its result afterwards.

        Raises:
            ValueError: If the case is bad, or lacks a sequence that is asked for.
        """
        started = time.perf_counter()
        options = self.options
        # Before reading: if a file changes meanwhile, these results do not pass for those of the new file.
        made_from = self.fingerprint(case) if isinstance(case, CaseFiles) else None
        rules = {name: getattr(options, name) for name in ("reference", "allow_skull", "allow_partial")}
        if isinstance(case, CaseFiles):
            reading = read_case(choose_sequences(case, options.sequences), **rules)
        else:
            _require_sequences("The case", list(case), options.sequences or ())
            used = {name: source for name, source in case.items() if name in (options.sequences or case)}
            reading = read_sources(used, **rules)
        reading.checked(strict=options.strict)
        for finding in (*reading.findings, *result_warnings(reading.images)):
            if warn is not None:
                warn(finding)
        scheme_name = _output_scheme(options.label_scheme, reading.case)
        network, processor = self.loaded
        scheme = label_scheme(scheme_name or processor.label_scheme)
        inputs = processor(reading.settled)
        regions, probabilities = find_regions(network, processor, inputs, mirror=options.mirror, progress=progress)
        (geometry,) = inputs["geometry"]
        volumes_ml = {
            name: float(region.sum()) * geometry.voxel_ml for name, region in zip(REGIONS, regions, strict=True)
        }
        (present,) = inputs["modality_mask"].tolist()
        confidence = processor.confidence(probabilities, regions, voxel_ml=geometry.voxel_ml, present=present)
        doubts = confidence_warnings(confidence)
        for finding in doubts:
            if warn is not None:
                warn(finding)
        warnings = [*geometry.warnings, *map(str, doubts)]
        like = reading.images[reading.reference]
        report = make_report(
            case_id=reading.case.case_id,
            checkpoint=self.checkpoint,
            mirror=options.mirror,
            made_from=made_from,
            sequences=list(reading.images),
            files=reading.case.file_names(),
            left_out=reading.case.names_left_out(),
            scheme=scheme,
            volumes_ml=volumes_ml,
            confidence=confidence,
            image=like,
            reference=reading.reference,
            interpolated=reading.interpolated,
            warnings=warnings,
            seconds=time.perf_counter() - started,
        )
        return Segmentation(
            label_map=image_like(scheme.encode(regions), like=like),
            label_scheme=scheme,
            regions=regions,
            probabilities=probabilities,
            volumes_ml=volumes_ml,
            confidence=confidence,
            warnings=warnings,
            images=reading.images,
            report=report,
            origin=case.folder if isinstance(case, CaseFiles) else None,
        )

    def write(self, case: CaseFiles, folder: Path, *, progress: bool = False) -> Segmentation:
        """Segment a case, print what is odd about it, and save the files that the options ask for.

        Raises:
            ValueError: If the case is bad, or lacks a sequence that is asked for.
        """
        found = self.segment(
            case, progress=progress, warn=lambda finding: print(f"warning: {finding}", file=sys.stderr)
        )
        options = self.options
        found.save(folder, probabilities=options.probabilities, uncertainty=options.uncertainty, html=options.html)
        return found


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
