"""Read a case from disk, apply the rules of `case_rules`, and collect errors and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..model.case_rules import LABEL_MAP, SettledCase, settle
from ..model.findings import BadInputError, Finding, Level, raise_errors
from ..model.grids import Volume
from ..model.label_schemes import LabelScheme
from ..model.sources import volume_of, volume_of_image
from ..model.task import BRAIN_TUMOUR, Task
from .case_files import GIVEN, CaseFiles, safe_name
from .naming import said_otherwise
from .nifti import ReadVolume, image_like, read_image, read_stack


@dataclass
class CaseReading:
    """Result of reading a case.

    Attributes:
        case: Files of the case.
        settled: The checked and resampled case from `case_rules.settle`, as the image processor needs it. Its findings
            name sequences, not files.
        images: Each usable sequence, float32, zero outside the brain, all on one grid, in channel order.
        findings: Errors and warnings, each with the file that it concerns.
    """

    case: CaseFiles
    settled: SettledCase
    images: dict[str, nib.Nifti1Image] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def reference(self) -> str:
        """Name of the reference sequence. All other volumes of the case were resampled to its grid."""
        return self.settled.reference

    @property
    def interpolated(self) -> list[str]:
        """Names of the sequences that were resampled from another grid; also `label map` if it was resampled."""
        return list(self.settled.interpolated)

    @property
    def labels(self) -> np.ndarray | None:
        """Label map on the grid of the reference; `None` if it was not read."""
        return self.settled.labels

    @property
    def scheme(self) -> LabelScheme | None:
        """Scheme of the label map; `None` without a label map."""
        return self.settled.scheme

    @property
    def regions(self) -> np.ndarray:
        """Regions of the label map, `(R, D, H, W)` bool: WT, TC and ET for brain tumours."""
        return self.settled.regions

    def checked(self, *, strict: bool = False) -> CaseReading:
        """Return this object if the case can be used.

        Raises:
            BadInputError: If the case has an error or, with `strict`, a warning.
        """
        raise_errors(self.findings, strict=strict)
        return self


def read_case(
    case: CaseFiles,
    *,
    labels: bool = False,
    reference: str | None = None,
    not_finite: Level = "warning",
    allow_skull: bool = False,
    allow_partial: bool = False,
    task: Task = BRAIN_TUMOUR,
) -> CaseReading:
    """Read the files of a case and apply the rules of `case_rules`.

    A file that cannot be used is left out, and the `findings` of the result contain an error about the file.

    Args:
        case: Files of the case.
        labels: Whether to read the label map. If it is read, a missing label map is an error in the `findings`.
        reference: Sequence to whose grid all other sequences are resampled. `None` means the first usable sequence
            whose source states an affine, or the first usable sequence if no source states an affine.
        not_finite: `warning` or `error`, the level of the finding about NaN and infinite voxels, which are set to
            zero.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.
        task: Task that defines the sequences and regions.
    """
    findings: list[Finding] = []
    if reference is not None and reference not in case.images:
        message = f"The reference sequence {reference} is missing. Choose another of {', '.join(case.images)}."
        return CaseReading(case, SettledCase({}, np.eye(4), ""), findings=[Finding(case.folder, message, "error")])
    read = _read_images(case, findings)
    label_map = _read_labels(case, findings) if labels else None
    doubts = _doubtful_names(case.images, task) if case.layout == GIVEN else {}
    settled = settle(
        {name: _volume(case.images[name], volume, *doubts.get(name, ())) for name, volume in read.items()},
        label_map=None if label_map is None else _volume(case.labelled(), label_map),
        label_schemes=case.label_schemes,
        reference=reference,
        not_finite=not_finite,
        allow_skull=allow_skull,
        allow_partial=allow_partial,
        task=task,
    )
    if not read and not findings:
        message = f"The case has no sequence. Add an image of at least one of {', '.join(task.modalities)}."
        findings.append(Finding(case.folder, message, "error"))
    places = {**case.images, LABEL_MAP: case.segmentation}
    findings += [replace(finding, where=places.get(str(finding.where)) or case.folder) for finding in settled.findings]
    images = _images(settled, {name: volume.image for name, volume in read.items()})
    return CaseReading(case, settled, images, findings)


def read_truth(case: CaseFiles, image: nib.Nifti1Image, task: Task = BRAIN_TUMOUR) -> np.ndarray:
    """Read the ground truth, resample it to the grid of `image`, and return its regions, `(R, D, H, W)` bool.

    Args:
        case: Files of the case, which must have a label map.
        image: Image of one sequence of the case, from `CaseReading.images`.
        task: Task that defines the names of the regions.

    Raises:
        BadInputError: If the label map is missing, cannot be read, has invalid labels, or cannot be resampled to the
            grid of the image.
    """
    path = case.labelled()
    settled = settle(
        {"image": Volume(np.asarray(image.dataobj), image.affine)},
        label_map=_volume(path, read_image(path)),
        label_schemes=case.label_schemes,
        allow_skull=True,
        allow_partial=True,
        task=task,
    )
    raise_errors([replace(finding, where=path) for finding in settled.findings if finding.where == LABEL_MAP])
    return settled.regions


def read_volumes(case: CaseFiles) -> dict[str, Volume]:
    """Read the sequences of a case as they are stored: checked by `volume_rules`, but not changed by `case_rules`.

    Raises:
        BadInputError: If a file cannot be read.
    """
    findings: list[Finding] = []
    read = _read_images(case, findings)
    raise_errors(findings)
    return {name: _volume(case.images[name], volume) for name, volume in read.items()}


def read_sources(
    sources: Mapping[str, Any],
    *,
    reference: str | None = None,
    allow_skull: bool = False,
    allow_partial: bool = False,
    task: Task = BRAIN_TUMOUR,
) -> CaseReading:
    """Apply the rules of `case_rules` to a case with sequences in memory or on disk.

    A finding names the file of its sequence, or the sequence if its image is in memory.

    Args:
        sources: Dict from the name of each sequence to its path, nibabel image, MONAI `MetaTensor`, array or tensor
            `(D, H, W)`. Arrays and tensors without an affine are assumed to be in RAS order with voxels of 1 mm.
        reference: Sequence to whose grid all other sequences are resampled. `None` means the first usable sequence
            whose source states an affine, or the first usable sequence if no source states an affine.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.
        task: Task that defines the sequences and regions.
    """
    sources = {name: sources[name] for name in task.modalities if name in sources}
    paths = {name: Path(source) for name, source in sources.items() if isinstance(source, str | Path)}
    case = CaseFiles("case", Path(), "memory", (), paths, None)
    doubts = _doubtful_names(paths, task)
    findings: list[Finding] = []
    volumes: dict[str, Volume] = {}
    images: dict[str, nib.Nifti1Image] = {}
    for name, source in sources.items():
        try:
            if name in paths:
                read = read_image(paths[name])
                volumes[name], images[name] = _volume(paths[name], read, *doubts.get(name, ())), read.image
            else:
                volumes[name] = volume_of(source, where=name)
                images[name] = _image_of(source, volumes[name])
        except BadInputError as error:
            findings.append(error.finding)
    settled = settle(volumes, reference=reference, allow_skull=allow_skull, allow_partial=allow_partial, task=task)
    findings += [replace(finding, where=paths.get(str(finding.where), finding.where)) for finding in settled.findings]
    return CaseReading(case, settled, _images(settled, images), findings)


def _image_of(source: Any, volume: Volume) -> nib.Nifti1Image:
    """Convert the volume to an image. If `source` is a NIfTI image, the result has the geometry of its header."""
    if isinstance(source, nib.Nifti1Image):
        return image_like(volume.array, like=source)
    return nib.Nifti1Image(volume.array, volume.affine)


def _images(settled: SettledCase, sources: Mapping[str, nib.Nifti1Image]) -> dict[str, nib.Nifti1Image]:
    """Convert each usable sequence to an image with the grid and the header of the reference sequence."""
    if not settled.arrays:
        return {}
    like = sources[settled.reference]
    return {name: nib.Nifti1Image(array, like.affine, like.header) for name, array in settled.arrays.items()}


def _read_images(case: CaseFiles, findings: list[Finding]) -> dict[str, ReadVolume]:
    """Each sequence that can be read, in channel order. Errors are added to `findings`."""
    read = {}
    try:
        if case.channels:
            (path,) = set(case.images.values())
            stack = read_stack(path, case.channels)
            return {name: stack[name] for name in case.images}
    except BadInputError as error:
        findings.append(error.finding)
        return {}
    for name, path in case.images.items():
        try:
            read[name] = read_image(path)
        except BadInputError as error:
            findings.append(error.finding)
    return read


def _read_labels(case: CaseFiles, findings: list[Finding]) -> ReadVolume | None:
    try:
        return read_image(case.labelled())
    except BadInputError as error:
        findings.append(error.finding)
        return None


def _doubtful_names(images: Mapping[str, Path], task: Task) -> dict[str, list[str]]:
    """Warnings about files whose names say another sequence than the one for which the user gave them."""
    return {
        name: [
            f"The file was given for {name}, but its name, {safe_name(images[name].name)}, says {said}. Check which "
            "sequence the image shows. Then give the file for this sequence, or rename the file."
        ]
        for name, said in said_otherwise(images, task).items()
    }


def _volume(path: Path, read: ReadVolume, *doubts: str) -> Volume:
    """Convert a file that was read. `doubts` are further warnings about it."""
    volume = volume_of_image(read.image, where=str(path))
    # An array file has no header, so a warning about a missing orientation in the header would not help.
    oddities = () if path.suffix.lower() == ".npy" else volume.oddities
    messages = [finding.message for finding in read.findings]
    return replace(volume, oddities=(*doubts, *dict.fromkeys([*messages, *oddities])))
