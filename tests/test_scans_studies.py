"""From a folder or zip of DICOM files to the volumes of the sequences."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from dicoms import PLANES, ball, in_plane, study, turned, write_enhanced, write_series

from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.grids import Volume, on_grid_of
from lora_moe_hgd.scans import archives
from lora_moe_hgd.scans.archives import unpack
from lora_moe_hgd.scans.choice import choose, parse_series
from lora_moe_hgd.scans.convert import convert
from lora_moe_hgd.scans.raw import is_raw
from lora_moe_hgd.scans.reading import read_scans
from lora_moe_hgd.scans.recognise import recognise
from lora_moe_hgd.scans.series import Acquisition, Series
from lora_moe_hgd.scans.studies import choose_study, read_studies


def of(**values: object) -> Series:
    """A complete transverse series with these header values."""
    return Series(
        1, "1.2", "1", "p", "", (), (), (), Acquisition(**values), (256, 256, 40), (1.0, 1.0, 4.0), "transverse"
    )


@pytest.mark.parametrize(
    ("sequence", "values"),
    [
        ("flair", {"echo_ms": 110, "repetition_ms": 9000, "inversion_ms": 2500, "description": "t2_tirm_dark-fluid"}),
        ("flair", {"echo_ms": 390, "repetition_ms": 5000, "inversion_ms": 1800, "description": "3D"}),
        ("t2", {"echo_ms": 95, "repetition_ms": 4500}),
        ("t2", {"echo_ms": 410, "repetition_ms": 3200, "description": "SPACE"}),
        ("t1", {"echo_ms": 12, "repetition_ms": 550}),
        ("t1", {"echo_ms": 2.3, "repetition_ms": 2300, "inversion_ms": 900}),
        ("t1", {"echo_ms": 3.2, "repetition_ms": 8.2, "description": "FSPGR"}),
        ("t1", {"echo_ms": 24, "repetition_ms": 2200, "inversion_ms": 860, "description": "T1 FLAIR"}),
        ("t1c", {"echo_ms": 12, "repetition_ms": 550, "agent": "Dotarem"}),
        ("t1c", {"echo_ms": 12, "repetition_ms": 550, "description": "T1 SE POST"}),
        ("t1", {"echo_ms": 12, "repetition_ms": 550, "agent": "NONE", "description": "T1 SE"}),
        ("t2", {"echo_ms": 95, "repetition_ms": 4500, "agent": "Dotarem", "description": "t1 km"}),
        ("t1c", {"description": "t1_mprage_gad"}),
        (None, {"echo_ms": 15, "repetition_ms": 3000}),
        (None, {"echo_ms": 60, "repetition_ms": 4000, "inversion_ms": 160}),
        (None, {"echo_ms": 90, "repetition_ms": 4000, "scanning": ("EP",)}),
        (None, {"echo_ms": 3, "repetition_ms": 22, "angiography": True}),
        (None, {"echo_ms": 3, "repetition_ms": 22, "description": "TOF 3D"}),
        (None, {"echo_ms": 20, "repetition_ms": 28, "image_type": ("ORIGINAL", "PRIMARY", "P")}),
        (None, {"echo_ms": 95, "repetition_ms": 4500, "image_type": ("DERIVED", "PRIMARY", "DIFFUSION", "ADC")}),
        (None, {"echo_ms": 95, "repetition_ms": 4500, "is_secondary": True}),
        (None, {"description": "unnamed"}),
        (None, {"modality": "CT", "description": "t1"}),
    ],
)
def test_times_tell_the_sequence_and_descriptions_come_last(sequence: str | None, values: dict) -> None:
    assert recognise(of(**values)).sequence == sequence


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shape": (256, 256, 3)}, "3 slices only"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, "covers 40 mm only"),
        ({"volumes": 20}, "20 images at each slice position"),
        ({"plane": "none"}, "no orientation"),
        ({"shape": (0, 0, 0)}, "no image"),
    ],
)
def test_stacks_that_show_no_whole_brain_are_left_out(change: dict, why: str) -> None:
    found = recognise(replace(of(echo_ms=95, repetition_ms=4500), **change))
    assert found.sequence is None
    assert why in found.why


def test_the_best_candidate_is_original_complete_and_fine(tmp_path: Path) -> None:
    good = of(echo_ms=95, repetition_ms=4500)
    rows = [
        replace(good, number=1, spacing_mm=(0.5, 0.5, 6.0)),
        replace(good, number=2, gaps=2, spacing_mm=(2.0, 2.0, 2.0)),
        replace(of(echo_ms=95, repetition_ms=4500, image_type=("DERIVED",)), number=3, spacing_mm=(2.0,) * 3),
        replace(good, number=4, spacing_mm=(0.5, 0.5, 4.0)),
        replace(good, number=5, spacing_mm=(1.0, 1.0, 4.0)),
    ]
    found = choose(rows, {}, where=tmp_path)
    assert found.chosen["t2"].number == 4
    assert "--series t2=NUMBER" in str(found.findings[0])
    assert choose(rows, {"t2": "5"}, where=tmp_path).chosen["t2"].number == 5
    assert "5*" in choose(rows, {"t2": "5"}, where=tmp_path).table()
    with pytest.raises(BadInputError, match=r"no series 9\. Give one of the numbers 1, 2, 3, 4, 5"):
        choose(rows, {"t2": "9"}, where=tmp_path)
    uid = replace(rows[4], uid="1.2.5")
    assert choose([*rows[:4], uid], {"t2": "1.2.5"}, where=tmp_path).chosen["t2"].number == 5
    # A series that is named for one sequence is not used for another as well.
    assert choose(rows[:2], {"flair": "1"}, where=tmp_path).chosen["t2"].number == 2


def test_a_series_option_of_another_form_is_refused() -> None:
    for text in ("t1c", "t1c=", "t3=1"):
        with pytest.raises(ValueError, match="SEQUENCE=NUMBER"):
            parse_series([text])
    with pytest.raises(ValueError, match=r"Got: T1CE=5\. 't1ce' is named 't1c' here\."):
        parse_series(["T1CE=5"])


def centre(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of the bright spot in millimetres."""
    return (affine @ [*np.argwhere(array > 0.6 * array.max()).mean(axis=0), 1])[:3]


