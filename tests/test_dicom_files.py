"""DICOM files as scanners, archives and media write them: compression, byte order, DICOMDIR, text, damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicoms import (
    ball,
    compress,
    deflate,
    in_plane,
    study,
    swap_bytes,
    write_media,
    write_series,
)
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import EncapsulatedPDFStorage
from small_scans import write_study

from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.scans import deflated, prepare
from lora_moe_hgd.scans.choice import choose
from lora_moe_hgd.scans.convert import convert
from lora_moe_hgd.scans.prepared import BRAIN_MASK, FILE_NAMES, PREPARED
from lora_moe_hgd.scans.raw import is_raw
from lora_moe_hgd.scans.studies import read_studies
from lora_moe_hgd_cli import run


def noisy() -> nib.Nifti1Image:
    """A transverse ball with noise, so that errors of single slices show."""
    image = in_plane(ball(), "LPS")
    noise = np.random.default_rng(0).uniform(0.7, 1, image.shape)
    return nib.Nifti1Image((np.asarray(image.dataobj) * noise).astype(np.float32), image.affine)


def differs(folder: Path, image: nib.Nifti1Image) -> float:
    """Largest difference of a converted series from its image, as a share of the largest value."""
    (row,), unreadable = read_studies(folder)
    assert (row.cut_off, unreadable) == (0, 0)
    volume, findings = convert(row, "t2", folder)
    assert not findings
    found = nib.Nifti1Image(volume.array / volume.array.max(), volume.affine)
    like = nib.as_closest_canonical(image)
    found = nib.as_closest_canonical(found)
    np.testing.assert_allclose(found.affine, like.affine, atol=1e-3)
    values = np.asarray(like.dataobj)
    return float(np.abs(np.asarray(found.dataobj) - values / values.max()).max())


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("RLE", 1e-3),
        ("JPEG lossless", 1e-3),
        ("JPEG lossless, any predictor", 1e-3),
        ("JPEG-LS", 1e-3),
        ("JPEG 2000 lossless", 1e-3),
        ("JPEG 2000", 0.02),
        ("JPEG baseline", 0.06),
    ],
)
def test_compressed_series_are_read(name: str, within: float, tmp_path: Path) -> None:
    image = noisy()
    for path in write_series(tmp_path, image, "t2", number=1, shared=study()):
        compress(path, name)
    assert differs(tmp_path, image) < within


def test_a_slice_in_several_fragments_is_read(tmp_path: Path) -> None:
    image = noisy()
    for path in write_series(tmp_path, image, "t2", number=1, shared=study()):
        compress(path, "JPEG lossless")
        header = pydicom.dcmread(path)
        frames = list(generate_frames(header.PixelData, number_of_frames=1))
        header.PixelData = encapsulate(frames, fragments_per_frame=3)
        header.save_as(path)
    assert differs(tmp_path, image) < 1e-3


def test_a_series_with_the_largest_byte_first_is_read(tmp_path: Path) -> None:
    image = noisy()
    for path in write_series(tmp_path, image, "t2", number=1, shared=study()):
        swap_bytes(path)
    assert differs(tmp_path, image) < 1e-3


@pytest.mark.usefixtures("small_shipped", "quickened")
def test_deflated_files_are_read_to_the_end_of_the_road(tmp_path: Path) -> None:
    image = noisy()
    for path in write_series(tmp_path / "dicom", image, "t2", number=1, shared=study()):
        deflate(path)
    assert differs(tmp_path / "dicom", image) < 1e-3
    write_study(tmp_path / "study")
    for path in (tmp_path / "study/a").iterdir():
        deflate(path)
    run("segment", ["--in-path", str(tmp_path / "study"), "--out-path", str(tmp_path / "out"), "--quiet"])
    assert (tmp_path / "out/seg.dcm").is_file()


def test_deflated_files_that_are_damaged_or_inflate_without_end_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_series(tmp_path, noisy(), "t2", number=1, shared=study())
    for path in paths:
        deflate(path)
    whole = paths[0].read_bytes()
    # The last byte may be a filler.
    for length in (len(whole) - 2, len(whole) // 2, 400):
        paths[0].write_bytes(whole[:length])
        assert read_studies(tmp_path)[1] == 1
    paths[0].write_bytes(whole)
    assert read_studies(tmp_path)[1] == 0
    with monkeypatch.context() as limited:
        # Less than the file, then less than its content.
        for most in (len(whole) // 2, len(whole) + 2):
            limited.setattr(deflated, "MAX_BYTES", most)
            assert read_studies(tmp_path) == ([], len(paths))
    monkeypatch.setattr(deflated, "SMALL_BYTES", 100)
    monkeypatch.setattr(deflated, "MAX_RATIO", 1)
    assert read_studies(tmp_path) == ([], len(paths))


def _stored_as_items(path: Path) -> None:
    """Uncompressed pixels as compressed ones are stored."""
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.98"
    header.PixelData = encapsulate([header.PixelData])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.save_as(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: compress(path, "JPEG extended"), "compressed in an unsupported way"),
        (_stored_as_items, "compressed in an unsupported way"),
    ],
    ids=["JPEG extended", "uncompressed items"],
)
def test_files_that_are_not_read_are_refused(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    for path in write_series(tmp_path, noisy(), "t2", number=1, shared=study()):
        change(path)
    with pytest.raises(BadInputError, match=message):
        prepare.prepare(tmp_path, prepare.ScanOptions(), tmp_path)


@pytest.mark.parametrize("name", ["RLE", "JPEG lossless", "JPEG 2000 lossless"])
def test_a_compressed_file_that_is_cut_off_leaves_its_series_out(name: str, tmp_path: Path) -> None:
    write_series(tmp_path, noisy(), "flair", number=1, shared=study())
    paths = write_series(tmp_path, noisy(), "t2", number=2, shared=study())
    for path in paths:
        compress(path, name)
    paths[4].write_bytes(paths[4].read_bytes()[:-100])
    rows, _ = read_studies(tmp_path)
    found = choose(rows, {}, where=tmp_path)
    assert list(found.chosen) == ["flair"]
    assert "Files of series 2 are cut off" in str(found.findings[-1])


@pytest.mark.parametrize("implicit", [False, True])
def test_a_file_that_is_cut_off_anywhere_is_noticed(implicit: bool, tmp_path: Path) -> None:
    path = write_series(tmp_path, noisy(), "t2", number=1, shared=study(), implicit=implicit)[0]
    whole = path.read_bytes()
    for other in tmp_path.iterdir():
        if other != path:
            other.unlink()
    for length in (*range(132, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        rows, unreadable = read_studies(tmp_path)
        assert unreadable + sum(row.cut_off or not row.shape[2] for row in rows) == 1, length
    path.write_bytes(whole)
    (row,), _ = read_studies(tmp_path)
    assert not row.cut_off


@pytest.fixture(scope="module")
def media(dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOMDIR over a study with T1c, a sagittal FLAIR and a localiser."""
    files = sorted(path for path in dicom.rglob("*") if path.is_file())
    return write_media(tmp_path_factory.mktemp("media") / "disc", files)


