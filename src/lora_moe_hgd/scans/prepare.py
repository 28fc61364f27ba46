"""Make a case on one grid and without skull from raw DICOM, NIfTI or NRRD images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from ..cases.case_files import safe_name
from ..masks import dice
from ..model.findings import WHOLE_CASE, BadInputError, Finding
from ..model.geometry import voxel_spacing_mm
from ..model.grids import Volume, on_grid_of
from .brain_extraction import brain_by_command, brain_by_mask, extract_brain
from .brains import agreed_brain, check_brain, cut_off_findings, is_stripped, on_grid, volume_findings
from .choice import Choice
from .deface import without_face
from .prepared import Placement, Prepared, report_of
from .reading import Scans, read_scans
from .registration import Motion, register
from .steps import Steps

DEEPBET, NONE = "deepbet", "none"
# The reference is the first of `PREFERRED` whose longest voxel edge is at most `ALIKE` times that of the finest
# sequence.
ALIKE = 1.25
PREFERRED = ("t1c", "t1", "flair", "t2")
# A larger motion leads to a warning: within one study, a head seldom moves or turns so far between two sequences.
MUCH_TURN_DEGREES, MUCH_SHIFT_MM = 25.0, 50.0
# Least mutual information after registration. Below it, two images hardly show the same head.
LEAST_INFORMATION = 0.15


@dataclass(frozen=True)
class ScanOptions:
    """Options of the preparation of raw images.

    Attributes:
        study: Study to use if there are several: its number in the list of studies, or its UID.
        series: Series to use for a sequence, such as `{"t1c": "5"}`: its number in the list of series, or its UID.
        sequences: Use only these sequences. `None` means all sequences that are found.
        reference: Sequence whose grid the case gets. `None` means the first of t1c, t1, flair and t2 that has
            about the smallest voxels of the case.
        brain_extraction: `"deepbet"`, `"none"` if no sequence has a skull, or a command with `{input}` and `{output}`.
            `None` means deepbet for each sequence that has a skull.
        brain_mask: File with a brain mask that was drawn on the reference or registered to it. It replaces brain
            extraction.
        case_id: Name of the case. `None` means a digest of the study's UID for DICOM files, and the name of the folder
            for other files.
        deface: Remove the face from `Prepared.heads`.
    """

    study: str | None = None
    series: Mapping[str, str] = field(default_factory=dict)
    sequences: tuple[str, ...] | None = None
    reference: str | None = None
    brain_extraction: str | None = None
    brain_mask: Path | None = None
    case_id: str | None = None
    deface: bool = False


def prepare(
    path: Path,
    options: ScanOptions,
    scratch: Path,
    *,
    steps: Steps | None = None,
    check_name: Callable[[str], object] = lambda case_id: None,
    say: Callable[[str], object] = print,
) -> Prepared:
    """Register the sequences of a study, resample them to one grid, and remove the skull.

    Args:
        path: Folder, zip or DICOMDIR with DICOM files, or the folder of a case with NIfTI or NRRD files.
        options: Which images to use, and how to remove the skull.
        scratch: Folder for intermediate files, which the caller removes.
        steps: Store of finished steps, from which a stopped run continues. `None` stores nothing.
        check_name: Function that is called with the name of the case before any long step. To refuse the
            name, the function raises an error, which ends the preparation.
        say: Function that prints the progress: which image is which sequence, and each step as it begins.

    Raises:
        BadInputError: If the images cannot be used.
        ValueError: If an option has no effect on these images.
    """
    clock, steps = _Clock(), steps or Steps()
    scans = read_scans(path, scratch, study=options.study, series=options.series, sequences=options.sequences, say=say)
    case_id = safe_name(options.case_id) if options.case_id else scans.case_id
    check_name(case_id)
    clock.lap("reading")
    volumes = scans.volumes
    reference = _reference(volumes, options.reference)
    findings = scans.findings
    brains, stripped = _brains(volumes, reference, options, steps, scratch, say)
    if stripped:
        findings.append(_stripped_finding(stripped))
    clock.lap("brain extraction")
    motions: dict[str, Motion] = {}
    for name in volumes:
        if name != reference:
            motions[name] = _motion(name, reference, volumes, brains, steps, say)
            findings += _motion_findings(name, motions[name], reference)
    clock.lap("registration")
    if steps.reused:
        say(f"results of a stopped run are used again: {', '.join(steps.reused)}")
    say(f"resampling the sequences to the grid of {reference}, removing the skull, and checking the result")
    like = volumes[reference]
    moved = {name: motions[name].moved(volume) if name in motions else volume for name, volume in volumes.items()}
    heads = {name: _on_reference(name, volume, like, reference) for name, volume in moved.items()}
    masks = {name: on_grid(brain, moved[name].affine, like) for name, brain in brains.items()}
    brain, disagreements = agreed_brain(masks, reference)
    findings += disagreements
    if options.brain_mask is not None:
        brain = masks[reference]
    findings += volume_findings(brain, like.affine, reference)
    if "flair" in heads and "flair" not in stripped and options.brain_extraction != NONE:
        findings += cut_off_findings(heads["flair"], brain, like.affine, "flair")
    clock.lap("one grid")
    own = {name: Placement(volume.array.shape, volume.affine, np.eye(4)) for name, volume in volumes.items()}
    own |= {name: replace(own[name], motion=motion.matrix) for name, motion in motions.items()}
    litres = float(brain.sum()) * like.voxel_litres
    say(f"the brain has {litres:.2f} litres; the case has the grid of {reference}, with voxels of {_times(like)}")
    return Prepared(
        case_id=case_id,
        reference=reference,
        affine=like.affine,
        images={name: np.where(brain, head, 0).astype(np.float32) for name, head in heads.items()},
        heads={
            name: (without_face(head, brain, like.affine) if options.deface else head).astype(np.float32)
            for name, head in heads.items()
        },
        brain=brain,
        placements=own,
        findings=tuple(findings),
        report=report_of(
            {
                "case_id": case_id,
                "reference": reference,
                "brain_extraction": "mask" if options.brain_mask else (options.brain_extraction or DEEPBET).split()[0],
                "without_skull": {name: name in stripped for name in volumes},
                "brain_litres": litres,
                "sequences": {
                    name: _sequence_report(name, volume, scans, motions.get(name), masks, reference)
                    for name, volume in volumes.items()
                },
                "seconds": clock.laps,
            }
        )
        | {"warnings": [str(finding) for finding in findings]},
        headers=_headers(scans.choice, reference),
    )


def _reference(volumes: Mapping[str, Volume], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in volumes:
            message = f"The reference sequence {wanted} is missing. Choose one of {', '.join(volumes)}."
            raise BadInputError(WHOLE_CASE, message)
        return wanted
    longest = {name: max(voxel_spacing_mm(volume.affine)) for name, volume in volumes.items()}
    alike = [name for name in volumes if longest[name] <= ALIKE * min(longest.values())]
    return min(alike, key=PREFERRED.index)


def _brains(
    volumes: Mapping[str, Volume],
    reference: str,
    options: ScanOptions,
    steps: Steps,
    scratch: Path,
    say: Callable[[str], object],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Find the brain on each sequence. If the user gave a mask, return only this mask, for the reference.

    Returns:
        Brain masks by sequence, and the names of the sequences without skull.
    """
    if options.brain_mask is not None:
        return {reference: brain_by_mask(options.brain_mask, volumes[reference], reference)}, []
    brains: dict[str, np.ndarray] = {}
    stripped: list[str] = []
    for name, volume in volumes.items():
        if options.brain_extraction != NONE:
            how = options.brain_extraction or DEEPBET
            find = partial(_found_brain, name, volume, how, scratch, say)
            # The result of a user's command is not stored, because its program may have changed since.
            brains[name] = steps.brain(name, volume, find) if how == DEEPBET else find()
        if options.brain_extraction is None and is_stripped(volume, brains[name]):
            stripped.append(name)
        if options.brain_extraction == NONE or name in stripped:
            brains[name] = volume.array != 0
    return brains, stripped


