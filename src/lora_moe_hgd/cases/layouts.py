"""Find the cases below a folder, and the sequences of a case."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..files import listed
from ..model.findings import BadInputError, Finding, raise_errors
from ..model.task import BRAIN_TUMOUR, Task
from ..sequence_names import role_in
from .case_files import PREPARED, CaseFiles, recorded_name, safe_name, stem_of
from .channels import channel_case, channel_cases, channel_of
from .naming import BY_WORDS, in_other_formats, name_files, nothing_found, read_names

# Folder levels below the root in which cases are searched. BIDS needs three: `<subject>/<session>/anat`.
DEEPEST_CASE = 3
# Folders of a BIDS data set that contain processed images, or the sources of its images, but no cases.
NO_CASES_OF_BIDS = ("derivatives", "sourcedata")


def find_case(path: Path, *, channel_order: Sequence[str] | None = None, task: Task = BRAIN_TUMOUR) -> CaseFiles:
    """Find the sequences of the case at `path`.

    The name of the case is the name of its folder. If the folder is a symbolic link, the case gets the name of the
    link. A case that `lora-moe-hgd prepare` wrote keeps the name in its `prepare.json`.

    Args:
        path: Folder of the case, file with four axes, or shared start of the paths of numbered files, such as
            `imagesTr/case_7`.
        channel_order: Sequence of each channel of a 4-D file, or of each numbered file, in ascending order.
        task: Task whose words identify the sequences in file names.

    Raises:
        BadInputError: If no sequence is found, if a file cannot be identified, if two files are the same sequence, or
            if `channel_order` has no effect.
    """
    case = _case_at(path, channel_order, task)
    if not _has_numbers(path):
        _refuse_idle_order(path, channel_order)
    return case


def _case_at(path: Path, channel_order: Sequence[str] | None, task: Task) -> CaseFiles:
    """Find the case at `path`. `channel_order` is used only for sequences that are identified by number."""
    if not path.is_dir():
        return channel_case(path, channel_order, task)
    content = _listed(path)
    numbered = channel_cases(path)
    if numbered:
        if len(numbered) > 1:
            raise BadInputError(
                path,
                f"This folder contains several cases. Give the path of one case: "
                f"{listed(map(str, numbered.values()))}.",
            )
        others = [file.name for file in content if stem_of(file) is not None and channel_of(file) is None]
        if others:
            raise BadInputError(
                path,
                f"This folder contains numbered sequences, but also other files: {listed(others)}. Remove the other "
                "files.",
                names_unclear=True,
            )
        return channel_case(next(iter(numbered.values())), channel_order, task)
    named = name_files(path, content, task)
    layout, roles = named.layout, {role: files[0] for role, files in named.roles.items()}
    elsewhere = [path / place.format(case=path.resolve().name) for place in (layout.elsewhere if layout else ())]
    return CaseFiles(
        case_id=recorded_name(path / PREPARED) or _case_id(path, path),
        folder=path,
        layout=layout.name if layout else BY_WORDS,
        label_schemes=layout.label_schemes if layout else (),
        images={modality: roles[modality] for modality in task.modalities if modality in roles},
        segmentation=roles.get("seg") or next((file.resolve() for file in elsewhere if file.is_file()), None),
        left_out=named.left_out,
    )


def find_cases(
    root: Path, *, channel_order: Sequence[str] | None = None, task: Task = BRAIN_TUMOUR
) -> list[CaseFiles]:
    """Find every case below `root`, sorted by path, or `root` itself if `root` is a case.

    Raises:
        BadInputError: If `root` contains no case, or the files of a case cannot be identified.
    """
    cases, findings = survey(root, channel_order=channel_order, task=task)
    raise_errors(findings)
    return cases


def survey(
    root: Path, *, channel_order: Sequence[str] | None = None, task: Task = BRAIN_TUMOUR
) -> tuple[list[CaseFiles], list[Finding]]:
    """Return every case below `root`, and an error for each folder whose files cannot be identified.

    The name of a case is its path relative to `root`, joined by `_` and without a last folder `anat`:
    `sub-01/ses-01/anat` becomes `sub-01_ses-01`. If one folder contains several cases with numbered sequences, each
    case has the name of its file without extension and number instead.

    Raises:
        BadInputError: If `root` contains no case, or if `channel_order` has no effect on any case.
    """
    if not root.is_dir():
        is_file = "This is a file, not a folder of cases. Give the folder that contains the cases."
        raise BadInputError(root, is_file if root.exists() else "There is no such folder. Check the path.")
    # If both folders exist, `imagesTr` is used: `imagesTs` contains cases without labels, which training cannot use.
    apart = next((root / name for name in ("imagesTr", "imagesTs") if (root / name).is_dir()), None)
    together = channel_cases(apart or root)
    # With a single numbered case in `root`, `root` itself is the case, and its other files are checked below.
    if len(together) > (0 if apart else 1):
        return _unique(root, *_found(root, list(together.values()), channel_order, task, named_by_file=True))
    folders = list(_folders(root, DEEPEST_CASE, set(), task))
    places = [folder.path for folder in folders if folder.is_case]
    odd = [folder.path for folder in folders if not folder.is_case and _seems_a_case(folder, places, root)]
    cases, findings = _found(root, sorted([*places, *odd]), channel_order, task, named_by_file=False)
    if not cases and not findings:
        raise nothing_found(root, task)
    if not any(_has_numbers(place) for place in places):
        _refuse_idle_order(root, channel_order)
    return _unique(root, *_together(root, cases, findings, task))


def _found(
    root: Path, places: Sequence[Path], channel_order: Sequence[str] | None, task: Task, *, named_by_file: bool
) -> tuple[list[CaseFiles], list[Finding]]:
    """Return the case at each path, or an error for a path at which no case can be identified."""
    cases, findings = [], []
    for place in places:
        try:
            case = _case_at(place, channel_order, task)
        except BadInputError as error:
            findings.append(error.finding)
        else:
            own = named_by_file or place == root
            cases.append(case if own else replace(case, case_id=_case_id(root, place)))
    return cases, findings


def _has_numbers(place: Path) -> bool:
    """Whether the sequences of a case are identified by number, not by name."""
    return not place.is_dir() or bool(channel_cases(place))


def _refuse_idle_order(path: Path, channel_order: Sequence[str] | None) -> None:
    """Raise if a channel order is given although the file names identify the sequences."""
    if channel_order is not None:
        raise BadInputError(
            path,
            f"The channel order {','.join(channel_order)} has no effect, because the file names identify the "
            "sequences here. Leave out `--channel-order`.",
        )


def name_of_place(root: Path, place: Path | str) -> str:
    """Name, in tables, of a folder or file that is not recognised as a case. A case there would have this name."""
    path = Path(place)
    if path.is_dir() and path.is_relative_to(root):
        return _case_id(root, path)
    return safe_name(stem_of(path) or path.name)


def _case_id(root: Path, folder: Path) -> str:
    """Name of the case in `folder`: the path relative to `root`, or the folder's own name if it is `root`."""
    parts = folder.relative_to(root).parts
    if parts and parts[-1] == "anat":
        parts = parts[:-1]
    if not parts:
        # Do not resolve links, so that a link keeps its own name.
        whole = [part for part in Path(os.path.abspath(folder)).parts if part != os.sep]
        parts = tuple(whole[-2:-1] if whole[-1:] == ["anat"] and len(whole) > 1 else whole[-1:] or ["case"])
    return safe_name("_".join(parts))


