"""A small study as DICOM, and what makes its preparation fast."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicoms import ball, in_plane, study, write_series

from lora_moe_hgd.scans import brains, prepare
from lora_moe_hgd.scans.registration import Motion

SPACINGS = {"t1c": (4.0, 4.0, 5.0), "flair": (4.5, 4.5, 6.0)}


def head(spacing: tuple[float, float, float]) -> nib.Nifti1Image:
    """A ball with noise, about as large as a brain: what is left of a head without skull."""
    shape = tuple(int(150 / edge) for edge in spacing)
    image = ball(shape, spacing)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    place = grid @ image.affine[:3, :3].T + image.affine[:3, 3] - [3.0, -5.0, 11.0]
    noise = np.random.default_rng(0).normal(1, 0.1, shape)
    values = 300 * (np.linalg.norm(place, axis=-1) < 66) * noise * (1 + (place[..., 0] > 20) + (place[..., 1] > 10))
    return nib.Nifti1Image(values.astype(np.float32), image.affine)


def write_study(folder: Path) -> None:
    """A study with a T1c, a sagittal FLAIR and a localiser."""
    shared = study()
    write_series(folder / "a", in_plane(head(SPACINGS["t1c"]), "LPS"), "t1c", number=1, shared=shared)
    write_series(folder / "b/c", in_plane(head(SPACINGS["flair"]), "PIL"), "flair", number=2, shared=shared)
    write_series(folder / "d", in_plane(ball((20, 24, 3)), "LPS"), "t1", number=3, shared=shared)


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes seconds, and what slow tests do on real heads. A ball is all brain."""
    patch.setattr(prepare, "extract_brain", lambda volume, where: volume.array > 0)
    patch.setattr(prepare, "register", lambda *args, **more: Motion(np.eye(4), 1.0, 1.0, 0.0, 0.0))
    patch.setattr(brains, "BRIGHT_SPREADS", 1e6)
