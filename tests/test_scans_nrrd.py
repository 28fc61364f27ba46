"""NRRD images: where their voxels lie, which files are refused before anything is read, and the case they make."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_scans import SPACINGS, head

from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.scans.nrrd import find_nrrd_case, read_nrrd
from lora_moe_hgd.scans.prepared import FILE_NAMES, PREPARED
from lora_moe_hgd_cli import run

VOXELS = np.random.default_rng(0).integers(-500, 3000, (3, 4, 5)).astype("<i2")
# Columns of the turned and stretched grid, and its origin, as the header gives them.
DIRECTIONS = np.array([[1.5, 0.0, 0.3], [0.1, -2.0, 0.0], [-0.6, 0.0, 3.0]]).T
ORIGIN = np.array([11.0, -22.0, 33.0])
# Signs that bring a point of the space to RAS.
TO_RAS = {
    "left-posterior-superior": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "LPS": (-1, -1, 1),
    "RAS": (1, 1, 1),
}


def vector(values: np.ndarray) -> str:
    return f"({','.join(map(repr, map(float, values)))})"


def header(**fields: str | None) -> bytes:
    """A header; a field of `None` is left out, and `_` in a name stands for a space."""
    every = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "3 4 5",
        "space directions": " ".join(vector(column) for column in DIRECTIONS.T),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": vector(ORIGIN),
        **{name.replace("_", " "): value for name, value in fields.items()},
    }
    lines = ["NRRD0004", "# a comment: of the program", *(f"{name}: {text}" for name, text in every.items() if text)]
    return "\n".join([*lines, "patient:=Muster^Erika", "", ""]).encode()


@pytest.mark.parametrize("space", TO_RAS)
def test_every_voxel_lies_where_the_space_of_the_file_says(space: str, tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(header(space=space) + VOXELS.tobytes(order="F"))
    found = read_nrrd(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(found.array, VOXELS)
    for index in ((0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 4), (1, 2, 3)):
        expected = (ORIGIN + DIRECTIONS @ index) * TO_RAS[space]
        np.testing.assert_allclose((found.affine @ [*index, 1])[:3], expected, atol=1e-9)


def test_compressed_and_detached_voxels_are_the_same(tmp_path: Path) -> None:
    raw = VOXELS.tobytes(order="F")
    (tmp_path / "packed.nrrd").write_bytes(header(encoding="gzip") + gzip.compress(raw))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/voxels.raw.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "a.nhdr").write_bytes(header(encoding="gz", data_file="sub/voxels.raw.gz"))
    (tmp_path / "windows.nhdr").write_bytes(
        header(encoding="gz", data_file="sub/voxels.raw.gz").replace(b"\n", b"\r\n")
    )
    for name in ("packed.nrrd", "a.nhdr", "windows.nhdr"):
        np.testing.assert_array_equal(read_nrrd(tmp_path / name).array, VOXELS, err_msg=name)


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/hostname", "sub/../../secret.raw", r"..\secret.raw", r"C:\a"])
def test_a_data_file_outside_the_folder_is_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "case/sub").mkdir(parents=True)
    (tmp_path / "secret.raw").write_bytes(VOXELS.tobytes(order="F"))
    (tmp_path / "case/a.nhdr").write_bytes(header(data_file=name))
    with pytest.raises(BadInputError, match="in another folder"):
        read_nrrd(tmp_path / "case/a.nhdr")


BAD: dict[str, tuple[bytes, str]] = {
    "huge": (header(sizes="1000 1000 100000"), "each axis must have 1 to 1024"),
    "too many bytes": (header(sizes="1024 1024 1024", type="double"), "at most 4 GiB are allowed"),
    "several volumes": (header(dimension="4", sizes="3 4 5 2"), "not contain exactly one volume with three axes"),
    "colours": (
        header(space_directions=f"none {vector(ORIGIN)} {vector(ORIGIN)}"),
        "not contain exactly one volume with three axes",
    ),
    "no type": (header(type=None), "lacks sizes, type or encoding"),
    "no space": (header(space=None), "orientation of the patient"),
    "scanner's space": (header(space="scanner-xyz"), "orientation of the patient"),
    "no directions": (header(space_directions=None), "orientation of the patient"),
    "flat": (header(space_directions="(1,0,0) (2,0,0) (0,0,1)") + VOXELS.tobytes(), "NRRD file|affine is singular"),
    "other encoding": (header(encoding="bzip2"), "The encoding bzip2 is not supported"),
    "several files": (header(data_file="a%03d.raw 1 5 1"), "in several files"),
    "a list": (header(data_file="LIST"), "in several files"),
    "two data files": (header(data_file="a.raw", datafile="../b.raw"), "datafile twice"),
    "a missing file": (header(data_file="nowhere.raw"), "no such file"),
    "cut off": (header() + VOXELS.tobytes()[:50], "damaged or incomplete"),
    "wrong checksum": (header(encoding="gzip") + gzip.compress(VOXELS.tobytes())[:-8] + bytes(8), "damaged"),
    "no NRRD": (b"NIFTI" + header(), "does not begin with an NRRD header"),
    "no end": (b"NRRD0004\n" + b"# \n" * 40_000, "longer than"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_of_a_head_is_refused_with_a_reason(kind: str, tmp_path: Path) -> None:
    content, message = BAD[kind]
    (tmp_path / "a.nrrd").write_bytes(content)
    with pytest.raises(BadInputError, match=message) as refused:
        read_nrrd(tmp_path / "a.nrrd")
    assert "\n" not in str(refused.value)


def write(path: Path, image: nib.Nifti1Image) -> None:
    """Write an image as NRRD, in RAS."""
    array = np.asarray(image.dataobj, dtype="<f4")
    fields = {
        "type": "float",
        "space": "RAS",
        "sizes": " ".join(map(str, array.shape)),
        "space_directions": " ".join(vector(column) for column in image.affine[:3, :3].T),
        "space_origin": vector(image.affine[:3, 3]),
        "encoding": "gzip",
    }
    path.write_bytes(header(**fields) + gzip.compress(array.tobytes(order="F"), 1))


def test_a_folder_with_nrrd_and_nifti_becomes_the_same_case_as_nifti_alone(
    tmp_path: Path, quickened: None, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: head(spacing) for name, spacing in SPACINGS.items()}
    (tmp_path / "a/p7").mkdir(parents=True)
    (tmp_path / "b/p7").mkdir(parents=True)
    write(tmp_path / "a/p7/p7_T1_gd.nrrd", images["t1c"])
    write(tmp_path / "a/p7/p7_adc.nhdr", images["t1c"])
    for place in (tmp_path / "a/p7/p7_flair.nii.gz", tmp_path / "b/p7/p7_flair.nii.gz"):
        nib.save(images["flair"], place)
    nib.save(images["t1c"], tmp_path / "b/p7/p7_T1_gd.nii.gz")
    for folder in ("a", "b"):
        run("prepare", [str(tmp_path / folder / "p7"), str(tmp_path / folder / "out")])
    printed = capsys.readouterr().out
    assert "t1c: p7_T1_gd.nrrd\nflair: p7_flair.nii.gz\nnot used because of their names: p7_adc.nhdr\n" in printed
    assert "t1c: p7_T1_gd.nii.gz\nflair: p7_flair.nii.gz\n" in printed
    for name in SPACINGS:
        found, expected = (nib.load(tmp_path / folder / "out" / FILE_NAMES[name]) for folder in ("a", "b"))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    assert json.loads((tmp_path / "a/out" / PREPARED).read_text())["case_id"] == "p7"


def test_unclear_names_are_refused_under_their_own_names(tmp_path: Path) -> None:
    for name in ("a_t1.nrrd", "b_t1.nrrd"):
        (tmp_path / name).touch()
    with pytest.raises(BadInputError, match=r"Several files may be t1: a_t1\.nrrd, b_t1\.nrrd"):
        find_nrrd_case(tmp_path)
    for name in ("a_t1.nhdr", "a_t1.nii.gz"):
        (tmp_path / name).touch()
        with pytest.raises(BadInputError, match=rf"{re.escape(name)} and a_t1\.\w+ may be the same image"):
            find_nrrd_case(tmp_path)
        (tmp_path / name).unlink()


def test_other_commands_name_the_one_that_reads_nrrd(tmp_path: Path) -> None:
    (tmp_path / "t1.nrrd").touch()
    with pytest.raises(BadInputError, match="lora-moe-hgd prepare"):
        find_case(tmp_path)
