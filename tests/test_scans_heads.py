"""Registration and brain extraction: on a small ball by default, on real heads with their skull as slow tests."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from phantom_heads import make_head
from scipy.spatial.transform import Rotation

from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.grids import Volume
from lora_moe_hgd.scans import brain_extraction, registration
from lora_moe_hgd.scans.brain_extraction import brain_by_command, brain_by_mask, extract_brain
from lora_moe_hgd.scans.brains import agreed_brain
from lora_moe_hgd.scans.registration import optimum, register

HEADS = Path(__file__).parents[1].parent / "shared/data/open-ms/skull-on"
LABEL_MAPS = Path(__file__).parents[1].parent / "shared/data/synthseg-labels"
with_heads = pytest.mark.skipif(not HEADS.is_dir(), reason="the heads of open-ms are not here")
SEQUENCES = ("t1", "t2", "flair")


def motion(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def error(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Distance in millimetres 50 mm from the origin at most, and angle in degrees, between two motions."""
    points = np.array([[x, y, z, 1] for x in (-50, 50) for y in (-50, 50) for z in (-50, 50)])
    between = Rotation.from_matrix((found @ np.linalg.inv(expected))[:3, :3])
    return float(np.abs(points @ (found - expected).T).max()), float(np.degrees(between.magnitude()))


@pytest.fixture
def lumps() -> tuple[Volume, Volume]:
    """Two contrasts of one made-up head without symmetry, on different grids."""
    volumes = []
    for shape, edges, levels in (
        ((36, 44, 36), (3.0, 3.0, 3.0), (1, 3, 5, 2)),
        ((38, 40, 34), (2.8, 3.4, 3.2), (4, 1, 2, 5)),
    ):
        affine = np.diag([*edges, 1.0])
        affine[:3, 3] = -0.5 * np.array(edges) * (np.array(shape) - 1)
        place = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3] + affine[:3, 3]
        array = 100.0 * levels[0] * (np.linalg.norm(place / [1.0, 1.2, 0.9], axis=-1) < 48)
        for at, radius, level in zip(
            ([20, 10, 5], [-15, 25, -10], [-10, -25, 15]), (16, 12, 14), levels[1:], strict=True
        ):
            array[np.linalg.norm(place - at, axis=-1) < radius] = 100.0 * level
        volumes.append(Volume(array.astype(np.float32), affine))
    return volumes[0], volumes[1]


def test_a_known_motion_is_recovered(lumps: tuple[Volume, Volume], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "TURNS", ((0.0, 0.0, 0.0), (10.0, 0.0, 0.0)))
    monkeypatch.setattr(registration, "FOLLOWED", 1)
    moved_by = motion((8.0, -4.0, 6.0), (9.0, -6.0, 5.0))
    moved = Volume(lumps[1].array, moved_by @ lumps[1].affine)
    found = register(lumps[0], moved, brain=lumps[0].array > 0, moving_brain=lumps[1].array > 0)
    distance, angle = error(found.matrix @ moved_by, np.eye(4))
    # The voxels measure 3 mm. Slow tests on real heads ask for 1 mm and 1 degree.
    assert distance < 3
    assert angle < 2
    assert found.after > found.before
    assert found.turn_degrees == pytest.approx(10.9, abs=2)
    np.testing.assert_allclose(found.moved(moved).affine, found.matrix @ moved.affine)


def test_images_that_lie_right_are_not_moved(lumps: tuple[Volume, Volume], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "TURNS", ((0.0, 0.0, 0.0),))
    monkeypatch.setattr(registration, "FINE_MM", 4.0)
    found = register(lumps[0], lumps[0], brain=lumps[0].array > 0)
    assert np.array_equal(found.matrix, np.eye(4))
    assert found.before == found.after


def test_only_the_known_networks_are_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Other:
        name = "model.pt"

        def locate(self) -> Path:
            return tmp_path / "model.pt"

    (tmp_path / "model.pt").write_bytes(b"code of someone else")
    monkeypatch.setattr(brain_extraction.metadata, "files", lambda name: [Other()])
    brain_extraction._network.cache_clear()
    with pytest.raises(ValueError, match="is missing or differs, so the network was not loaded"):
        brain_extraction._network("model.pt")
    brain_extraction._network.cache_clear()


