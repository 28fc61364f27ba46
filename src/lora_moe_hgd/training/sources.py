"""Find, check, preprocess and split the cases of a run before the first step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..cases.case_files import CaseFiles, with_labels
from ..cases.layouts import survey
from ..files import counted, listed
from ..fingerprints import fingerprint
from ..model.findings import BadInputError
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..phantoms.style import WIDE, PhantomStyle
from ..splits import Split, draw_fold, draw_split, read_split
from .data.datasets import (
    CaseDataset,
    CaseSource,
    ChosenCases,
    MixedCases,
    PhantomDataset,
)
from .data.streams import StreamedCases
from .options import RunConfig

# First seed of the validation phantoms. The seeds of training phantoms are smaller.
VALIDATION_SEED = 9_000_000


@dataclass(frozen=True)
class RunData:
    """Training and validation cases of a run.

    Attributes:
        train: Training cases, mixed with phantoms if the options request phantoms.
        validation: Validation cases.
        split: Ids of the training and validation cases, without phantoms.
        content: Fingerprint of the content of all cases and phantoms.
    """

    train: CaseSource
    validation: CaseSource
    split: Split
    content: str


def build_data(
    config: RunConfig, processor: LoraMoeHgdImageProcessor, *, show: bool, style: PhantomStyle = WIDE
) -> RunData:
    """Find, preprocess and split the cases of a run. Invalid files raise an error here, before training.

    Args:
        config: Options of the run.
        processor: Image processor that preprocesses the cases.
        show: Whether to print progress, warnings about cases, and the cases that are left out.
        style: Ranges of the random properties of phantoms.

    Raises:
        ValueError: If a case cannot be used, if there are too few cases, or if the split file does not fit the cases.
    """
    data = config.data
    if data.val_phantoms is not None:
        train, validation = (
            _phantoms(config, processor, style, number, seed, show=show)
            for number, seed in ((data.phantoms, config.seed), (data.val_phantoms, VALIDATION_SEED))
        )
        return RunData(train, validation, Split([], []), fingerprint(train.content(), validation.content()))
    cases: CaseDataset | StreamedCases
    if data.root is not None:
        cases, split = _cases_below(Path(data.root), config, processor, show=show)
    else:
        cases = StreamedCases(
            str(data.dataset),
            split=str(data.split),
            label_scheme=data.label_scheme or processor.segmentation_task.name,
            processor=processor,
            cache_dir=Path(data.cache_dir).expanduser(),
            allow_skull=bool(data.allow_skull),
            allow_partial=bool(data.allow_partial),
        )
        cases.prepare_all(num_workers=data.num_workers, progress=show)
        split = _drawn_split(cases.case_ids, config)
    split = replace(split, contents=cases.contents())
    if show:
        used = counted(len(split.train), "case")
        print(f"The run uses {used} for training and {len(split.validation)} for validation.")
    place = {name: index for index, name in enumerate(cases.case_ids)}
    chosen, held_out = (ChosenCases(cases, [place[name] for name in part]) for part in (split.train, split.validation))
    if data.phantom_share is None:
        return RunData(chosen, held_out, split, cases.content())
    phantoms = _phantoms(config, processor, style, data.phantoms, config.seed, show=show)
    mixed = MixedCases([chosen, phantoms], [1 - data.phantom_share, data.phantom_share])
    return RunData(mixed, held_out, split, fingerprint(cases.content(), phantoms.content()))


def _phantoms(
    config: RunConfig,
    processor: LoraMoeHgdImageProcessor,
    style: PhantomStyle,
    number: int,
    seed: int,
    *,
    show: bool,
) -> PhantomDataset:
    data = config.data
    phantoms = PhantomDataset(
        number,
        seed=seed,
        label_maps=Path(data.label_maps) if data.label_maps else None,
        style=style,
        processor=processor,
        cache_dir=Path(data.cache_dir).expanduser(),
    )
    phantoms.prepare_all(num_workers=data.num_workers, progress=show)
    return phantoms


def _cases_below(
    root: Path, config: RunConfig, processor: LoraMoeHgdImageProcessor, *, show: bool
) -> tuple[CaseDataset, Split]:
    """Check the cases of a folder by the rules of `lora-moe-hgd check`, preprocess them and split them.

    Raises:
        ValueError: If a case cannot be used and `data.skip_bad` is not set, or the split does not fit the cases.
    """
    data, task = config.data, processor.segmentation_task
    found, findings = survey(root, channel_order=data.channel_order, task=task)
    cases = [case.in_scheme(data.label_scheme, task) for case in found]
    wanted: Split | None = None
    if data.split_file is not None and (data.skip_bad or not findings):
        wanted = read_split(Path(data.split_file), data.fold)
        cases = _named_cases(cases, wanted, Path(data.split_file), root, show=show)
    if config.objective == "segment":
        cases, unlabelled = with_labels(cases)
        findings += unlabelled
    dataset = CaseDataset(
        cases,
        processor=processor,
        cache_dir=Path(data.cache_dir).expanduser(),
        allow_skull=bool(data.allow_skull),
        allow_partial=bool(data.allow_partial),
    )
    bad = dataset.prepare_all(num_workers=data.num_workers, progress=show)
    findings += bad.values()
    if findings and not data.skip_bad:
        shown = "".join(f"\n  {finding}" for finding in findings)
        raise ValueError(
            f"Some cases in {root} cannot be used (errors: {len(findings)}). Correct the cases, or leave them out "
            f"with `--skip-bad true`. `lora-moe-hgd check {root}` gives a full report.{shown}"
        )
    for finding in findings if show else ():
        print(f"Case left out: {finding}", file=sys.stderr)
    usable = dataset.without(bad)
    if wanted is None:
        return usable, _drawn_split(usable.case_ids, config)
    # Sort the split file's cases in the order of the folder, as a random split does. Then the same split gives the
    # same run.
    train, validation = (
        [name for name in usable.case_ids if name in part] for part in (wanted.train, wanted.validation)
    )
    split = Split(train, validation)
    if not split.train or not split.validation:
        raise ValueError(
            f"No usable case is left for training or for validation in {data.split_file}. Correct the cases that were "
            "left out, or use another split."
        )
    return usable, split


def _named_cases(cases: list[CaseFiles], split: Split, path: Path, root: Path, *, show: bool) -> list[CaseFiles]:
    """Select the cases that a split file uses.

    Raises:
        BadInputError: If a case of the split file is missing.
    """
    wanted = {*split.train, *split.validation}
    there = {case.case_id for case in cases}
    if missing := sorted(wanted - there):
        raise BadInputError(path, f"The split uses cases that {root} does not contain: {listed(missing)}.")
    if show and (others := sorted(there - wanted)):
        print(f"The split file {path} leaves out {counted(len(others), 'case')} of {root}: {listed(others)}.")
    return [case for case in cases if case.case_id in wanted]


def _drawn_split(case_ids: Sequence[str], config: RunConfig) -> Split:
    """Split the cases at random, with the seed of the run.

    Raises:
        ValueError: If there are too few cases.
    """
    data = config.data
    if data.val_on_train and case_ids:
        return Split(list(case_ids), list(case_ids))
    least = data.folds or 2
    if len(case_ids) < least:
        purpose = (
            f"Each of the {data.folds} folds needs at least one case."
            if data.folds
            else "At least one case must be for training, and one for validation."
        )
        raise ValueError(
            f"{data.root or data.dataset} contains only {counted(len(case_ids), 'usable case')}, but training needs "
            f"at least {counted(least, 'case')}. {purpose}"
        )
    if data.folds is not None and data.fold is not None:
        return draw_fold(case_ids, seed=config.seed, folds=data.folds, fold=data.fold)
    assert data.val_fraction is not None  # The options set a default if no other option splits the cases.
    return draw_split(case_ids, seed=config.seed, val_fraction=data.val_fraction)
