"""Convert cases from any naming convention and label scheme to any other."""

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

from ..arguments import CommandParser, add_allowances, add_channel_order, add_in_path, add_out_path, add_quiet
from ..files import new_folder, reason_of, replacing
from ..model.case_rules import LABEL_MAP
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.findings import BadInputError
from ..model.label_schemes import LABEL_SCHEMES, LabelScheme, label_scheme, label_values
from .case_files import CaseFiles
from .channels import DECATHLON_ORDER, parse_channel_order
from .converted import BY_KEY, END, NUMBERED, STACKED, TARGETS, Record, Target, write_index
from .layouts import survey
from .nifti import read_image, read_stack, write_image
from .reading import CaseReading, read_case


def convert_case(case: CaseFiles, record: Record, *, allow_skull: bool = False, allow_partial: bool = False) -> bool:
    """Write a case unless its files already exist, and return whether the case was written.

    A `.nii.gz` file of one sequence is copied unchanged, and a `.nii` file is compressed with gzip. A volume from a
    4-D file or a numpy file keeps its geometry, and also its data type if NIfTI supports that type. The labels
    are renumbered to the label scheme of the target, so the regions stay the same. Warnings about the case are printed
    to standard error.

    Args:
        case: Case to write.
        record: Record of the conversion, to which the case is added.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.

    Raises:
        BadInputError: If the case cannot be used, if the target's scheme lacks a label of the case, or if the label
            map has another grid than the images. The same error is raised if an earlier conversion wrote this case,
            and its source files or settings have changed since then.
        ValueError: If the target layout cannot store the case.
    """
    made = record.entry(case)
    if record.has(case, made):
        return False
    target = record.target
    paths = {role: target.root / file for role, file in made["files"].items()}
    reading = read_case(
        case, labels=case.segmentation is not None, allow_skull=allow_skull, allow_partial=allow_partial
    ).checked()
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
    """Convert the label map to another scheme.

    Raises:
        BadInputError: If the label map has another grid than the images, or a label that the scheme lacks.
    """
    assert reading.labels is not None
    assert reading.scheme is not None
    if LABEL_MAP in reading.interpolated:
        raise BadInputError(
            reading.case.labelled(),
            f"This label map has another grid than {reading.reference}, and interpolation would change it. "
            f"Resample the label map to the grid of {reading.reference} first.",
        )
    values = label_values(reading.labels)
    if values <= scheme.labels and np.array_equal(scheme.decode(reading.labels), reading.regions):
        return reading.labels
    lost = sorted(values & set(reading.scheme.others))
    if lost:
        raise BadInputError(
            reading.case.labelled(),
            f"The label scheme {scheme} cannot express the label {', '.join(map(str, lost))} of {reading.scheme}. "
            "Choose another --scheme, or remove this label from the label map.",
        )
    return scheme.encode(reading.regions)


