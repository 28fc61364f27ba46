"""A series of DICOM files: the positions of its slices, and its acquisition parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Acquisition:
    """Acquisition parameters from the headers of a series.

    Attributes:
        modality: Modality, such as `MR` or `CT`.
        description: Series description, or protocol name if there is none.
        image_type: Values of the image type in capitals, such as `ORIGINAL`, `PRIMARY`, `M`.
        scanning: Values of the scanning sequence: `SE`, `IR`, `GR`, `EP`, `RM`.
        echo_ms: Echo time in milliseconds; `None` if unknown.
        repetition_ms: Repetition time in milliseconds; `None` if unknown.
        inversion_ms: Inversion time in milliseconds; `None` if unknown or zero.
        agent: Name of the contrast agent; empty if the header names none.
        angiography: Whether the header marks the series as an angiography.
        diffusion: Whether the header contains a b-value.
        is_secondary: Whether the images are secondary captures, such as screenshots.
    """

    modality: str = "MR"
    description: str = ""
    image_type: tuple[str, ...] = ()
    scanning: tuple[str, ...] = ()
    echo_ms: float | None = None
    repetition_ms: float | None = None
    inversion_ms: float | None = None
    agent: str = ""
    angiography: bool = False
    diffusion: bool = False
    is_secondary: bool = False


@dataclass(frozen=True)
class Series:
    """One stack of slices: all slices of a series that have the same echo time, orientation and size.

    Attributes:
        number: Number of the row in the list of series, from 1.
        uid: Series instance UID.
        study: Study instance UID.
        patient: Digest that is equal for files of one patient.
        date: Study date as `YYYYMMDD`; empty if unknown.
        files: Paths of the files, sorted by the position of their slices along the normal of the slices.
        positions: Centre of the first voxel of each slice in millimetres (LPS), sorted by position along the normal;
            empty if unknown.
        cosines: Unit vectors (LPS) along which the column index and the row index grow, 6 numbers; empty if unknown.
        acquisition: Acquisition parameters.
        shape: Numbers of columns, rows and different slice positions.
        spacing_mm: Distances between columns, between rows and between slices, in millimetres.
        plane: `transverse`, `sagittal` or `coronal`, with `oblique` added for a large angle to that plane; `none` if
            the headers give no orientation.
        volumes: Number of images at each slice position.
        gaps: Number of uneven gaps: distances between neighbouring slices that differ from the median distance.
        cut_off: Number of files that end before their last pixel.
    """

    number: int
    uid: str
    study: str
    patient: str
    date: str
    files: tuple[Path, ...]
    positions: tuple[tuple[float, ...], ...]
    cosines: tuple[float, ...]
    acquisition: Acquisition
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    plane: str
    volumes: int = 1
    gaps: int = 0
    cut_off: int = 0

    @property
    def coverage_mm(self) -> float:
        """Length of the stack along its normal, in millimetres."""
        return self.shape[2] * self.spacing_mm[2]