@pytest.mark.parametrize(("plane", "descending"), [*((plane, True) for plane in PLANES), ("transverse", False)])
def test_a_series_of_any_plane_lies_where_its_headers_say(plane: str, descending: bool, tmp_path: Path) -> None:
    image = in_plane(turned(ball()), PLANES[plane])
    write_series(tmp_path / "a/b", image, "t2", number=3, shared=study(), descending=descending, implicit=descending)
    (row,), unreadable = read_studies(tmp_path)
    assert not unreadable
    assert row.shape == image.shape
    assert row.spacing_mm == pytest.approx(image.header.get_zooms(), abs=1e-4)
    volume, findings = convert(row, "t2", tmp_path)
    assert not findings
    assert np.abs(centre(np.asarray(image.dataobj), image.affine) - centre(volume.array, volume.affine)).max() < 0.01


def test_an_enhanced_file_is_read_as_its_slices_would_be(tmp_path: Path) -> None:
    image = in_plane(turned(ball()), "LIP")
    write_enhanced(tmp_path, image, "flair", number=2, shared=study())
    (row,), _ = read_studies(tmp_path)
    assert (row.shape, recognise(row).sequence) == (image.shape, "flair")
    assert row.spacing_mm == pytest.approx(image.header.get_zooms(), abs=1e-4)
    volume, _ = convert(row, "flair", tmp_path)
    assert np.abs(centre(np.asarray(image.dataobj), image.affine) - centre(volume.array, volume.affine)).max() < 0.01


@pytest.mark.parametrize(("plane", "descending"), [("transverse", False), ("sagittal from the right", True)])
def test_missing_slices_move_nothing(plane: str, descending: bool, tmp_path: Path) -> None:
    image = in_plane(turned(ball((24, 26, 22), (5.0, 4.0, 5.0))), PLANES[plane])
    write_series(tmp_path, image, "t2", number=1, shared=study(), leave_out=(5, 6), descending=descending)
    rows, _ = read_studies(tmp_path)
    found = choose(rows, {}, where=tmp_path)
    assert "1 uneven gap between slices. Slices may be missing. Copy the series again" in str(found.findings[0])
    volume, findings = convert(found.chosen["t2"], "t2", tmp_path)
    assert "interpolated to evenly spaced slices" in str(findings[0])
    assert volume.array.shape == image.shape
    assert np.abs(centre(np.asarray(image.dataobj), image.affine) - centre(volume.array, volume.affine)).max() < 2


@pytest.mark.parametrize("descending", [False, True])
def test_slices_that_are_shifted_against_each_other_are_put_right(descending: bool, tmp_path: Path) -> None:
    image = in_plane(ball(), "LPS")
    leaning = image.affine.copy()
    leaning[:2, 2] += [-1.0, 2.0]
    # The same head, scanned with planes that lean.
    source = Volume(np.asarray(image.dataobj), image.affine)
    scanned, _, _ = on_grid_of(source, Volume(np.zeros(image.shape, np.float32), leaning))
    write_series(
        tmp_path, nib.Nifti1Image(scanned.array, leaning), "t2", number=1, shared=study(), descending=descending
    )
    (row,), _ = read_studies(tmp_path)
    volume, findings = convert(row, "t2", tmp_path)
    assert "interpolated to evenly spaced slices" in str(findings[0])
    assert np.abs(centre(np.asarray(image.dataobj), image.affine) - centre(volume.array, volume.affine)).max() < 2


