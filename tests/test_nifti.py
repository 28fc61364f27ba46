"""Reading what users bring, and writing whole files."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lora_moe_hgd.data.findings import BadInputError
from lora_moe_hgd.data.nifti import read_image, write_image

AFFINE = np.array([[-1.0, 0, 0, 90], [0, 0, 2, -126], [0, 1.5, 0, -72], [0, 0, 0, 1]])


def saved(path: Path, array: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4) if array is None else array
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_values_and_affine_are_kept(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "a.nii.gz")).image
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.arange(24).reshape(2, 3, 4))
    np.testing.assert_array_equal(image.affine, AFFINE)


def test_trailing_axes_of_length_one_are_dropped(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path / "a.nii", np.ones((2, 3, 4, 1)))).image.shape == (2, 3, 4)


def test_numpy_files_have_the_given_spacing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4)))
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.npy", npy_spacing_mm=2.0).image.affine, np.diag([2.0, 2, 2, 1])
    )


def test_a_written_file_has_the_geometry_of_its_model_and_none_of_its_text(tmp_path: Path) -> None:
    source = nib.Nifti1Image(np.ones((2, 3, 4), dtype=np.float32), AFFINE)
    source.set_qform(AFFINE, code=1)
    source.set_sform(AFFINE, code=4)
    source.header.set_xyzt_units("mm")
    source.header["descrip"] = b"Jane Doe"
    nib.save(source, tmp_path / "source.nii.gz")
    like = read_image(tmp_path / "source.nii.gz").image
    write_image(tmp_path / "out.nii.gz", np.ones((2, 3, 4), dtype=np.uint8), like=like)
    out = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(out.affine, AFFINE)
    assert (int(out.header["qform_code"]), int(out.header["sform_code"])) == (1, 4)
    assert out.header.get_zooms() == source.header.get_zooms()
    assert out.header.get_xyzt_units()[0] == "mm"
    assert out.get_data_dtype() == np.uint8
    assert b"Jane" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == {"source.nii.gz", "out.nii.gz"}


def garbage(path: Path) -> Path:
    path.write_bytes(b"not an image" * 100)
    return path


def truncated(path: Path) -> Path:
    saved(path, np.random.default_rng(0).normal(size=(20, 20, 20)))
    path.write_bytes(path.read_bytes()[:2000])
    return path


def huge(path: Path) -> Path:
    """A header of 1000^3 voxels with no data behind it: to be refused before anything is read."""
    header = nib.Nifti1Header()
    header.set_data_shape((1020, 1020, 1020))
    header.set_data_dtype(np.float64)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    return path


def singular(path: Path) -> Path:
    """Two axes that run the same way."""
    image = nib.Nifti1Image(np.ones((2, 3, 4), dtype=np.uint8), np.eye(4))
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    # Rows x and y of the sform.
    content[280:296] = content[296:312]
    path.write_bytes(content)
    return path


def pickled(path: Path) -> Path:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("make", "name", "rule"),
    [
        (lambda path: path, "missing.nii.gz", "must be a file, got nothing there"),
        (garbage, "a.nii.gz", "must be the kind of file that .gz says"),
        (garbage, "a.nii", "must be a whole NIfTI file"),
        (truncated, "a.nii.gz", "must be a whole gzip file, got one that ends too early"),
        (
            truncated,
            "a.nii",
            "must hold the 64000 bytes of voxels that its header announces, got a file",
        ),
        (huge, "a.nii.gz", "must take at most"),
        (pickled, "a.npy", "must be a whole .npy file of numbers"),
        (lambda path: saved(path, np.ones((2, 3, 4, 4))), "a.nii.gz", r"one volume.*shape \(2, 3, 4, 4\)"),
        (lambda path: saved(path, np.ones((1025, 1, 1))), "a.nii.gz", r"1 to 1024 voxels.*\(1025, 1, 1\)"),
        (singular, "a.nii", "finite and not singular"),
    ],
    ids=[
        "missing",
        "garbage gz",
        "garbage",
        "truncated gz",
        "truncated",
        "huge",
        "pickle",
        "4-D",
        "long axis",
        "affine",
    ],
)
def test_a_bad_file_is_refused_with_path_rule_and_value(tmp_path: Path, make, name: str, rule: str) -> None:
    path = make(tmp_path / name)
    with pytest.raises(BadInputError, match=rule) as caught:
        read_image(path)
    assert caught.value.finding.where == path
    assert str(path) in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    image = read_image(saved(tmp_path / "a.nii.gz")).image
    before = (tmp_path / "a.nii.gz").read_bytes()

    def half_written(_, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", half_written)
    with pytest.raises(OSError, match="No space"):
        write_image(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), dtype=np.uint8), like=image)
    assert (tmp_path / "a.nii.gz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
