"""Cases of any known family of names and label scheme, written in any other."""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import data_type_codes
from tqdm import tqdm

from ..files import new_folder, remove_leftovers, replacing
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.label_schemes import LABEL_SCHEMES, LabelScheme, label_scheme, label_values
from .case_files import CaseFiles
from .cases import CaseReading, read_case
from .channels import DECATHLON_ORDER, parse_channel_order
from .findings import BadInputError
from .layouts import LAYOUTS, families_of, survey
from .nifti import read_image, read_stack, write_image

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
                raise BadInputError(case.folder, rule, case.case_id)
            return paths
        # Cases without labels are told apart by the folder, in both families.
        part = "Tr" if case.segmentation else "Ts"
        name = case.case_id if self.key == NUMBERED else f"BRATS_{number:03d}"
        found = {"seg": self.root / f"labels{part}/{name}{END}"} if case.segmentation else {}
        if self.key == NUMBERED:
            numbers = {role: self.order.index(role) for role in case.images if role in self.order}
            if not numbers:
                rule = f"must have a sequence of --target-order {','.join(self.order)}"
                raise BadInputError(case.folder, rule, ", ".join(case.images))
            images = {role: self.root / f"images{part}/{name}_{at:04d}{END}" for role, at in numbers.items()}
        else:
            lacking = [name for name in self.order if name not in case.images]
            if lacking:
                rule = f"must have {', '.join(self.order)} to be one file with four axes"
                raise BadInputError(case.folder, rule, f"no {', '.join(lacking)}")
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
                    root, f"must be empty, or have {RECORD} of an earlier start", ", ".join(others[:5])
                )
            return
        try:
            kept = json.loads(path.read_text())
            about, self.cases = {name: kept[name] for name in self.about}, kept["cases"]
        except (ValueError, LookupError, TypeError) as error:
            raise BadInputError(path, "must be as convert wrote it", type(error).__name__) from error
        for name, value in self.about.items():
            if about[name] != value:
                raise BadInputError(
                    root, f"must get cases of one {name}, {about[name]} (choose another target)", value
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
            "sources": {role: _state(path) for role, path in sources.items()},
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
            raise BadInputError(case.folder, rule, f"another {', '.join(changed) or 'label scheme or channel order'}")
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


def _state(path: Path) -> list[str | int]:
    """What changes when a file does."""
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


def convert_case(case: CaseFiles, record: Record) -> bool:
    """Write a case, or leave it where it is there already; return whether it was written.

    The bytes of a NIfTI file of one sequence stay as they are, packed with gzip if they were not; a volume of a file
    with four axes, or of numpy, keeps geometry and, where NIfTI has it, data type. Labels are mapped through the
    regions. What is odd about the case is told on standard error.

    Args:
        case: What to write.
        record: Of the target, which gets the case.

    Raises:
        BadInputError: If the case is damaged, has labels that the target's scheme lacks or that would have to be
            interpolated, or is there, made from other files.
        ValueError: If the target cannot hold the case.
    """
    made = record.entry(case)
    if record.has(case, made):
        return False
    target = record.target
    paths = {role: target.root / file for role, file in made["files"].items()}
    reading = read_case(case, labels=case.segmentation is not None).checked()
    labels = _labels(reading, target.scheme) if case.segmentation else None
    like = reading.images[reading.reference]
    for finding in reading.findings:
        tqdm.write(f"warning: {finding}", file=sys.stderr)
    record.add(case, made)
    if target.key in BY_KEY:
        with new_folder(next(iter(paths.values())).parent) as scratch:
            _write({role: scratch / path.name for role, path in paths.items()}, case, labels, like)
    else:
        _write(paths, case, labels, like)
    return True


def _labels(reading: CaseReading, scheme: LabelScheme) -> np.ndarray:
    """The label map in another scheme.

    Raises:
        BadInputError: If they lie on another grid than the images, or a label means something that the scheme has no
            label for.
    """
    assert reading.labels is not None
    assert reading.scheme is not None
    if "seg" in reading.interpolated:
        rule = f"must lie on the grid of {reading.reference}, as interpolated labels are not exact"
        raise BadInputError(reading.case.labelled(), rule, "another")
    values = label_values(reading.labels)
    if values <= scheme.labels and np.array_equal(scheme.decode(reading.labels), reading.regions):
        return reading.labels
    lost = sorted(values & set(reading.scheme.no_tumour))
    if lost:
        rule = f"must have labels that {scheme} can tell; of {reading.scheme} it cannot"
        raise BadInputError(reading.case.labelled(), rule, ", ".join(map(str, lost)))
    return scheme.encode(reading.regions)


def _write(paths: Mapping[str, Path], case: CaseFiles, labels: np.ndarray | None, like: nib.Nifti1Image) -> None:
    """Write the images, and last the labels, each whole or not at all."""
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    images = {role: path for role, path in paths.items() if role != "seg"}
    if len(set(images.values())) < len(images):
        stack = _volumes(case)
        (path,) = set(images.values())
        write_image(path, np.stack([stack[role][0] for role in images], axis=-1), like=next(iter(stack.values()))[1])
    else:
        for role, path in images.items():
            source = case.images[role]
            if not case.channels and source.name.lower().endswith(END):
                with replacing(path) as scratch:
                    shutil.copyfile(source, scratch)
            elif not case.channels and source.name.lower().endswith(".nii"):
                # As nibabel packs; without the name of the scratch file and the time, which would differ every time.
                with (
                    replacing(path) as scratch,
                    source.open("rb") as plain,
                    scratch.open("wb") as file,
                    gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed,
                ):
                    shutil.copyfileobj(plain, packed)
            else:
                array, image = _volumes(case, role)[role]
                write_image(path, array, like=image)
    if labels is not None:
        write_image(paths["seg"], labels, like=like)


def _volumes(case: CaseFiles, *roles: str) -> dict[str, tuple[np.ndarray, nib.Nifti1Image]]:
    """Voxels in the data type of the file, and geometry, of the sequences named, or of all.

    Raises:
        BadInputError: If those of all are to be one file and do not lie on one grid.
    """
    wanted = roles or tuple(case.images)
    if case.channels:
        images = read_stack(next(iter(case.images.values())), case.channels)
    else:
        images = {role: read_image(case.images[role]) for role in wanted}
    first = images[wanted[0]]
    for role in wanted:
        if images[role].shape != first.shape or not np.allclose(images[role].affine, first.affine, atol=1e-3):
            raise BadInputError(case.images[role], f"must lie on the grid of {wanted[0]} to be one file", "another")
    return {role: (_in_type_of(case.images[role], np.asarray(images[role].dataobj)), images[role]) for role in wanted}


def _in_type_of(path: Path, array: np.ndarray) -> np.ndarray:
    """The voxels, float32, in the file's own data type where that holds them and NIfTI has it."""
    kind = np.load(path, mmap_mode="r").dtype if path.suffix == ".npy" else nib.load(path).dataobj.dtype  # type: ignore[attr-defined]
    if kind not in data_type_codes:
        return array
    converted = array.astype(kind)
    return converted if np.array_equal(converted, array) else array


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


def main(argv: Sequence[str]) -> None:
    """Convert a cohort; exit code 1 if a case failed."""
    parser = argparse.ArgumentParser(
        description="Write cases of any known family of file names and label scheme in another."
    )
    parser.add_argument("source", type=Path, help="folder of cases, or of one")
    parser.add_argument("target", type=Path, help="folder that gets them")
    parser.add_argument("--layout", choices=TARGETS, required=True, help="family of the file names")
    parser.add_argument("--scheme", choices=list(LABEL_SCHEMES), help="of the segmentations; the family's if left out")
    parser.add_argument("--label-scheme", choices=list(LABEL_SCHEMES), help="of the source; its names' if left out")
    parser.add_argument("--channel-order", metavar="NAMES", help="sequences of the source's numbered channels")
    parser.add_argument(
        "--target-order", metavar="NAMES", help="of the target's, for nnunet; t1,t1c,t2,flair if left out"
    )
    args = parser.parse_args(argv)
    if args.target.resolve() == args.source.resolve():
        raise ValueError(f"The target must be another folder than the source: {args.source}.")
    order = args.channel_order and parse_channel_order(args.channel_order)
    target = Target(
        args.target, args.layout, _scheme(args.layout, args.scheme), _order(args.layout, args.target_order)
    )
    cases, findings = survey(args.source, channel_order=order)
    labelled = sum(case.segmentation is not None for case in cases)
    if target.key not in BY_KEY and 0 < labelled < len(cases):
        rule = f"must have labels in all cases or in none for {target.key}, which keeps them in folders of their own"
        raise BadInputError(args.source, rule, f"{labelled} of {len(cases)}")
    record = Record(target, args.source)
    record.load()
    record.remove_leftovers()
    failed = [str(finding) for finding in findings]
    written = []
    for case in tqdm(cases, desc="converting", unit="case"):
        try:
            written.append(convert_case(case.in_scheme(args.label_scheme), record))
        except (ValueError, OSError) as error:
            failed.append(str(error))
    write_index(record)
    for message in failed:
        print(f"failed: {message}", file=sys.stderr)
    print(
        f"{sum(written)} cases written, {written.count(False)} were there, {len(failed)} failed. "
        f"They are in {args.target}."
    )
    if failed:
        raise SystemExit(1)


def _scheme(key: str, name: str | None) -> LabelScheme:
    """The scheme to write.

    Raises:
        ValueError: If the family is not read in that scheme, or has none and none is given.
    """
    known = {NUMBERED: (), STACKED: ("msd",)}.get(key) or (BY_KEY[key].label_schemes if key in BY_KEY else ())
    if name is None and not known:
        raise ValueError(f"Names of {key} tell no label scheme: --scheme must be one of {', '.join(LABEL_SCHEMES)}.")
    if name is not None and known and name not in known:
        raise ValueError(f"Segmentations of {key} are read as {' or '.join(known)}: --scheme cannot be {name}.")
    return label_scheme(name or known[0])


def _order(key: str, names: str | None) -> tuple[str, ...]:
    if key == NUMBERED:
        return parse_channel_order(names) if names else MODALITIES
    if names:
        raise ValueError(f"--target-order is for {NUMBERED}; {key} has an order of its own.")
    return DECATHLON_ORDER if key == STACKED else MODALITIES
