"""Scores of a checkpoint, or of label maps, over cases and subsets of the sequences.

`cases/<name>.json` stores the scores of a case. An evaluation that was stopped can therefore be continued, and an
evaluation of more cases or subsets computes only the new scores. The module `report` makes tables from the scores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from accelerate.utils import gather_object
from tqdm import tqdm

from ..cases.case_files import CaseFiles
from ..cases.reading import read_case
from ..files import MAX_LONG_JSON_BYTES, printable, read_json, reason_of, replacing
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..model.task import Task
from ..processes import started_processes
from ..subsets import Mask, every_subset, subset_name
from .scoring import CaseScores, NetworkScorer, Rules


@dataclass(frozen=True)
class Evaluation:
    """Scores of many cases.

    Attributes:
        scores: Scores of each case by case id, in the order of the cases.
        failed: Reason why a case could not be scored, by case id.
    """

    scores: dict[str, CaseScores]
    failed: dict[str, str]


class Scorer(Protocol):
    """Interface of classes that score single cases: `scoring.NetworkScorer` and `predictions.PredictionScorer`."""

    @property
    def task(self) -> Task:
        """Sequences and regions."""

    def made_from(self, case: CaseFiles) -> str:
        """Fingerprint of everything that determines the scores of a case."""

    def possible(self, case: CaseFiles, subsets: Iterable[Mask]) -> list[Mask]:
        """Return the subsets for which the case can be scored."""

    def score(self, case: CaseFiles, subsets: Iterable[Mask]) -> CaseScores:
        """Score the case for these subsets of the sequences."""


def evaluate(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    cases: Sequence[CaseFiles],
    *,
    out: Path,
    subsets: Iterable[Mask] | None = None,
    rules: Rules | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score a network on each case, for each subset whose sequences the case has; see `score_cases`."""
    scorer = NetworkScorer(network, processor, rules or Rules())
    return score_cases(scorer, cases, out=out, subsets=subsets, progress=progress)


def score_cases(
    scorer: Scorer,
    cases: Sequence[CaseFiles],
    *,
    out: Path,
    subsets: Iterable[Mask] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score each case for those of the `subsets` that `scorer.possible` returns for the case.

    Scores in `out/cases` that were made from the same weights, files, rules and code are reused. An
    exception in a case is reported, and the other cases are still scored. Under `accelerate launch`, each process
    scores a part of the cases, and each process returns the scores of all cases.

    Args:
        scorer: Scorer of a network or of predictions.
        cases: Labelled cases with distinct ids.
        out: Output folder. The scores are stored in its subfolder `cases`.
        subsets: Subsets of the sequences. `None` means all subsets.
        progress: Show a progress bar.
    """
    names = scorer.task.modalities
    subsets = list(dict.fromkeys(subsets or every_subset(names)))
    state = started_processes()
    (out / "cases").mkdir(parents=True, exist_ok=True)
    made_from: dict[str, str] = {}
    failed: dict[str, str] = {}
    own = cases[state.process_index :: state.num_processes]
    for case in tqdm(own, desc="cases", unit="case", disable=not (progress and state.is_main_process)):
        path = _path_of(case, out)
        try:
            made_from[case.case_id] = _made_from(scorer, case)
            known = _known(path, made_from[case.case_id])
            possible = scorer.possible(case, subsets)
            new = [subset for subset in possible if subset_name(subset, names) not in known.reliability]
            if new:
                known.add(scorer.score(case, new))
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
    asked = [subset_name(subset, names) for subset in subsets]
    return Evaluation({name: found.only(asked) for name, found in scores.items()}, failed)


def _path_of(case: CaseFiles, out: Path) -> Path:
    return out / "cases" / f"{case.case_id}.json"


def _made_from(scorer: Scorer, case: CaseFiles) -> str:
    try:
        return scorer.made_from(case)
    except OSError:
        # Raise the reader's error instead, because it says what is wrong with the file and what to do.
        read_case(case, labels=True).checked()
        raise


def _known(path: Path, made_from: str) -> CaseScores:
    """Load the stored scores of a case.

    Return empty scores if none are stored, or if weights, files, rules or code have changed since.
    """
    try:
        content = read_json(path, max_bytes=MAX_LONG_JSON_BYTES)
        if content["made_from"] == made_from:
            return CaseScores(content["rows"], content["reliability"], content["findings"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        # The file does not exist, or another version of the package wrote it.
        pass
    return CaseScores()
