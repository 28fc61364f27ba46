"""Read the sequences of a study (DICOM) or of a case (NIfTI, NRRD), each on its own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cases.layouts import find_case
from ..cases.reading import read_volumes
from ..cases.volume_rules import NRRD
from ..model.case_rules import clean_volume
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.findings import WHOLE_CASE, BadInputError, Finding
from ..model.grids import Volume
from ..sequence_names import sequence_hint
from .archives import unpack
from .choice import Choice, choose
from .convert import convert
from .nrrd import find_nrrd_case, has_nrrd, read_nrrd
from .raw import is_raw, is_zip
from .studies import case_id_of, choose_study, read_studies, unreadable_files


@dataclass
class Scans:
    """Sequences of a study or a case before registration.

    Attributes:
        case_id: Name of the case: for DICOM files a digest of the study's UID, for other files the name of the folder.
        volumes: Each sequence on the grid on which it was scanned, in channel order.
        findings: Warnings about the images.
        choice: All DICOM series, and the series chosen for each sequence; `None` if the files are not DICOM.
    """

    case_id: str
    volumes: dict[str, Volume]
    findings: list[Finding]
    choice: Choice | None = None


def read_scans(
    path: Path,
    scratch: Path,
    *,
    study: str | None = None,
    series: Mapping[str, str] | None = None,
    sequences: tuple[str, ...] | None = None,
    say: Callable[[str], object] = print,
) -> Scans:
    """Read the sequences of a study or a case.

    Args:
        path: Folder, zip or DICOMDIR with DICOM files, or the folder of a case.
        scratch: Folder for intermediate files.
        study: Study to use if there are several: its number in the list of studies, or its UID.
        series: Series to use for a sequence, such as `{"t1c": "5"}`: its number in the list of series, or its UID.
        sequences: Use only these sequences. `None` means all sequences that are found.
        say: Function that prints which file or series is which sequence.

    Raises:
        BadInputError: If the images cannot be used.
        ValueError: If `study` or `series` is given for images that are not DICOM.
    """
    if not path.exists():
        raise BadInputError(path, "There is no such file or folder. Check the path.")
    if path.is_dir() and not any(path.iterdir()):
        raise BadInputError(path, "The folder is empty. Give a folder that contains images.")
    if is_raw(path):
        scans = _read_dicom(path, scratch, study, series or {}, sequences, say)
    elif series or study:
        raise ValueError(
            "--series and --study choose among DICOM files, but there are no such files. Leave out --series "
            "and --study."
        )
    else:
        scans = _read_case(path, sequences, say)
    for name, volume in scans.volumes.items():
        scans.volumes[name], found = clean_volume(name, volume)
        scans.findings += found
    return scans


def _read_dicom(
    path: Path,
    scratch: Path,
    study: str | None,
    wanted: Mapping[str, str],
    sequences: tuple[str, ...] | None,
    say: Callable[[str], object],
) -> Scans:
    folder = path
    if path.is_file():
        folder = path.parent
        if is_zip(path):
            folder = scratch / "unpacked"
            unpack(path, folder)
    series, unreadable = read_studies(folder)
    findings = []
    if unreadable:
        findings.append(Finding(WHOLE_CASE, unreadable_files(unreadable)))
    if not series:
        raise BadInputError(
            path, "None of the DICOM files can be read. The files may be cut off. Copy the files again."
        )
    series = choose_study(series, study, where=path)
    choice = choose(series, wanted, where=path)
    chosen = _only(choice.chosen, sequences, path)
    choice = replace(choice, chosen=chosen)
    findings += [finding for finding in choice.findings if finding.where in (*chosen, WHOLE_CASE)]
    say(choice.table())
    volumes = {}
    for name, row in chosen.items():
        volumes[name], found = convert(row, name, scratch)
        findings += found
    return Scans(case_id_of(series[0].study), volumes, findings, choice)


def _read_case(path: Path, sequences: tuple[str, ...] | None, say: Callable[[str], object]) -> Scans:
    case = find_nrrd_case(path) if has_nrrd(path) else find_case(path)
    case = case.only(list(_only(case.images, sequences, path)))
    say("\n".join(case.mapping()))
    nrrd = {name: file for name, file in case.images.items() if file.name.lower().endswith(NRRD)}
    others = case.only([name for name in case.images if name not in nrrd])
    read = (read_volumes(others) if others.images else {}) | {name: read_nrrd(file) for name, file in nrrd.items()}
    return Scans(case.case_id, {name: read[name] for name in case.images}, [])


def _only(found: Mapping[str, Any], wanted: tuple[str, ...] | None, where: Path) -> dict[str, Any]:
    """Return the sequences in `wanted`, in channel order. `None` means all sequences in `found`."""
    lacking = [name for name in wanted or () if name not in found]
    if lacking:
        hint = sequence_hint(lacking, MODALITIES)
        raise BadInputError(
            where,
            f"The sequence {', '.join(lacking)} was not found.{hint} Request only sequences that were found: "
            f"{', '.join(found)}.",
        )
    return {name: found[name] for name in MODALITIES if name in found and (wanted is None or name in wanted)}
