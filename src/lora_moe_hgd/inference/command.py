"""`lora-moe-hgd segment` and `infer.py`: segment a case or a cohort."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lora_moe_hgd_cli import SEGMENT_USES

from ..arguments import (
    SEQUENCES_HELP,
    CommandParser,
    add_allowances,
    add_bf16,
    add_channel_order,
    add_checkpoint,
    add_device,
    add_in_path,
    add_mirror,
    add_out_path,
    add_quiet,
)
from ..cases.case_files import CaseFiles, given_case, namings, refuse_other_case
from ..cases.channels import parse_channel_order
from ..cases.layouts import find_case, survey
from ..files import counted, volume_text
from ..loading import checkpoint_folder, checkpoint_task
from ..model.confidence import dice_text
from ..model.findings import BadInputError, Finding, prepare_command, raise_errors
from ..model.task import BRAIN_TUMOUR, Task, shown
from ..processes import device_of_process, started_processes
from ..scans.options import add_scan_options, given_scan_options
from ..scans.raw import is_raw, require_extra
from ..sequence_names import parse_sequences
from .cohort import INDEX, SUMMARY, CohortCounts, segment_cohort
from .report import print_warning
from .results import INPUT_SCHEME, CaseSegmenter, ResultOptions, choose_sequences
from .scanned import segment_scan
from .segmentation import RESULT_FILES, Segmentation


def build_parser(task: Task = BRAIN_TUMOUR) -> argparse.ArgumentParser:
    """Build the parser of the options. Each sequence of the task has its own option, such as `--t1c FILE`."""
    parser = CommandParser(
        description="Segment the tumour of cases that may lack sequences. Research use, not a medical device.",
        epilog=SEGMENT_USES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_in_path(
        parser,
        help="a case (folder or 4-D file), many cases (their folder) or a DICOM study (folder, zip file or DICOMDIR)",
    )
    for name in task.modalities:
        parser.add_argument(
            f"--{name}", type=Path, metavar="FILE", help=f"image file of the sequence {name}, instead of --in-path"
        )
    add_out_path(parser, help="folder for the results; a cohort gets one subfolder per case")
    add_checkpoint(parser)
    parser.add_argument("--sequences", "--modalities", metavar="NAMES", help=SEQUENCES_HELP)
    parser.add_argument(
        "--label-scheme",
        choices=[*task.schemes, INPUT_SCHEME],
        help="label numbers of seg.nii.gz; `input` means the scheme of the case's own label map (default: the "
        "checkpoint's scheme)",
    )
    add_channel_order(parser)
    parser.add_argument(
        "--reference",
        choices=task.modalities,
        help="sequence whose grid the result has (default: the first sequence of the case)",
    )
    parser.add_argument("--strict", action="store_true", help="refuse cases with warnings about their images")
    add_allowances(parser)
    add_mirror(parser)
    add_bf16(parser)
    parser.add_argument(
        "--probabilities", action="store_true", help="also write probabilities.nii.gz, one volume per region"
    )
    parser.add_argument(
        "--uncertainty", action="store_true", help="also write uncertainty.nii.gz, the entropy of each voxel in bits"
    )
    parser.add_argument(
        "--html",
        action="store_true",
        help="also write report.html, a page to scroll through all slices; for a cohort also index.html",
    )
    raw = parser.add_argument_group("for DICOM files")
    add_scan_options(raw)
    raw.add_argument(
        "--on",
        choices=["all"],
        help="also write seg_on_SEQUENCE.nii.gz: the label map on the original grid of each sequence",
    )
    raw.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="folder in which to save the prepared case: without the skull, all sequences on one grid",
    )
    raw.add_argument("--deface", action="store_true", help="remove the face from overlay.png and report.html")
    add_device(parser)
    add_quiet(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Segment a case, or every case of a cohort. Exit with code 1 if a case of the cohort failed."""
    task = _task_of(argv)
    args = build_parser(task).parse_args(argv)
    options = ResultOptions(
        sequences=None if args.sequences is None else parse_sequences(args.sequences, task.modalities),
        label_scheme=args.label_scheme,
        reference=args.reference,
        strict=args.strict,
        allow_skull=args.allow_skull,
        allow_partial=args.allow_partial,
        mirror=args.mirror,
        bf16=args.bf16,
        probabilities=args.probabilities,
        uncertainty=args.uncertainty,
        html=args.html,
    )
    options.check(task)
    try:
        one, cases, bad = _cases_of(args, task)
    except BadInputError as error:
        if not _is_study(args.in_path):
            if error.finding.names_unclear:
                files = " ".join(f"--{name} FILE" for name in task.modalities)
                remedy = f"Or name the files of the case with {files} instead of --in-path."
                raise error.with_remedy(remedy) from error
            raise
        one, cases, bad = None, [], []
    if one is None and not cases and _is_study(args.in_path):
        _segment_study(args, options)
        return
    if given := given_scan_options(args):
        raise ValueError(
            f"{', '.join(given)} has an effect on DICOM files only. Leave it out. For NIfTI files with the skull, "
            f"first run {prepare_command()}."
        )
    targets = [(one, args.out_path)] if one else [(case, args.out_path / case.case_id) for case in cases]
    for case, folder in targets:
        _refuse_same_folder(folder, case.folder)
    if one is not None:
        refuse_other_case(args.out_path / "report.json", one.case_id)
        # Report an invalid option and bad input before the network is loaded.
        segmenter = CaseSegmenter(args.checkpoint, options, device=args.device, base=args.base)
        used = choose_sequences(one, options.sequences)
        if not args.quiet:
            print("\n".join(used.mapping()))
        found = segmenter.write(segmenter.read(one), args.out_path, progress=not args.quiet)
        if not args.quiet:
            _print_result(found, args.out_path, options)
        return
    state = started_processes()
    device = device_of_process(state, args.device)
    segmenter = CaseSegmenter(args.checkpoint, options, device=device, base=args.base)
    if state.is_main_process and cases and not args.quiet:
        print("\n".join(f"files of {line}" for line in namings(cases)))
    counts = segment_cohort(segmenter, cases, bad, args.out_path, root=args.in_path, progress=not args.quiet)
    if state.is_main_process and not args.quiet:
        _print_cohort(counts, args.out_path)
    if counts.failed:
        raise SystemExit(1)


