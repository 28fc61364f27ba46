"""Check every case of a cohort, list the errors and warnings, and count the cases."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..arguments import CommandParser, add_allowances, add_channel_order, add_in_path, add_quiet, add_task
from ..files import counted, listed, reason_of
from ..model.findings import Finding
from ..model.label_schemes import LABEL_SCHEMES
from ..model.task import BRAIN_TUMOUR, Task
from ..task_files import read_task
from .case_files import NO_GROUND_TRUTH, CaseFiles, namings
from .channels import parse_channel_order
from .layouts import survey
from .reading import read_case


@dataclass(frozen=True)
class CheckedCase:
    """Summary of a case that was read.

    Attributes:
        case: Files of the case.
        label_scheme: Label scheme of the segmentation; `None` if no segmentation was read.
        findings: Errors and warnings.
    """

    case: CaseFiles
    label_scheme: str | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class CheckedCohort:
    """Summary of a cohort.

    Attributes:
        root: Folder of the cohort.
        cases: Cases whose files could be identified.
        others: Errors about folders whose files could not be identified.
        task: Task that defines the sequences and regions.
    """

    root: Path
    cases: tuple[CheckedCase, ...]
    others: tuple[Finding, ...]
    task: Task = BRAIN_TUMOUR

    @property
    def findings(self) -> list[Finding]:
        """All errors and warnings of the cohort, errors first."""
        found = [*self.others, *(finding for checked in self.cases for finding in checked.findings)]
        return sorted(found, key=lambda finding: (finding.level, str(finding.where)))

    def counts(self) -> dict[str, Any]:
        """Count cases, errors and warnings, and the cases per sequence, naming convention and label scheme."""
        levels = Counter(finding.level for finding in self.findings)
        present = Counter(name for checked in self.cases for name in checked.case.images)
        schemes = Counter(checked.label_scheme for checked in self.cases if checked.label_scheme)
        return {
            "cases": len(self.cases),
            "errors": levels["error"],
            "warnings": levels["warning"],
            "sequences": {name: present[name] for name in self.task.modalities},
            "layouts": dict(Counter(checked.case.layout for checked in self.cases)),
            "label_schemes": dict(schemes),
        }

    def to_dict(self) -> dict[str, Any]:
        """All results as a dictionary, for `--json`."""
        return {
            "root": str(self.root),
            "counts": self.counts(),
            "findings": [
                {"level": found.level, "where": str(found.where), "message": found.message} for found in self.findings
            ],
            "cases": [
                {
                    "case": checked.case.case_id,
                    "layout": checked.case.layout,
                    "sequences": list(checked.case.images),
                    "files": checked.case.file_names(),
                    "left_out": checked.case.names_left_out(),
                    "label_scheme": checked.label_scheme,
                }
                for checked in self.cases
            ],
        }

    def lines(self) -> list[str]:
        """The errors and warnings, one per line, with paths relative to `root`."""
        return [f"{finding.level:<8} {finding}".replace(f"{self.root}/", "") for finding in self.findings]

    def table(self) -> str:
        """The errors and warnings, one per line, followed by lines with the numbers of `counts` and the file names."""
        lines = self.lines()
        counts = self.counts()
        lines.append(", ".join(counted(counts[f"{thing}s"], thing) for thing in ("case", "error", "warning")))
        for name in ("sequences", "layouts", "label_schemes"):
            numbers = ", ".join(f"{key} {number}" for key, number in counts[name].items()) or "none"
            lines.append(f"{name.replace('_', ' ')}: {numbers}")
            if name == "sequences":
                lines += self._subsets()
        lines += [f"files of {line}" for line in namings([checked.case for checked in self.cases])]
        return "\n".join(lines)

    def _subsets(self) -> list[str]:
        """One line for each combination of sequences: number and names of its cases, the most frequent first."""
        cases: dict[str, list[str]] = {}
        for checked in self.cases:
            cases.setdefault("+".join(checked.case.images), []).append(checked.case.case_id)
        by_number = sorted(cases.items(), key=lambda item: -len(item[1]))
        return [f"  {subset}: {counted(len(ids), 'case')}: {listed(ids, most=5)}" for subset, ids in by_number]


def check_case(
    case: CaseFiles,
    *,
    labels: bool,
    allow_skull: bool = False,
    allow_partial: bool = False,
    task: Task = BRAIN_TUMOUR,
) -> CheckedCase:
    """Read a case as `lora-moe-hgd train` reads it, and return a summary of the case."""
    try:
        reading = read_case(
            case, labels=labels, not_finite="error", allow_skull=allow_skull, allow_partial=allow_partial, task=task
        )
    # An unexpected error in one case must not stop the check of the others.
    except Exception as error:
        return CheckedCase(case, None, (Finding(case.folder, reason_of(error), "error"),))
    scheme = None if reading.scheme is None else reading.scheme.name
    return CheckedCase(case, scheme, tuple(reading.findings))


def check_cohort(
    root: Path,
    *,
    labels: bool = True,
    label_scheme: str | None = None,
    channel_order: Sequence[str] | None = None,
    allow_skull: bool = False,
    allow_partial: bool = False,
    num_workers: int = 0,
    progress: bool = False,
    task: Task = BRAIN_TUMOUR,
) -> CheckedCohort:
    """Read every case below `root`, and collect the errors and warnings.

    Args:
        root: Folder of cases.
        labels: Whether to read the segmentation of each case. If it is read, a missing segmentation is an error.
        label_scheme: Label scheme, the meaning of each value in the segmentations. `None` means the scheme that the
            file names imply.
        channel_order: Sequence of each channel of a 4-D file, or of each numbered file, in ascending order.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.
        num_workers: Number of worker processes that read cases. With 0 or 1, the current process reads the cases.
        progress: Whether to show a progress bar.
        task: Task that defines the sequences and regions.

    Raises:
        BadInputError: If `root` contains no case.
    """
    cases, others = survey(root, channel_order=channel_order, task=task)
    cases = [case.in_scheme(label_scheme, task) for case in cases]
    one = partial(check_case, labels=labels, allow_skull=allow_skull, allow_partial=allow_partial, task=task)

    def shown(checked: Iterable[CheckedCase]) -> tuple[CheckedCase, ...]:
        return tuple(tqdm(checked, desc="checking", unit="case", total=len(cases), disable=not progress))

    if num_workers < 2:
        return CheckedCohort(root, shown(map(one, cases)), tuple(others), task)
    # Spawn the workers: a fork of a process that uses threads may hang.
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return CheckedCohort(root, shown(pool.map(one, cases)), tuple(others), task)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(
        description="Read all cases as `lora-moe-hgd train` reads them, and list the errors and warnings. "
        "The exit code is 1 if there are errors."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    add_in_path(which, help="folder of cases")
    which.add_argument("root", type=Path, nargs="?", help="the same as --in-path")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no-labels", action="store_true", help="do not require or read segmentations")
    parser.add_argument(
        "--label-scheme",
        choices=list(LABEL_SCHEMES),
        help="label scheme of the segmentations (default: recognised from the file names)",
    )
    add_channel_order(parser)
    add_task(parser)
    add_allowances(parser)
    parser.add_argument(
        "--num-workers",
        type=int,
        default=0,
        help="number of worker processes that read cases in parallel; 0 and 1 read one case after another "
        "(default: 0)",
    )
    add_quiet(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Print the errors and warnings of a cohort; exit with code 1 if there is an error."""
    args = build_parser().parse_args(argv)
    if args.no_labels and args.label_scheme:
        raise ValueError("--label-scheme has no effect with --no-labels. Leave out one of the two options.")
    task = read_task(args.task) if args.task else BRAIN_TUMOUR
    if args.task and args.label_scheme:
        raise ValueError(
            "--label-scheme has no effect with --task, which defines the labels. Leave out --label-scheme."
        )
    cohort = check_cohort(
        args.in_path or args.root,
        labels=not args.no_labels,
        label_scheme=args.label_scheme,
        channel_order=args.channel_order and parse_channel_order(args.channel_order, task),
        allow_skull=args.allow_skull,
        allow_partial=args.allow_partial,
        num_workers=args.num_workers,
        progress=not (args.json or args.quiet),
        task=task,
    )
    cohort = replace(cohort, cases=tuple(_with_option(checked) for checked in cohort.cases))
    if args.json:
        print(json.dumps(cohort.to_dict(), indent=2))
    elif text := "\n".join(cohort.lines()) if args.quiet else cohort.table():
        print(text)
    if cohort.counts()["errors"]:
        raise SystemExit(1)


def _with_option(checked: CheckedCase) -> CheckedCase:
    """Add `--no-labels` to the error about a missing ground truth. Only this command has the option."""
    message = f"{NO_GROUND_TRUTH} Or add --no-labels if you only segment."
    findings = (
        replace(found, message=message) if found.message == NO_GROUND_TRUTH else found for found in checked.findings
    )
    return replace(checked, findings=tuple(findings))
