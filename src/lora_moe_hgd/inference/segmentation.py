"""The segmentation of a case, and its result files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..cases.case_files import CaseFiles, refuse_other_case, safe_name
from ..cases.nifti import save_image, write_image
from ..cases.reading import read_truth
from ..files import counted, volume_text
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.findings import BadInputError
from ..model.geometry import CaseGeometry
from ..model.label_schemes import LabelScheme
from ..model.task import BRAIN_TUMOUR, Task, shown
from ..pictures import save_overlay
from ..scans.prepared import Prepared
from .page import write_case_page
from .report import errors_as_warnings, print_warning, write_report
from .uncertainty import voxel_entropy

# Files that are written only for cases of raw images.
SCAN_FILES = ("seg.dcm", *(f"seg_on_{name}.nii.gz" for name in MODALITIES))
# Deletion order. `report.json` goes first: its presence marks the folder as complete.
RESULT_FILES = (
    "report.json",
    "report.html",
    "seg.nii.gz",
    *SCAN_FILES,
    "overlay.png",
    "probabilities.nii.gz",
    "uncertainty.nii.gz",
)


@dataclass(frozen=True, repr=False, eq=False)
class Segmentation:
    """Segmentation of a case on the grid of its reference sequence, which is the first sequence by default.

    For brain tumours, the order of regions is WT, TC, ET, and each region contains the next. `D, H, W` are the axes of
    the case's own array.

    Attributes:
        label_map: `(D, H, W)` uint8 with the affine of the case.
        label_scheme: Meaning of the numbers in the label map.
        regions: `(R, D, H, W)` bool.
        probabilities_in_box: Probabilities of the regions in the bounding box of the brain, `(R, *box_shape)` float32
            in [0, 1]. The axes of the box are in RAS order.
        geometry: Bounding box of the brain, and grid of the case.
        volumes_ml: Volume of each region in millilitres, by name (`wt`, `tc` and `et`), rounded to 0.001 mL.
        confidence: Expected Dice of each region, from 0 to 1; `None` for a region that was not found.
            docs/confidence.md shows how reliable the confidence is.
        warnings: Warnings about the case and the result. Each warning has one or more sentences.
        images: Images of the sequences that were used, float32, zero outside the brain, all on one grid.
        report: Content of `report.json`.
        case: Files of the case; `None` for a case in memory, and for a case that was made from raw images.
        task: Task that defines the sequences and regions.
        scan: Prepared case with the grids of its raw images; `None` for a case that was not made from raw images.
    """

    label_map: nib.Nifti1Image
    label_scheme: LabelScheme
    regions: np.ndarray
    probabilities_in_box: np.ndarray
    geometry: CaseGeometry
    volumes_ml: dict[str, float]
    confidence: dict[str, float | None]
    warnings: list[str]
    images: dict[str, nib.Nifti1Image]
    report: dict[str, Any]
    case: CaseFiles | None
    task: Task = BRAIN_TUMOUR
    scan: Prepared | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities of the regions, `(R, D, H, W)` float32 in [0, 1]. Each access makes a new array."""
        return self.geometry.to_own_grid(self.probabilities_in_box)

    def __repr__(self) -> str:
        volumes = ", ".join(f"{shown(name)} {volume_text(volume)} mL" for name, volume in self.volumes_ml.items())
        doubt = f"; {counted(len(self.warnings), 'warning')}, see .warnings" if self.warnings else ""
        return f"Segmentation({self.report['case_id']} from {' + '.join(self.images)}: {volumes}{doubt})"

    def save(
        self,
        folder: str | Path,
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
        html: bool = False,
        on_all: bool = False,
        warn: Callable[[str], object] = print_warning,
    ) -> None:
        """Write `seg.nii.gz`, `overlay.png` and `report.json`, like `lora-moe-hgd segment`.

        If the case was made from DICOM files, `seg.dcm` is written as well: a DICOM segmentation on the slices of the
        reference sequence. The pictures of a case that was made from raw images show the skull. Earlier results in the
        folder are deleted if their case has the same name. All cases in memory have the name `case`, so their results
        replace each other. If the picture, the page or `seg.dcm` cannot be made, `report.json` says why.

        Args:
            folder: Output folder. A missing folder is created.
            probabilities: Also write `probabilities.nii.gz`, `(D, H, W, R)` float32.
            uncertainty: Also write `uncertainty.nii.gz`, the entropy of each voxel in bits, `(D, H, W)`.
            html: Also write `report.html`, a page with all slices in linked planes. The page shows the ground truth if
                the case has one, and the maps that `probabilities` and `uncertainty` request.
            on_all: Also write the label map on the original grid of each sequence, such as `seg_on_t1c.nii.gz`.
                `on_all` needs a case that was made from raw images.
            warn: Function that is called with a warning for each file that cannot be made. The default prints it to
                standard error.

        Raises:
            ValueError: If `on_all` is set for a case that was not made from raw images, if `folder` seems to be the
                folder of a case, whose ground truth would be overwritten, or if `folder` contains results of a case
                with another name.
            OSError: If a file cannot be written.
        """
        folder = Path(folder)
        if on_all and self.scan is None:
            raise ValueError("The case was not made from raw images, so it has only one grid. Leave out `on_all`.")
        if self.case is not None and folder.resolve() == self.case.folder.resolve():
            raise ValueError(
                f"{folder} is the folder of the case. The label map of the case could be overwritten. Choose another "
                "folder."
            )
        if folder.is_dir() and not (folder / "report.json").is_file() and (folder / "seg.nii.gz").is_file():
            others = sorted({path.name for path in folder.glob("[!.]*")} - set(RESULT_FILES))
            if others:
                raise ValueError(
                    f"{folder} contains seg.nii.gz and {others[0]}, so it may be the folder of a case, whose label "
                    "map would be overwritten. Choose another folder."
                )
        refuse_other_case(folder / "report.json", self.report["case_id"])
        report = {**self.report, "warnings": list(self.warnings), "not_written": []}
        folder.mkdir(parents=True, exist_ok=True)
        for name in RESULT_FILES:
            (folder / name).unlink(missing_ok=True)
        save_image(folder / "seg.nii.gz", self.label_map)
        likelihoods = self.probabilities if probabilities or uncertainty else None
        if likelihoods is not None and probabilities:
            write_image(folder / "probabilities.nii.gz", np.moveaxis(likelihoods, 0, -1), like=self.label_map)
        entropy = None if likelihoods is None or not uncertainty else voxel_entropy(likelihoods, self.task)
        if entropy is not None:
            write_image(folder / "uncertainty.nii.gz", entropy, like=self.label_map)
        if on_all and self.scan is not None:
            for name in self.images:
                own = self.scan.on_own_grid(name, self.regions, self.label_scheme)
                save_image(folder / f"seg_on_{name}.nii.gz", own)
        if self.scan is not None and self.scan.headers and self.regions.any():
            with errors_as_warnings("seg.dcm", report, warn):
                # Import it only here, because it needs the extra `scans`.
                from ..scans.dicom_seg import write_dicom_seg

                write_dicom_seg(
                    folder / "seg.dcm",
                    self.regions,
                    self.scan.affine,
                    self.scan.headers,
                    algorithm=report["checkpoint"],
                )
        images = self.images if self.scan is None else self.scan.head_images()
        with errors_as_warnings("overlay.png", report, warn):
            save_overlay(
                folder / "overlay.png",
                images,
                {"found": self.regions},
                title=f"{report['case_id']}, segmented from {' + '.join(self.images)}",
                volumes_ml=self.volumes_ml,
                warnings=self.warnings,
                task=self.task,
            )
        if html:
            with errors_as_warnings("report.html", report, warn):
                truth, note = self._truth(warn)
                write_case_page(
                    folder / "report.html",
                    images,
                    self.regions,
                    report,
                    self.task,
                    truth=truth,
                    truth_note=note,
                    probabilities=likelihoods if probabilities else None,
                    uncertainty=entropy,
                    picture=None if "overlay.png" in report["not_written"] else folder / "overlay.png",
                )
        write_report(folder / "report.json", report)

    def _truth(self, warn: Callable[[str], object]) -> tuple[np.ndarray | None, str]:
        """Return the regions and the file name of the ground truth, or `None` and the reason why none is shown."""
        if self.case is None or self.case.segmentation is None:
            return None, "none"
        name = safe_name(self.case.segmentation.name)
        try:
            return read_truth(self.case, next(iter(self.images.values())), self.task), name
        except BadInputError as error:
            warn(f"The page does not show the ground truth. {error}")
            return None, f"{name}, not shown. {error.finding.message}"
