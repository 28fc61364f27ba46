"""`lora-moe-hgd evaluate`: score a checkpoint or label maps, or compare earlier evaluations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from ..arguments import (
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
    add_task,
)
from ..cases.case_files import CaseFiles, with_labels
from ..cases.channels import parse_channel_order
from ..cases.layouts import name_of_place, survey
from ..files import counted, listed, printable, replacing
from ..loading import checkpoint_digest, checkpoint_folder, checkpoint_task, load_checkpoint, usable_device
from ..model.findings import Finding
from ..model.label_schemes import label_scheme
from ..model.task import BRAIN_TUMOUR, Task
from ..processes import device_of_process, started_processes
from ..splits import FILE_NAME, read_run_split
from ..subsets import Mask, every_subset, parse_subsets, sequences_of, subset_name
from ..task_files import read_task
from .compare import write_comparison
from .evaluate import Scorer, score_cases
from .lesions import LESION_RULES
from .metrics import CONVENTIONS
from .predictions import PredictionScorer, find_predictions, folders_of_subsets
from .report import TRAINED_ON_NOTE, write_report
from .score_files import read_scores, task_of
from .scoring import CaseScores, NetworkScorer, Rules
from .subset_table import FORMATS, subset_table
from .trained_on import trained_among

PARTS = ("validation", "train")
TABLES = ("table.md", "table.json", "scores.csv")
SUBSETS_HELP = (
    "subsets of the sequences to score, separated by commas: t1c+flair is one subset of two sequences, and t1c,flair "
    "are two subsets of one sequence each; `all` is the one subset of all sequences (default: every subset)"
)


def main(argv: Sequence[str]) -> None:
    """Score a checkpoint or label maps, or compare earlier scores. If a case could not be scored, exit with code 1."""
    if score(argv):
        raise SystemExit(1)


def score(argv: Sequence[str]) -> int:
    """Score a checkpoint or label maps, or compare earlier scores; return the number of cases without scores."""
    args = _parse(argv)
    if args.compare:
        comparison = write_comparison(args.compare, args.out_path)
        if args.format:
            _write_subset_table(args.compare, args.out_path, args.format, task_of(args.compare))
        if not args.quiet:
            print(comparison)
        return 0
    if args.predictions:
        folder, task = None, read_task(args.task) if args.task else BRAIN_TUMOUR
    else:
        folder = checkpoint_folder(args.checkpoint)
        task = checkpoint_task(folder, base=args.base)
    names = task.modalities
    subsets = parse_subsets(args.subsets, names) if args.subsets else every_subset(names)
    cases, bad = _choose_cases(args, task)
    state = started_processes()
    if args.subsets == "all" and state.is_main_process and not args.quiet:
        print(
            f"note: --subsets all means the one subset of all sequences ({'+'.join(names)}). Without --subsets, all "
            f"{len(every_subset(names))} subsets are scored.",
            file=sys.stderr,
        )
    rules = Rules(
        mirror=args.mirror,
        bf16=args.bf16,
        convention=args.convention,
        lesions=args.lesion_rules,
        allow_skull=args.allow_skull,
        allow_partial=args.allow_partial,
    )
    trained_on: list[str] = []
    if folder is None:
        scheme = _prediction_scheme(args.prediction_scheme, task)
        files = find_predictions(args.predictions, cases, task)
        scorer: Scorer = PredictionScorer(files, task, scheme, rules)
        if state.is_main_process and not folders_of_subsets(args.predictions, task):
            print(
                f"note: {args.predictions} has no folders named after subsets, such as t1c+flair, so its predictions "
                f"count as predictions from all sequences ({'+'.join(names)}).",
                file=sys.stderr,
            )
        subsets = [subset for subset in subsets if subset in files]
        chosen = f" for --subsets {args.subsets}" if args.subsets else ""
        bad += [
            Finding(case.case_id, f"{args.predictions} contains no prediction of this case{chosen}.", "error")
            for case in cases
            if not scorer.possible(case, subsets)
        ]
        cases = [case for case in cases if scorer.possible(case, subsets)]
        if not cases:
            raise ValueError(
                f"{args.predictions} contains no prediction for --subsets {args.subsets}. Choose other subsets."
            )
    else:
        trained_on = trained_among(cases, folder)
        if not any(set(sequences_of(subset, names)) <= set(case.images) for case in cases for subset in subsets):
            raise ValueError(
                f"With --subsets {args.subsets}, no case in {args.in_path} can be scored, because each case lacks a "
                "sequence of each of these subsets. Choose other subsets."
            )
        network, processor = load_checkpoint(
            folder, device=usable_device(device_of_process(state, args.device), bf16=args.bf16), base=args.base
        )
        scorer = NetworkScorer(network, processor, rules)
    if state.is_main_process:
        _warn(cases, subsets, scorer, bad, trained_on)
    found = score_cases(scorer, cases, out=args.out_path, subsets=subsets, progress=not args.quiet)
    failed = [*bad, *(Finding(name, reason, "error") for name, reason in found.failed.items())]
    if state.is_main_process:
        if any(scores.rows for scores in found.scores.values()):
            about = {
                "task": None if task.is_brain_tumour else task.to_dict(),
                "checkpoint": folder and checkpoint_digest(folder, base=args.base),
                "data": args.in_path.resolve().name,
                "mirror": args.mirror,
                "bf16": args.bf16,
                "convention": args.convention,
                "lesion_rules": args.lesion_rules,
                "version": version("lora-moe-hgd"),
                "failed": len(failed),
                "trained_on": len(trained_on),
            }
            report = _report(found.scores, failed, args.in_path, args.out_path, about, task)
            if args.format:
                _write_subset_table([args.out_path], args.out_path, args.format, task)
            if not args.quiet:
                print(printable(report))
        else:
            # Remove the tables of an earlier evaluation, which would look like those of this one.
            for name in TABLES:
                (args.out_path / name).unlink(missing_ok=True)
        if failed:
            every = counted(len(cases) + len(bad), "case")
            print(f"{len(found.scores)} of {every} could be scored. These cases failed:", file=sys.stderr)
            print(printable("".join(f"\n  {finding}" for finding in failed)[1:]), file=sys.stderr)
    # Wait, because the launcher kills all other processes when a process exits with an error.
    state.wait_for_everyone()
    return len(failed)


def _write_subset_table(places: Sequence[Path], out: Path, form: str, task: Task) -> None:
    """Write a table of Dice by subset. The table names each evaluation after its folder or CSV file."""
    names = [place.stem if place.is_file() else place.resolve().name for place in places]
    if len(set(names)) < len(names):
        names = [str(place) for place in places]
    scores = [read_scores(place, task) for place in places]
    text = subset_table(dict(zip(names, scores, strict=True)), form, task)
    with replacing(out / f"subset_table.{FORMATS[form]}") as scratch:
        scratch.write_text(text)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(
        description="Score a checkpoint, or the label maps of any tool, on labelled cases and subsets of the "
        "sequences. With --compare, compare earlier evaluations. If a case cannot be scored, the other cases are "
        "still scored, and the exit code is 1."
    )
    add_checkpoint(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    add_in_path(what, help="folder of labelled cases")
    what.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="compare the first of several earlier evaluations with each of the others; FOLDER is the --out-path of "
        "an evaluation, or a CSV file of published Dice values with the columns case, wt, tc and et",
    )
    add_out_path(parser, help="folder for tables and plots")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FOLDER",
        help="score the label maps in this folder (CASE.nii.gz, CASE-seg.nii.gz or CASE/seg.nii.gz) instead of a "
        "checkpoint; predictions from a subset of the sequences are in a folder such as t1c+flair",
    )
    parser.add_argument(
        "--prediction-scheme", metavar="NAME", help="label scheme of the predictions, such as brats2023"
    )
    add_task(parser)
    parser.add_argument(
        "--label-scheme",
        help="label scheme of the ground truth (default: recognised from the file names)",
    )
    add_channel_order(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cases", help="names of the cases to score, separated by commas (default: all)")
    which.add_argument(
        "--cases-of",
        type=Path,
        metavar="RUN",
        help=f"score only the cases that RUN/{FILE_NAME} lists, where RUN is the folder of a training run",
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        help=f"with --cases-of: score the validation or the training cases of the run (default: {PARTS[0]})",
    )
    add_allowances(parser)
    parser.add_argument("--subsets", help=SUBSETS_HELP)
    add_mirror(parser)
    add_bf16(parser)
    parser.add_argument(
        "--convention",
        choices=list(CONVENTIONS),
        default="brats",
        help="scores of a region that is empty in the prediction or in the ground truth, see docs/evaluate.md "
        "(default: brats)",
    )
    parser.add_argument(
        "--lesion-rules",
        choices=list(LESION_RULES),
        default="gli2023",
        help="rules of a challenge for the lesion-wise scores (default: gli2023, of the BraTS glioma challenge 2023)",
    )
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        help="also write the mean Dice of each subset in percent, in a table like those of papers: subset_table.md, "
        ".tex or .csv",
    )
    add_device(parser)
    add_quiet(parser)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Raises:
        ValueError: If an option would have no effect together with the other options.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if args.compare and (useless := sorted(given - {"compare", "out_path", "quiet", "format"})):
        raise ValueError(
            f"--compare only reads earlier scores. Leave out {_options(useless)}, which would have no effect."
        )
    if args.predictions:
        if useless := sorted(given & {"checkpoint", "mirror", "bf16", "device"}):
            raise ValueError(
                f"With --predictions, no network is used. Leave out {_options(useless)}, which would have no effect."
            )
    elif useless := sorted(given & {"prediction_scheme", "task"}):
        raise ValueError(
            f"{_options(useless)} works only with --predictions. Without --predictions, the checkpoint determines the "
            f"task and the label scheme. Leave out {_options(useless)}."
        )
    if args.part and not args.cases_of:
        raise ValueError("--part chooses training or validation cases of a run. Name the run with --cases-of RUN.")
    return args


def _prediction_scheme(name: str | None, task: Task) -> str:
    """Return the name of the predictions' label scheme. If the task has only one label scheme, `name` may be `None`.

    Raises:
        ValueError: If `name` is unknown, or if `name` is `None` although the task has several label schemes. No scheme
            is assumed, because the labels 1, 2 and 3 mean different parts of a tumour in different schemes.
    """
    if name is None and len(task.schemes) > 1:
        known = "".join(f"\n  {scheme}" for scheme in task.schemes.values())
        raise ValueError(f"The label scheme of the predictions is missing. Give --prediction-scheme:{known}")
    return label_scheme(name or next(iter(task.schemes)), task.schemes).name


def _options(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _choose_cases(args: argparse.Namespace, task: Task) -> tuple[list[CaseFiles], list[Finding]]:
    """Return the labelled cases to score, and an error for each case that is invalid or has no segmentation.

    Raises:
        ValueError: If the data lack a case that `--cases` or `--cases-of` names, or if no case can be scored.
    """
    order = args.channel_order and parse_channel_order(args.channel_order, task)
    found, bad = survey(args.in_path, channel_order=order, task=task)
    wanted, source = None, ""
    if args.cases:
        wanted, source = args.cases.split(","), "--cases"
    elif args.cases_of:
        part = args.part or PARTS[0]
        wanted, source = getattr(read_run_split(args.cases_of), part), f"{args.cases_of / FILE_NAME} ({part})"
        if not wanted:
            raise ValueError(f"{source} lists no case.")
    if wanted is not None:
        missing = sorted(set(wanted) - {case.case_id for case in found})
        if missing:
            raise ValueError(
                f"{source} names cases that {args.in_path} does not contain: {', '.join(missing)}."
                + _listed("Problems", bad)
            )
        # Ignore the problems of other cases.
        found, bad = [case for case in found if case.case_id in wanted], []
    labelled, unlabelled = with_labels(found)
    bad += unlabelled
    cases = [case.in_scheme(args.label_scheme, task) for case in labelled]
    if not cases:
        raise ValueError(f"No case in {args.in_path} can be scored." + _listed("Problems", bad))
    return cases, bad


def _warn(
    cases: Sequence[CaseFiles],
    subsets: Sequence[Mask],
    scorer: Scorer,
    bad: Sequence[Finding],
    trained_on: list[str],
) -> None:
    """Print a warning for each unusable case, for each subset that some cases lack, and for training cases."""
    for finding in bad:
        print(printable(f"failed: {finding}"), file=sys.stderr)
    possible = [set(scorer.possible(case, subsets)) for case in cases]
    for subset in subsets:
        able = sum(subset in those for those in possible)
        if able < len(cases):
            name = subset_name(subset, scorer.task.modalities)
            reason = (
                "The other cases have no prediction from this subset."
                if isinstance(scorer, PredictionScorer)
                else "The other cases lack a sequence of this subset."
            )
            print(
                f"warning: only {able} of {counted(len(cases), 'case')} can be scored for the subset {name}. {reason}",
                file=sys.stderr,
            )
    if trained_on:
        print(
            printable(
                f"warning: This checkpoint was trained on {len(trained_on)} of {counted(len(cases), 'case')} to "
                f"score: {listed(trained_on)}. {TRAINED_ON_NOTE}"
            ),
            file=sys.stderr,
        )


def _listed(head: str, findings: Sequence[Finding]) -> str:
    return f" {head}:" + "".join(f"\n  {finding}" for finding in findings) if findings else ""


def _report(
    scores: dict[str, CaseScores],
    failed: Sequence[Finding],
    root: Path,
    out: Path,
    about: dict[str, Any],
    task: Task,
) -> str:
    rows = [row for found in scores.values() for row in found.rows]
    reliability = {
        (name, part): counts
        for name, found in scores.items()
        for part, counts in found.reliability.items()
        if counts is not None
    }
    findings = [{"case_id": name, **finding} for name, found in scores.items() for finding in found.findings]
    findings += [
        {
            "case_id": printable(name_of_place(root, finding.where)),
            "level": finding.level,
            "where": printable(finding.where),
            "message": printable(finding.message),
        }
        for finding in failed
    ]
    return write_report(pd.DataFrame(rows), reliability, findings, out, about=about, task=task)