def _unique(
    root: Path, cases: Sequence[CaseFiles], findings: Sequence[Finding]
) -> tuple[list[CaseFiles], list[Finding]]:
    """Return the cases with a unique name, and an error for each name that several cases share."""
    named: dict[str, list[CaseFiles]] = {}
    for case in cases:
        named.setdefault(case.case_id, []).append(case)
    double = [
        Finding(
            root,
            f"{len(same)} cases would have the name {case_id}: {listed(str(case.folder) for case in same)}. "
            "Rename their folders.",
            "error",
        )
        for case_id, same in named.items()
        if len(same) > 1
    ]
    return [same[0] for same in named.values() if len(same) == 1], [*findings, *double]


def _together(
    root: Path, cases: Sequence[CaseFiles], findings: Sequence[Finding], task: Task
) -> tuple[list[CaseFiles], list[Finding]]:
    """Find patients with one folder per sequence. Each of these folders was found as a case with one sequence.

    Returns:
        `cases` without these one-sequence cases, and `findings` with one more error for each of the patients.

    The Erasmus Glioma Database has one folder per sequence: `1_T1/NIFTI/T1.nii.gz` and `2_T1GD/NIFTI/T1GD.nii.gz`.
    """
    parts: dict[Path, list[CaseFiles]] = {}
    for case in cases:
        if len(case.images) == 1 and case.folder != root:
            (name,) = case.images
            for folder in (case.folder, *case.folder.parents):
                if folder == root:
                    break
                if role_in(task, folder.name) == name:
                    parts.setdefault(folder.parent, []).append(case)
                    break
    apart = {parent: found for parent, found in parts.items() if len({next(iter(case.images)) for case in found}) > 1}
    message = "Each sequence is in a separate folder here. Put the files of a case into one folder."
    taken = [case.folder for found in apart.values() for case in found]
    errors = [Finding(parent, message, "error", names_unclear=True) for parent in apart]
    return [case for case in cases if case.folder not in taken], [*findings, *errors]


