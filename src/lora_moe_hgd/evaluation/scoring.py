"""Scores of one case for subsets of its sequences, on the case's own voxel grid."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper

from ..cases.case_files import CaseFiles
from ..cases.reading import read_case
from ..files import printable
from ..fingerprints import case_fingerprint, code_fingerprint, fingerprint
from ..inference.segment import find_regions
from ..model.brain import brain_of
from ..model.case_rules import SettledCase
from ..model.findings import Finding
from ..model.geometry import voxel_spacing_mm
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..model.task import Task
from ..subsets import Mask, sequences_of, subset_name
from .calibration import reliability_counts
from .lesions import LESION_RULES, lesion_scores
from .metrics import CONVENTIONS, region_scores


@dataclass(frozen=True)
class Rules:
    """Rules for reading, segmenting and scoring cases.

    Attributes:
        mirror: Average the logits of the case and of its left-right mirror image.
        bf16: Compute the network in bfloat16.
        convention: Key of `metrics.CONVENTIONS`, which defines the scores of empty regions.
        lesions: Key of `lesions.LESION_RULES`, which defines the lesion-wise scores.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.
    """

    mirror: bool = False
    bf16: bool = False
    convention: str = "brats"
    lesions: str = "gli2023"
    allow_skull: bool = False
    allow_partial: bool = False


@dataclass
class CaseScores:
    """Scores of a case.

    Attributes:
        rows: One row for each subset and region, with case id, metrics and expected Dice.
        reliability: Counts of `calibration.reliability_counts` by subset, `(R, 3, bins)` as nested lists. A
            subset has `None` if its prediction is a label map, which has no probabilities.
        findings: Warnings about the case, as dicts of `level`, `where` and `message`.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    reliability: dict[str, Any] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)

    def add(self, other: CaseScores) -> None:
        """Add the scores of the same case for other subsets of its sequences."""
        self.rows += other.rows
        self.reliability |= other.reliability
        self.findings = other.findings

    def only(self, names: Sequence[str]) -> CaseScores:
        """Return only the scores of the subsets with these names, in the order of `names`."""
        rows = [row for name in names for row in self.rows if row["subset"] == name]
        reliability = {name: self.reliability[name] for name in names if name in self.reliability}
        return CaseScores(rows, reliability, self.findings)


def score_case(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    case: CaseFiles,
    subsets: Iterable[Mask],
    rules: Rules,
) -> CaseScores:
    """Segment and score a case for each of the subsets whose sequences the case has.

    Raises:
        BadInputError: If the case has an error of the kind that `lora-moe-hgd check` reports.
    """
    task = processor.segmentation_task
    reading = read_case(
        case,
        labels=True,
        not_finite="error",
        allow_skull=rules.allow_skull,
        allow_partial=rules.allow_partial,
        task=task,
    ).checked()
    settled, truth = reading.settled, reading.regions
    scores = CaseScores(findings=recorded(reading.findings))
    for inputs, brain, subset in prepared(processor, settled, subsets):
        regions, probabilities = find_regions(network, processor, inputs, mirror=rules.mirror, bf16=rules.bf16)
        (geometry,) = inputs["geometry"]
        confidence = processor.confidence(probabilities, regions, voxel_ml=geometry.voxel_ml, present=subset)
        scores.rows += score_regions(
            case.case_id, subset, regions, truth, settled.affine, rules=rules, task=task, confidence=confidence
        )
        name = subset_name(subset, processor.modalities)
        scores.reliability[name] = reliability_counts(probabilities, truth, brain).tolist()
    return scores


def score_regions(
    case_id: str,
    subset: Mask,
    regions: np.ndarray,
    truth: np.ndarray,
    affine: np.ndarray,
    *,
    rules: Rules,
    task: Task,
    confidence: Mapping[str, float | None] | None = None,
) -> list[dict[str, Any]]:
    """Return a row of scores for each region.

    Args:
        case_id: Id of the case.
        subset: Sequences that the prediction used.
        regions: Predicted regions, `(R, D, H, W)` bool.
        truth: True regions, `(R, D, H, W)` bool.
        affine: Affine of the predicted and the true regions, `(4, 4)`.
        rules: Settings of the scoring, such as the convention for empty regions.
        task: Task that defines the sequences and regions.
        confidence: Expected Dice of each region; `None` for a label map.
    """
    convention, lesion_rules = CONVENTIONS[rules.convention], LESION_RULES[rules.lesions]
    spacing_mm = voxel_spacing_mm(affine)
    rows = []
    for region, *masks in zip(task.regions, regions, truth, strict=True):
        values = region_scores(*masks, spacing_mm=spacing_mm, region=region, convention=convention)
        values |= lesion_scores(*masks, spacing_mm=spacing_mm, region=region, rules=lesion_rules)
        about = {
            "case_id": case_id,
            "subset": subset_name(subset, task.modalities),
            "sequences": sum(subset),
            "region": region,
        }
        volume_ml = float(masks[1].sum()) * math.prod(spacing_mm) / 1000
        expected = confidence and confidence[region]
        rows.append(
            {
                **about,
                **values,
                "true_volume_ml": volume_ml,
                "expected_dice": math.nan if expected is None else expected,
            }
        )
    return rows


