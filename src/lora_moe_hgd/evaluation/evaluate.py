"""`lora-moe-hgd evaluate`: scores of a checkpoint over cases and subsets of the sequences.

`cases/<name>.json` keeps the scores of a case, so that an evaluation that was stopped continues, and one with more
cases or subsets computes only those. The tables are made from these files, see `report`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate.utils import gather_object
from tqdm import tqdm

from ..arguments import add_allowances, add_checkpoint, add_device, add_in_path, add_out_path, add_quiet
from ..cases.case_files import CaseFiles, with_labels
from ..cases.channels import parse_channel_order
from ..cases.layouts import name_of_place, survey
from ..cases.reading import read_case
from ..files import listed, printable, reason_of, replacing
from ..fingerprints import case_fingerprint, fingerprint
from ..loading import checkpoint_digest, checkpoint_folder, load_checkpoint, usable_device
from ..model.findings import Finding
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import LABEL_SCHEMES
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..processes import device_of_process, started_processes
from ..splits import FILE_NAME, read_run_split
from ..subsets import EVERY_SUBSET, Mask, parse_subset, subset_name
from .compare import write_comparison
from .lesions import LESION_RULES
from .metrics import CONVENTIONS
from .report import write_report
from .scoring import CaseScores, Rules, score_case, scorer_fingerprint, sequences_of
from .trained_on import trained_among

PARTS = ("validation", "train")


@dataclass(frozen=True)
class Evaluation:
    """Scores of many cases.

    Attributes:
        scores: By name of the case, in the order of the cases.
        failed: Why a case could not be scored, by its name.
    """

    scores: dict[str, CaseScores]
    failed: dict[str, str]


def evaluate(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    cases: Sequence[CaseFiles],
    *,
    out: Path,
    subsets: Iterable[Mask] = EVERY_SUBSET,
    rules: Rules | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score each case under the subsets of which it has all sequences.

    Scores in `out/cases` that were made from the same weights, files, rules and code are not computed again. A case
    that raises any exception is reported, and the others go on. Under `accelerate launch` the processes share the
    cases, and each returns the scores of all.

    Args:
        network: Network to score.
        processor: Its processor.
        cases: Labelled cases; their names differ.
        out: Folder that gets `cases`.
        subsets: Subsets of the sequences.
        rules: How to segment and score.
        progress: Show a progress bar.
    """
    subsets, rules = list(dict.fromkeys(subsets)), rules or Rules()
    state = started_processes()
    scorer = scorer_fingerprint(network, processor, rules)
    (out / "cases").mkdir(parents=True, exist_ok=True)
    made_from: dict[str, str] = {}
    failed: dict[str, str] = {}
    own = cases[state.process_index :: state.num_processes]
    for case in tqdm(own, desc="cases", unit="case", disable=not (progress and state.is_main_process)):
        path = _path_of(case, out)
        try:
            made_from[case.case_id] = _made_from(scorer, case)
            known = _known(path, made_from[case.case_id])
            possible = [subset for subset in subsets if set(sequences_of(subset)) <= set(case.images)]
            new = [subset for subset in possible if subset_name(subset) not in known.reliability]
            if new:
                known.add(score_case(network, processor, case, new, rules))
                with replacing(path) as scratch:
                    scratch.write_text(json.dumps({"made_from": made_from[case.case_id], **vars(known)}))
        except Exception as error:
            failed[case.case_id] = reason_of(error)
            tqdm.write(printable(f"failed: {case.case_id}: {failed[case.case_id]}"), file=sys.stderr)
            continue
        for finding in known.findings:
            tqdm.write(
                printable(f"{finding['level']}: {case.case_id}: {finding['where']}: {finding['message']}"),
                file=sys.stderr,
            )
    made_from, failed = (dict(gather_object(list(found.items()))) for found in (made_from, failed))
    state.wait_for_everyone()
    scored = [case for case in cases if case.case_id not in failed]
    scores = {case.case_id: _known(_path_of(case, out), made_from[case.case_id]) for case in scored}
    return Evaluation({name: found.only(subsets) for name, found in scores.items()}, failed)


