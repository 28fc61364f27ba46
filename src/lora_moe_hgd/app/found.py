"""List of the uploaded files or series. For each of them, the visitor can correct the recognised sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cases.naming import read_names
from ..files import counted, listed
from ..model.findings import BadInputError
from ..model.task import Task
from ..scans.raw import require_extra
from ..subsets import sequence_shown
from .sessions import Session, Upload

# Role of a file or series that is not used.
LEFT_OUT = "leave out"
MAX_ROWS = 32


@dataclass(frozen=True)
class Row:
    """Uploaded NIfTI file, or series of an uploaded DICOM study.

    Attributes:
        key: For a file, its index in `Session.images`, from 0. For a series, its `Series.number`, from 1.
        label: File name, or description of the series.
        why: Recognised sequence and the reason, such as `T1c, according to the file name`.
        role: Sequence as which the file or series is used. `LEFT_OUT` means that it is not used.
    """

    key: str
    label: str
    why: str
    role: str


@dataclass(frozen=True)
class Found:
    """List of the files or series that a visitor has uploaded.

    Attributes:
        rows: Listed files or series, at most `MAX_ROWS`.
        status: Message about all files, such as their number.
        problem: Reason why no case can be segmented yet; empty if a case can be segmented.
        studies: Number and label of each DICOM study; empty unless there are several studies.
        is_study: Whether the rows are series of DICOM files.
        automatic: For each sequence, the number of the series that the package has chosen.
    """

    rows: tuple[Row, ...] = ()
    status: str = ""
    problem: str = ""
    studies: tuple[tuple[str, str], ...] = ()
    is_study: bool = False
    automatic: Mapping[str, str] = field(default_factory=dict)


def find(session: Session, task: Task, study: str | None = None) -> Found:
    """List the files or series that a visitor has uploaded.

    If the name of at least one NIfTI file shows its sequence, DICOM files are ignored, as on the command line.

    Args:
        session: Session that stores the visitor's files.
        task: Task that defines the sequences.
        study: Number of the DICOM study to list, if there are several.
    """
    if not session.images and session.study is None:
        return Found()
    rows = _image_rows(session.images, task)
    if session.study is not None and all(row.role == LEFT_OUT for row in rows):
        return _found_in_study(session.study, study)
    problem = ""
    if len(rows) > MAX_ROWS:
        problem = f'At most {MAX_ROWS} image files can be listed. Press "Delete the files" and upload fewer files.'
    count = f"{len(rows)} NIfTI file{'s' if len(rows) > 1 else ''}"
    status = f"{count}. Check that the right sequence is selected for each file."
    return Found(rows[:MAX_ROWS], "" if problem else status, problem)


def _image_rows(images: Sequence[Upload], task: Task) -> tuple[Row, ...]:
    # Two files may have the same name, so each path begins with a number. Only the last part of a path determines
    # the role.
    paths = [Path(str(number)) / upload.name for number, upload in enumerate(images)]
    named = read_names(paths, task)
    roles = {path: role for role, files in named.roles.items() if role != "seg" for path in files}
    rows = []
    for number, path in enumerate(paths):
        if role := roles.get(path):
            why = f"{sequence_shown(role)}, according to the file name"
        elif path in named.left_out:
            why = "not a sequence, according to the file name"
        elif path in named.roles.get("seg", ()):
            why = "a label map, according to the file name"
        else:
            why = "The name does not say which sequence the file is. Choose a sequence to use the file."
        rows.append(Row(str(number), path.name, why, role or LEFT_OUT))
    return tuple(rows)


def _found_in_study(folder: Path, study: str | None) -> Found:
    try:
        require_extra()
        # Import them only here, because they need the extra `scans`.
        from ..scans.choice import choose
        from ..scans.recognise import recognise
        from ..scans.studies import choose_study, read_studies, shown_date, unreadable_files

        series, unreadable = read_studies(folder)
        found = list(dict.fromkeys(row.study for row in series))
        studies = tuple(
            (str(number), f"{number}: {shown_date(rows[0].date)}, {len(rows)} series")
            for number, uid in enumerate(found, start=1)
            for rows in [[row for row in series if row.study == uid]]
        )
        if len(studies) > 1 and study not in dict(studies):
            return Found(
                problem="The files are from several studies. Choose one study.", studies=studies, is_study=True
            )
        series = choose_study(series, study if len(studies) > 1 else None, where=folder)
    except BadInputError as error:
        return Found(problem=error.finding.message, is_study=True)
    except ValueError as error:
        return Found(problem=str(error), is_study=True)
    try:
        automatic = {name: str(row.number) for name, row in choose(series, {}, where=folder).chosen.items()}
    except BadInputError:
        # The package cannot choose the series, but the visitor can.
        automatic = {}
    chosen = {number: name for name, number in automatic.items()}
    # `choose` refuses all series except these.
    usable = [row for row in series if row.shape[2] >= 2 and row.plane != "none"]
    usable.sort(key=lambda row: (str(row.number) not in chosen, row.number))
    rows = []
    for row in usable[:MAX_ROWS]:
        guess = recognise(row)
        used, size = chosen.get(str(row.number)), " x ".join(f"{edge:.3g}" for edge in row.spacing_mm)
        taken = guess.sequence and sequence_shown(guess.sequence)
        why = f"{row.plane}, {size} mm, {counted(row.shape[2], 'slice')}. {taken or 'Not used'}: {guess.why}"
        if taken and not used:
            why += ". The app chose another series for this sequence"
        label = f"Series {row.number}: {row.acquisition.description or 'no description'}"
        rows.append(Row(str(row.number), label, why, used or LEFT_OUT))
    status = f"A DICOM study with {len(series)} series. Check that the right sequence is selected for each series."
    if len(series) > len(rows):
        status += (
            f" Not listed: {len(series) - len(rows)} series. The list shows only series with an orientation and at "
            f"least two slices, and at most {MAX_ROWS} of them."
        )
    if unreadable:
        status += f" {unreadable_files(unreadable)}"
    return Found(tuple(rows), status, "", studies if len(studies) > 1 else (), True, automatic)


def sequences_chosen(rows: Sequence[Row], roles: Sequence[str], task: Task) -> dict[str, Row]:
    """Return the row of the file or series that the visitor chose for each sequence, in channel order.

    Args:
        rows: Rows of the list.
        roles: Choice of the visitor for each row: a sequence, or `LEFT_OUT`.
        task: Task that defines the sequences.

    Raises:
        ValueError: If no sequence is chosen, or a sequence is chosen twice.
    """
    picked = [(role, row) for role, row in zip(roles, rows, strict=True) if role != LEFT_OUT]
    double = {role for role, count in Counter(role for role, _ in picked).items() if count > 1}
    for role in task.modalities:
        if role in double:
            names = listed(row.label for other, row in picked if other == role)
            raise ValueError(f"{sequence_shown(role)} is chosen more than once: {names}. Choose only one.")
    if not picked:
        names = ", ".join(map(sequence_shown, task.modalities))
        raise ValueError(f"No sequence is chosen. Choose at least one of {names} for your files.")
    return {name: row for name in task.modalities for role, row in picked if role == name}


def scan_options(found: Found, chosen: Mapping[str, Row]) -> dict[str, Any]:
    """Return the visitor's choice as the arguments `series` and `sequences` of `scans.prepare.ScanOptions`.

    `series` contains only those sequences for which the visitor chose another series than the package. For the other
    sequences, `prepare` chooses the series again. The result therefore has the same warnings about this choice as on
    the command line.
    """
    series = {name: row.key for name, row in chosen.items() if found.automatic.get(name) != row.key}
    return {"series": series, "sequences": tuple(chosen)}
