"""The files of a case, each with its role: a sequence, or the ground truth (`seg`)."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..files import counted, read_json
from ..model.findings import BadInputError, Finding
from ..model.label_schemes import label_scheme as find_label_scheme
from ..model.task import BRAIN_TUMOUR, Task
from ..sequence_names import without_sequence
from .volume_rules import CONVERTED_BY_ITK, CONVERTED_BY_NIBABEL

EXTENSIONS = (".nii.gz", ".nii", ".npy")
# Extensions of the image formats that this package does not read as cases.
OTHER_FORMATS = (*CONVERTED_BY_NIBABEL, *CONVERTED_BY_ITK)
# Report that `lora-moe-hgd prepare` writes into the folder of a case.
PREPARED = "prepare.json"
NOT_USED = "not used because of their names"
# `CaseFiles.layout` of a case whose files the user gave one by one, each for its sequence.
GIVEN = "given"
NO_GROUND_TRUTH = (
    "This case has no ground truth. Add a label map under a name such as seg.nii.gz, or leave the case out."
)


def stem_of(path: Path, extensions: Sequence[str] = EXTENSIONS) -> str | None:
    """File name without its extension; `None` for a hidden file, or for a file with none of the `extensions`."""
    extension = next((end for end in extensions if path.name.lower().endswith(end)), None)
    return None if extension is None or path.name.startswith(".") else path.name[: -len(extension)]


def safe_name(name: str) -> str:
    """Convert `name` to text that can be printed, written to a file and used as the name of a visible folder.

    Bytes that are not UTF-8 are read as Latin-1, the encoding of older systems.
    """
    raw = os.fsencode(name)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return re.sub(r"^\.|[/\x00-\x1f\x7f-\x9f]", "_", text)


def recorded_name(report: Path) -> str | None:
    """Name of the case in a `report.json` or `prepare.json`; `None` if the file is missing or invalid."""
    try:
        name = read_json(report)["case_id"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return safe_name(name) if isinstance(name, str) and name else None


def refuse_other_case(report: Path, case_id: str) -> None:
    """Raise if a folder contains the results of another case, which would be overwritten.

    A case with the same name counts as the same case.

    Args:
        report: Path of `report.json` or `prepare.json` in the folder. If this file is missing or invalid, nothing is
            raised.
        case_id: Name of the case whose results will be written.

    Raises:
        ValueError: If the report names another case.
    """
    found = recorded_name(report)
    if found not in (None, case_id):
        raise ValueError(
            f"{report.parent} contains the results of another case, {found}. The results of {case_id} would overwrite "
            f"these results. Choose another folder, or delete {report.parent}."
        )


def shared_start(names: Iterable[str]) -> str:
    """Longest common start of the names that consists of complete words, each with the punctuation after it.

    Example:
        >>> shared_start(["p1_t1.nii", "p1_t2.nii"])
        'p1_'
    """
    pieces = zip(*(re.findall(r"[A-Za-z0-9]*[^A-Za-z0-9]+", name) for name in names), strict=False)
    return "".join(piece[0] for piece in itertools.takewhile(lambda piece: len(set(piece)) == 1, pieces))


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        case_id: Name of the case, unique in its cohort and usable as the name of a folder.
        folder: Folder of the case's files.
        layout: Naming convention of the files, such as `BraTS-PED`.
        label_schemes: Label schemes that the ground truth may have according to the file names, the most common scheme
            first. Empty if the file names imply no scheme. A label map that `lora-moe-hgd segment` writes for this
            case may have another scheme.
        images: Path of each sequence, in channel order.
        segmentation: Path of the ground truth; `None` if the case has none.
        channels: Index of each sequence along the fourth axis of a 4-D file; empty for other files.
        left_out: Files whose names show that they are not sequences, such as ADC maps and brain masks.
    """

    case_id: str
    folder: Path
    layout: str
    label_schemes: tuple[str, ...]
    images: dict[str, Path]
    segmentation: Path | None
    channels: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[Path, ...] = ()

    def labelled(self) -> Path:
        """Path of the ground truth.

        Raises:
            BadInputError: If the case has no ground truth.
        """
        if self.segmentation is None:
            raise BadInputError(self.folder, NO_GROUND_TRUTH)
        return self.segmentation

    def only(self, names: Sequence[str]) -> CaseFiles:
        """Return the case with only the sequences in `names`."""
        return replace(self, images={name: path for name, path in self.images.items() if name in names})

    def in_scheme(self, label_scheme: str | None, task: Task = BRAIN_TUMOUR) -> CaseFiles:
        """Return the case with `label_scheme` as the scheme of its ground truth.

        `None` keeps the schemes that the file names imply.

        Raises:
            ValueError: If no label scheme has this name.
        """
        return (
            self
            if label_scheme is None
            else replace(self, label_schemes=(find_label_scheme(label_scheme, task.schemes).name,))
        )

    def file_names(self) -> dict[str, str]:
        """File name of each sequence, without its folder.

        For a 4-D file, the index of the volume follows, as in `a.nii (volume 2)`.
        """
        volumes = {name: f" (volume {number})" for name, number in self.channels.items()}
        return {name: safe_name(path.name) + volumes.get(name, "") for name, path in self.images.items()}

    def names_left_out(self) -> list[str]:
        """Names of the files that are not used, without their folder."""
        return [safe_name(path.name) for path in self.left_out]

    def mapping(self) -> list[str]:
        """Lines of text: one for each sequence with its file name, and one for the files that are not used."""
        lines = [f"{name}: {file}" for name, file in self.file_names().items()]
        return lines + ([f"{NOT_USED}: {', '.join(self.names_left_out())}"] if self.left_out else [])

    def naming(self) -> str:
        """Describe all files of the case in one line. `*` stands for the text that all file names begin with."""
        names = self.file_names()
        if self.segmentation is not None:
            names["seg"] = safe_name(self.segmentation.name)
        files = [*names.values(), *self.names_left_out()]
        shared = shared_start(files)[:-1] if len(files) > 1 else ""
        start = self.case_id if all(file.startswith(self.case_id) for file in files) else shared
        short = [f"*{file.removeprefix(start)}" if start else file for file in files]
        line = ", ".join(f"{role} {file}" for role, file in zip(names, short, strict=False))
        return f"{line}; {NOT_USED}: {', '.join(short[len(names) :])}" if self.left_out else line