def test_the_installed_networks_are_the_known_ones_and_bring_no_window() -> None:
    for file in brain_extraction.metadata.files("deepbet") or []:
        if file.name in brain_extraction.NETWORKS:
            digest = hashlib.sha256(Path(str(file.locate())).read_bytes()).hexdigest()
            assert digest == brain_extraction.NETWORKS[file.name]
    assert not {"customtkinter", "tkinter", "deepbet"} & set(sys.modules)


def test_a_mask_or_a_command_gives_the_brain(lumps: tuple[Volume, Volume], tmp_path: Path) -> None:
    volume, other = lumps
    nib.save(nib.Nifti1Image((other.array > 0).astype(np.uint8), other.affine), tmp_path / "mask.nii.gz")
    brain = brain_by_mask(tmp_path / "mask.nii.gz", volume, "t1")
    assert brain.shape == volume.array.shape
    assert dice(brain, volume.array > 0) > 0.9
    found = brain_by_command("cp {input} {output}", volume, "t1", tmp_path)
    assert np.array_equal(found, volume.array > 0)
    for command, message in (
        ("false {input} {output}", "failed with exit code 1. Its last message: none. Give a mask with --brain-mask"),
        ("no-such-program {input} {output}", "was not found"),
    ):
        with pytest.raises(BadInputError, match=message):
            brain_by_command(command, volume, "t1", tmp_path)
    with pytest.raises(ValueError, match=r"\{input\}"):
        brain_by_command("hd-bet", volume, "t1", tmp_path)


def read(head: str, name: str) -> Volume:
    image = nib.load(HEADS / head / f"{name}.nii.gz")
    return Volume(np.asarray(image.dataobj, dtype=np.float32), image.affine)


@pytest.mark.slow
@with_heads
@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("head", ["patient01_study1", "patient12_study1"])
def test_the_brain_of_real_heads_is_found_on_every_sequence(head: str, sequence: str) -> None:
    brain = extract_brain(read(head, sequence), sequence)
    assert dice(brain, read(head, f"brainmask_{sequence}").array > 0) >= 0.95


@pytest.mark.slow
@pytest.mark.skipif(not LABEL_MAPS.is_dir(), reason="the label maps of synthseg-labels are not here")
@pytest.mark.parametrize("seed", [2, 3])
def test_the_brain_of_a_phantom_with_a_head_keeps_a_tumour_at_the_surface(seed: int) -> None:
    volumes, regions, brain, surface = make_head(LABEL_MAPS / f"training_seg_{seed + 1:02d}.nii.gz", seed)
    masks = {name: extract_brain(volume, name) for name, volume in volumes.items()}
    mask, _ = agreed_brain(masks, "t1c")
    assert surface > 0.1
    assert dice(mask, brain) >= 0.95
    for region in regions:
        assert (region & mask).sum() >= 0.99 * region.sum()


@pytest.mark.slow
@with_heads
def test_the_brain_does_not_depend_on_the_order_of_the_axes() -> None:
    volume = read("patient01_study1", "flair")
    image = nib.Nifti1Image(volume.array, volume.affine)
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    found = extract_brain(Volume(np.asarray(turned.dataobj), turned.affine), "flair")
    back = nib.Nifti1Image(found.astype(np.uint8), turned.affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(turned.affine), nib.io_orientation(volume.affine))
    )
    assert np.array_equal(np.asarray(back.dataobj) > 0, extract_brain(volume, "flair"))


@pytest.mark.slow
@with_heads
@pytest.mark.parametrize("head", ["patient01_study1", "patient12_study1"])
@pytest.mark.parametrize("moving", SEQUENCES)
@pytest.mark.parametrize("reference", SEQUENCES)
def test_known_motions_of_real_heads_are_recovered(head: str, reference: str, moving: str) -> None:
    if reference == moving:
        return
    volumes = {name: read(head, name) for name in (reference, moving)}
    masks = {name: read(head, f"brainmask_{name}").array > 0 for name in volumes}
    brains = {"brain": masks[reference], "moving_brain": masks[moving]}
    moved_by = motion((9.0, -6.0, 10.0), (10.0, 7.0, -8.0))
    # Not the position from the headers: between sequences, the patient may have moved.
    before = optimum(volumes[reference], volumes[moving], **brains)
    moved = Volume(volumes[moving].array, moved_by @ volumes[moving].affine)
    distance, angle = error(register(volumes[reference], moved, **brains).matrix @ moved_by, before.matrix)
    assert distance < 1
    assert angle < 1
