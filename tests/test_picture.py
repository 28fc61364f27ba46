"""Pictures of segmentations, also of volumes that are hard to draw."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from test_page import REPORT

from lora_moe_hgd.inference.page import write_case_page
from lora_moe_hgd.pictures import COLOURS, save_overlay

AFFINE = np.diag([3.0, 2.5, 2.0, 1.0])


def made_up(shape: tuple[int, ...]) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A bright volume without background, and regions that fill a corner of it."""
    volume = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    regions = np.zeros((3, *shape), dtype=bool)
    for region, edge in zip(regions, (12, 8, 4), strict=True):
        region[:edge, :edge, :edge] = True
    return nib.Nifti1Image(volume, AFFINE), regions


def pixels_of(path: Path, colour: str) -> int:
    rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((np.asarray(Image.open(path).convert("RGB")) == rgb).all(axis=-1).sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_drawn_whatever_its_axis(axis: int, tmp_path: Path) -> None:
    shape = [20, 24, 28]
    shape[axis] = 1
    image, regions = made_up(tuple(shape))
    save_overlay(tmp_path / "whole.png", image, {"found": regions}, title="one slice")
    save_overlay(tmp_path / "empty.png", image, {"found": np.zeros_like(regions)}, title="one slice")
    for colour in COLOURS.values():
        # The legend has a few pixels of each colour.
        assert pixels_of(tmp_path / "whole.png", colour) > pixels_of(tmp_path / "empty.png", colour) + 200
    write_case_page(tmp_path / "page.html", {"flair": image}, regions, REPORT)
    assert "data:image/webp" in (tmp_path / "page.html").read_text()


def test_a_page_shows_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    name = b"M\xfcller.nii.gz".decode("utf-8", "surrogateescape")
    image, regions = made_up((20, 24, 28))
    write_case_page(tmp_path / "page.html", {"flair": image}, regions, REPORT | {"warnings": [name]})
    assert r"M\udcfcller.nii.gz" in (tmp_path / "page.html").read_text()