def _found_brain(name: str, volume: Volume, how: str, scratch: Path, say: Callable[[str], object]) -> np.ndarray:
    """Find the brain with deepbet or a command, and check the volume of the brain."""
    say(f"{name}: finding the brain")
    brain = extract_brain(volume, name) if how == DEEPBET else brain_by_command(how, volume, name, scratch)
    check_brain(brain, volume.affine, name)
    return brain


def _stripped_finding(sequences: Sequence[str]) -> Finding:
    one = len(sequences) == 1
    return Finding(
        WHOLE_CASE,
        f"{', '.join(sequences)} {'has' if one else 'have'} no skull, so {'its' if one else 'their'} non-zero "
        "voxels are used as the brain mask. If there is a skull, give --brain-extraction deepbet.",
    )


def _motion(
    name: str,
    reference: str,
    volumes: Mapping[str, Volume],
    brains: Mapping[str, np.ndarray],
    steps: Steps,
    say: Callable[[str], object],
) -> Motion:
    """Find the rigid motion that registers a sequence to the reference, and print its size."""
    images = (volumes[reference], volumes[name])
    masks = (brains.get(reference), brains.get(name))

    def found() -> Motion:
        say(f"{name}: registering it to {reference}")
        return register(*images, brain=masks[0], moving_brain=masks[1])

    motion = steps.motion(name, reference, images, masks, found)
    if motion.is_none:
        say(
            f"{name} to {reference}: registration found no clearly better position than the image headers give, "
            "so the position in the headers is used"
        )
    else:
        say(
            f"{name} to {reference}: {name} was turned by {motion.turn_degrees:.1f} degrees and moved by "
            f"{motion.shift_mm:.1f} mm"
        )
    return motion


