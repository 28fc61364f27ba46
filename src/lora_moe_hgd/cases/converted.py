"""Content of the target folder of a conversion: files of each case, record of their source files, and index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import MAX_LONG_JSON_BYTES, listed, read_json, remove_leftovers, replacing
from ..fingerprints import file_fingerprint
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.findings import BadInputError
from ..model.label_schemes import LabelScheme
from .case_files import CaseFiles
from .naming import LAYOUTS, read_names

BY_KEY = {layout.key: layout for layout in LAYOUTS}
NUMBERED, STACKED = "nnunet", "decathlon"
TARGETS = (*BY_KEY, NUMBERED, STACKED)
END = ".nii.gz"
# The file is hidden, because `datasets` reads any visible JSON file in a folder as data.
RECORD = ".converted.json"
INDEX = dict.fromkeys(BY_KEY, "metadata.jsonl") | dict.fromkeys((NUMBERED, STACKED), "dataset.json")


@dataclass(frozen=True)
class Target:
    """Target of a conversion.

    Attributes:
        root: Folder of the converted cases.
        key: Name of the target layout, one of `TARGETS`, such as `brats2023` or `nnunet`.
        scheme: Label scheme of the segmentations.
        order: For `nnunet` and `decathlon`: sequence of each numbered file or channel, in ascending order.
    """

    root: Path
    key: str
    scheme: LabelScheme
    order: tuple[str, ...] = MODALITIES

    def paths(self, case: CaseFiles, number: int) -> dict[str, Path]:
        """Target path of each sequence of the case, and of the segmentation under the key `seg`, if there is one.

        Args:
            case: Case to write.
            number: Number of the case, for layouts that name cases by number.

        Raises:
            ValueError: If the target layout cannot store the case. Reasons are that the names of the files would be
                recognised as those of another layout, that the case lacks a sequence which a 4-D file must have, or
                that no sequence of the case is in `order`.
        """
        roles = [*case.images, *(["seg"] if case.segmentation else [])]
        if self.key in BY_KEY:
            layout = BY_KEY[self.key]
            folder = self.root / case.case_id
            paths = {role: folder / f"{layout.stem_for(role, case.case_id)}{END}" for role in roles}
            named = read_names(list(paths.values()))
            # Layouts that share the names of the images differ only in the label scheme, which matters only with
            # labels.
            same_layout = named.layout is layout or not case.segmentation
            if not same_layout or named.roles != {role: [path] for role, path in paths.items()}:
                raise BadInputError(
                    case.folder,
                    f"The case {case.case_id} cannot be written as {layout.name}: its files would be read as "
                    f"{named.layout.name if named.layout else 'other sequences'}. Rename its folder, or choose "
                    "another layout.",
                )
            return paths
        # In both layouts, cases with and without labels are in different folders.
        part = "Tr" if case.segmentation else "Ts"
        name = case.case_id if self.key == NUMBERED else f"BRATS_{number:03d}"
        found = {"seg": self.root / f"labels{part}/{name}{END}"} if case.segmentation else {}
        if self.key == NUMBERED:
            numbers = {role: self.order.index(role) for role in case.images if role in self.order}
            if not numbers:
                raise BadInputError(
                    case.folder,
                    f"This case has {', '.join(case.images)}, but none of these is in --target-order "
                    f"{','.join(self.order)}. Add a sequence of this case to the order.",
                )
            images = {role: self.root / f"images{part}/{name}_{at:04d}{END}" for role, at in numbers.items()}
        else:
            lacking = [name for name in self.order if name not in case.images]
            if lacking:
                raise BadInputError(
                    case.folder,
                    f"This case lacks {', '.join(lacking)}, but a file with four axes needs {', '.join(self.order)}. "
                    f"Choose another layout, such as {NUMBERED}.",
                )
            images = dict.fromkeys(self.order, self.root / f"images{part}/{name}{END}")
        return images | found


@dataclass
class Record:
    """Record of the source files of each converted case, stored as `.converted.json` in the target.

    A case is recorded before its files are written, so that the record lists every file of a killed run.

    Attributes:
        target: Target of the conversion.
        source: Folder of the original cases.
        cases: Entry of each case, in the order of conversion. An entry contains fingerprints of the source files and,
            under `files`, the path of each written file relative to the target.
    """

    target: Target
    source: Path
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, Any]:
        """Settings of the conversion, such as the layout. They are the same for all cases of the target."""
        target = self.target
        return {
            "source": str(self.source.resolve()),
            "layout": target.key,
            "scheme": target.scheme.name,
            "order": ",".join(target.order),
        }

    def load(self) -> None:
        """Load the record of an earlier conversion to the same target, if there is one.

        Raises:
            BadInputError: If the target contains files that `convert` did not write, or cases of another source,
                layout, scheme or order.
        """
        root, path = self.target.root, self.target.root / RECORD
        if not path.is_file():
            others = sorted(file.name for file in root.glob("*") if not file.name.startswith("."))
            if others:
                raise BadInputError(
                    root,
                    f"This folder contains files that `convert` did not write: {listed(others, most=5)}. Choose an "
                    "empty or a new folder as target.",
                )
            return
        try:
            kept = read_json(path, max_bytes=MAX_LONG_JSON_BYTES)
            about, self.cases = {name: kept[name] for name in self.about}, kept["cases"]
        except (ValueError, LookupError, TypeError) as error:
            raise BadInputError(
                path,
                f"This record of `lora-moe-hgd convert` is damaged ({type(error).__name__}). Choose another target.",
            ) from error
        for name, value in self.about.items():
            if about[name] != value:
                raise BadInputError(
                    root,
                    f"This folder contains cases that were converted with another {name}: {about[name]}, not {value}. "
                    "Choose another target.",
                )

    def refuse_renamed(self, cases: Sequence[CaseFiles]) -> None:
        """Raise if the target contains one of `cases` under another name. It would then contain the case twice.

        Earlier versions gave other names to cases in nested folders.

        Raises:
            BadInputError: If the record contains the source files of a case under another name.
        """
        gone = set(self.cases) - {case.case_id for case in cases}
        known = {json.dumps(self.cases[name]["sources"]): name for name in gone}
        for case in cases if known else ():
            name = None if case.case_id in self.cases else known.get(json.dumps(_sources(case)))
            if name is not None:
                raise BadInputError(
                    self.target.root,
                    f"This folder contains the case {case.case_id} under its old name {name}. Choose another target.",
                )

    def remove_leftovers(self) -> None:
        """Remove the incomplete files that a killed process left in the target."""
        files = [self.target.root / name for made in self.cases.values() for name in made["files"].values()]
        names = {RECORD, INDEX[self.target.key]}.union(*({path.name, path.parent.name} for path in files))
        for folder in {self.target.root, *(path.parent for path in files)}:
            remove_leftovers(folder, names)

    def entry(self, case: CaseFiles) -> dict[str, Any]:
        """Build the entry of the record about a case. A case that has a number in the record keeps this number.

        Raises:
            ValueError: If the target layout cannot store the case.
        """
        known = [*self.cases, case.case_id]
        paths = self.target.paths(case, known.index(case.case_id) + 1)
        return {
            "sources": _sources(case),
            "channels": dict(case.channels),
            "label_schemes": list(case.label_schemes),
            "files": {role: path.relative_to(self.target.root).as_posix() for role, path in paths.items()},
        }

    def has(self, case: CaseFiles, made: dict[str, Any]) -> bool:
        """Whether all files of the case exist. `made` is the entry of the case, which lists the files.

        Raises:
            BadInputError: If existing files of the case were made from other sources or with other settings.
        """
        kept = self.cases.get(case.case_id, {"sources": {}, "files": {}})
        files = {*kept["files"].values(), *made["files"].values()}
        there = sorted(file for file in files if (self.target.root / file).exists())
        if there and kept != made:
            before, now = kept["sources"], made["sources"]
            changed = [role for role in (*MODALITIES, "seg") if before.get(role) != now.get(role)]
            made_of_it = [case.case_id] if self.target.key in BY_KEY else there
            places = ", ".join(str(self.target.root / name) for name in made_of_it)
            what = ", ".join(changed) or "label scheme or channel order"
            raise BadInputError(
                case.folder,
                f"This case was converted earlier, but its {what} changed since then. Remove {places} to convert the "
                "case again.",
            )
        return len(there) == len(files)

    def add(self, case: CaseFiles, made: dict[str, Any]) -> None:
        """Add the entry of a case, and write the record. Call this function before writing the files of the case."""
        self.cases[case.case_id] = made
        self.target.root.mkdir(parents=True, exist_ok=True)
        with replacing(self.target.root / RECORD) as scratch:
            scratch.write_text(json.dumps(self.about | {"cases": self.cases}))

    def complete(self) -> dict[str, dict[str, str]]:
        """Written files of each complete case, sorted by case id. A case is complete if all its files exist."""
        return {
            name: made["files"]
            for name, made in sorted(self.cases.items())
            if all((self.target.root / file).is_file() for file in made["files"].values())
        }


def _sources(case: CaseFiles) -> dict[str, str]:
    """Fingerprint of each file of a case, by role (a sequence or `seg`)."""
    files = case.images | ({"seg": case.segmentation} if case.segmentation else {})
    return {role: file_fingerprint(path) for role, path in files.items()}


def write_index(record: Record) -> None:
    """Write the index of the target: `dataset.json` for numbered files and 4-D files, else `metadata.jsonl`.

    `datasets.load_dataset` reads the cases from `metadata.jsonl`, in which a missing sequence is null.
    """
    target, cases = record.target, record.complete()
    if not cases:
        return
    path = target.root / INDEX[target.key]
    if target.key in BY_KEY:
        rows: list[dict[str, str | None]] = [
            {"case_id": name, **{f"{role}_file_name": files.get(role) for role in (*MODALITIES, "seg")}}
            for name, files in cases.items()
        ]
        with replacing(path) as scratch:
            scratch.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    names = {str(at): name for at, name in enumerate(target.order)}
    parts = {"background": 0, **target.scheme.written}
    content: dict[str, Any] = {"numTraining": sum("seg" in files for files in cases.values())}
    if target.key == NUMBERED:
        content |= {"channel_names": names, "labels": parts, "file_ending": END}
    else:
        content |= {"modality": names, "labels": {str(value): part for part, value in parts.items()}}
        content["training"] = [
            {"image": files[target.order[0]], "label": files["seg"]} for files in cases.values() if "seg" in files
        ]
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")
