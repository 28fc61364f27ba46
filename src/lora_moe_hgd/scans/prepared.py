"""A case that was prepared from raw images, and the original grid of each sequence.

This module can be imported without the pip extra `scans`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..cases.case_files import PREPARED, refuse_other_case
from ..cases.nifti import save_image
from ..files import replacing
from ..model.findings import Finding
from ..model.grids import Volume, on_grid_of
from ..model.label_schemes import LabelScheme

# File name of each sequence in the prepared folder, which any other command reads.
FILE_NAMES = {"t1": "T1.nii.gz", "t1c": "T1c.nii.gz", "t2": "T2.nii.gz", "flair": "FLAIR.nii.gz"}
BRAIN_MASK = "brain_mask.nii.gz"


@dataclass(frozen=True)
class Placement:
    """Grid on which a sequence was scanned, and the rigid motion that registers the sequence to the reference.

    Attributes:
        shape: Shape of the scanned array.
        affine: Affine of the scanned array, `(4, 4)`.
        motion: Matrix that maps points of the sequence to points of the reference, in millimetres (RAS), `(4, 4)`.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    motion: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """A case on one grid without skull, made from raw images.

    Attributes:
        case_id: Name of the case. The name does not reveal the patient, unless the user chose a name that does.
        reference: Sequence whose grid the case has.
        affine: Affine of the reference's grid, `(4, 4)`.
        images: Each sequence on the reference's grid, `(D, H, W)` float32, zero outside the brain.
        heads: Each sequence on the reference's grid, `(D, H, W)` float32, with the skull.
        brain: Brain mask on the reference's grid, `(D, H, W)` bool.
        placements: Original grid of each sequence, and the rigid motion that registers the sequence to the reference.
        findings: Warnings about the images.
        report: Content of `prepare.json`.
        headers: DICOM headers of the reference's slices, without pixels, sorted by position; empty if the
            raw images are not DICOM files.
    """

    case_id: str
    reference: str
    affine: np.ndarray
    images: dict[str, np.ndarray]
    heads: dict[str, np.ndarray]
    brain: np.ndarray
    placements: dict[str, Placement]
    findings: tuple[Finding, ...]
    report: dict[str, Any]
    headers: tuple[Any, ...] = field(default=(), repr=False)

    def save(self, folder: Path) -> None:
        """Write the case: a file for each sequence, the brain mask, and `prepare.json` last.

        Raises:
            ValueError: If the folder contains images that `prepare` did not write, or another prepared case.
        """
        check_output(folder)
        refuse_other_case(folder / PREPARED, self.case_id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PREPARED).unlink(missing_ok=True)
        # The mask comes first: if the process stops before the report, the mask shows that `prepare` wrote the folder.
        save_image(folder / BRAIN_MASK, image_on(self.affine, self.brain.astype(np.uint8)))
        for name in FILE_NAMES.values():
            (folder / name).unlink(missing_ok=True)
        for name, array in self.images.items():
            save_image(folder / FILE_NAMES[name], image_on(self.affine, array))
        with replacing(folder / PREPARED) as scratch:
            scratch.write_text(json.dumps(self.report, indent=2) + "\n")

    def head_images(self) -> dict[str, nib.Nifti1Image]:
        """Each sequence with its skull, on the case's grid."""
        return {name: image_on(self.affine, array) for name, array in self.heads.items()}

    def on_own_grid(self, sequence: str, regions: np.ndarray, scheme: LabelScheme) -> nib.Nifti1Image:
        """Label map on the grid on which a sequence was scanned.

        A voxel of this grid gets the label that the case has at the voxel's centre.

        Args:
            sequence: Sequence whose grid the result has.
            regions: WT, TC and ET on the case's grid, `(3, D, H, W)` bool.
            scheme: Label scheme, the meaning of each value in the label map.
        """
        place = self.placements[sequence]
        target = Volume(np.zeros(place.shape, dtype=np.float32), place.motion @ place.affine)
        moved, _, _ = on_grid_of(Volume(scheme.encode(regions), self.affine), target, labels=True)
        return image_on(place.affine, moved.array)


def check_output(folder: Path) -> None:
    """Refuse a folder in which `prepare` would delete images that it did not write.

    Raises:
        ValueError: If the folder contains such images.
    """
    written = (folder / PREPARED).is_file() or (folder / BRAIN_MASK).is_file()
    others = [name for name in FILE_NAMES.values() if (folder / name).is_file()]
    if others and not written:
        raise ValueError(
            f"{folder} contains {others[0]}, which would be overwritten. Choose another folder for the case."
        )


def image_on(affine: np.ndarray, array: np.ndarray) -> nib.Nifti1Image:
    """Make a NIfTI image whose header contains only its geometry."""
    image = nib.Nifti1Image(np.ascontiguousarray(array), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def report_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert numbers and arrays to JSON types, rounded to four decimals."""
    rounded: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            rounded[key] = report_of(value)
        elif isinstance(value, np.ndarray | tuple | list):
            array = np.asarray(value)
            rounded[key] = array.tolist() if array.dtype.kind == "i" else np.round(array.astype(float), 4).tolist()
        elif isinstance(value, float | np.floating):
            rounded[key] = round(float(value), 4)
        else:
            rounded[key] = value
    return rounded
