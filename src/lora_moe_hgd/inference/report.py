"""Report of an inference run as JSON. The report contains no text from image headers."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib

from ..files import reason_of, replacing
from ..model.confidence import confidence_warnings, rounded_down
from ..model.geometry import voxel_spacing_mm
from ..model.label_schemes import LabelScheme
from ..model.task import BRAIN_TUMOUR, Task, shown

# Labels whose key in the report has another spelling.
KEYS = {"oedema": "edema"}
NOTICE = "Research use only. This is not a medical device. Look at the images."
# Text of the pages for a result without warnings.
NO_WARNINGS = "The program has no warnings. The result can still be wrong."
# Name and source of the example case. Its licence asks for the source wherever the images are shown.
EXAMPLE_ID = "BraTS-SSA-00041-000"
EXAMPLE_SOURCE = (
    "BraTS-Africa (doi 10.7937/v8h6-8x67), CC BY 4.0; the case that ships with the package is cropped to the brain"
)


def make_report(
    *,
    case_id: str,
    checkpoint: str,
    mirror: bool,
    bf16: bool,
    made_from: str | None,
    sequences: list[str],
    files: dict[str, str],
    left_out: list[str],
    scheme: LabelScheme,
    volumes_ml: dict[str, float],
    confidence: dict[str, float | None],
    image: nib.Nifti1Image,
    reference: str,
    interpolated: list[str],
    warnings: list[str],
    seconds: float,
    task: Task = BRAIN_TUMOUR,
) -> dict[str, Any]:
    """Make the content of `report.json`.

    `files` has the file name of each sequence that was used. `left_out` lists the names of image files that were not
    used. Volumes are in millilitres, and spacing is in millimetres along the axes of the result. `confidence` is the
    expected Dice of each region. `reference` is the sequence whose grid the result has. `interpolated` lists the
    sequences that were resampled to this grid. `made_from` is a fingerprint of weights, options, code and files.
    `not_written` is an empty list, to which `errors_as_warnings` adds the names of files that could not be made.
    """
    return {
        "case_id": case_id,
        f"{task.target}_found": max(volumes_ml.values()) > 0,
        "volumes_ml": {name: round(volume, 3) for name, volume in volumes_ml.items()},
        "confidence": {name: value and rounded_down(value, 3) for name, value in confidence.items()},
        "sequences_used": sequences,
        "sequences_not_used": [name for name in task.modalities if name not in sequences],
        "files": files,
        "left_out": left_out,
        "reference": reference,
        "interpolated": interpolated,
        "warnings": warnings,
        "not_written": [],
        "label_scheme": {"name": scheme.name}
        | {KEYS.get(word, word): label for word, label in scheme.written.items()},
        "shape": list(image.shape),
        "spacing_mm": [round(spacing, 4) for spacing in voxel_spacing_mm(image.affine)],
        "checkpoint": checkpoint,
        "mirrored": mirror,
        "bf16": bf16,
        "made_from": made_from,
        "seconds": round(seconds, 1),
        "versions": {name: version(name) for name in ("lora-moe-hgd", "torch", "transformers", "nibabel")}
        | {"python": platform.python_version()},
        "notice": NOTICE,
    }


def doubt_headline(report: Mapping[str, Any], task: Task) -> str:
    """Headline above the warnings of a report.

    If every warning is about certain regions, and together they are not about all regions, the headline names the
    regions. Otherwise, it says that the result is doubtful.

    Example:
        >>> warnings = ["ET: The expected Dice is only 0.52. An expert must correct this region before use."]
        >>> report = {"warnings": warnings, "confidence": {"wt": 0.9, "tc": 0.8, "et": 0.52}}
        >>> doubt_headline(report, BRAIN_TUMOUR)
        'ET is doubtful'
        >>> doubt_headline(report | {"warnings": ["t1c: 1 voxel is not finite.", *warnings]}, BRAIN_TUMOUR)
        'This result is doubtful'
    """
    names = [shown(region) for region in task.regions]
    # Only these warnings can be about single regions. Other warnings may contain the name of a region by chance.
    about = {text: {name for name in names if re.search(rf"\b{name}\b", text)} for text in task.without.values()}
    about |= {str(finding): {str(finding.where)} & {*names} for finding in confidence_warnings(report["confidence"])}
    found = [about.get(warning, set()) for warning in report["warnings"]]
    doubtful = [name for name in names if any(name in regions for regions in found)]
    if not all(found) or len(doubtful) == len(names):
        return "This result is doubtful"
    return f"{' and '.join(doubtful)} {'is' if len(doubtful) == 1 else 'are'} doubtful"


def print_warning(warning: object) -> None:
    """Print a warning to standard error."""
    print(f"warning: {warning}", file=sys.stderr)


@contextmanager
def errors_as_warnings(
    name: str, report: dict[str, Any], warn: Callable[[str], object] = print_warning
) -> Iterator[None]:
    """Convert an error inside the `with` block, which writes one result file, to a warning in the report.

    Args:
        name: Name of the file that the block writes, such as `overlay.png`.
        report: Report of the result. If the block fails, the warning is added to its list `warnings`, and `name` to
            its list `not_written`.
        warn: Function that is called with the warning.
    """
    try:
        yield
    except Exception as error:
        message = f"{name} could not be made ({reason_of(error)}). The segmentation itself is complete."
        warn(message)
        report["warnings"].append(message)
        report["not_written"].append(name)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write the report to `path` as JSON, atomically."""
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(report, indent=2) + "\n")