def recorded(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Convert findings to dictionaries for JSON."""
    return [
        {"level": found.level, "where": printable(found.where), "message": printable(found.message)}
        for found in findings
    ]


def prepared(
    processor: LoraMoeHgdImageProcessor, settled: SettledCase, subsets: Iterable[Mask]
) -> Iterator[tuple[dict[str, Any], np.ndarray, Mask]]:
    """Yield network input, brain mask and subset. Sequences outside the subset have no influence on the input.

    Cropping and normalisation of a sequence depend on other sequences only through the brain mask, which contains the
    voxels where any sequence is not zero. Subsets with the same brain mask are therefore preprocessed together.
    """
    settled = replace(settled, labels=None)
    groups: dict[bytes, list[Mask]] = {}
    brains: dict[bytes, np.ndarray] = {}
    for subset in subsets:
        names = sequences_of(subset, processor.modalities)
        if set(names) <= set(settled.arrays):
            brain = brain_of(settled.arrays[name] for name in names)
            key = hashlib.sha256(np.packbits(brain).tobytes()).digest()
            groups.setdefault(key, []).append(subset)
            brains[key] = brain
    for key, members in groups.items():
        wanted = {name for subset in members for name in sequences_of(subset, processor.modalities)}
        inputs = processor(settled.only(wanted))
        for subset in members:
            yield {**inputs, "modality_mask": torch.tensor([subset])}, brains[key], subset


@dataclass(frozen=True)
class NetworkScorer:
    """Scorer of a network.

    Attributes:
        network: Network to score.
        processor: Image processor of the network.
        rules: Rules for segmentation and scoring.
    """

    network: LoraMoeHgdForSegmentation
    processor: LoraMoeHgdImageProcessor
    rules: Rules

    @property
    def task(self) -> Task:
        """Task of the network: the sequences that it reads and the regions that it finds."""
        return self.processor.segmentation_task

    @cached_property
    def _fingerprint(self) -> str:
        return scorer_fingerprint(self.network, self.processor, self.rules)

    def made_from(self, case: CaseFiles) -> str:
        """Fingerprint of everything that determines the scores of a case.

        Raises:
            OSError: If a file cannot be read.
        """
        return fingerprint(self._fingerprint, case_fingerprint(case, labels=True))

    def possible(self, case: CaseFiles, subsets: Iterable[Mask]) -> list[Mask]:
        """Return the subsets whose sequences the case has."""
        names = self.task.modalities
        return [subset for subset in subsets if set(sequences_of(subset, names)) <= set(case.images)]

    def score(self, case: CaseFiles, subsets: Iterable[Mask]) -> CaseScores:
        """Segment and score a case for these subsets; see `score_case`."""
        return score_case(self.network, self.processor, case, subsets, self.rules)


def scorer_fingerprint(network: LoraMoeHgdForSegmentation, processor: LoraMoeHgdImageProcessor, rules: Rules) -> str:
    """Fingerprint of everything that determines scores, except the case: weights, settings, rules and code."""
    weights = {
        name: (str(value.dtype), hashlib.sha256(_bytes_of(value)).hexdigest())
        for name, value in network.state_dict().items()
    }
    # The state dict contains neither the names of the active adapters nor their strengths.
    adapters = [
        (module.active_adapters, module.disable_adapters)
        for module in network.modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    ]
    strengths = [module.scaling for module in network.modules() if isinstance(module, LoraLayer)]
    # The state dict also lacks settings such as the number of experts per token.
    settings = network.config.to_json_string(), processor.to_json_string()
    return fingerprint(weights, adapters, strengths, settings, vars(rules), code_fingerprint(__name__))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
