"""Segment a case on disk or in memory, and write its results to a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..cases.case_files import CaseFiles
from ..cases.nifti import image_like
from ..cases.reading import CaseReading, read_case, read_sources
from ..files import read_json
from ..fingerprints import case_fingerprint, code_fingerprint, fingerprint
from ..loading import checkpoint_digest, checkpoint_folder, checkpoint_task, load_checkpoint, usable_device
from ..model.case_rules import result_warnings
from ..model.confidence import confidence_warnings
from ..model.findings import Finding
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import LabelScheme, label_scheme
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..model.task import Task
from ..sequence_names import sequence_hint
from .report import make_report, print_warning
from .segment import find_in_box
from .segmentation import RESULT_FILES, SCAN_FILES, Segmentation

# Value of `ResultOptions.label_scheme` for the scheme that the case's file names imply for its ground truth.
INPUT_SCHEME = "input"

Case = CaseFiles | Mapping[str, Any]
"""Files of a case, or a dictionary from sequence names to images. At least one of these images is in memory."""


@dataclass(frozen=True)
class ResultOptions:
    """Options for reading a case and for writing its result.

    Attributes:
        sequences: Use only these sequences. `None` means all available sequences.
        label_scheme: Label scheme, the meaning of each value in the label map. `None` means the checkpoint's scheme.
            `input` means the scheme that the file names imply for the case's own label map.
        reference: Sequence whose grid the result has. `None` means the first sequence of the case.
        strict: Refuse cases with warnings about their images.
        allow_skull: Accept images with the skull.
        allow_partial: Accept volumes that show only a part of a brain.
        mirror: Average the logits of the case and of its left-right mirror image, which takes twice as long.
        bf16: Compute the network in bfloat16.
        probabilities: Also write `probabilities.nii.gz`.
        uncertainty: Also write `uncertainty.nii.gz`.
        html: Also write `report.html`.
    """

    sequences: tuple[str, ...] | None = None
    label_scheme: str | None = None
    reference: str | None = None
    strict: bool = False
    allow_skull: bool = False
    allow_partial: bool = False
    mirror: bool = False
    bf16: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    html: bool = False

    def check(self, task: Task) -> None:
        """Check that the task of a checkpoint has the sequences and the label scheme of these options.

        Raises:
            ValueError: If the task lacks a sequence or the label scheme, or if the list of sequences is empty.
        """
        known = ", ".join(task.modalities)
        unknown = sorted({*(self.sequences or ()), *([self.reference] if self.reference else [])} - {*task.modalities})
        if unknown:
            hint = sequence_hint(unknown, task.modalities)
            raise ValueError(f"Unknown sequence {', '.join(unknown)}.{hint} The names are {known}.")
        if self.sequences == ():
            raise ValueError(f"The list of sequences is empty. Name at least one of {known}.")
        if self.label_scheme not in (None, INPUT_SCHEME):
            label_scheme(str(self.label_scheme), task.schemes)

    def files(self) -> tuple[str, ...]:
        """Names of the files that these options request."""
        # No option requests SCAN_FILES: `Segmentation.save` writes them for raw images.
        asked = {
            **dict.fromkeys(SCAN_FILES, False),
            "report.html": self.html,
            "probabilities.nii.gz": self.probabilities,
            "uncertainty.nii.gz": self.uncertainty,
        }
        return tuple(name for name in RESULT_FILES if asked.get(name, True))


def choose_sequences(case: CaseFiles, wanted: Sequence[str] | None) -> CaseFiles:
    """Return the case with only the wanted sequences. If `wanted` is `None`, return the case unchanged.

    Raises:
        ValueError: If the case lacks a wanted sequence.
    """
    if wanted is None:
        return case
    _require_sequences(str(case.folder), list(case.images), wanted)
    return case.only(wanted)


def _require_sequences(where: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    lacking = [name for name in wanted if name not in present]
    if lacking:
        raise ValueError(
            f"{where} lacks {', '.join(lacking)}. It has {', '.join(present)}. Request only these sequences."
        )


@dataclass(frozen=True)
class ReadyCase:
    """A case that was read and prepared for the network.

    Attributes:
        case: Files of the case; `None` for a case in memory.
        reading: Images of the case, and warnings about them.
        scheme: Label scheme of the result.
        inputs: Output of the image processor for the case.
        made_from: Fingerprint of everything on which the result depends; `None` for a case in memory.
        seconds: Time that reading took, in seconds.
    """

    case: CaseFiles | None
    reading: CaseReading
    scheme: LabelScheme
    inputs: Mapping[str, Any]
    made_from: str | None
    seconds: float


class CaseSegmenter:
    """Segment cases, all with the same checkpoint, which is loaded when the first case needs it.

    Args:
        checkpoint: Name of a shipped checkpoint, or folder or Hub id of a network or an adapter.
        options: Options for reading a case and for writing its result.
        device: Device such as `cpu` or `cuda:0`. `None` means a GPU if there is one.
        base: For an adapter: folder or Hub id of its base. `None` means the base that `adapter_config.json` names.

    Raises:
        ValueError: If the checkpoint is not found, if an option does not fit the checkpoint's task, if the device
            cannot be used, or if bfloat16 is requested, but the device is not known to compute faster in bfloat16.
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
        self.task = checkpoint_task(folder, base=base)
        options.check(self.task)
        self.folder, self.weights = folder, checkpoint_digest(folder, base=base)
        self.device = usable_device(device, bf16=options.bf16)

    @cached_property
    def loaded(self) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
        """Network and image processor, loaded on first use."""
        return load_checkpoint(self.folder, device=self.device, base=self.base)

    def fingerprint(self, case: CaseFiles) -> str | None:
        """Fingerprint of everything on which a result depends: weights, options, code, and the files that are used.

        The fingerprint is `None` if a file cannot be read. No stored result has the fingerprint `None`. So the case
        is not skipped, and reading it reports the error.
        """
        wanted = self.options.sequences
        try:
            # The page shows the ground truth, so `html` makes the label map an input.
            files = case_fingerprint(case if wanted is None else case.only(wanted), labels=self.options.html)
        except OSError:
            return None
        return fingerprint(self.weights, asdict(self.options), files, code_fingerprint(__name__))

    def is_done(self, case: CaseFiles, folder: Path) -> bool:
        """Whether `folder` contains complete results with the fingerprint that the case has now."""
        try:
            report = read_json(folder / "report.json")
            made_from, not_written = report["made_from"], report["not_written"]
        except (ValueError, LookupError, TypeError, OSError):
            # The report is missing or damaged, or another version wrote it.
            return False
        complete = all((folder / name).is_file() for name in self.options.files() if name not in not_written)
        return complete and made_from is not None and made_from == self.fingerprint(case)

    def read(self, case: Case) -> ReadyCase:
        """Read a case, and prepare it for the network.

        Raises:
            ValueError: If the case cannot be used or lacks a requested sequence.
        """
        started = time.perf_counter()
        options = self.options
        # Take the fingerprint before reading. If a file changes in the meantime, the results do not match the
        # fingerprint of the new file.
        made_from = self.fingerprint(case) if isinstance(case, CaseFiles) else None
        rules = {name: getattr(options, name) for name in ("reference", "allow_skull", "allow_partial")}
        rules["task"] = self.task
        if isinstance(case, CaseFiles):
            reading = read_case(choose_sequences(case, options.sequences), **rules)
        else:
            _require_sequences("The case", list(case), options.sequences or ())
            used = {name: source for name, source in case.items() if name in (options.sequences or case)}
            reading = read_sources(used, **rules)
        reading.checked(strict=options.strict)
        _, processor = self.loaded
        return ReadyCase(
            case=case if isinstance(case, CaseFiles) else None,
            reading=reading,
            scheme=processor.scheme(_output_scheme(options.label_scheme, reading.case)),
            inputs=processor(reading.settled),
            made_from=made_from,
            seconds=time.perf_counter() - started,
        )

    def segment(
        self, case: Case, *, progress: bool = False, warn: Callable[[Finding], object] | None = None
    ) -> Segmentation:
        """Read and segment a case.

        Args:
            case: Case to segment.
            progress: Show a progress bar.
            warn: Function that is called with each warning: with warnings about the case before the network runs, and
                with warnings about the result afterwards.

        Raises:
            ValueError: If the case cannot be used or lacks a requested sequence.
        """
        return self.segment_ready(self.read(case), progress=progress, warn=warn)

    def segment_ready(
        self, ready: ReadyCase, *, progress: bool = False, warn: Callable[[Finding], object] | None = None
    ) -> Segmentation:
        """Segment a case that `read` returned. `progress` and `warn` have the same meaning as in `segment`."""
        started = time.perf_counter()
        options, reading, scheme, inputs = self.options, ready.reading, ready.scheme, ready.inputs
        for finding in (*reading.findings, *result_warnings(reading.images, self.task)):
            if warn is not None:
                warn(finding)
        network, processor = self.loaded
        (geometry,) = inputs["geometry"]
        # Keep the probabilities in the bounding box of the brain, so that a large case fits into memory.
        in_box, probabilities = find_in_box(
            network, processor, inputs, mirror=options.mirror, bf16=options.bf16, progress=progress
        )
        volumes_ml = {
            name: float(region.sum()) * geometry.voxel_ml
            for name, region in zip(self.task.regions, in_box, strict=True)
        }
        (present,) = inputs["modality_mask"].tolist()
        confidence = processor.confidence(probabilities, in_box, voxel_ml=geometry.voxel_ml, present=present)
        doubts = confidence_warnings(confidence, self.task.target)
        for finding in doubts:
            if warn is not None:
                warn(finding)
        warnings = [*geometry.warnings, *map(str, doubts)]
        like = reading.images[reading.reference]
        report = make_report(
            case_id=reading.case.case_id,
            checkpoint=self.checkpoint,
            mirror=options.mirror,
            bf16=options.bf16,
            made_from=ready.made_from,
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
            seconds=ready.seconds + time.perf_counter() - started,
            task=self.task,
        )
        return Segmentation(
            label_map=image_like(geometry.to_own_grid(scheme.encode(in_box)), like=like),
            label_scheme=scheme,
            regions=geometry.to_own_grid(in_box),
            probabilities_in_box=probabilities,
            geometry=geometry,
            # Copy the rounded numbers of the report, so that both show the same numbers.
            volumes_ml=dict(report["volumes_ml"]),
            confidence=dict(report["confidence"]),
            warnings=warnings,
            images=reading.images,
            report=report,
            case=ready.case,
            task=self.task,
        )

    def write(
        self,
        ready: ReadyCase,
        folder: Path,
        *,
        progress: bool = False,
        warn: Callable[[object], object] = print_warning,
    ) -> Segmentation:
        """Segment a case that `read` returned, and save the requested files to `folder`.

        Args:
            ready: Case that `read` returned.
            folder: Output folder.
            progress: Show a progress bar.
            warn: Function that is called with each warning. The default prints it to standard error.
        """
        found = self.segment_ready(ready, progress=progress, warn=warn)
        options = self.options
        found.save(
            folder,
            probabilities=options.probabilities,
            uncertainty=options.uncertainty,
            html=options.html,
            warn=warn,
        )
        return found


def _output_scheme(name: str | None, case: CaseFiles) -> str | None:
    """Name of the label scheme to write; `None` means the checkpoint's scheme.

    Raises:
        ValueError: If the case's own scheme is requested, but the file names of the case do not determine a scheme.
    """
    if name != INPUT_SCHEME:
        return name
    if not case.label_schemes:
        raise ValueError(
            f"The file names of {case.case_id} do not determine a label scheme. Name a label scheme with "
            "--label-scheme."
        )
    return case.label_schemes[0]
