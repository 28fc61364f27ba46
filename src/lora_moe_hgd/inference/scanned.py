"""Raw images to their segmentation: prepare the case, segment it, keep the way back to the scanner's grids."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

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
    progress: bool = False,
    say: Callable[[str], object] = lambda line: None,
    warn: Callable[[Finding], object] | None = None,
) -> Segmentation:
    """Segment a study of raw images. The extra `scans` must be installed.

    Args:
        segmenter: Segments the prepared case.
        path: Folder, zip file or DICOMDIR with DICOM files.
        options: How the images are prepared.
        keep: Folder for the prepared case, which is removed otherwise.
        steps: Finished steps of a run that was stopped; `None` stores none.
        progress: Show a progress bar.
        say: Called with the table of series and a line for each step.
        warn: Called with each finding.

    Raises:
        ValueError: If the images cannot be used.
    """
    # Only now, because it needs the extra.
    from ..scans.prepare import prepare

    if not segmenter.task.is_brain_tumour:
        raise ValueError(
            f"{path} holds images from the scanner. Of these, only T1, T1c, T2 and FLAIR are recognised, and the "
            f"network segments {segmenter.task.name}. Bring its sequences to one grid without skull yourself."
        )
    with tempfile.TemporaryDirectory(prefix="lora-moe-hgd-") as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        prepared = prepare(path, options, work, steps=steps, say=say)
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
