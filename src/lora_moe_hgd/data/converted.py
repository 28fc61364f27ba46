"""What a converted folder holds: which files a case gets, what they were made from, and the index of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import remove_leftovers, replacing
from ..fingerprints import file_fingerprint
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.label_schemes import LabelScheme
from .case_files import CaseFiles
from .findings import BadInputError, got
from .layouts import LAYOUTS, families_of

BY_KEY = {layout.key: layout for layout in LAYOUTS}
NUMBERED, STACKED = "nnunet", "decathlon"
TARGETS = (*BY_KEY, NUMBERED, STACKED)
END = ".nii.gz"
# Hidden, as `datasets` reads every other JSON file in a folder as data.
RECORD = ".converted.json"
INDEX = dict.fromkeys(BY_KEY, "metadata.jsonl") | dict.fromkeys((NUMBERED, STACKED), "dataset.json")


@dataclass(frozen=True)
class Target:
    """Where and how cases are written.

    Attributes:
        root: Folder that gets them.
        key: Key of a layout, or `nnunet`, or `decathlon`.
        scheme: Label scheme of the segmentations.
        order: Sequences in the order of their numbers, for `nnunet` and `decathlon`.
    """

    root: Path
    key: str
    scheme: LabelScheme
    order: tuple[str, ...] = MODALITIES

    def paths(self, case: CaseFiles, number: int) -> dict[str, Path]:
        """The file of each sequence that the case has, and of its segmentation under `seg` if it has one.

        Raises:
            ValueError: If the family's names begin otherwise than the case's or would be read as another's, the file
                of a Decathlon case would lack a sequence, or no sequence of the case is in the order.
        """
        roles = [*case.images, *(["seg"] if case.segmentation else [])]
        if self.key in BY_KEY:
            layout = BY_KEY[self.key]
            folder = self.root / case.case_id
            paths = {role: folder / f"{layout.stem_for(role, case.case_id)}{END}" for role in roles}
            read_as = families_of(paths.values())[0]
            # Without labels it does not matter which of several families the names are taken for.
            if case.segmentation and read_as is not layout:
                rule = f"must have a name that is not read as {read_as.name} to be written as {layout.name}"
                raise BadInputError(case.folder, got(rule, case.case_id))
            return paths
        # Cases without labels are told apart by the folder, in both families.
        part = "Tr" if case.segmentation else "Ts"
        name = case.case_id if self.key == NUMBERED else f"BRATS_{number:03d}"
        found = {"seg": self.root / f"labels{part}/{name}{END}"} if case.segmentation else {}
        if self.key == NUMBERED:
            numbers = {role: self.order.index(role) for role in case.images if role in self.order}
            if not numbers:
                rule = f"must have a sequence of --target-order {','.join(self.order)}"
                raise BadInputError(case.folder, got(rule, ", ".join(case.images)))
            images = {role: self.root / f"images{part}/{name}_{at:04d}{END}" for role, at in numbers.items()}
        else:
            lacking = [name for name in self.order if name not in case.images]
            if lacking:
                rule = f"must have {', '.join(self.order)} to be one file with four axes"
                raise BadInputError(case.folder, got(rule, f"no {', '.join(lacking)}"))
            images = dict.fromkeys(self.order, self.root / f"images{part}/{name}{END}")
        return images | found


@dataclass
class Record:
    """What a target holds and what it was made from, kept in it as `.converted.json`.

    A case is recorded before its files are written, so that after a kill all that was begun is known by name.

    Attributes:
        target: Where cases are written, and how.
        source: Folder that they are from.
        cases: Of each, in the order in which they came, what it was made from and `files`: the path of each role from
            the target's root on.
    """

    target: Target
    source: Path
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, Any]:
        """What all cases of a target have in common."""
        target = self.target
        return {
            "source": str(self.source.resolve()),
            "layout": target.key,
            "scheme": target.scheme.name,
            "order": ",".join(target.order),
        }

    def load(self) -> None:
        """Take up what an earlier start has recorded.

        Raises:
            BadInputError: If the target holds anything else than cases of this source, layout, scheme and order.
        """
        root, path = self.target.root, self.target.root / RECORD
        if not path.is_file():
            others = sorted(file.name for file in root.glob("*") if not file.name.startswith("."))
            if others:
                raise BadInputError(
                    root, got(f"must be empty, or have {RECORD} of an earlier start", ", ".join(others[:5]))
                )
            return
        try:
            kept = json.loads(path.read_text())
            about, self.cases = {name: kept[name] for name in self.about}, kept["cases"]
        except (ValueError, LookupError, TypeError) as error:
            raise BadInputError(path, got("must be as convert wrote it", type(error).__name__)) from error
        for name, value in self.about.items():
            if about[name] != value:
                raise BadInputError(
                    root, got(f"must get cases of one {name}, {about[name]} (choose another target)", value)
                )

    def remove_leftovers(self) -> None:
        """Remove what a killed process has left half-written."""
        files = [self.target.root / name for made in self.cases.values() for name in made["files"].values()]
        names = {RECORD, INDEX[self.target.key]}.union(*({path.name, path.parent.name} for path in files))
        for folder in {self.target.root, *(path.parent for path in files)}:
            remove_leftovers(folder, names)

    def entry(self, case: CaseFiles) -> dict[str, Any]:
        """What is to be recorded of a case. Where names are numbers, it has the one by which it is known, or the next.

        Raises:
            ValueError: If the target cannot hold the case.
        """
        known = [*self.cases, case.case_id]
        paths = self.target.paths(case, known.index(case.case_id) + 1)
        sources = case.images | ({"seg": case.segmentation} if case.segmentation else {})
        return {
            "sources": {role: file_fingerprint(path) for role, path in sources.items()},
            "channels": dict(case.channels),
            "label_schemes": list(case.label_schemes),
            "files": {role: path.relative_to(self.target.root).as_posix() for role, path in paths.items()},
        }

    def has(self, case: CaseFiles, made: dict[str, Any]) -> bool:
        """Whether the files of the case's entry `made` are there.

        Raises:
            BadInputError: If some are there that were made from others, or in another way.
        """
        kept = self.cases.get(case.case_id, {"sources": {}, "files": {}})
        files = {*kept["files"].values(), *made["files"].values()}
        there = sorted(file for file in files if (self.target.root / file).exists())
        if there and kept != made:
            before, now = kept["sources"], made["sources"]
            changed = [role for role in (*MODALITIES, "seg") if before.get(role) != now.get(role)]
            made_of_it = [case.case_id] if self.target.key in BY_KEY else there
            places = ", ".join(str(self.target.root / name) for name in made_of_it)
            rule = f"must be as it was when it was converted (remove {places} to convert it anew)"
            raise BadInputError(
                case.folder, got(rule, f"another {', '.join(changed) or 'label scheme or channel order'}")
            )
        return len(there) == len(files)

    def add(self, case: CaseFiles, made: dict[str, Any]) -> None:
        """Record the entry of a case that is going to be written."""
        self.cases[case.case_id] = made
        self.target.root.mkdir(parents=True, exist_ok=True)
        with replacing(self.target.root / RECORD) as scratch:
            scratch.write_text(json.dumps(self.about | {"cases": self.cases}))

    def whole(self) -> dict[str, dict[str, str]]:
        """Files of each case of which none is missing, in order of name."""
        return {
            name: made["files"]
            for name, made in sorted(self.cases.items())
            if all((self.target.root / file).is_file() for file in made["files"].values())
        }


def write_index(record: Record) -> None:
    """Write `dataset.json` for numbered and stacked files, `metadata.jsonl` for all others, of what the target holds.

    The latter is what `datasets.load_dataset` finds the cases by, null for what a case lacks.
    """
    target, cases = record.target, record.whole()
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
    scheme = target.scheme
    parts = {"background": 0, "oedema": scheme.edema, "core": scheme.core, "enhancing": scheme.enhancing}
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