def _task_of(argv: Sequence[str]) -> Task:
    """Read the task of the checkpoint on the command line, because each sequence of the task has its own option.

    Raises:
        ValueError: If the checkpoint is not found. With `--help`, return the task brain tumour instead.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_checkpoint(parser)
    known = parser.parse_known_args(argv)[0]
    try:
        return checkpoint_task(checkpoint_folder(known.checkpoint), base=known.base)
    except (ValueError, OSError):
        if {"-h", "--help"} & {*argv}:
            return BRAIN_TUMOUR
        raise


def _is_study(path: Path | None) -> bool:
    """Whether `path` contains DICOM files."""
    return path is not None and is_raw(path)


def _segment_study(args: argparse.Namespace, options: ResultOptions) -> None:
    """Segment the DICOM study at `--in-path`."""
    require_extra()
    # Import them only here, because they need the extra `scans`.
    from ..scans.choice import parse_series
    from ..scans.prepare import ScanOptions
    from ..scans.prepared import check_output
    from ..scans.steps import steps_in

    if args.channel_order:
        raise ValueError("--channel-order has no effect on DICOM files. Leave it out.")
    _refuse_same_folder(args.out_path, args.in_path if args.in_path.is_dir() else args.in_path.parent)
    if args.keep is not None:
        check_output(args.keep)
    scan = ScanOptions(
        study=args.study,
        series=parse_series(args.series),
        sequences=options.sequences,
        reference=options.reference,
        brain_extraction=args.brain_extraction,
        brain_mask=args.brain_mask,
        case_id=args.case_id,
        deface=args.deface,
    )
    asked = {"probabilities": args.probabilities, "uncertainty": args.uncertainty, "html": args.html}
    with steps_in(args.out_path) as steps:
        found = segment_scan(
            CaseSegmenter(args.checkpoint, options, device=args.device, base=args.base),
            args.in_path,
            scan,
            keep=args.keep,
            steps=steps,
            check_name=partial(refuse_other_case, args.out_path / "report.json"),
            progress=not args.quiet,
            say=(lambda line: None) if args.quiet else partial(print, flush=True),
            warn=print_warning,
        )
        found.save(args.out_path, **asked, on_all=args.on == "all")
    if not args.quiet:
        _print_result(found, args.out_path, options)


def _refuse_same_folder(out: Path, folder: Path) -> None:
    if out.resolve() == folder.resolve():
        raise ValueError(
            f"--out-path must not be the folder of the case, {folder}, because the label map of the case could be "
            "overwritten. Choose another folder."
        )


def _cases_of(args: argparse.Namespace, task: Task) -> tuple[CaseFiles | None, list[CaseFiles], list[Finding]]:
    """Find the case or the cohort that the options name.

    Returns:
        The single case, or `None` for a cohort; the cases of the cohort; and an error for each folder of the cohort
        that could not be recognised as a case.

    Raises:
        ValueError: If the options name both `--in-path` and single files, or neither of them.
        BadInputError: If no case is found.
    """
    given = {name: getattr(args, name) for name in task.modalities if getattr(args, name) is not None}
    if bool(given) == (args.in_path is not None):
        options = ", ".join(f"--{name}" for name in task.modalities)
        raise ValueError(
            f"Give a case either with --in-path or with single files ({options}){', not with both' if given else ''}."
        )
    if given:
        if args.channel_order:
            raise ValueError(
                "--channel-order has no effect if each file is given with its own option, such as --t1. Leave it out."
            )
        return given_case(given, task), [], []
    order = args.channel_order and parse_channel_order(args.channel_order, task)
    if args.in_path.is_dir():
        try:
            cases, bad = survey(args.in_path, channel_order=order, task=task)
        except BadInputError:
            # There is no case below this folder. The error of the folder itself is more specific.
            return find_case(args.in_path, channel_order=order, task=task), [], []
        if not cases and len(bad) == 1:
            raise_errors(bad)
        if [case.folder for case in cases] != [args.in_path] or bad:
            return None, cases, bad
    return find_case(args.in_path, channel_order=order, task=task), [], []


def _print_cohort(counts: CohortCounts, folder: Path) -> None:
    every = counted(counts.segmented + counts.skipped + counts.failed, "case")
    skipped = f"; {counts.skipped} skipped, because complete results exist" if counts.skipped else ""
    failed = f"; {counts.failed} failed" if counts.failed else ""
    page = f" Page with all cases: {folder / INDEX}." if (folder / INDEX).is_file() else ""
    print(f"Segmented: {counts.segmented} of {every}{skipped}{failed}. Summary table: {folder / SUMMARY}.{page}")


def _print_result(found: Segmentation, folder: Path, options: ResultOptions) -> None:
    # If nothing was found, a warning has already said so.
    if found.report[f"{found.task.target}_found"]:
        for name, volume in found.volumes_ml.items():
            dice = found.confidence[name]
            label = "" if dice is None else "expected Dice "
            print(f"{shown(name)}: {volume_text(volume)} mL, {label}{dice_text(dice)}")
    print(f"Label scheme: {found.label_scheme}.")
    names = [name for name in RESULT_FILES if (folder / name).is_file()]
    print(f"Results are in {folder}: {', '.join(names)}.")
