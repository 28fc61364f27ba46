"""Reading what users bring, and writing whole files."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lora_moe_hgd.cases.nifti import read_image, read_stack, write_image
from lora_moe_hgd.model.findings import BadInputError

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


KINDS = {"NIfTI-1": nib.Nifti1Header, "NIfTI-2": nib.Nifti2Header}


def with_header(path: Path, header: nib.Nifti1Header, array: np.ndarray, before: bytes = bytes(4)) -> Path:
    """A file with this header as it is and, between header and voxels, the given bytes."""
    header = header.copy()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header["vox_offset"] = len(header.binaryblock) + len(before)
    content = header.binaryblock + before + array.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("sizes", [(16,), (100_000,), (16, 48_000, 32, 100_000)], ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_file_with_extensions_of_its_header_is_read_without_them(kind, sizes, name, tmp_path: Path) -> None:
    extensions = io.BytesIO()
    for size in sizes:
        text = (b"Jane Doe " * size)[: size - 8]
        nib.nifti1.Nifti1Extension("comment", text).write_to(extensions, byteswap=False)
    header, array = kind(), np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    header.set_sform(AFFINE, code=1)
    path = with_header(tmp_path / name, header, array, b"\1\0\0\0" + extensions.getvalue())
    assert nib.load(path).header.extensions.get_sizeondisk() == sum(sizes)
    volume = read_image(path)
    np.testing.assert_array_equal(np.asarray(volume.image.dataobj), array)
    np.testing.assert_array_equal(volume.image.affine, AFFINE)
    assert not volume.image.header.extensions
    assert volume.findings == ()


@pytest.mark.parametrize("inter", [0, 5, np.nan])
@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_a_slope_of_zero_or_none_at_all_means_that_voxels_are_not_scaled(dtype, slope, inter, tmp_path: Path) -> None:
    array = np.arange(24).astype(dtype).reshape(2, 3, 4)
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header["scl_slope"], header["scl_inter"] = slope, inter
    header.set_sform(AFFINE, code=1)
    image = read_image(with_header(tmp_path / "a.nii", header, array)).image
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.arange(24).reshape(2, 3, 4))


def test_what_is_odd_about_a_header_is_found_in_every_volume_of_a_file(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_qform(AFFINE, code=1)
    header["pixdim"][3] = 0
    path = with_header(tmp_path / "a.nii", header, np.ones((2, 3, 4, 2), np.float32))
    for volume in read_stack(path, {"t1": 0, "t2": 1}).values():
        (finding,) = volume.findings
        assert finding.where == path
        assert "no voxel size for axis 3" in finding.message
        np.testing.assert_allclose(np.linalg.norm(volume.image.affine[:3, :3], axis=0), (1, 1.5, 1))


def test_voxels_beyond_those_that_the_header_announces_are_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8))
    content = path.read_bytes()
    for name, tail, found in (("b.nii", b"\0", 0), ("c.nii", b"\0\1", 1), ("d.nii.gz", b"\1", 1)):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content + tail) if name.endswith(".gz") else content + tail)
        findings = read_image(path).findings
        assert ["The file contains more data" in finding.message for finding in findings] == [True] * found


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (2, 3, 4, 2, 1), (2, 3, 4, 1, 2)], ids=str)
def test_a_file_of_vectors_is_a_stack_like_one_with_four_axes(shape, tmp_path: Path) -> None:
    array = np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2)
    volumes = read_stack(saved(tmp_path / "a.nii", array.reshape(shape)), {"t1": 0, "t2": 1})
    for at, name in enumerate(("t1", "t2")):
        np.testing.assert_array_equal(np.asarray(volumes[name].image.dataobj), array[..., at])


def test_an_invalid_qform_beside_an_sform_is_left_out_of_results(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_qform(AFFINE, code=1)
    header.set_sform(AFFINE, code=1)
    header["quatern_b"] = 2
    volume = read_image(with_header(tmp_path / "a.nii", header, np.ones((2, 3, 4), np.uint8)))
    assert ["quaternion is not a rotation" in finding.message for finding in volume.findings] == [True]
    write_image(tmp_path / "out.nii.gz", np.ones((2, 3, 4), np.uint8), like=volume.image)
    out = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(out.affine, AFFINE)
    assert (int(out.header["qform_code"]), int(out.header["sform_code"])) == (0, 1)


def test_a_result_has_the_voxel_sizes_of_its_affine_where_the_header_has_no_others(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_sform(AFFINE, code=1)
    image = read_image(with_header(tmp_path / "a.nii", header, np.ones((2, 3, 4), np.uint8))).image
    write_image(tmp_path / "out.nii", np.ones((2, 3, 4), np.uint8), like=image)
    assert nib.load(tmp_path / "out.nii").header.get_zooms() == (1, 1.5, 2)


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


def renamed(path: Path) -> Path:
    saved(path.with_name("b.nii.gz")).rename(path)
    return path


def unpacked(path: Path) -> Path:
    saved(path.with_name("b.nii")).rename(path)
    return path


def half_a_pair(path: Path) -> Path:
    header = nib.Nifti1Header()
    header["magic"] = b"ni1"
    header.set_data_shape((2, 3, 4))
    path.write_bytes(header.binaryblock)
    return path


def begins_in_header(path: Path) -> Path:
    content = bytearray(saved(path).read_bytes())
    content[108:112] = bytes(4)
    path.write_bytes(content)
    return path


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
    header["vox_offset"] = 352
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
        (lambda path: path, "missing.nii.gz", "There is no such file"),
        (garbage, "a.nii.gz", "does not begin with a NIfTI header"),
        (garbage, "a.nii", "does not begin with a NIfTI header"),
        (unpacked, "a.nii.gz", r"not compressed with gzip, but its name ends in \.gz\. Rename the file to a\.nii\."),
        (renamed, "a.nii", r"compressed with gzip, but its name lacks \.gz\. Rename the file to a\.nii\.gz\."),
        (half_a_pair, "a.nii", "only the header of an image"),
        (begins_in_header, "a.nii", "voxels begin at byte 0, which is inside the header itself"),
        (truncated, "a.nii.gz", "compressed file ends too early"),
        (truncated, "a.nii", "ends too early: its header announces 20 x 20 x 20 voxels of 8 bytes"),
        (huge, "a.nii.gz", "voxels need 7.907 GiB of memory, but at most 4 GiB are allowed"),
        (pickled, "a.npy", "not an array of numbers"),
        (lambda path: saved(path, np.ones((2, 3, 4, 4))), "a.nii.gz", r"contains 4 volumes \(2 x 3 x 4 x 4\)"),
        (
            lambda path: saved(path, np.ones((1025, 1, 1))),
            "a.nii.gz",
            "1025 x 1 x 1 voxels, but each axis must have 1 to 1024 voxels",
        ),
        (singular, "a.nii", "singular or not finite"),
        *(
            (garbage, name, "nib-convert a.[A-Za-z0-9.]+ NAME.nii.gz")
            for name in ("a.hdr", "a.img.gz", "a.MGZ", "a.nii.bz2")
        ),
        (garbage, "a.mha", "3D Slicer"),
        (garbage, "a.nrrd", "lora-moe-hgd prepare"),
        (garbage, "a.dcm", "Give the folder of the study"),
        (garbage, "a.gz", r"none of the supported extensions: \.nii, \.nii\.gz, \.npy\."),
    ],
    ids=lambda value: getattr(value, "__name__", value),
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
