"""Scores of label maps from any tool, which are scored like the segmentations of a network.

The name of a file contains the id of its case; see `find_predictions`.
"""

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

# Possible endings of the file name of a prediction, after the name of the case.
ENDINGS = ("", "-seg", "_seg", "-pred", "_pred", "-prediction", "_prediction")
# Possible file names of a prediction in a separate folder with the name of the case.
OWN_NAMES = ("seg", "prediction", "pred", "label_map")

Predictions = Mapping[Mask, Mapping[str, Path]]
"""Files of the predictions, by subset and by case id."""


@dataclass(frozen=True)
class PredictionScorer:
    """Scores label maps of any tool.

    Attributes:
        predictions: Files of the predictions.
        task: Task that defines the sequences and regions.
        scheme: Name of the label scheme of the predictions.
        rules: Settings of the scoring, such as the convention for empty regions.
    """

    predictions: Predictions
    task: Task
    scheme: str
    rules: Rules

    def made_from(self, case: CaseFiles) -> str:
        """Fingerprint of everything that determines the scores of a case.

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
        """Return the subsets for which the case has a prediction."""
        return [subset for subset in subsets if case.case_id in self.predictions.get(subset, {})]

    def score(self, case: CaseFiles, subsets: Iterable[Mask]) -> CaseScores:
        """Score the predictions of a case for these subsets, on the voxel grid of the case's first sequence.

        Raises:
            BadInputError: If a file cannot be used.
        """
        # One sequence is enough to define the grid.
        case = case.only(list(case.images)[:1])
        truth = self._read(case)
        findings = list(truth.findings)
        scores = CaseScores()
        for subset in subsets:
            path = self.predictions[subset][case.case_id]
            try:
                found = self._read(replace(case, segmentation=path).in_scheme(self.scheme, self.task))
            except BadInputError as error:
                # The message names the option for the ground truth, but this label map is a prediction.
                message = error.finding.message.replace("--label-scheme", "--prediction-scheme")
                raise BadInputError(error.finding.where, message) from error
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
            # A label map has no probabilities to count. The entry `None` marks the subset as scored.
            scores.reliability[subset_name(subset, self.task.modalities)] = None
        scores.findings = recorded(findings)
        return scores

    def _read(self, case: CaseFiles) -> CaseReading:
        rules = self.rules
        return read_case(
            case, labels=True, allow_skull=rules.allow_skull, allow_partial=rules.allow_partial, task=self.task
        ).checked()


def find_predictions(folder: Path, cases: Sequence[CaseFiles], task: Task) -> dict[Mask, dict[str, Path]]:
    """Find the predicted label maps in a folder.

    Predictions from all sequences are named `CASE.nii.gz` (as nnU-Net writes them), `CASE-seg.nii.gz` or
    `CASE/seg.nii.gz`. Predictions from a subset are in a folder with the name of the subset, such as `t1c+flair` or
    `all`.

    Args:
        folder: Folder of the predictions.
        cases: Cases whose predictions are wanted.
        task: Task that defines the sequences and regions.

    Raises:
        ValueError: If the folder is missing, if it contains no prediction of any case, or if a case has two
            predictions from the same sequences.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give the folder of the predictions.")
    names = [case.case_id for case in cases]
    found: dict[Mask, dict[str, Path]] = {}
    places = folders_of_subsets(folder, task) or {parse_subset("all", task.modalities): folder}
    for subset, place in places.items():
        files = {name: path for name in names if (path := _prediction(place, name)) is not None}
        if files:
            found[subset] = files
    if not found:
        raise ValueError(
            f"{folder} contains no prediction of {listed(names)}. Name the files CASE.nii.gz, CASE-seg.nii.gz or "
            "CASE/seg.nii.gz. Put predictions from subsets of the sequences into folders such as t1c+flair."
        )
    return found


def folders_of_subsets(folder: Path, task: Task) -> dict[Mask, Path]:
    """Find the folders in `folder` that have the name of a subset.

    Raises:
        ValueError: If two folders are named after the same subset.
    """
    found: dict[Mask, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            subset = parse_subset(path.name, task.modalities)
        except ValueError:
            continue
        if subset in found:
            raise ValueError(
                f"The folders {found[subset]} and {path} are named after the same sequences. Remove one of them."
            )
        found[subset] = path
    return found


def _prediction(folder: Path, name: str) -> Path | None:
    """Find the predicted label map of a case.

    Raises:
        BadInputError: If the case has two predictions.
    """
    stems = [name + ending for ending in ENDINGS]
    beside = [folder / (stem + extension) for stem in stems for extension in EXTENSIONS]
    own = [folder / name / (stem + extension) for stem in (*stems[1:], *OWN_NAMES) for extension in EXTENSIONS]
    found = [path for path in (*beside, *own) if path.is_file()]
    if len(found) > 1:
        raise BadInputError(found[0], f"This file and {found[1]} are both predictions of {name}. Remove one of them.")
    return found[0] if found else None