@dataclass(frozen=True)
class _Folder:
    """A folder that contains volumes."""

    path: Path
    is_case: bool
    is_clear: bool


def _folders(folder: Path, deepest: int, seen: set[Path], task: Task) -> Iterator[_Folder]:
    """Find folders with volumes, at most `deepest` levels down and not inside a case.

    Each folder is visited only once, even if several links lead to it.
    """
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    try:
        files = _listed(folder)
    except BadInputError:
        # `_case_at` will report the error of this folder.
        yield _Folder(folder, is_case=True, is_clear=False)
        return
    volumes = [file for file in files if stem_of(file) is not None]
    named = read_names(volumes, task)
    is_case = bool(channel_cases(folder) or named.has_sequence or in_other_formats(files, task))
    if volumes or is_case:
        yield _Folder(folder, is_case, is_clear=not named.unknown)
    if not is_case and deepest:
        skipped = NO_CASES_OF_BIDS if (folder / "dataset_description.json").is_file() else ()
        for below in files:
            if below.is_dir() and not below.name.startswith(".") and below.name not in skipped:
                yield from _folders(below, deepest - 1, seen, task)


def _seems_a_case(folder: _Folder, places: Sequence[Path], root: Path) -> bool:
    """Whether a folder without recognised sequences is probably a case with unknown file names.

    A folder next to a case is probably a case, except in BIDS. A folder that contains a file that cannot be identified
    is probably a case if a case is at the same depth below `root`, or if `root` contains no case at all.
    """
    if not places:
        return not folder.is_clear
    path = folder.path
    if any(path.is_relative_to(place) for place in places) or path == root:
        return False
    beside = [place for place in places if place.parent == path.parent]
    if any(place.name == "anat" for place in beside):
        # Folders such as `dwi` and `func` of BIDS are next to `anat`, but are not cases.
        return False
    depths = {len(place.relative_to(root).parts) for place in places}
    return bool(beside) or (len(path.relative_to(root).parts) in depths and not folder.is_clear)


def _listed(folder: Path) -> list[Path]:
    """Entries of a folder, sorted by name."""
    try:
        return sorted(folder.iterdir())
    except PermissionError as error:
        raise BadInputError(folder, "You have no permission to list this folder. Change its permissions.") from error