def _write(paths: Mapping[str, Path], case: CaseFiles, labels: np.ndarray | None, like: nib.Nifti1Image) -> None:
    """Write the images, then the labels. Each file is written atomically."""
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
                # Leave file name and time out of the gzip header, so that the same input gives the same bytes.
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
    """Read the sequences in `roles`, such as `t1`, or all sequences of the case if `roles` is empty.

    Returns:
        Two values for each sequence: an array and an image with the same voxels. The array has the data type of the
        file. The image is float32 and has the geometry of the file.

    Raises:
        BadInputError: If several sequences are read and their grids differ.
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
                case.images[role],
                f"This file has another grid than {wanted[0]}, so one file cannot contain both sequences. Resample "
                f"this file to the grid of {wanted[0]}, or choose a layout with one file per sequence.",
            )
    return {role: (_in_type_of(case.images[role], np.asarray(images[role].dataobj)), images[role]) for role in wanted}


def _in_type_of(path: Path, array: np.ndarray) -> np.ndarray:
    """Convert float32 voxels back to the data type of their file.

    The voxels stay float32 if NIfTI does not support this type, or if the conversion would change a voxel.
    """
    kind = np.load(path, mmap_mode="r").dtype if path.suffix.lower() == ".npy" else nib.load(path).dataobj.dtype  # type: ignore[attr-defined]
    if kind not in data_type_codes:
        return array
    converted = array.astype(kind)
    return converted if np.array_equal(converted, array) else array


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(description="Convert cases from any naming convention and label scheme to another.")
    reading = parser.add_mutually_exclusive_group(required=True)
    add_in_path(reading, help="folder of cases, or one case")
    reading.add_argument("source", type=Path, nargs="?", help="the same as --in-path")
    writing = parser.add_mutually_exclusive_group(required=True)
    add_out_path(writing, help="folder for the converted cases", required=False)
    writing.add_argument("target", type=Path, nargs="?", help="the same as --out-path")
    parser.add_argument("--layout", choices=TARGETS, required=True, help="naming convention of the files to write")
    parser.add_argument(
        "--scheme", choices=list(LABEL_SCHEMES), help="label scheme to write (default: the usual scheme of --layout)"
    )
    parser.add_argument(
        "--label-scheme",
        choices=list(LABEL_SCHEMES),
        help="label scheme of the source (default: recognised from its file names)",
    )
    add_channel_order(parser)
    parser.add_argument(
        "--target-order",
        metavar="NAMES",
        help="sequences in the order of the file numbers to write, for nnunet only (default: t1,t1c,t2,flair)",
    )
    add_quiet(parser)
    add_allowances(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Convert a cohort; exit with code 1 if a case failed."""
    args = build_parser().parse_args(argv)
    source, target_folder = args.in_path or args.source, args.out_path or args.target
    if target_folder.resolve() == source.resolve():
        raise ValueError(f"Source and target are the same folder: {source}. Choose another target.")
    order = args.channel_order and parse_channel_order(args.channel_order)
    target = Target(
        target_folder, args.layout, _scheme(args.layout, args.scheme), _order(args.layout, args.target_order)
    )
    cases, findings = survey(source, channel_order=order)
    labelled = sum(case.segmentation is not None for case in cases)
    if target.key not in BY_KEY and 0 < labelled < len(cases):
        raise BadInputError(
            source,
            f"Only some cases have a ground truth: {labelled} of {len(cases)}. The layout {target.key} stores cases "
            "with and without ground truth in different folders. Convert the two groups separately, each to its own "
            "target.",
        )
    record = Record(target, source)
    record.load()
    record.refuse_renamed(cases)
    record.remove_leftovers()
    failed = [str(finding) for finding in findings]
    written = []
    for case in tqdm(cases, desc="converting", unit="case", disable=args.quiet):
        try:
            case = case.in_scheme(args.label_scheme)
            written.append(convert_case(case, record, allow_skull=args.allow_skull, allow_partial=args.allow_partial))
        # An unexpected error in one case must not stop the conversion of the others.
        except Exception as error:
            failed.append(f"{case.case_id}: {reason_of(error)}")
    write_index(record)
    for message in failed:
        print(f"failed: {message}", file=sys.stderr)
    if not args.quiet:
        print(
            f"Cases written to {target_folder}: {sum(written)}. Cases that existed already: {written.count(False)}. "
            f"Cases that failed: {len(failed)}."
        )
    if failed:
        raise SystemExit(1)


def _scheme(key: str, name: str | None) -> LabelScheme:
    """Return the label scheme to write.

    Raises:
        ValueError: If the layout has usual schemes and `name` is none of these, or if `name` is `None` and the layout
            has no usual scheme.
    """
    known = {NUMBERED: (), STACKED: ("msd",)}.get(key) or (BY_KEY[key].label_schemes if key in BY_KEY else ())
    if name is None and not known:
        raise ValueError(
            f"The layout {key} has no usual label scheme. Choose a label scheme with --scheme: "
            f"{', '.join(LABEL_SCHEMES)}."
        )
    if name is not None and known and name not in known:
        raise ValueError(
            f"Files in the layout {key} are always read with the label scheme {' or '.join(known)}, so --scheme "
            f"cannot be {name}. Choose --scheme {' or '.join(known)}, or another --layout."
        )
    return label_scheme(name or known[0])


def _order(key: str, names: str | None) -> tuple[str, ...]:
    if key == NUMBERED:
        return parse_channel_order(names) if names else MODALITIES
    if names:
        raise ValueError(
            f"--target-order has an effect only with --layout {NUMBERED}. Leave out --target-order for {key}."
        )
    return DECATHLON_ORDER if key == STACKED else MODALITIES
