"""Segment raw images from the scanner, after removing the skull and resampling all sequences to one grid."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..cases.case_files import PREPARED, refuse_other_case
from ..cases.layouts import find_case
from ..model.findings import Finding, raise_errors
from .results import CaseSegmenter
from .segmentation import Segmentation

if TYPE_CHECKING:
    from ..scans.prepare import ScanOptions
    from ..scans.steps import Steps


def segment_scan(
    segmenter: CaseSegmenter,
    path: Path,
    options: ScanOptions,
    *,
    keep: Path | None = None,
    steps: Steps | None = None,
    check_name: Callable[[str], object] = lambda case_id: None,
    progress: bool = False,
    say: Callable[[str], object] = lambda line: None,
    warn: Callable[[Finding], object] | None = None,
) -> Segmentation:
    """Prepare and segment a study of raw images. The extra `scans` must be installed.

    Args:
        segmenter: Segmenter with the checkpoint and the options of the segmentation.
        path: Folder, zip file or DICOMDIR with DICOM files.
        options: Options of the preparation.
        keep: Folder in which to keep the prepared case. `None` means that the prepared case is deleted.
        steps: Store of the finished steps of the preparation. A stopped run resumes after the last stored step. `None`
            means that no steps are stored.
        check_name: Function that is called with the name of the case before the first long step. The function may
            raise an error to stop the run.
        progress: Show a progress bar.
        say: Function that is called with the table of series and with a line for each step.
        warn: Function that is called with each `Finding` about the images or the result.

    Raises:
        ValueError: If the images cannot be used, or if the checkpoint is not for brain tumours.
    """
    # Import it only here, because it needs the extra `scans`.
    from ..scans.prepare import prepare

    def check(case_id: str) -> None:
        check_name(case_id)
        if keep is not None:
            refuse_other_case(keep / PREPARED, case_id)

    if not segmenter.task.is_brain_tumour:
        raise ValueError(
            f"{path} contains raw images from the scanner. The package can prepare only T1, T1c, T2 and FLAIR, but "
            f"the checkpoint is for the task {segmenter.task.name}. Remove the skull and resample all sequences to "
            "one grid yourself."
        )
    with tempfile.TemporaryDirectory(prefix="lora-moe-hgd-") as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        prepared = prepare(path, options, work, steps=steps, check_name=check, say=say)
        for finding in prepared.findings:
            if warn is not None:
                warn(finding)
        raise_errors(prepared.findings, strict=segmenter.options.strict)
        folder = Path(scratch) / "case" if keep is None else keep
        prepared.save(folder)
        case = replace(find_case(folder), case_id=prepared.case_id)
        found = segmenter.segment(case, progress=progress, warn=warn)
    warnings = [*map(str, prepared.findings), *found.warnings]
    report = {**found.report, "warnings": warnings, "prepared": prepared.report}
    return replace(found, warnings=warnings, report=report, case=None, scan=prepared)
