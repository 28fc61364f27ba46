"""Label maps that any tool wrote, found by name and scored as a network's own segmentations are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..cases.case_files import EXTENSIONS, CaseFiles
from ..cases.reading import CaseReading, read_case
from ..files import listed
from ..fingerprints import case_fingerprint, code_fingerprint, file_fingerprint, fingerprint
from ..model.findings import BadInputError
from ..model.task import Task
from ..subsets import Mask, parse_subset, subset_name
from .scoring import CaseScores, Rules, recorded, score_regions

# What may follow the name of a case in that of its prediction.
ENDINGS = ("", "-seg", "_seg", "-pred", "_pred", "-prediction", "_prediction")
# Names of a prediction in a folder of its own, which has the name of the case.
OWN_NAMES = ("seg", "prediction", "pred", "label_map")

Predictions = Mapping[Mask, Mapping[str, Path]]
"""Files by subset and by name of the case."""


@dataclass(frozen=True)
class PredictionScorer:
    """Scores label maps of any tool.

    Attributes:
        predictions: Where they are.
        task: What they show.
        scheme: Name of their label scheme.
        rules: How to score.
    """

    predictions: Predictions
    task: Task
    scheme: str
    rules: Rules

    def made_from(self, case: CaseFiles) -> str:
        """Fingerprint of everything that the scores of a case are made from.

        Raises:
            OSError: If a file cannot be read.
        """
        own = {
            subset_name(subset, self.task.modalities): file_fingerprint(files[case.case_id])
            for subset, files in self.predictions.items()
            if case.case_id in files
        }
        truth = case_fingerprint(case, labels=True)
        return fingerprint(own, self.scheme, vars(self.rules), truth, code_fingerprint(__name__))

    def possible(self, case: CaseFiles, subsets: Iterable[Mask]) -> list[Mask]:
        """The subsets for which the case has a prediction."""
        return [subset for subset in subsets if case.case_id in self.predictions.get(subset, {})]

    def score(self, case: CaseFiles, subsets: Iterable[Mask]) -> CaseScores:
        """Score the predictions of a case for these subsets, on the grid of its first sequence.

        Raises:
            BadInputError: If a file cannot be used.
        """
        # One sequence is enough for the grid.
        case = case.only(list(case.images)[:1])
        truth = self._read(case)
        findings = list(truth.findings)
        scores = CaseScores()
        for subset in subsets:
            path = self.predictions[subset][case.case_id]
            found = self._read(replace(case, segmentation=path).in_scheme(self.scheme, self.task))
            findings += [finding for finding in found.findings if finding.where == path]
            scores.rows += score_regions(
                case.case_id,
                subset,
                found.regions,
                truth.regions,
                truth.settled.affine,
                rules=self.rules,
                task=self.task,
            )
            # There are no probabilities that could be counted. The entry says that the subset is scored.
            scores.reliability[subset_name(subset, self.task.modalities)] = None
        scores.findings = recorded(findings)
        return scores

    def _read(self, case: CaseFiles) -> CaseReading:
        rules = self.rules
        return read_case(
            case, labels=True, allow_skull=rules.allow_skull, allow_partial=rules.allow_partial, task=self.task
        ).checked()


def find_predictions(folder: Path, cases: Sequence[CaseFiles], task: Task) -> dict[Mask, dict[str, Path]]:
    """Find the label maps in a folder.

    A folder of predictions from all sequences holds `CASE.nii.gz`, as nnU-Net writes it, `CASE-seg.nii.gz`, or
    `CASE/seg.nii.gz`. Predictions from subsets lie in folders that are named for the sequences, such as `t1c+flair`
    or `all`.

    Args:
        folder: Folder of the predictions.
        cases: Cases that may have one.
        task: What was segmented.

    Raises:
        ValueError: If the folder is missing or holds no prediction of any case, or a case has two.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder. Name the folder of the predictions.")
    names = [case.case_id for case in cases]
    found: dict[Mask, dict[str, Path]] = {}
    for subset, place in _folders_of_subsets(folder, task).items():
        files = {name: path for name in names if (path := _prediction(place, name)) is not None}
        if files:
            found[subset] = files
    if not found:
        raise ValueError(
            f"{folder} holds no prediction of {listed(names)}. Name them CASE.nii.gz, CASE-seg.nii.gz or "
            "CASE/seg.nii.gz. Put those from subsets of the sequences into folders such as t1c+flair."
        )
    return found


def _folders_of_subsets(folder: Path, task: Task) -> dict[Mask, Path]:
    """The folders that are named for a subset; if there is none, the folder itself for all sequences."""
    found: dict[Mask, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            subset = parse_subset(path.name, task.modalities)
        except ValueError:
            continue
        if subset in found:
            raise ValueError(f"{found[subset]} and {path} are named for the same sequences. Remove one of them.")
        found[subset] = path
    return found or {parse_subset("all", task.modalities): folder}


def _prediction(folder: Path, name: str) -> Path | None:
    """The label map of a case.

    Raises:
        BadInputError: If there are two.
    """
    stems = [name + ending for ending in ENDINGS]
    beside = [folder / (stem + extension) for stem in stems for extension in EXTENSIONS]
    own = [folder / name / (stem + extension) for stem in (*stems[1:], *OWN_NAMES) for extension in EXTENSIONS]
    found = [path for path in (*beside, *own) if path.is_file()]
    if len(found) > 1:
        raise BadInputError(found[0], f"{name} has another prediction in {found[1]}. Remove one of them.")
    return found[0] if found else None