def _motion_findings(name: str, motion: Motion, reference: str) -> list[Finding]:
    """Warn if the motion from the registration is unusually large.

    Raises:
        BadInputError: If the mutual information is so low that the images do not show the same head.
    """
    if motion.after < LEAST_INFORMATION:
        raise BadInputError(
            name,
            f"The registration to {reference} failed: the images have hardly anything in common (mutual information "
            f"{motion.after:.2f}). Leave the sequence out with --sequences, or register the sequence yourself.",
        )
    if motion.turn_degrees > MUCH_TURN_DEGREES or motion.shift_mm > MUCH_SHIFT_MM:
        return [
            Finding(
                name,
                f"Registration to {reference} turned this image by {motion.turn_degrees:.0f} degrees and moved it by "
                f"{motion.shift_mm:.0f} mm. Such large motions are rare. "
                f"Compare the image with {reference} in the prepared case.",
            )
        ]
    return []


def _on_reference(name: str, volume: Volume, like: Volume, reference: str) -> np.ndarray:
    placed, _, _ = on_grid_of(volume, like)
    if not placed.array.any():
        raise BadInputError(name, f"{name} does not overlap with {reference}. Leave {name} out with --sequences.")
    return placed.array


def _sequence_report(
    name: str,
    volume: Volume,
    scans: Scans,
    motion: Motion | None,
    masks: Mapping[str, np.ndarray],
    reference: str,
) -> dict[str, Any]:
    """Entry of a sequence in `prepare.json`, without descriptions and UIDs, which may identify the patient."""
    content: dict[str, Any] = {"shape": volume.array.shape, "spacing_mm": voxel_spacing_mm(volume.affine)}
    if scans.choice is not None:
        content |= {"series": scans.choice.chosen[name].number, "plane": scans.choice.chosen[name].plane}
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
    """Clock that measures how many seconds each step takes."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 1), now
