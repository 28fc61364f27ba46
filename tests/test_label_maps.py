"""Phantoms that begin from label maps of individual brains."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.phantoms.brain_maps import label_map_files, read_label_map
from lora_moe_hgd.phantoms.phantom import make_phantom
from lora_moe_hgd.phantoms.style import NARROW
from lora_moe_hgd.training.data.datasets import PhantomDataset
from lora_moe_hgd_cli import run

SYNTHSEG = Path(__file__).parents[2] / "shared/data/synthseg-labels"


def brain_of_boxes() -> np.ndarray:
    """Cortex around white matter, a ventricle and a thalamus in it; skull and skin far outside."""
    codes = np.zeros((130, 120, 110), dtype=np.int16)
    codes[2:128, 2:118, 2:108] = 507
    codes[20:110, 20:100, 20:90] = 24
    codes[25:105, 25:95, 25:85] = 3
    codes[30:100, 30:90, 30:80] = 2
    codes[60:70, 50:70, 50:60] = 4
    codes[60:70, 50:70, 40:50] = 10
    return codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("maps")
    # Stored left to right, as FreeSurfer does.
    nib.save(nib.Nifti1Image(brain_of_boxes()[::-1], np.diag([-1.0, 1, 1, 1])), root / "one.nii.gz")
    return root


def test_tissues_of_a_label_map_lie_where_its_codes_lie_in_ras(folder: Path) -> None:
    tissues, ventricles, affine = read_label_map(folder / "one.nii.gz")
    fluid, grey, white, thalamus, *rest = (tissue.bool().numpy() for tissue in tissues)
    codes = brain_of_boxes()
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    np.testing.assert_array_equal(grey, codes == 3)
    np.testing.assert_array_equal(white, codes == 2)
    np.testing.assert_array_equal(thalamus, codes == 10)
    assert not any(part.any() for part in rest)
    assert fluid[codes == 4].all()
    np.testing.assert_array_equal(ventricles.bool().numpy(), codes == 4)
    # Fluid around the brain belongs to it as far as its hull reaches, skull and skin do not.
    assert 0.05 < fluid[codes == 24].mean() < 0.9
    assert not fluid[:15].any()
    assert (tissues.sum(dim=0) <= 1).all()


def test_the_middle_of_a_wide_ventricle_is_fluid_of_the_brain(tmp_path: Path) -> None:
    codes = brain_of_boxes()
    codes[50:80, 45:75, 40:70] = 4
    nib.save(nib.Nifti1Image(codes, np.eye(4)), tmp_path / "map.nii.gz")
    tissues, ventricles, _ = read_label_map(tmp_path / "map.nii.gz")
    assert tissues[0].numpy()[codes == 4].all()
    assert ventricles.numpy()[codes == 4].all()


@pytest.mark.parametrize(("low", "where"), [(True, "in"), (False, "above")])
def test_a_map_without_white_matter_where_tumours_begin_is_refused(low: bool, where: str, tmp_path: Path) -> None:
    codes = brain_of_boxes()
    part = codes[:, :, :44] if low else codes[:, :, 44:]
    part[part == 2] = 3
    nib.save(nib.Nifti1Image(codes, np.eye(4)), tmp_path / "map.nii.gz")
    with pytest.raises(BadInputError, match=rf"has 0\.0 mL of white matter {where} the lowest third"):
        read_label_map(tmp_path / "map.nii.gz")


def test_all_maps_are_looked_at_before_the_first_phantom_is_made(folder: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(folder, tmp_path / "maps")
    empty = nib.Nifti1Image(np.zeros((30, 30, 30), np.int16), np.eye(4))
    nib.save(empty, tmp_path / "maps/two.nii.gz")
    # The first phantom of this seed begins from another brain.
    words = ["--root", str(tmp_path / "data"), "--n", "1", "--spacing-mm", "4"]
    with pytest.raises(SystemExit):
        run("phantom", [*words, "--label-maps", str(tmp_path / "maps")])
    assert "two.nii.gz: The label map has 0 mL" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    # Nor is one made for training.
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0,) * 3)
    phantoms = PhantomDataset(
        1, seed=1_000_000, processor=processor, cache_dir=tmp_path / "cache", label_maps=tmp_path / "maps"
    )
    with pytest.raises(BadInputError, match=r"two\.nii\.gz: The label map has 0 mL"):
        phantoms.prepare_all(num_workers=0, progress=False)
    assert not phantoms.folder.exists()


def test_the_same_seed_and_maps_give_the_same_phantom_and_other_maps_another(folder: Path) -> None:
    files = label_map_files(folder)
    first, again = (make_phantom(3, spacing_mm=4.0, label_maps=files) for _ in range(2))
    assert all(torch.equal(again.volumes[name], volume) for name, volume in first.volumes.items())
    shapes = {tuple(make_phantom(seed, spacing_mm=4.0, label_maps=files).regions.shape[1:]) for seed in range(8)}
    built_in = tuple(make_phantom(3, spacing_mm=4.0).regions.shape[1:])
    # Both the map and the built-in template are used.
    assert len(shapes) == 2
    assert built_in in shapes


def test_phantoms_of_other_maps_are_kept_elsewhere(folder: Path, tmp_path: Path) -> None:
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0,) * 3)
    plain = PhantomDataset(1, seed=0, processor=processor, cache_dir=tmp_path, style=NARROW)
    mapped = PhantomDataset(1, seed=0, processor=processor, cache_dir=tmp_path, label_maps=folder, style=NARROW)
    assert plain.folder != mapped.folder
    assert mapped[0]["labels"].any()


@pytest.mark.parametrize(
    ("codes", "zoom", "message"),
    [
        (np.zeros((80, 80, 80), dtype=np.int16), 1.0, "The label map has 0 mL of grey and white matter"),
        # Slightly too little is not shown as enough.
        (2 * (np.arange(80**3).reshape(80, 80, 80) < 299_900).astype(np.int16), 1.0, "has 299 mL of grey and white"),
        (brain_of_boxes(), 2.0, "The voxels measure 2 x 2 x 2 mm"),
    ],
)
def test_what_is_no_label_map_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], codes: np.ndarray, zoom: float, message: str
) -> None:
    nib.save(nib.Nifti1Image(codes, np.diag([zoom, zoom, zoom, 1])), tmp_path / "bad.nii.gz")
    words = ["--root", str(tmp_path / "out"), "--n", "40", "--spacing-mm", "4", "--label-maps", str(tmp_path)]
    with pytest.raises(SystemExit):
        run("phantom", words)
    assert message in capsys.readouterr().err


def test_a_folder_without_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The folder holds no label map"):
        label_map_files(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not SYNTHSEG.is_dir(), reason="needs SynthSeg's label maps beside the repository")
def test_brains_of_synthseg_have_the_volumes_of_adults() -> None:
    tissues, _, _ = read_label_map(SYNTHSEG / "training_seg_01.nii.gz")
    fluid, grey, white, *mixed = (tissue.sum().item() / 1000 for tissue in tissues)
    assert 450 < grey < 900
    assert 350 < white < 700
    assert 150 < fluid < 600
    assert 20 < sum(mixed) < 90