def test_two_patients_or_studies_are_listed_and_one_can_be_chosen(tmp_path: Path) -> None:
    image = in_plane(ball(), "LPS")
    write_series(tmp_path / "1", image, "t2", number=1, shared=study(1))
    write_series(tmp_path / "2", image, "t2", number=1, shared=study(2))
    rows, _ = read_studies(tmp_path)
    with pytest.raises(BadInputError, match=r"2 studies\. Choose a study with --study NUMBER"):
        choose_study(rows, None, where=tmp_path)
    assert [row.number for row in choose_study(rows, "2", where=tmp_path)] == [2]
    assert choose_study(rows, rows[0].study, where=tmp_path) == rows[:1]
    with pytest.raises(BadInputError, match=r"no study 3\. Choose a study with --study NUMBER"):
        choose_study(rows, "3", where=tmp_path)
    write_series(tmp_path / "3", image, "t2", number=1, shared=study(3, PatientID="OTHER"))
    rows, _ = read_studies(tmp_path)
    with pytest.raises(BadInputError, match="2 patients") as stopped:
        choose_study(rows, None, where=tmp_path)
    assert "OTHER" not in str(stopped.value)
    assert "Muster" not in str(stopped.value)


def test_a_name_in_a_description_is_blacked_out(tmp_path: Path) -> None:
    image = in_plane(ball(), "LPS")
    write_series(tmp_path, image, "t2", number=1, shared=study(), SeriesDescription="MUSTER t2 hx-4711")
    (row,), _ = read_studies(tmp_path)
    assert row.acquisition.description == "*** t2 ***"


def test_a_file_that_is_cut_off_leaves_its_series_out(tmp_path: Path) -> None:
    image = in_plane(ball(), "LPS")
    write_series(tmp_path, image, "flair", number=1, shared=study())
    paths = write_series(tmp_path, image, "t2", number=2, shared=study())
    paths[4].write_bytes(paths[4].read_bytes()[:-200])
    rows, _ = read_studies(tmp_path)
    found = choose(rows, {}, where=tmp_path)
    assert list(found.chosen) == ["flair"]
    assert "Files of series 2 are cut off" in str(found.findings[-1])
    paths[5].write_bytes(paths[5].read_bytes()[:140])
    assert read_studies(tmp_path)[1] == 1


def test_a_zip_is_unpacked_under_names_of_its_own(tmp_path: Path) -> None:
    source, target = tmp_path / "scan.zip", tmp_path / "out"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("Muster_Erika/a.dcm", b"one")
        archive.writestr("Muster_Erika/b/a.dcm", b"two")
    assert is_raw(source)
    unpack(source, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"000000": b"one", "000001": b"two"}


def _link() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("link")
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("../a", "out of the target folder.*If you trust"),
        ("/etc/a", "out of the target folder"),
        (_link(), "a link.*If you trust"),
    ],
)
def test_a_zip_that_leads_out_of_its_folder_is_refused(member, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.writestr(member, b"/etc/passwd")
    with pytest.raises(BadInputError, match=message):
        unpack(tmp_path / "scan.zip", tmp_path / "out")


def test_a_zip_that_unpacks_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SMALL_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1_000_000))
    with pytest.raises(BadInputError, match=r"100 times its size.*If you trust the zip file"):
        unpack(tmp_path / "scan.zip", tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(BadInputError, match="at most"):
        unpack(tmp_path / "scan.zip", tmp_path / "out")


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(BadInputError, match="damaged"):
        unpack(tmp_path / "scan.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_a_damaged_member_is_refused_and_leaves_nothing(kind: int, tmp_path: Path) -> None:
    path, target = tmp_path / "scan.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a", b"whole")
        archive.writestr("b", bytes(range(256)) * 40)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("b")
    content = bytearray(path.read_bytes())
    start = member.header_offset + 31
    content[start : start + member.compress_size] = b"\xff" * member.compress_size
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="The zip file is damaged"):
        unpack(path, target)
    assert not target.exists()
    # So it is on the command line, where a message is one line.
    with pytest.raises(BadInputError, match=r"^[^\n]*The zip file is damaged[^\n]*$"):
        read_scans(path, scratch=tmp_path)


def test_a_member_without_a_name_is_unpacked_as_any_other(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.writestr(".", b"one")
    assert unpack(tmp_path / "scan.zip", tmp_path / "out") == 3
    assert (tmp_path / "out/000000").read_bytes() == b"one"


def test_a_zip_that_does_not_fit_on_the_disk_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.writestr("a", b"one")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2))
    with pytest.raises(BadInputError, match="the disk has"):
        unpack(tmp_path / "scan.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_dicom_are_not_raw(tmp_path: Path) -> None:
    nib.save(ball(), tmp_path / "t1.nii.gz")
    assert not is_raw(tmp_path)
    with pytest.raises(BadInputError, match=r"No DICOM file.*Give the folder of a study"):
        read_studies(tmp_path)
