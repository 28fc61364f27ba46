"""Segment a case with one function call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases.case_files import given_case
from .cases.layouts import find_case, survey
from .files import counted
from .inference.report import EXAMPLE_ID
from .inference.results import Case, CaseSegmenter, ResultOptions
from .inference.scanned import segment_scan
from .inference.segmentation import Segmentation
from .model.configuration_lora_moe_hgd import MODALITIES
from .model.findings import BadInputError
from .model.task import Task
from .pretrained import DEFAULT_CHECKPOINT
from .scans.raw import is_raw, require_extra
from .sequence_names import sequence_hint


def segment(
    case: str | Path | Mapping[str, Any],
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
    *,
    sequences: Sequence[str] | None = None,
    device: str | None = None,
    base: str | Path | None = None,
    label_scheme: str | None = None,
    mirror: bool = False,
    bf16: bool = False,
    allow_skull: bool = False,
    allow_partial: bool = False,
    deface: bool = False,
) -> Segmentation:
    """Segment the tumour of one case, like `lora-moe-hgd segment`.

    Args:
        case: Folder of a case or of a DICOM study, or a dict from `t1`, `t1c`, `t2`, `flair` to a path, nibabel image,
            array or tensor. Arrays and tensors are `(D, H, W)` in RAS order with voxels of 1 mm.
        checkpoint: Name of a shipped checkpoint, or folder or Hub id of a network or an adapter.
        sequences: Use only these sequences. `None` means all available sequences.
        device: Device such as `cpu` or `cuda:0`. `None` means a GPU if there is one.
        base: Folder or Hub id of an adapter's base network. `None` means the base that `adapter_config.json` names.
        label_scheme: Scheme of the label map. `None`: that of the checkpoint; `input`: that of the case's file names.
        mirror: Average the logits of the case and of its left-right mirror image, which takes twice as long.
        bf16: Compute the network in bfloat16, which is faster on most GPUs and on recent processors.
        allow_skull: Accept images with the skull, which are refused by default.
        allow_partial: Accept volumes that show only a part of a brain, which are refused by default.
        deface: For a DICOM study, remove the face from `overlay.png` and `report.html`, which `save` writes.

    Returns:
        Object with the nibabel image `label_map`, arrays `regions` (masks) and `probabilities`, both `(R, D, H, W)`
        for R regions, and `volumes_ml`, `confidence` and `warnings`. `save(folder)` writes the files of the command.

    Raises:
        ValueError: If the case, the checkpoint or an option cannot be used. The error message names cause and remedy.
    """
    if isinstance(sequences, str):
        names = re.findall(r"[^\s,+;]+", sequences.lower())
        remedy = (
            f"Write sequences={names}."
            if names and {*names} <= {*MODALITIES}
            else "To use all sequences, leave out `sequences`."
        )
        raise ValueError(f"`sequences` must be a list such as ['t1c', 'flair']. {remedy} Got: {sequences!r}.")
    options = ResultOptions(
        sequences=None if sequences is None else tuple(sequences),
        label_scheme=label_scheme,
        mirror=mirror,
        bf16=bf16,
        allow_skull=allow_skull,
        allow_partial=allow_partial,
    )
    segmenter = CaseSegmenter(checkpoint, options, device=device, base=base)
    try:
        found = _found(case, segmenter.task)
    except BadInputError as error:
        if isinstance(case, Mapping) or not is_raw(Path(case)):
            # The advice of `error` is wrong for a folder of cases, so do not show `error`.
            if not isinstance(case, Mapping) and (cohort := _cohort_error(Path(case), segmenter.task)):
                raise cohort from None
            if error.finding.names_unclear:
                files = ", ".join(f"'{name}': FILE" for name in segmenter.task.modalities)
                remedy = f"Or give `segment` a dict with the path of each sequence: {{{files}}}."
                raise error.with_remedy(remedy) from error
            raise
        require_extra()
        # Import it only here, because it needs the extra `scans`.
        from .scans.prepare import ScanOptions

        return segment_scan(segmenter, Path(case), ScanOptions(sequences=options.sequences, deface=deface))
    if deface:
        raise ValueError("`deface` has an effect on DICOM files only. Leave out `deface`.")
    return segmenter.segment(found)


def example_case() -> Path:
    """Return the folder of a real case that ships with the package: four sequences and the experts' label map."""
    # example/README.md names the source. The case was used neither for training nor for design choices.
    return Path(__file__).parent / "example" / EXAMPLE_ID


def _cohort_error(folder: Path, task: Task) -> BadInputError | None:
    """Return an error that says how to segment all cases in a folder; `None` if the folder contains no case."""
    try:
        cases, _ = survey(folder, task=task)
    except BadInputError:
        return None
    if not cases:
        return None
    return BadInputError(
        folder,
        f"This folder contains {counted(len(cases), 'case')}, but `segment` takes one case. Give the path of one "
        f"case, or segment all cases with `lora-moe-hgd segment --in-path {folder} --out-path OUT`.",
    )


def _found(case: str | Path | Mapping[str, Any], task: Task) -> Case:
    """Return the files of the case. If `case` is a dict with an image in memory, return its images instead.

    Raises:
        ValueError: If no sequence is found, or a sequence name is unknown.
    """
    if not isinstance(case, Mapping):
        return find_case(Path(case), task=task)
    known = ", ".join(task.modalities)
    if unknown := sorted(set(map(str, case)) - set(task.modalities)):
        hint = sequence_hint(unknown, task.modalities)
        raise ValueError(f"Unknown sequence {', '.join(unknown)}.{hint} The names are {known}.")
    present = {name: source for name, source in case.items() if source is not None}
    if not present:
        raise ValueError(f"No sequence was given. Give at least one of {known}.")
    if all(isinstance(source, str | Path) for source in present.values()):
        return given_case({name: Path(source) for name, source in present.items()}, task)
    return present
