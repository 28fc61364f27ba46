"""Scores of a checkpoint over cases and subsets of the sequences, on each case's own grid.

`cases/<name>.json` keeps what is known of a case, so that an evaluation that was stopped goes on, and one of more
cases or subsets computes what is new; the tables are made of these files, see `report`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from tqdm import tqdm

from ..data.case_files import CaseFiles
from ..data.cases import read_case
from ..data.channels import parse_channel_order
from ..data.layouts import find_cases
from ..files import replacing
from ..inference.segment import segment_inputs
from ..inference.uncertainty import expected_dice
from ..loading import checkpoint_digest, checkpoint_folder, load_checkpoint
from ..model.case_rules import SettledCase
from ..model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from ..model.geometry import voxel_spacing_mm
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import LABEL_SCHEMES
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..processes import started_processes
from .calibration import reliability_counts
from .compare import write_comparison
from .lesions import LESION_RULES, lesion_scores
from .metrics import CONVENTIONS, region_scores
from .report import write_report
from .subsets import EVERY_SUBSET, Mask, parse_subset, subset_name


@dataclass(frozen=True)
class Rules:
    """How cases are segmented and scored.

    Attributes:
        mirror: Take the mean over the case and its mirror image.
        convention: Name in `metrics.CONVENTIONS`: what an empty region scores.
        lesions: Name in `lesions.LESION_RULES`: what counts as a lesion.
    """

    mirror: bool = False
    convention: str = "brats"
    lesions: str = "gli2023"


@dataclass
class CaseScores:
    """What is known of a case.

    Attributes:
        rows: One a subset and region: names, metrics, and the Dice that the network expected.
        reliability: By subset, `(R, 3, bins)` as nested lists, see `calibration.reliability_counts`.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    reliability: dict[str, Any] = field(default_factory=dict)

    def add(self, other: CaseScores) -> None:
        """Take in other subsets of the same case."""
        self.rows += other.rows
        self.reliability |= other.reliability

    def only(self, subsets: Iterable[Mask]) -> CaseScores:
        """Of these subsets alone, in their order."""
        names = [subset_name(subset) for subset in subsets]
        rows = [row for name in names for row in self.rows if row["subset"] == name]
        return CaseScores(rows, {name: self.reliability[name] for name in names if name in self.reliability})


def score_case(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    case: CaseFiles,
    subsets: Iterable[Mask],
    rules: Rules,
) -> CaseScores:
    """Segment and score a case under each subset of which it has all sequences.

    Raises:
        BadInputError: If the case has no segmentation or a file is damaged.
    """
    settled = read_case(case, labels=True).checked().settled
    truth = settled.regions
    spacing_mm = voxel_spacing_mm(settled.affine)
    convention, lesion_rules = CONVENTIONS[rules.convention], LESION_RULES[rules.lesions]
    scores = CaseScores()
    for inputs, brain, subset in prepared(processor, settled, subsets):
        found = segment_inputs(network, processor, inputs, mirror=rules.mirror)
        name = subset_name(subset)
        promised = expected_dice(found.probabilities, found.regions)
        for index, region in enumerate(REGIONS):
            masks = found.regions[index], truth[index]
            values = region_scores(*masks, spacing_mm=spacing_mm, region=region, convention=convention)
            values |= lesion_scores(*masks, spacing_mm=spacing_mm, region=region, rules=lesion_rules)
            about = {"case_id": case.case_id, "subset": name, "sequences": sum(subset), "region": region}
            volume_ml = float(truth[index].sum()) * found.voxel_ml
            scores.rows.append({**about, **values, "true_volume_ml": volume_ml, "expected_dice": promised[index]})
        scores.reliability[name] = reliability_counts(found.probabilities, truth, brain).tolist()
    return scores


def prepared(
    processor: LoraMoeHgdImageProcessor, settled: SettledCase, subsets: Iterable[Mask]
) -> Iterator[tuple[dict[str, Any], np.ndarray, Mask]]:
    """Network input, brain and subset, each input the same as if the other sequences had never been acquired.

    How a sequence is cropped and normalised depends on the others through the brain alone, which is where any of
    them differs from zero. Subsets with the same brain are therefore preprocessed together.
    """
    settled = replace(settled, labels=None)
    nonzero = {name: array != 0 for name, array in settled.arrays.items()}
    groups: dict[bytes, list[Mask]] = {}
    brains: dict[bytes, np.ndarray] = {}
    for subset in subsets:
        names = _names(subset)
        if set(names) <= set(settled.arrays):
            brain = np.logical_or.reduce([nonzero[name] for name in names])
            key = hashlib.sha256(np.packbits(brain).tobytes()).digest()
            groups.setdefault(key, []).append(subset)
            brains[key] = brain
    for key, members in groups.items():
        wanted = {name for subset in members for name in _names(subset)}
        inputs = processor(settled.only(wanted))
        for subset in members:
            yield {**inputs, "modality_mask": torch.tensor([subset])}, brains[key], subset


def _names(subset: Mask) -> list[str]:
    return [name for name, used in zip(MODALITIES, subset, strict=True) if used]


