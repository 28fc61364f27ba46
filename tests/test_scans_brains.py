"""Images that show no brain, or no skull: what is refused, what is noticed, and what is left of a head in pictures."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicoms import in_plane, study, write_series
from scipy import ndimage
from small_scans import SPACINGS, head

import lora_moe_hgd as lmh
from lora_moe_hgd import api
from lora_moe_hgd.inference import segmentation
from lora_moe_hgd.masks import largest_part
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.grids import Volume, on_grid_of
from lora_moe_hgd.scans import brain_extraction, prepare
from lora_moe_hgd.scans.brain_extraction import extract_brain
from lora_moe_hgd.scans.brains import is_stripped, on_grid
from lora_moe_hgd.scans.deface import MARGIN_MM, without_face
from lora_moe_hgd.scans.prepare import ScanOptions
from lora_moe_hgd.scans.prepared import BRAIN_MASK, FILE_NAMES
from lora_moe_hgd_cli import run

DATA = Path(__file__).parents[1].parent / "shared/data"
with_heads = pytest.mark.skipif(not DATA.is_dir(), reason="the heads of open-ms are not here")


def load(path: Path) -> Volume:
    image = nib.load(path)
    return Volume(np.asarray(image.dataobj, dtype=np.float32), image.affine)


def noise(shape: tuple[int, int, int], level: float = 10.0) -> np.ndarray:
    return np.abs(np.random.default_rng(0).normal(0, level, shape)).astype(np.float32)


def leg(shape: tuple[int, int, int] = (80, 80, 60), edge: float = 2.0) -> Volume:
    """A cylinder of muscle with a bone in it, from one end of the volume to the other."""
    place = (np.moveaxis(np.indices(shape), 0, -1) - np.array(shape) / 2)[..., :2] * edge
    array = 200.0 * (np.linalg.norm(place, axis=-1) < 60) - 150 * (np.linalg.norm(place - [10, 5], axis=-1) < 14)
    return Volume((np.abs(array) + noise(shape)).astype(np.float32), np.diag([edge, edge, edge, 1.0]))


def networks(monkeypatch: pytest.MonkeyPatch, *at: tuple[int, int, int] | None) -> None:
    """Stand-ins for the two networks: each marks a ball at a place of its own, in shares of the edges, or nothing."""

    def network(name: str):
        centre = at[list(brain_extraction.NETWORKS).index(name)]

        def mark(volume: torch.Tensor) -> torch.Tensor:
            shape = volume.shape[2:]
            found = torch.zeros(1, 2, *shape)
            if centre is not None:
                grid = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), dim=-1)
                found[0, 1] = ((grid / torch.tensor(shape) - torch.tensor(centre)).norm(dim=-1) < 0.3).float()
            return found

        return mark

    monkeypatch.setattr(brain_extraction, "_network", network)
    # As large as is needed, and no larger.
    monkeypatch.setattr(brain_extraction, "COARSE", (32, 32, 32))
    monkeypatch.setattr(brain_extraction, "FINE", (32, 32, 32))


MIDDLE = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("at", [(None, None), (MIDDLE, None), (MIDDLE, (0.1, 0.1, 0.5))], ids=["none", "one", "apart"])
def test_images_without_a_brain_are_refused_in_one_line(at, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    networks(monkeypatch, *at)
    image = leg((30, 32, 34), 5.0)
    write_series(
        tmp_path / "knee", in_plane(nib.Nifti1Image(image.array, image.affine), "LPS"), "t1", number=1, shared=study()
    )
    with pytest.raises(SystemExit) as stopped:
        run("prepare", [str(tmp_path / "knee"), str(tmp_path / "out"), "--quiet"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: t1: No brain was found. If this is an image of a complete head, give ")
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_networks_that_agree_find_the_brain(monkeypatch: pytest.MonkeyPatch) -> None:
    networks(monkeypatch, MIDDLE, MIDDLE)
    monkeypatch.setattr(brain_extraction, "_box", lambda coarse, shape: tuple(slice(0, edge) for edge in shape))
    assert extract_brain(leg(), "t1").mean() == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.1)


def test_an_empty_image_has_no_brain() -> None:
    with pytest.raises(BadInputError, match="Nearly all voxels have the same value"):
        extract_brain(Volume(np.zeros((20, 22, 24), dtype=np.float32), np.eye(4)), "t1")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "leg"])
def test_the_networks_of_deepbet_find_no_brain_where_there_is_none(kind: str) -> None:
    volume = leg((160, 160, 120), 1.25) if kind == "leg" else Volume(noise((160, 160, 120), 50), np.eye(4))
    with pytest.raises(BadInputError, match=r"No brain was found.*two networks differ: their Dice is only 0\.[0-8]"):
        extract_brain(volume, "t1")


@pytest.mark.usefixtures("quickened")
def test_images_without_skull_keep_their_brain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    looked: list[str] = []

    image = head(SPACINGS["t1c"])
    brain = np.asarray(image.dataobj) > 0

    def extract(volume: Volume, where: str) -> np.ndarray:
        looked.append(where)
        return ndimage.binary_erosion(brain)

    monkeypatch.setattr(prepare, "extract_brain", extract)
    (tmp_path / "case").mkdir()
    scored = np.where(brain, (np.asarray(image.dataobj) - 300) / 100, 0)
    raw = np.asarray(image.dataobj) + noise(image.shape)
    for name, array in (("T1c", scored), ("FLAIR", raw)):
        nib.save(nib.Nifti1Image(array.astype(np.float32), image.affine), tmp_path / "case" / f"{name}.nii.gz")
    run("prepare", [str(tmp_path / "case"), str(tmp_path / "out"), "--sequences", "t1c"])
    assert looked == ["t1c"]
    looked.clear()
    warning = "warning: t1c has no skull, so its non-zero voxels are used as the brain mask."
    assert warning in capsys.readouterr().err
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out" / BRAIN_MASK).dataobj) > 0, brain)
    found = np.asarray(nib.load(tmp_path / "out" / FILE_NAMES["t1c"]).dataobj)
    np.testing.assert_array_equal(found, scored.astype(np.float32))
    run("prepare", [str(tmp_path / "case"), str(tmp_path / "out")])
    assert looked == ["t1c", "flair"]
    looked.clear()
    capsys.readouterr()
    run("prepare", [str(tmp_path / "case"), str(tmp_path / "out"), "--brain-extraction", "deepbet"])
    assert looked == ["t1c", "flair"]
    assert "has no skull" not in capsys.readouterr().err


@with_heads
@pytest.mark.parametrize("scale", [1.0, 0.75], ids=["adult", "small"])
@pytest.mark.parametrize("cut", [0.0, 0.4], ids=["whole", "cut"])
def test_a_raw_head_on_a_clean_background_is_no_brain_without_skull(scale: float, cut: float) -> None:
    raw = load(DATA / "open-ms/skull-on/patient12_study1/t2.nii.gz")
    array = np.where(raw.array > 0.1 * np.percentile(raw.array, 90), raw.array, 0)
    array = array[:, :, int(cut * array.shape[2]) :]
    assert not is_stripped(Volume(array, raw.affine @ np.diag([scale, scale, scale, 1.0])), array != 0)


@with_heads
def test_published_brains_are_without_skull() -> None:
    for folder, names in (("open-ms/stripped", "*-t2f.nii.gz"), ("brats-africa", "*-t1c.nii.gz")):
        volume = load(next((DATA / folder).rglob(names)))
        brain = volume.array != 0
        assert is_stripped(volume, ndimage.binary_erosion(brain))
        # As much more as skull and scalp are.
        assert not is_stripped(volume, ndimage.binary_erosion(brain, iterations=8))


def test_nothing_of_a_face_is_left_and_every_bit_of_the_brain() -> None:
    affine = np.array([[0, 0, -2.0, 40], [1.5, 0, 0, -60], [0, 1.0, 0, -70], [0, 0, 0, 1]])
    array = noise((70, 120, 44), 100) + 1
    place = np.moveaxis(np.indices(array.shape), 0, -1) * [1.5, 1.0, 2.0] - [60, 70, 40]
    brain = np.linalg.norm(place / [1.3, 1.0, 1.0], axis=-1) < 30
    before = array.copy()
    found = without_face(array, brain, affine)
    assert np.array_equal(array, before)
    assert np.array_equal(found[brain], array[brain])
    apart = ndimage.distance_transform_edt(~brain, sampling=(1.5, 1.0, 2.0))
    assert np.array_equal(found != 0, apart <= MARGIN_MM)
    assert np.array_equal(found[apart <= MARGIN_MM], array[apart <= MARGIN_MM])
    assert found.dtype == array.dtype


@with_heads
def test_no_skin_of_a_real_head_is_left() -> None:
    head, brain = (load(DATA / f"open-ms/skull-on/patient12_study1/{name}.nii.gz") for name in ("t2", "brainmask_t2"))
    left = without_face(head.array, brain.array > 0, head.affine) != 0
    planes = range(0, left.shape[2], 4)
    closed = (ndimage.binary_closing(head.array[..., at] > 10, iterations=2) for at in planes)
    body = [ndimage.binary_fill_holes(largest_part(plane)) for plane in closed]
    skin = np.stack([plane & ~ndimage.binary_erosion(plane) for plane in body])
    assert np.count_nonzero(skin) > 5000
    assert np.count_nonzero(skin & np.stack([left[..., at] for at in planes])) < 0.001 * np.count_nonzero(skin)


@pytest.mark.parametrize("edge", [0.8, 2.7], ids=["finer", "coarser"])
def test_a_mask_on_another_grid_is_what_the_whole_grid_gives(edge: float) -> None:
    own = np.array([[1.2, 0.1, 0, -20], [-0.1, 1.4, 0.2, -30], [0, -0.2, 2.0, -25], [0, 0, 0, 1]])
    place = np.moveaxis(np.indices((34, 40, 26)), 0, -1)
    mask = (np.linalg.norm((place - [15, 22, 2]) / [9, 12, 8], axis=-1) < 1) | (place == [30, 5, 20]).all(axis=-1)
    shape = (round(50 / edge), round(64 / edge), round(56 / edge))
    like = Volume(np.zeros(shape, dtype=np.float32), np.diag([-edge, edge, edge, 1.0]))
    like.affine[:3, 3] = [28, -33, -30]
    whole, _, _ = on_grid_of(Volume(1 + mask.astype(np.float32), own), like)
    assert np.array_equal(on_grid(mask, own, like), whole.array >= 1.5)
    assert on_grid(mask, own, like).any()
    far = own.copy()
    far[:3, 3] += 500
    assert not on_grid(mask, far, like).any()


@pytest.mark.usefixtures("small_shipped", "quickened")
def test_pictures_show_no_face_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brain = np.asarray(head(SPACINGS["t1c"]).dataobj) > 0
    brain[:, brain.shape[1] // 2 :] = False
    # DICOM turns the axes.
    monkeypatch.setattr(prepare, "extract_brain", lambda volume, where: brain[::-1, ::-1])
    monkeypatch.setattr("lora_moe_hgd.scans.brains.POSSIBLE_LITRES", (0.1, 2))
    image = head(SPACINGS["t1c"])
    array = (np.asarray(image.dataobj) + noise(image.shape) + 1).astype(np.float32)
    write_series(
        tmp_path / "dicom", in_plane(nib.Nifti1Image(array, image.affine), "LPS"), "t1c", number=1, shared=study()
    )
    shown: dict[str, np.ndarray] = {}

    def show(path: Path, images: dict[str, nib.Nifti1Image], *args: object, **more: object) -> None:
        shown[path.name] = np.asarray(images["t1c"].dataobj)

    monkeypatch.setattr(segmentation, "save_overlay", show)
    monkeypatch.setattr(segmentation, "write_case_page", show)
    found = lmh.segment(tmp_path / "dicom", allow_partial=True)
    found.save(tmp_path / "with", html=True)
    whole = dict(shown)
    words = ["--in-path", str(tmp_path / "dicom"), "--out-path", str(tmp_path / "without")]
    run("segment", [*words, "--allow-partial", "--html", "--deface"])
    apart = ndimage.distance_transform_edt(~brain[::-1, ::-1], sampling=SPACINGS["t1c"])
    for name in ("overlay.png", "report.html"):
        assert whole[name].all()
        assert not shown[name][apart > MARGIN_MM].any()
        assert np.array_equal(shown[name][apart <= MARGIN_MM], whole[name][apart <= MARGIN_MM])
    label_map = np.asarray(nib.load(tmp_path / "without/seg.nii.gz").dataobj)
    assert np.array_equal(label_map, np.asarray(found.label_map.dataobj))
    options: list[ScanOptions] = []
    monkeypatch.setattr(api, "segment_scan", lambda segmenter, path, option: options.append(option))
    lmh.segment(tmp_path / "dicom", deface=True)
    assert [option.deface for option in options] == [True]


def test_a_prepared_case_has_no_face_to_remove(tmp_path: Path, capsys, small_shipped: None) -> None:
    with pytest.raises(ValueError, match="`deface` has an effect on DICOM files only"):
        lmh.segment(lmh.example_case(), deface=True)
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(lmh.example_case()), "--out-path", str(tmp_path / "out"), "--deface"])
    assert "--deface has an effect on DICOM files only" in capsys.readouterr().err
