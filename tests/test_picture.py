"""Pictures of segmentations, also of volumes that are hard to draw."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from test_page import REPORT

from lora_moe_hgd.inference.page import write_case_page
from lora_moe_hgd.pictures import COLOURS, DOUBT, save_overlay

AFFINE = np.diag([3.0, 2.5, 2.0, 1.0])


def made_up(shape: tuple[int, ...]) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A bright volume without background, and regions that fill a corner of it."""
    volume = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    regions = np.zeros((3, *shape), dtype=bool)
    for region, edge in zip(regions, (12, 8, 4), strict=True):
        region[:edge, :edge, :edge] = True
    return nib.Nifti1Image(volume, AFFINE), regions


def pixels_of(path: Path, colour: str) -> int:
    return int(drawn(path, colour).sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_drawn_whatever_its_axis(axis: int, tmp_path: Path) -> None:
    shape = [20, 24, 28]
    shape[axis] = 1
    image, regions = made_up(tuple(shape))
    save_overlay(tmp_path / "whole.png", {"flair": image}, {"found": regions}, title="one slice")
    save_overlay(tmp_path / "empty.png", {"flair": image}, {"found": np.zeros_like(regions)}, title="one slice")
    for colour in COLOURS.values():
        # The legend has a few pixels of each colour.
        assert pixels_of(tmp_path / "whole.png", colour) > pixels_of(tmp_path / "empty.png", colour) + 200
    write_case_page(tmp_path / "page.html", {"flair": image}, regions, REPORT)
    assert "segmentation" in (tmp_path / "page.html").read_text()


def drawn(path: Path, colour: str) -> np.ndarray:
    """Where a PNG has exactly this colour."""
    return (np.asarray(Image.open(path).convert("RGB")) == [int(colour[at : at + 2], 16) for at in (1, 3, 5)]).all(-1)


def head(*places: tuple[slice, slice, slice]) -> tuple[dict[str, nib.Nifti1Image], np.ndarray]:
    """A FLAIR and a T1c of a box-shaped brain in RAS order, with WT, TC and ET at these places."""
    volume = np.zeros((40, 48, 44), dtype=np.float32)
    volume[4:-4, 4:-4, 4:-4] = np.random.default_rng(0).uniform(1, 2, (32, 40, 36))
    regions = np.zeros((3, *volume.shape), dtype=bool)
    for region, place in zip(regions, places, strict=True):
        region[place] = True
    return dict.fromkeys(("flair", "t1c"), nib.Nifti1Image(volume, np.eye(4))), regions


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)], ids=str)
def test_right_is_on_the_left_front_and_top_are_up_however_the_volume_is_stored(flips, tmp_path: Path) -> None:
    """A tumour at the patient's right, at the front and at the top."""
    images, regions = head(*[(slice(28, 34), slice(34, 42), slice(30, 38))] * 3)
    affine = np.diag([*flips, 1.0])
    order = (slice(None), *(slice(None, None, flip) for flip in flips))
    stored = {name: nib.Nifti1Image(np.asarray(image.dataobj)[order[1:]], affine) for name, image in images.items()}
    save_overlay(tmp_path / "a.png", stored, {"found": regions[order]}, title="")
    found = drawn(tmp_path / "a.png", COLOURS["WT"])
    height, width = found.shape
    # WT is on the upper of two lines of pictures, and the legend below both. The brain of each plane is centred.
    rows, columns = np.nonzero(found[: height // 2])
    brain = np.asarray(Image.open(tmp_path / "a.png").convert("L"))[: height // 2] > 60
    for number in range(3):
        inside = (columns >= number * width // 3) & (columns < (number + 1) * width // 3)
        own = np.argwhere(brain[:, number * width // 3 : (number + 1) * width // 3])
        middle_row, middle_column = own.mean(axis=0)
        assert rows[inside].mean() < middle_row
        # The right of the patient in axial and coronal planes, the front in the sagittal one.
        assert columns[inside].mean() - number * width // 3 < middle_column


def test_each_region_is_outlined_on_the_sequence_that_shows_it_best(tmp_path: Path) -> None:
    images, regions = head(*(tuple(slice(start, start + 8) for start in (10, 12, 14)) for _ in range(3)))
    save_overlay(tmp_path / "both.png", images, {"found": regions}, title="")
    half = drawn(tmp_path / "both.png", COLOURS["WT"]).shape[0] // 2
    legend = 60
    assert drawn(tmp_path / "both.png", COLOURS["WT"])[:half].sum() > 100
    assert drawn(tmp_path / "both.png", COLOURS["WT"])[half:-legend].sum() == 0
    assert drawn(tmp_path / "both.png", COLOURS["ET"])[half:-legend].sum() > 100
    assert drawn(tmp_path / "both.png", COLOURS["ET"])[:half].sum() == 0


def test_planes_go_through_the_largest_part_of_the_core(tmp_path: Path) -> None:
    """The whole tumour is largest elsewhere, and a smaller part of the core fills more of one sagittal plane."""
    largest = (slice(20, 28), slice(32, 40), slice(30, 38))
    images, regions = head((slice(5, 30), slice(5, 30), slice(6, 12)), largest, largest)
    regions[0] |= regions[1]
    regions[1:, 8, 6:20, 6:20] = True
    save_overlay(tmp_path / "core.png", images, {"found": regions}, title="")
    found = drawn(tmp_path / "core.png", COLOURS["ET"])
    height, width = found.shape
    sagittal = found[height // 2 : -60, 2 * width // 3 :]
    # The largest part is at the front and at the top, which are on the left and up.
    rows, columns = np.nonzero(sagittal)
    assert len(rows) > 30
    assert rows.mean() < sagittal.shape[0] / 2
    assert columns.mean() < sagittal.shape[1] / 2


def test_where_regions_share_a_border_both_colours_are_seen(tmp_path: Path) -> None:
    images, regions = head(*[(slice(8, 32), slice(10, 38), slice(12, 32))] * 3)
    save_overlay(tmp_path / "shared.png", images, {"found": regions}, title="")
    lower = slice(drawn(tmp_path / "shared.png", "#000000").shape[0] // 2, -60)
    outer, inner = (drawn(tmp_path / "shared.png", COLOURS[name])[lower].sum() for name in ("TC", "ET"))
    # Dashes and gaps have the same length.
    assert min(outer, inner) > 0.5 * max(outer, inner) > 0


def test_letters_stand_beside_the_brain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No background at all: the brain ends where the volume ends.
    image, regions = made_up((40, 48, 44))
    save_overlay(tmp_path / "with.png", {"flair": image}, {"found": regions}, title="")
    monkeypatch.setattr("lora_moe_hgd.pictures._letters", lambda *args: None)
    save_overlay(tmp_path / "without.png", {"flair": image}, {"found": regions}, title="")
    with_letters, without = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("with", "without"))
    changed = (with_letters != without).any(-1)
    assert changed.sum() > 200
    assert (without[changed][:, :3] == 0).all()


def test_letters_of_neighbouring_planes_stand_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, regions = head(*[(slice(8, 32), slice(10, 38), slice(12, 32))] * 3)
    save_overlay(tmp_path / "with.png", images, {"found": regions}, title="")
    monkeypatch.setattr("lora_moe_hgd.pictures._letters", lambda *args: None)
    save_overlay(tmp_path / "without.png", images, {"found": regions}, title="")
    with_letters, without = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("with", "without"))
    columns = np.flatnonzero((with_letters != without).any((0, 2)))
    gaps = np.diff(columns)
    # In each plane: a letter on the left, two in the middle, and one on the right.
    assert (gaps > 2).sum() == 3 * 3 - 1
    assert gaps[gaps > 2].min() > 40


def test_a_result_with_a_warning_has_a_frame_and_the_words_and_one_without_has_neither(tmp_path: Path) -> None:
    images, regions = head(*(tuple(slice(start, start + 8) for start in (10, 12, 14)) for _ in range(3)))
    save_overlay(tmp_path / "calm.png", images, {"found": regions}, title="")
    save_overlay(tmp_path / "doubt.png", images, {"found": regions}, title="", warnings=["Do not use this."] * 9)
    assert not drawn(tmp_path / "calm.png", DOUBT).any()
    framed = drawn(tmp_path / "doubt.png", DOUBT)
    for side in (framed[1], framed[-2], framed[:, 1], framed[:, -2]):
        assert side.mean() > 0.99
    assert framed[-150:-8, 8:-8].sum() > 50


def test_a_page_shows_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    name = b"M\xfcller.nii.gz".decode("utf-8", "surrogateescape")
    image, regions = made_up((20, 24, 28))
    write_case_page(tmp_path / "page.html", {"flair": image}, regions, REPORT | {"warnings": [name]})
    assert r"M\udcfcller.nii.gz" in (tmp_path / "page.html").read_text()
