"""A series of DICOM files: the positions of its slices, and how it was acquired."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Acquisition:
    """What the headers of a series say about how it was acquired.

    Attributes:
        modality: Modality, such as `MR` or `CT`.
        description: Series description, or protocol name if there is none.
        image_type: Values in capitals, such as `ORIGINAL`, `PRIMARY`, `M`.
        scanning: Scanning sequence: `SE`, `IR`, `GR`, `EP`, `RM`.
        echo_ms: Echo time; `None` if the header does not say.
        repetition_ms: Repetition time.
        inversion_ms: Inversion time.
        agent: Name of the contrast agent; empty without one.
        angiography: Whether the header says that it is an angiography.
        diffusion: Whether a b-value is given.
        is_secondary: Whether these are secondary captures, such as screenshots.
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
    """One stack of slices: a series, or the part of one with the same echo time and orientation.

    Attributes:
        number: Row in the table, from 1.
        uid: Series instance UID.
        study: Study instance UID.
        patient: Digest that is equal for files of one patient.
        date: Study date as `YYYYMMDD`; empty if unknown.
        files: Paths, sorted by position along the normal.
        positions: Centre of the first voxel of each slice in millimetres (LPS), in the same order; empty if unknown.
        cosines: Directions along which the index of the column and that of the row grow; empty if unknown.
        acquisition: How it was acquired.
        shape: Columns, rows and different slice positions.
        spacing_mm: Between columns, rows and slices.
        plane: `transverse`, `sagittal` or `coronal`, with `oblique` behind it if turned by far; `none` if the headers
            give no orientation.
        volumes: How often each position was imaged.
        gaps: Number of gaps between slices that differ from the usual one.
        cut_off: Number of files that are shorter than their header says.
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
        """Length of the stack along its normal."""
        return self.shape[2] * self.spacing_mm[2]