def with_labels(cases: Iterable[CaseFiles]) -> tuple[list[CaseFiles], list[Finding]]:
    """Return the cases that have a ground truth, and an error for each case without ground truth."""
    labelled: list[CaseFiles] = []
    findings = []
    for case in cases:
        if case.segmentation is None:
            findings.append(Finding(case.folder, NO_GROUND_TRUTH, "error"))
        else:
            labelled.append(case)
    return labelled, findings


def namings(cases: Sequence[CaseFiles], *, most: int = 10) -> list[str]:
    """List the ways in which the files of a cohort are named: one line for each way, with its number of cases."""
    counts = Counter(case.naming() for case in cases).most_common()
    lines = [f"{counted(number, 'case')}: {line}" for line, number in counts[:most]]
    others = [number for _, number in counts[most:]]
    rest = f"{counted(sum(others), 'other case')}: named in {counted(len(others), 'other way')}"
    return lines + ([rest] if others else [])


def given_case(images: Mapping[str, Path], task: Task = BRAIN_TUMOUR) -> CaseFiles:
    """Build a case from the path of each sequence. The keys of `images`, not the file names, identify the sequences.

    The case is named after the first file: the name of its folder, followed by the words of its file name that do not
    describe the sequence. `p1/T1c.nii.gz` gives `p1`, and `all/p1_T1c.nii.gz` gives `all_p1`. Other files of the case
    do not change this name.
    """
    paths = {name: images[name] for name in task.modalities if name in images}
    first = next(iter(paths.values()))
    own = without_sequence(stem_of(first) or first.name, task)
    # Skip folders that contain one sequence of several cases, and the folder `anat` of BIDS.
    above = (parent.name for parent in Path(os.path.abspath(first)).parents)
    folder = next((name for name in above if name != "anat" and without_sequence(name, task)), "")
    if not re.match(rf"{re.escape(folder)}(?![^\W_])", own):
        own = f"{folder}_{own}" if folder and own else folder or own
    return CaseFiles(safe_name(own or first.name), first.parent, GIVEN, (), paths, None)