def evaluate(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    cases: Sequence[CaseFiles],
    *,
    out: Path,
    subsets: Iterable[Mask] = EVERY_SUBSET,
    rules: Rules | None = None,
) -> dict[str, CaseScores]:
    """Scores by name of the case; what `out/cases` holds of the same weights, files and rules is not computed again.

    Under `accelerate launch` the processes share the cases, and each returns the scores of all.

    Raises:
        BadInputError: If a case has no segmentation or a file is damaged.
    """
    subsets, rules = list(subsets), rules or Rules()
    state = started_processes()
    weights = _fingerprint_of(network, processor)
    (out / "cases").mkdir(parents=True, exist_ok=True)
    own = cases[state.process_index :: state.num_processes]
    for case in tqdm(own, desc="cases", unit="case", disable=not state.is_main_process):
        path, fingerprint = out / "cases" / f"{case.case_id}.json", _fingerprint(weights, case, rules)
        known = _read(path, fingerprint)
        possible = [subset for subset in subsets if set(_names(subset)) <= set(case.images)]
        new = [subset for subset in possible if subset_name(subset) not in known.reliability]
        if new:
            known.add(score_case(network, processor, case, new, rules))
            content = {"fingerprint": fingerprint, "rows": known.rows, "reliability": known.reliability}
            with replacing(path) as scratch:
                scratch.write_text(json.dumps(content))
    state.wait_for_everyone()
    return {
        case.case_id: _read(out / "cases" / f"{case.case_id}.json", _fingerprint(weights, case, rules)).only(subsets)
        for case in cases
    }


def _read(path: Path, fingerprint: str) -> CaseScores:
    """What is known of a case, nothing if it was made from anything else."""
    if not path.is_file():
        return CaseScores()
    content = json.loads(path.read_text())
    if content["fingerprint"] != fingerprint:
        return CaseScores()
    return CaseScores(content["rows"], content["reliability"])


def _fingerprint_of(network: torch.nn.Module, processor: LoraMoeHgdImageProcessor) -> str:
    digest = hashlib.sha256(processor.to_json_string().encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    # Which of several adapters is at work is not in the weights.
    for module in network.modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            digest.update(f"{module.active_adapters} {module.disable_adapters}".encode())
    return digest.hexdigest()


def _fingerprint(weights: str, case: CaseFiles, rules: Rules) -> str:
    paths = [*case.images.values(), case.labelled()]
    files = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths]
    text = "\n".join([weights, str(rules), *case.label_schemes, *case.images, *files])
    return hashlib.sha256(text.encode()).hexdigest()


def main(argv: Sequence[str]) -> None:
    """Score a checkpoint, or compare earlier scores; the tables and pictures of `report` are written."""
    parser = argparse.ArgumentParser(
        description="Score a checkpoint over subsets of the sequences, or compare earlier evaluations."
    )
    parser.add_argument("--checkpoint", default="tiny", help="shipped name, folder or Hub id")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="folder of labelled cases")
    what.add_argument(
        "--compare", type=Path, nargs="+", metavar="OUT", help="folders of evaluations; others against the first"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument(
        "--label-scheme",
        choices=list(LABEL_SCHEMES),
        help="scheme of the segmentations; that of the file names if left out",
    )
    parser.add_argument(
        "--channel-order", metavar="NAMES", help="sequences of numbered channels, such as flair,t1,t1c,t2"
    )
    parser.add_argument("--cases", help="only these, by name, separated by commas")
    parser.add_argument("--subsets", help="only these, such as all,t1c+flair; every subset when left out")
    parser.add_argument(
        "--mirror", action="store_true", help="mean over each case and its mirror image, in twice the time"
    )
    parser.add_argument("--convention", choices=list(CONVENTIONS), default="brats", help="what empty regions score")
    parser.add_argument("--lesion-rules", choices=list(LESION_RULES), default="gli2023", help="what a lesion is")
    args = parser.parse_args(argv)
    if args.compare:
        print(write_comparison(args.compare, args.out))
        return
    subsets = [parse_subset(name) for name in args.subsets.split(",")] if args.subsets else list(EVERY_SUBSET)
    order = args.channel_order and parse_channel_order(args.channel_order)
    found = [case.in_scheme(args.label_scheme) for case in find_cases(args.data, channel_order=order)]
    cases = _chosen(found, args.cases, args.data)
    if not any(set(_names(subset)) <= set(case.images) for case in cases for subset in subsets):
        raise ValueError(f"No case in {args.data} has all sequences of any subset of --subsets {args.subsets}.")
    for subset in subsets:
        able = sum(set(_names(subset)) <= set(case.images) for case in cases)
        if able < len(cases):
            print(f"warning: {able} of {len(cases)} cases have {subset_name(subset)}", file=sys.stderr)
    state = started_processes()
    folder = checkpoint_folder(args.checkpoint)
    network, processor = load_checkpoint(folder, device=str(state.device))
    rules = Rules(args.mirror, args.convention, args.lesion_rules)
    scores = evaluate(network, processor, cases, out=args.out, subsets=subsets, rules=rules)
    if state.is_main_process:
        rows = pd.DataFrame([row for found in scores.values() for row in found.rows])
        counts = {
            (name, subset): value for name, found in scores.items() for subset, value in found.reliability.items()
        }
        about = {
            "checkpoint": checkpoint_digest(folder),
            "data": args.data.resolve().name,
            "mirror": args.mirror,
            "convention": args.convention,
            "lesion_rules": args.lesion_rules,
            "version": version("lora-moe-hgd"),
        }
        print(write_report(rows, counts, args.out, about=about))


def _chosen(cases: list[CaseFiles], names: str | None, where: Path) -> list[CaseFiles]:
    """The cases to score, all of them labelled.

    Raises:
        ValueError: If a name is unknown or a case has no segmentation.
    """
    if names:
        wanted = names.split(",")
        unknown = sorted(set(wanted) - {case.case_id for case in cases})
        if unknown:
            raise ValueError(f"No case(s) {', '.join(unknown)} in {where}.")
        cases = [case for case in cases if case.case_id in wanted]
    for case in cases:
        case.labelled()
    return cases
