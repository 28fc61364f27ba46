"""Cases of any known family of names and label scheme, written in any other."""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import data_type_codes
from tqdm import tqdm

from ..files import new_folder, replacing
from ..model.case_rules import LABEL_MAP
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.label_schemes import LABEL_SCHEMES, LabelScheme, label_scheme, label_values
from .case_files import CaseFiles
from .cases import CaseReading, read_case
from .channels import DECATHLON_ORDER, parse_channel_order
from .converted import BY_KEY, END, NUMBERED, STACKED, TARGETS, Record, Target, write_index
from .findings import BadInputError, got
from .layouts import survey
from .nifti import read_image, read_stack, write_image


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
    reading = read_case(case, labels=case.segmentation is not None, allow_skull=True, allow_partial=True).checked()
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
    if LABEL_MAP in reading.interpolated:
        rule = f"must lie on the grid of {reading.reference}, as interpolated labels are not exact"
        raise BadInputError(reading.case.labelled(), got(rule, "another"))
    values = label_values(reading.labels)
    if values <= scheme.labels and np.array_equal(scheme.decode(reading.labels), reading.regions):
        return reading.labels
    lost = sorted(values & set(reading.scheme.no_tumour))
    if lost:
        rule = f"must have labels that {scheme} can tell; of {reading.scheme} it cannot"
        raise BadInputError(reading.case.labelled(), got(rule, ", ".join(map(str, lost))))
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
        volumes = read_stack(next(iter(case.images.values())), case.channels)
    else:
        volumes = {role: read_image(case.images[role]) for role in wanted}
    images = {role: volume.image for role, volume in volumes.items()}
    first = images[wanted[0]]
    for role in wanted:
        if images[role].shape != first.shape or not np.allclose(images[role].affine, first.affine, atol=1e-3):
            raise BadInputError(
                case.images[role], got(f"must lie on the grid of {wanted[0]} to be one file", "another")
            )
    return {role: (_in_type_of(case.images[role], np.asarray(images[role].dataobj)), images[role]) for role in wanted}


def _in_type_of(path: Path, array: np.ndarray) -> np.ndarray:
    """The voxels, float32, in the file's own data type where that holds them and NIfTI has it."""
    kind = np.load(path, mmap_mode="r").dtype if path.suffix == ".npy" else nib.load(path).dataobj.dtype  # type: ignore[attr-defined]
    if kind not in data_type_codes:
        return array
    converted = array.astype(kind)
    return converted if np.array_equal(converted, array) else array


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
        raise BadInputError(args.source, got(rule, f"{labelled} of {len(cases)}"))
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
