"""From raw images, DICOM or NIfTI with the skull, to a case on one grid without skull."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from ..cases.case_files import safe_name
from ..cases.layouts import find_case
from ..cases.reading import read_volumes
from ..masks import dice
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.findings import WHOLE_CASE, BadInputError, Finding
from ..model.geometry import voxel_spacing_mm
from ..model.grids import Volume, check_affine, on_grid_of
from .archives import unpack
from .brain_extraction import brain_by_command, brain_by_mask, extract_brain
from .brains import agreed_brain, cut_off_findings, on_grid, volume_findings
from .choice import Choice, choose
from .convert import convert
from .prepared import Placement, Prepared, report_of
from .raw import is_raw, is_zip
from .registration import Motion, register
from .studies import case_id_of, choose_study, read_studies

DEEPBET, NONE = "deepbet", "none"
# T1c is the reference if its voxels are not much longer than the finest sequence's; then the order of this list.
ALIKE = 1.25
PREFERRED = ("t1c", "t1", "flair", "t2")
# A head does not move further between two sequences of a study, or turn more. Between studies it may.
MUCH_TURN_DEGREES, MUCH_SHIFT_MM = 25.0, 50.0
LEAST_INFORMATION = 0.15


@dataclass(frozen=True)
class ScanOptions:
    """How raw images are prepared.

    Attributes:
        study: Number or UID of the study to use, where there are several.
        series: Number or UID of a series by sequence.
        sequences: Use only these; all that are there when `None`.
        reference: Sequence whose grid the case gets; the finest when `None`.
        brain_extraction: `deepbet`, `none` for images without skull, or a command with `{input}` and `{output}`.
        brain_mask: File with the brain in the reference, used instead.
        case_id: Name of the case; when `None` a digest of the study, or the name of the folder of NIfTI files.
    """

    study: str | None = None
    series: Mapping[str, str] = field(default_factory=dict)
    sequences: tuple[str, ...] | None = None
    reference: str | None = None
    brain_extraction: str = DEEPBET
    brain_mask: Path | None = None
    case_id: str | None = None


@dataclass
class _Raw:
    """Sequences as they were scanned."""

    case_id: str
    volumes: dict[str, Volume]
    findings: list[Finding]
    choice: Choice | None = None


def prepare(path: Path, options: ScanOptions, scratch: Path, *, say: Callable[[str], object] = print) -> Prepared:
    """Bring the sequences of a study to one grid and remove the skull.

    Args:
        path: Folder, zip or DICOMDIR with DICOM files, or the folder of a case with NIfTI files.
        options: What to use, and how.
        scratch: Folder for intermediate files, which the caller removes.
        say: Called with the table of series and a line for each step.

    Raises:
        BadInputError: If the images cannot be used.
        ValueError: If an option has no meaning.
    """
    clock = _Clock()
    raw = _read(path, options, scratch, say)
    clock.lap("reading")
    volumes = raw.volumes
    reference = _reference(volumes, options.reference)
    findings = raw.findings
    brains = {
        name: _brain(name, volume, options, scratch, is_reference=name == reference)
        for name, volume in volumes.items()
    }
    clock.lap("brain extraction")
    motions: dict[str, Motion] = {}
    for name, volume in volumes.items():
        if name != reference:
            motions[name] = register(volumes[reference], volume, brain=brains[reference], moving_brain=brains[name])
            findings += _motion_findings(name, motions[name], reference)
    clock.lap("registration")
    moved = {name: motions[name].moved(volume) if name in motions else volume for name, volume in volumes.items()}
    like = volumes[reference]
    heads = {name: _on_reference(name, volume, like, reference) for name, volume in moved.items()}
    masks = {name: on_grid(brain, moved[name].affine, like) for name, brain in brains.items() if brain is not None}
    brain, disagreements = agreed_brain(masks, reference)
    findings += disagreements
    if options.brain_mask is not None:
        brain = masks[reference]
    findings += volume_findings(brain, like.affine, reference)
    if "flair" in heads and options.brain_extraction != NONE:
        findings += cut_off_findings(heads["flair"], brain, like.affine, "flair")
    clock.lap("one grid")
    for name, motion in motions.items():
        say(
            f"{name} to {reference}: turned by {motion.turn_degrees:.1f} degrees and moved by {motion.shift_mm:.1f} mm"
        )
    case_id = safe_name(options.case_id) if options.case_id else raw.case_id
    own = {name: Placement(volume.array.shape, volume.affine, np.eye(4)) for name, volume in volumes.items()}
    own |= {name: replace(own[name], motion=motion.matrix) for name, motion in motions.items()}
    litres = float(brain.sum()) * like.voxel_litres
    say(f"brain: {litres:.2f} litres; grid of {reference}, {_times(like)}")
    return Prepared(
        case_id=case_id,
        reference=reference,
        affine=like.affine,
        images={name: np.where(brain, np.maximum(head, 0), 0).astype(np.float32) for name, head in heads.items()},
        heads={name: head.astype(np.float32) for name, head in heads.items()},
        brain=brain,
        placements=own,
        findings=tuple(findings),
        report=report_of(
            {
                "case_id": case_id,
                "reference": reference,
                "brain_extraction": "mask" if options.brain_mask else options.brain_extraction.split()[0],
                "brain_litres": litres,
                "sequences": {
                    name: _sequence_report(name, volume, raw, motions.get(name), masks, reference)
                    for name, volume in volumes.items()
                },
                "seconds": clock.laps,
            }
        )
        | {"warnings": [str(finding) for finding in findings]},
        headers=_headers(raw.choice, reference),
    )


def _read(path: Path, options: ScanOptions, scratch: Path, say: Callable[[str], object]) -> _Raw:
    if not path.exists():
        raise BadInputError(path, "There is no such file or folder. Check the path.")
    if path.is_dir() and not any(path.iterdir()):
        raise BadInputError(path, "The folder is empty.")
    return _read_dicom(path, options, scratch, say) if is_raw(path) else _read_case(path, options)


def _read_dicom(path: Path, options: ScanOptions, scratch: Path, say: Callable[[str], object]) -> _Raw:
    folder = path
    if path.is_file():
        folder = path.parent
        if is_zip(path):
            folder = scratch / "unpacked"
            folder.mkdir()
            unpack(path, folder)
    series, unreadable = read_studies(folder)
    findings = []
    if unreadable:
        findings.append(
            Finding(WHOLE_CASE, f"{unreadable} DICOM files cannot be read. They may be cut off: copy them again.")
        )
    if not series:
        raise BadInputError(path, "None of the DICOM files can be read. They may be cut off: copy them again.")
    series = choose_study(series, options.study, where=path)
    choice = choose(series, options.series, where=path)
    chosen = _only(choice.chosen, options.sequences, path)
    choice = replace(choice, chosen=chosen)
    findings += [finding for finding in choice.findings if finding.where in chosen or finding.where == WHOLE_CASE]
    say(choice.table())
    volumes = {}
    for name, row in chosen.items():
        volumes[name], found = convert(row, name, scratch)
        check_affine(name, volumes[name].affine, volumes[name].array.shape)
        findings += found
    return _Raw(case_id_of(series[0].study), volumes, findings, choice)


def _read_case(path: Path, options: ScanOptions) -> _Raw:
    if options.series or options.study:
        raise ValueError("--series and --study choose among DICOM files, and there are none. Leave them out.")
    case = find_case(path)
    volumes, findings = read_volumes(case)
    return _Raw(case.case_id, _only(volumes, options.sequences, path), findings)


def _only(found: Mapping[str, Any], wanted: tuple[str, ...] | None, where: Path) -> dict[str, Any]:
    lacking = [name for name in wanted or () if name not in found]
    if lacking:
        raise BadInputError(where, f"{', '.join(lacking)} was not found; {', '.join(found)} was.")
    return {name: found[name] for name in MODALITIES if name in found and (wanted is None or name in wanted)}


def _reference(volumes: Mapping[str, Volume], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in volumes:
            raise BadInputError(WHOLE_CASE, f"The reference {wanted} is not there. The case has {', '.join(volumes)}.")
        return wanted
    longest = {name: max(voxel_spacing_mm(volume.affine)) for name, volume in volumes.items()}
    alike = [name for name in volumes if longest[name] <= ALIKE * min(longest.values())]
    return min(alike, key=PREFERRED.index)


def _brain(name: str, volume: Volume, options: ScanOptions, scratch: Path, *, is_reference: bool) -> np.ndarray | None:
    if options.brain_mask is not None:
        return brain_by_mask(options.brain_mask, volume, name) if is_reference else None
    if options.brain_extraction == NONE:
        return volume.array > 0
    if options.brain_extraction == DEEPBET:
        return extract_brain(volume, name)
    return brain_by_command(options.brain_extraction, volume, name, scratch)


def _motion_findings(name: str, motion: Motion, reference: str) -> list[Finding]:
    """What is odd about a motion.

    Raises:
        BadInputError: If the images have so little in common that they show no one head.
    """
    if motion.after < LEAST_INFORMATION:
        raise BadInputError(
            name,
            f"The registration to {reference} failed: the images have hardly anything in common (mutual information "
            f"{motion.after:.2f}). Leave the sequence out with --sequences, or register it yourself.",
        )
    if motion.turn_degrees > MUCH_TURN_DEGREES or motion.shift_mm > MUCH_SHIFT_MM:
        return [
            Finding(
                name,
                f"It was turned by {motion.turn_degrees:.0f} degrees and moved by {motion.shift_mm:.0f} mm to lie on "
                f"{reference}. Heads seldom move so far. Look at it.",
            )
        ]
    return []


def _on_reference(name: str, volume: Volume, like: Volume, reference: str) -> np.ndarray:
    placed, _, _ = on_grid_of(volume, like)
    if not placed.array.any():
        raise BadInputError(name, f"It does not overlap with {reference}. Leave it out with --sequences.")
    return placed.array


def _sequence_report(
    name: str,
    volume: Volume,
    raw: _Raw,
    motion: Motion | None,
    masks: Mapping[str, np.ndarray],
    reference: str,
) -> dict[str, Any]:
    """What `prepare.json` says about a sequence. Descriptions and UIDs may lead to the patient: numbers are enough."""
    content: dict[str, Any] = {"shape": volume.array.shape, "spacing_mm": voxel_spacing_mm(volume.affine)}
    if raw.choice is not None:
        content |= {"series": raw.choice.chosen[name].number, "plane": raw.choice.chosen[name].plane}
    if motion is not None:
        content |= {
            "motion": motion.matrix,
            "turn_degrees": motion.turn_degrees,
            "shift_mm": motion.shift_mm,
            "mutual_information": {"before": motion.before, "after": motion.after},
        }
    if name in masks:
        content["brain_overlap"] = dice(masks[name], masks[reference])
    return content


def _headers(choice: Choice | None, reference: str) -> tuple[pydicom.Dataset, ...]:
    if choice is None:
        return ()
    return tuple(pydicom.dcmread(path, stop_before_pixels=True) for path in choice.chosen[reference].files)


def _times(volume: Volume) -> str:
    return " x ".join(f"{edge:.3g}" for edge in voxel_spacing_mm(volume.affine)) + " mm"


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 1), now