@pytest.mark.usefixtures("small_shipped", "quickened")
@pytest.mark.parametrize("way", ["DICOMDIR", "the folder"])
def test_a_dicomdir_is_read_as_a_file_and_as_the_folder(way: str, media: Path, tmp_path: Path) -> None:
    assert is_raw(media)
    source = media if way == "DICOMDIR" else media.parent
    run("prepare", [str(source), str(tmp_path / "case")])
    files = {FILE_NAMES["t1c"], FILE_NAMES["flair"], BRAIN_MASK, PREPARED}
    assert {path.name for path in (tmp_path / "case").iterdir()} == files
    # The directory itself is no damaged file.
    assert "cannot be read" not in (tmp_path / "case" / PREPARED).read_text()
    run("segment", ["--in-path", str(source), "--out-path", str(tmp_path / "out"), "--quiet"])
    assert (tmp_path / "out/seg.dcm").is_file()


def test_a_dicomdir_alone_is_refused(media: Path, tmp_path: Path) -> None:
    shutil.copy(media, tmp_path)
    with pytest.raises(BadInputError, match="Copy the DICOMDIR together with these files"):
        read_studies(tmp_path)


def test_damaged_headers_raise_nothing_that_is_no_sentence(tmp_path: Path) -> None:
    (path, *others) = write_series(tmp_path, in_plane(ball(), "LPS"), "t2", number=1, shared=study(), implicit=True)
    for other in others:
        other.unlink()
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    header = len(whole) - pydicom.dcmread(path).Rows * pydicom.dcmread(path).Columns * 2
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(132, header, rng.integers(1, 8)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            rows, unreadable = read_studies(tmp_path)
            if rows:
                choose(rows, {}, where=tmp_path)
        except BadInputError:
            continue
        assert unreadable + len(rows) == 1


def test_names_and_descriptions_in_any_alphabet_are_read_and_blacked_out(tmp_path: Path) -> None:
    for number, (letters, name, description) in enumerate(
        (
            ("ISO_IR 144", "Мустерова^Эрика", "Мустерова голова"),
            ("ISO_IR 192", "山田^太郎", "山田太郎 T2"),
            ("\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎", "T2 Yamada"),
            ("GB18030", "王^小东小", "小东小 T2"),
        ),
        start=1,
    ):
        shared = study(1, PatientName=name)
        tags = {"SpecificCharacterSet": letters.split("\\"), "SeriesDescription": description}
        write_series(tmp_path, in_plane(ball(), "LPS"), "t2", number=number, shared=shared, **tags)
    rows, unreadable = read_studies(tmp_path)
    assert not unreadable
    descriptions = [row.acquisition.description for row in rows]
    assert descriptions[:1] == ["*** голова"]
    assert all("***" in text for text in descriptions)
    assert not any(word in text for text in descriptions for word in ("Мустерова", "山田", "Yamada", "小东小"))


def test_text_in_no_known_alphabet_does_not_hinder(tmp_path: Path) -> None:
    for letters in ("ISO_IR 999", "ISO_IR 192"):
        folder = tmp_path / letters
        for path in write_series(folder, in_plane(ball(), "LPS"), "t2", number=1, shared=study()):
            header = pydicom.dcmread(path)
            header.SpecificCharacterSet = letters
            header.save_as(path)
            # Latin letters under another alphabet's name.
            path.write_bytes(path.read_bytes().replace(b"series of t2", b"s\xe9ries de t2"))
        (row,), unreadable = read_studies(folder)
        assert (row.shape[2], unreadable) == (16, 0)
        assert row.acquisition.description.isprintable()


def test_private_tags_and_reports_do_not_hinder(tmp_path: Path) -> None:
    image = noisy()
    paths = write_series(tmp_path / "in", image, "t2", number=1, shared=study(), implicit=True)
    for path in paths:
        header = pydicom.dcmread(path)
        block = header.private_block(0x0051, "PHANTOM \xb5 MAKER", create=True)
        inner = pydicom.Dataset()
        inner.add_new((0x0051, 0x1099), "UN", b"\0\1\2" * 700)
        block.add_new(0x08, "SQ", [inner, pydicom.Dataset()])
        block.add_new(0x09, "UN", b"\xff" * 3001)
        header[block.get_tag(0x08)].is_undefined_length = True
        header.save_as(path)
    assert differs(tmp_path / "in", image) < 1e-3
    report = pydicom.dcmread(paths[0])
    del report.PixelData, report.Rows, report.Columns
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
    report.SeriesInstanceUID, report.Modality = "1.2.3", "DOC"
    report.EncapsulatedDocument = b"%PDF-1.4 "
    report.save_as(tmp_path / "in/report")
    rows, unreadable = read_studies(tmp_path / "in")
    assert not unreadable
    found = choose(rows, {}, where=tmp_path)
    assert "no image" in found.table()
    assert list(found.chosen) == ["t2"]
    assert not found.findings