def _path_of(case: CaseFiles, out: Path) -> Path:
    return out / "cases" / f"{case.case_id}.json"


def _made_from(scorer: str, case: CaseFiles) -> str:
    try:
        return fingerprint(scorer, case_fingerprint(case, labels=True))
    except OSError:
        # The reader's error says what is wrong with the file and what to do.
        read_case(case, labels=True).checked()
        raise


def _known(path: Path, made_from: str) -> CaseScores:
    """Scores of a case; none if they were made from anything else."""
    try:
        content = json.loads(path.read_text())
        if content["made_from"] == made_from:
            return CaseScores(content["rows"], content["reliability"], content["findings"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        # There is no file, or one of another version.
        pass
    return CaseScores()


TABLES = ("table.md", "table.json", "scores.csv")


def main(argv: Sequence[str]) -> None:
    """Score a checkpoint, or compare earlier scores; exit code 1 if some case could not be scored."""
    if score(argv):
        raise SystemExit(1)


def score(argv: Sequence[str]) -> int:
    """Do what `main` does; return the number of cases that could not be scored."""
    args = _parse(argv)
    if args.compare:
        comparison = write_comparison(args.compare, args.out_path)
        if not args.quiet:
            print(comparison)
        return 0
    subsets = [parse_subset(name) for name in args.subsets.split(",")] if args.subsets else list(EVERY_SUBSET)
    cases, bad = _choose_cases(args)
    if not any(set(sequences_of(subset)) <= set(case.images) for case in cases for subset in subsets):
        raise ValueError(f"No case in {args.in_path} has all sequences of any subset of --subsets {args.subsets}.")
    state = started_processes()
    folder = checkpoint_folder(args.checkpoint)
    trained_on = trained_among(cases, folder)
    if state.is_main_process:
        _warn(cases, subsets, bad, trained_on)
    device = usable_device(device_of_process(state, args.device))
    network, processor = load_checkpoint(folder, device=device, base=args.base)
    rules = Rules(args.mirror, args.convention, args.lesion_rules, args.allow_skull, args.allow_partial)
    found = evaluate(
        network, processor, cases, out=args.out_path, subsets=subsets, rules=rules, progress=not args.quiet
    )
    failed = [*bad, *(Finding(name, reason, "error") for name, reason in found.failed.items())]
    if state.is_main_process:
        if any(scores.rows for scores in found.scores.values()):
            about = {
                "checkpoint": checkpoint_digest(folder, base=args.base),
                "data": args.in_path.resolve().name,
                "mirror": args.mirror,
                "convention": args.convention,
                "lesion_rules": args.lesion_rules,
                "version": version("lora-moe-hgd"),
                "failed": len(failed),
                "trained_on": len(trained_on),
            }
            report = _report(found.scores, failed, args.in_path, args.out_path, about)
            if not args.quiet:
                print(printable(report))
        else:
            # Tables of an earlier evaluation would look like those of this one.
            for name in TABLES:
                (args.out_path / name).unlink(missing_ok=True)
        if failed:
            print(f"{len(found.scores)} of {len(cases) + len(bad)} cases are scored. These failed:", file=sys.stderr)
            print(printable("".join(f"\n  {finding}" for finding in failed)[1:]), file=sys.stderr)
    # A process that ends with an error makes the launcher end the others.
    state.wait_for_everyone()
    return len(failed)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Raises:
        ValueError: If an option has no effect beside the others.
    """
    parser = argparse.ArgumentParser(
        description="Score a checkpoint on labelled cases over subsets of the sequences, or compare earlier "
        "evaluations. A case that cannot be scored does not stop the others; the exit code is then 1."
    )
    add_checkpoint(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    add_in_path(what, help="folder of labelled cases")
    what.add_argument(
        "--compare", type=Path, nargs="+", metavar="FOLDER", help="compare earlier evaluations with the first of them"
    )
    add_out_path(parser, help="folder for the tables")
    parser.add_argument(
        "--label-scheme",
        choices=list(LABEL_SCHEMES),
        help="label scheme of the segmentations (default: the scheme that the file names imply)",
    )
    parser.add_argument(
        "--channel-order", metavar="NAMES", help="sequences of numbered channels, such as flair,t1,t1c,t2"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cases", help="score only these cases, names separated by commas")
    which.add_argument(
        "--cases-of", type=Path, metavar="RUN", help=f"score only the cases of a training run, from RUN/{FILE_NAME}"
    )
    parser.add_argument("--part", choices=PARTS, help=f"with --cases-of: which cases of the run (default: {PARTS[0]})")
    add_allowances(parser)
    parser.add_argument("--subsets", help="score only these subsets, such as all,t1c+flair (default: all 15)")
    parser.add_argument(
        "--mirror", action="store_true", help="average over each case and its mirror image, in twice the time"
    )
    parser.add_argument(
        "--convention", choices=list(CONVENTIONS), default="brats", help="score of empty regions (default: brats)"
    )
    parser.add_argument(
        "--lesion-rules", choices=list(LESION_RULES), default="gli2023", help="what a lesion is (default: gli2023)"
    )
    add_device(parser)
    add_quiet(parser)
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if args.compare and (useless := sorted(given - {"compare", "out_path", "quiet"})):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in useless)
        raise ValueError(f"--compare reads earlier scores, on which {options} has no effect. Leave it out.")
    if args.part and not args.cases_of:
        raise ValueError("--part chooses among the cases of a run. Name the run with --cases-of RUN.")
    return args


def _choose_cases(args: argparse.Namespace) -> tuple[list[CaseFiles], list[Finding]]:
    """Labelled cases to score, and the problems of those that cannot be scored, as far as file names show them.

    Raises:
        ValueError: If a case that was asked for is missing, or no case can be scored.
    """
    found, bad = survey(args.in_path, channel_order=args.channel_order and parse_channel_order(args.channel_order))
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
                f"{args.in_path} does not hold {', '.join(missing)}, which {source} names." + _listed("Problems", bad)
            )
        # Problems of other cases are of no interest.
        found, bad = [case for case in found if case.case_id in wanted], []
    labelled, unlabelled = with_labels(found)
    bad += unlabelled
    cases = [case.in_scheme(args.label_scheme) for case in labelled]
    if not cases:
        raise ValueError(f"No case in {args.in_path} can be scored." + _listed("Problems", bad))
    return cases, bad


def _warn(cases: Sequence[CaseFiles], subsets: Sequence[Mask], bad: Sequence[Finding], trained_on: list[str]) -> None:
    """Print all that is known before the first case is read."""
    for finding in bad:
        print(printable(f"failed: {finding}"), file=sys.stderr)
    for subset in subsets:
        able = sum(set(sequences_of(subset)) <= set(case.images) for case in cases)
        if able < len(cases):
            print(f"warning: {able} of {len(cases)} cases have {subset_name(subset)}", file=sys.stderr)
    if trained_on:
        print(
            printable(
                f"warning: This checkpoint was trained on {len(trained_on)} of the {len(cases)} cases: "
                f"{listed(trained_on)}. Their scores say little about new cases."
            ),
            file=sys.stderr,
        )


def _listed(head: str, findings: Sequence[Finding]) -> str:
    return f" {head}:" + "".join(f"\n  {finding}" for finding in findings) if findings else ""


def _report(
    scores: dict[str, CaseScores], failed: Sequence[Finding], root: Path, out: Path, about: dict[str, Any]
) -> str:
    rows = [row for found in scores.values() for row in found.rows]
    reliability = {
        (name, part): counts for name, found in scores.items() for part, counts in found.reliability.items()
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
    return write_report(pd.DataFrame(rows), reliability, findings, out, about=about)
