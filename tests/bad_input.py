"""Ways in which a case can be wrong: each changes a good case, and is judged as a user's would be."""

from __future__ import annotations

import errno
import functools
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nibabel as nib
import numpy as np
from scipy import ndimage

from lora_moe_hgd.cases.case_files import given_case
from lora_moe_hgd.cases.layouts import find_case, survey
from lora_moe_hgd.cases.nifti import read_image, write_image
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.model.findings import BadInputError, Finding

PATIENT = "Jane Doe"
SHAPE = (40, 44, 48)
AFFINE = np.array([[-4.0, 0, 0, 78], [0, -4, 0, 86], [0, 0, 4, -94], [0, 0, 0, 1]])
# What is done to the case in a folder; findings come from reading it, if nothing is returned.
Attempt = Callable[[Path], list[Finding] | None]
ATTEMPTS: dict[str, list[tuple[str, Attempt]]] = {}


def attempt(part: str, title: str) -> Callable[[Attempt], Attempt]:
    def register(change: Attempt) -> Attempt:
        ATTEMPTS.setdefault(part, []).append((title, change))
        return change

    return register


def good_case(folder: Path) -> Path:
    """A head of 1.5 litres with a tumour, named as BraTS 2017 to 2021 is, whose headers hold a patient's name."""
    folder.mkdir(parents=True)
    for name, content in good_files().items():
        (folder / name).write_bytes(content)
    return folder


@functools.cache
def good_files() -> dict[str, bytes]:
    """The files of a good case, made once, as every attempt begins with them."""
    with tempfile.TemporaryDirectory() as scratch:
        make_good_case(Path(scratch))
        return {path.name: path.read_bytes() for path in Path(scratch).iterdir()}


def make_good_case(folder: Path) -> None:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, edge) for edge in SHAPE), indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.75
    distance = ((grid - 0.2) ** 2).sum(axis=0) ** 0.5
    labels = np.select([distance < 0.1, distance < 0.2, distance < 0.35], [1, 4, 2], 0).astype(np.uint8)
    generator = np.random.default_rng(0)
    for name in ("t1", "t1ce", "t2", "flair"):
        array = generator.normal(100, 10, SHAPE).astype(np.float32)
        array[labels == 4] += 60 if name == "t1ce" else -5
        save(folder / f"x_{name}.nii.gz", np.where(brain, array, 0).astype(np.float32))
    save(folder / "x_seg.nii.gz", labels)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = PATIENT.encode()
    nib.save(image, path)


def array_of(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).copy()


def judge(folder: Path) -> list[Finding]:
    try:
        return read_case(find_case(folder), labels=True).findings
    except BadInputError as error:
        return [error.finding]


@functools.cache
def messages(title_and_attempt: tuple[str, Attempt]) -> list[tuple[str, str]]:
    """Level and text of each finding, with the folder's name left out."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = good_case(Path(scratch) / "case")
        found = title_and_attempt[1](folder)
        findings = judge(folder) if found is None else found
        return [(finding.level, str(finding).replace(f"{scratch}/", "")) for finding in findings]


def in_header(path: Path, offset: int, values: np.ndarray) -> None:
    """Overwrite part of the header of a file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[offset : offset + values.nbytes] = values.tobytes()
    path.write_bytes(gzip.compress(bytes(content), mtime=0))


def error_of(call: Callable[[], object]) -> list[Finding]:
    try:
        call()
    except BadInputError as error:
        return [error.finding]
    except OSError as error:
        # What the command line prints of it.
        return [Finding(Path(str(error.filename)), f"{os.strerror(error.errno or 0)}.", "error")]
    return []


FILES, SIZES, PLACES, CONTENT, LABELS, NAMES = (
    "Files",
    "Sizes",
    "Geometry",
    "Content of a sequence",
    "Label maps",
    "Names of files",
)


@attempt(FILES, "a file that is not there")
def missing(folder: Path) -> list[Finding]:
    return read_case(given_case({"t1c": folder / "x_t1gd.nii.gz"})).findings


@attempt(FILES, "a folder where a file belongs")
def a_folder(folder: Path) -> None:
    (folder / "x_t2.nii.gz").unlink()
    (folder / "x_t2.nii.gz").mkdir()


@attempt(FILES, "a link that leads to itself")
def loop(folder: Path) -> None:
    (folder / "x_t2.nii.gz").unlink()
    (folder / "x_t2.nii.gz").symlink_to(folder / "x_t2.nii.gz")


@attempt(FILES, "a link that leads nowhere")
def dangling(folder: Path) -> None:
    (folder / "x_t2.nii.gz").unlink()
    (folder / "x_t2.nii.gz").symlink_to(folder / "gone.nii.gz")


@attempt(FILES, "a file without permission to read it")
def no_permission(folder: Path) -> list[Finding]:
    refused = PermissionError(errno.EACCES, "Permission denied")
    with mock.patch.object(Path, "open", side_effect=refused):
        return error_of(lambda: read_image(folder / "x_t1.nii.gz"))


@attempt(FILES, "a folder without permission to list it")
def closed_folder(folder: Path) -> list[Finding]:
    with mock.patch.object(Path, "iterdir", side_effect=PermissionError(errno.EACCES, "Permission denied")):
        return judge(folder)


@attempt(FILES, "an input/output error of the disk")
def broken_disk(folder: Path) -> list[Finding]:
    with mock.patch.object(Path, "open", side_effect=OSError(errno.EIO, "Input/output error")):
        return error_of(lambda: read_image(folder / "x_t1.nii.gz"))


@attempt(FILES, "an empty file")
def empty(folder: Path) -> None:
    (folder / "x_t2.nii.gz").write_bytes(b"")


@attempt(FILES, "text with the name of an image")
def text(folder: Path) -> None:
    (folder / "x_t2.nii.gz").unlink()
    (folder / "x_t2.nii").write_text("no image " * 100)


@attempt(FILES, "an unpacked file called .nii.gz")
def unpacked(folder: Path) -> None:
    path = folder / "x_t2.nii.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))


@attempt(FILES, "a packed file called .nii")
def packed(folder: Path) -> None:
    (folder / "x_t2.nii.gz").rename(folder / "x_t2.nii")


@attempt(FILES, "a packed file that ends too early")
def truncated(folder: Path) -> None:
    path = folder / "x_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])


@attempt(FILES, "an unpacked file that ends too early")
def truncated_nii(folder: Path) -> None:
    content = gzip.decompress((folder / "x_t2.nii.gz").read_bytes())
    (folder / "x_t2.nii.gz").unlink()
    (folder / "x_t2.nii").write_bytes(content[:5000])


@attempt(FILES, "a packed file whose checksum is wrong")
def flipped(folder: Path) -> None:
    path = folder / "x_t2.nii.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)


@attempt(FILES, "a file of a pair .hdr and .img")
def half(folder: Path) -> list[Finding]:
    (folder / "x_t2.nii.gz").rename(folder / "x_t2.img")
    return read_case(given_case({"t2": folder / "x_t2.img"})).findings


@attempt(FILES, "the header of such a pair called .nii.gz")
def pair(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 344, np.frombuffer(b"ni1\0", np.uint8))
    in_header(folder / "x_t2.nii.gz", 108, np.zeros(1, np.float32))


@attempt(FILES, "a file of FreeSurfer")
def freesurfer(folder: Path) -> list[Finding]:
    (folder / "x_t2.nii.gz").rename(folder / "x_t2.mgz")
    return read_case(given_case({"t2": folder / "x_t2.mgz"})).findings


@attempt(FILES, "a file of ITK")
def meta_image(folder: Path) -> list[Finding]:
    (folder / "x_t2.nii.gz").rename(folder / "x_t2.mha")
    return read_case(given_case({"t2": folder / "x_t2.mha"})).findings


@attempt(FILES, "a DICOM file")
def dicom(folder: Path) -> list[Finding]:
    (folder / "x_t2.nii.gz").rename(folder / "IM0001.dcm")
    return read_case(given_case({"t2": folder / "IM0001.dcm"})).findings


@attempt(FILES, "voxels that begin within the header")
def overlapping(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 108, np.zeros(1, np.float32))


@attempt(FILES, "a scaling that is no number")
def scaling(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 112, np.array([2, np.nan], np.float32))


@attempt(FILES, "a header with a type of voxels that is not supported")
def bad_type(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 70, np.array([9999], np.int16))


@attempt(FILES, "a pickle in .npy")
def pickled(folder: Path) -> None:
    (folder / "x_t2.nii.gz").unlink()
    np.save(folder / "x_t2.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


@attempt(FILES, "voxels of colours")
def colours(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))


@attempt(FILES, "complex voxels")
def complex_voxels(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", np.zeros(SHAPE, np.complex64))


@attempt(FILES, "a disk that is full while a result is written")
def full_disk(folder: Path) -> list[Finding]:
    like = read_image(folder / "x_t1.nii.gz").image
    with mock.patch.object(nib, "save", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        return error_of(lambda: write_image(folder / "seg.nii.gz", np.zeros(SHAPE, np.uint8), like=like))


@attempt(SIZES, "a header of 30000 x 30000 x 30000 voxels")
def huge(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 42, np.full(3, 30000, np.int16))


@attempt(SIZES, "a header with an axis of -5 voxels")
def negative(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 42, np.array([-5], np.int16))


@attempt(SIZES, "a header of 1020 x 1020 x 1020 voxels of 8 bytes")
def large(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 42, np.full(3, 1020, np.int16))
    in_header(folder / "x_t2.nii.gz", 70, np.array([64, 64], np.int16))


@attempt(SIZES, "a header that announces more than such a file can hold")
def liar(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 42, np.full(3, 800, np.int16))


@attempt(SIZES, "a volume larger than the memory that is free")
def no_memory(folder: Path) -> list[Finding]:
    memory = SimpleNamespace(available=500_000)
    with mock.patch("lora_moe_hgd.cases.volume_rules.psutil.virtual_memory", return_value=memory):
        return error_of(lambda: read_image(folder / "x_t1.nii.gz"))


@attempt(SIZES, "a small volume with gigabytes of zeros packed behind it")
def bomb(folder: Path) -> None:
    path = folder / "x_t2.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**24), mtime=0))


@attempt(SIZES, "more voxels than the header announces")
def longer(folder: Path) -> None:
    path = folder / "x_t2.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\1" * 1000, mtime=0))


@attempt(SIZES, "a header whose extensions fill the file")
def extended(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 108, np.array([2.0**30], np.float32))


@attempt(SIZES, "a file with four axes as one sequence")
def four_axes(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", np.ones((*SHAPE, 4), np.float32))


@attempt(SIZES, "a picture with two axes")
def two_axes(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", np.ones(SHAPE[:2], np.float32))


@attempt(PLACES, "an affine that is zero")
def zero_affine(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 280, np.zeros(12, np.float32))


@attempt(PLACES, "an affine with NaN")
def nan_affine(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 280, np.full(4, np.nan, np.float32))


@attempt(PLACES, "voxels in metres instead of millimetres")
def metres(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", array_of(folder / "x_t2.nii.gz"), np.diag([0.004, 0.004, 0.004, 1]))


@attempt(PLACES, "a field of view of more than a head")
def wide(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", array_of(folder / "x_t2.nii.gz"), np.diag([15.0, 15, 15, 1]))


@attempt(PLACES, "a header that does not say where the volume lies")
def nowhere(folder: Path) -> list[Finding]:
    in_header(folder / "x_t2.nii.gz", 252, np.zeros(2, np.int16))
    return read_case(find_case(folder).only(["t2"])).findings


@attempt(PLACES, "an sform and a qform of different voxel sizes")
def other_sizes(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 80, np.array([2, 2, 2], np.float32))
    in_header(folder / "x_t2.nii.gz", 252, np.ones(1, np.int16))


@attempt(PLACES, "an sform and a qform of different directions")
def other_directions(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 76, np.array([-1], np.float32))
    in_header(folder / "x_t2.nii.gz", 252, np.ones(1, np.int16))


@attempt(PLACES, "an invalid qform beside an sform")
def no_rotation(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 252, np.ones(1, np.int16))
    in_header(folder / "x_t2.nii.gz", 256, np.full(3, 2, np.float32))


@attempt(PLACES, "a qform without voxel sizes")
def no_sizes(folder: Path) -> list[Finding]:
    in_header(folder / "x_t2.nii.gz", 80, np.array([4, 4, 0], np.float32))
    in_header(folder / "x_t2.nii.gz", 252, np.array([1, 0], np.int16))
    return read_case(find_case(folder).only(["t2"])).findings


@attempt(PLACES, "an sform whose code the standard does not define")
def undefined(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 252, np.array([1, 9], np.int16))


@attempt(PLACES, "lengths that are said to be micrometres and are not")
def micrometres(folder: Path) -> None:
    in_header(folder / "x_t2.nii.gz", 123, np.array([3], np.uint8))


@attempt(PLACES, "an affine that differs by rounding")
def rounded(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", array_of(folder / "x_t2.nii.gz"), AFFINE + 2e-4 * np.eye(4)[[0, 1, 2, 2]])


@attempt(PLACES, "a sequence on a grid of its own")
def other_grid(folder: Path) -> None:
    array = array_of(folder / "x_t2.nii.gz")[:, :, 1:-1]
    moved = AFFINE.copy()
    moved[:3, 3] += (0, 0, 4)
    moved[:3, 3] += 1.5
    save(folder / "x_t2.nii.gz", array, moved)


@attempt(PLACES, "a sequence of another place")
def elsewhere(folder: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 500
    save(folder / "x_t2.nii.gz", array_of(folder / "x_t2.nii.gz"), moved)


@attempt(PLACES, "arrays of different shapes in .npy")
def other_shapes(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, edge in (("t1", 120), ("t2", 121)):
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(edge, 120, 120)))
    save(folder / "seg.nii.gz", np.zeros((120, 120, 120), np.uint8), np.eye(4))


@attempt(CONTENT, "NaN (an error for training)")
def nan(folder: Path) -> None:
    array = array_of(folder / "x_t2.nii.gz")
    array[20, 22, 20:24] = np.nan
    save(folder / "x_t2.nii.gz", array)


@attempt(CONTENT, "zero everywhere")
def zero(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", np.zeros(SHAPE, np.float32))


@attempt(CONTENT, "one value everywhere")
def constant(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", np.full(SHAPE, 7, np.float32))


@attempt(CONTENT, "a background that is not zero")
def background(folder: Path) -> None:
    array = array_of(folder / "x_t2.nii.gz")
    save(folder / "x_t2.nii.gz", np.where(array == 0, -0.8, array / 100).astype(np.float32))


@attempt(CONTENT, "a label map as a sequence")
def label_map(folder: Path) -> None:
    (folder / "x_t2.nii.gz").write_bytes((folder / "x_seg.nii.gz").read_bytes())


@attempt(CONTENT, "a copy of another sequence")
def copy(folder: Path) -> None:
    (folder / "x_t1ce.nii.gz").write_bytes((folder / "x_t1.nii.gz").read_bytes())


@attempt(CONTENT, "brains that do not lie one over another")
def misplaced(folder: Path) -> None:
    save(folder / "x_t2.nii.gz", np.roll(array_of(folder / "x_t2.nii.gz"), 6, axis=1))


@attempt(CONTENT, "a corner of the field filled with -1000 by a registration")
def filled_corner(folder: Path) -> None:
    array = array_of(folder / "x_flair.nii.gz")
    array[:6, :10] = -1000
    save(folder / "x_flair.nii.gz", array)


@attempt(CONTENT, "a rim of noise of 8 mm around the brain")
def rim(folder: Path) -> None:
    array = array_of(folder / "x_flair.nii.gz")
    around = ndimage.binary_dilation(array != 0, iterations=2) & (array == 0)
    noise = np.abs(np.random.default_rng(1).normal(0, 5, SHAPE)) + 1e-3
    save(folder / "x_flair.nii.gz", np.where(around, noise, array).astype(np.float32))


@attempt(CONTENT, "one value in more than half of the brain")
def flat(folder: Path) -> None:
    array = array_of(folder / "x_flair.nii.gz")
    save(folder / "x_flair.nii.gz", np.where((array != 0) & (array < 105), 50, array).astype(np.float32))


@attempt(CONTENT, "a field of view that cuts off a part of the brain")
def cut_off(folder: Path) -> list[Finding]:
    moved = AFFINE.copy()
    moved[2, 3] += 4 * 16
    save(folder / "x_t2.nii.gz", array_of(folder / "x_t2.nii.gz")[:, :, 16:], moved)
    return read_case(find_case(folder).only(["t2"])).findings


@attempt(CONTENT, "a head with its skull")
def skull(folder: Path) -> list[Finding]:
    array = np.random.default_rng(0).gamma(2, 20, SHAPE).astype(np.float32)
    save(folder / "x_t2.nii.gz", array)
    return read_case(find_case(folder).only(["t2"])).findings


@attempt(CONTENT, "a brain that is far too small")
def small(folder: Path) -> list[Finding]:
    save(folder / "x_t2.nii.gz", array_of(folder / "x_t2.nii.gz"), np.diag([2.0, 2, 2, 1]))
    return read_case(find_case(folder).only(["t2"])).findings


@attempt(LABELS, "no segmentation where one is needed")
def unlabelled(folder: Path) -> None:
    (folder / "x_seg.nii.gz").unlink()


@attempt(LABELS, "values between integers")
def fractions(folder: Path) -> None:
    save(folder / "x_seg.nii.gz", (array_of(folder / "x_seg.nii.gz") * 0.7).astype(np.float32))


@attempt(LABELS, "a value of no scheme")
def unknown(folder: Path) -> None:
    save(folder / "x_seg.nii.gz", np.where(array_of(folder / "x_seg.nii.gz") == 4, 7, 0).astype(np.uint8))


@attempt(LABELS, "a value of another scheme than the names say")
def other_scheme(folder: Path) -> None:
    labels = array_of(folder / "x_seg.nii.gz")
    save(folder / "x_seg.nii.gz", np.where(labels == 4, 3, labels).astype(np.uint8))


@attempt(LABELS, "0, 1, 2, 3 under names that do not tell the scheme")
def ambiguous(folder: Path) -> None:
    labels = array_of(folder / "x_seg.nii.gz")
    save(folder / "x_seg.nii.gz", np.where(labels == 4, 3, labels).astype(np.uint8))
    for name in ("t1", "t1ce", "t2", "flair", "seg"):
        (folder / f"x_{name}.nii.gz").rename(folder / f"BraTS-PED-1-{PED_NAMES[name]}.nii.gz")


PED_NAMES = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}


@attempt(LABELS, "an enhancing tumour that does not enhance")
def swapped(folder: Path) -> None:
    save(folder / "x_seg.nii.gz", np.array([0, 1, 4, 0, 2], np.uint8)[array_of(folder / "x_seg.nii.gz")])


@attempt(LABELS, "a label map without a tumour")
def no_tumour(folder: Path) -> None:
    save(folder / "x_seg.nii.gz", np.zeros(SHAPE, np.uint8))


@attempt(LABELS, "a tumour beside the brain")
def beside(folder: Path) -> None:
    save(folder / "x_seg.nii.gz", np.roll(array_of(folder / "x_seg.nii.gz"), 14, axis=2))


@attempt(LABELS, "a label map on a grid of its own")
def other_label_grid(folder: Path) -> None:
    moved = AFFINE.copy()
    moved[:3, 3] += 1.5
    save(folder / "x_seg.nii.gz", array_of(folder / "x_seg.nii.gz"), moved)


def only(folder: Path, *names: str) -> None:
    """Replace the files of the case by copies of one volume under these names."""
    content = (folder / "x_t2.nii.gz").read_bytes()
    for path in folder.iterdir():
        path.unlink()
    for name in names:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@attempt(NAMES, "a folder whose names say nothing")
def nothing(folder: Path) -> None:
    only(folder, "a", "b")


@attempt(NAMES, "an empty folder")
def empty_folder(folder: Path) -> None:
    only(folder)


@attempt(NAMES, "a folder that is not there")
def no_folder(folder: Path) -> list[Finding]:
    return judge(folder / "nowhere")


@attempt(NAMES, "other images and masks alone")
def other_images(folder: Path) -> None:
    only(folder, "ADC", "brainmask_t1")


@attempt(NAMES, "a file beside the sequences whose name says nothing")
def unknown_name(folder: Path) -> None:
    only(folder, "ax_t2_flair", "t1_mprage_gad", "scan7")


@attempt(NAMES, "a sequence in another format beside the others")
def other_format(folder: Path) -> None:
    only(folder, "t1", "flair")
    (folder / "flair.nii.gz").rename(folder / "flair.mha")


@attempt(NAMES, "a name of two sequences")
def fused(folder: Path) -> None:
    only(folder, "t1", "t1_t2_fused")


@attempt(NAMES, "an image that is said to lie on the grid of T1, and nothing else")
def moved_to(folder: Path) -> None:
    only(folder, "flair", "registered_to_t1")


@attempt(NAMES, "a word for contrast at the start of every name")
def shared_word(folder: Path) -> None:
    only(folder, "post_T1_se", "post_T2_tse")


@attempt(NAMES, "one sequence twice")
def twice(folder: Path) -> None:
    (folder / "y_t2.nii.gz").write_bytes((folder / "x_t2.nii.gz").read_bytes())


@attempt(NAMES, "one sequence named by two conventions")
def two_conventions(folder: Path) -> None:
    (folder / "x-t2f.nii.gz").write_bytes((folder / "x_flair.nii.gz").read_bytes())


@attempt(NAMES, "two label maps")
def two_label_maps(folder: Path) -> None:
    (folder / "x_seg.nii.gz").rename(folder / "seg_auto.nii.gz")
    (folder / "seg_manual.nii.gz").write_bytes((folder / "seg_auto.nii.gz").read_bytes())


@attempt(NAMES, "several patients in one folder")
def several_patients(folder: Path) -> None:
    only(folder, "sub-01_T1w", "sub-02_FLAIR")


@attempt(NAMES, "a folder for each sequence")
def folder_each(folder: Path) -> list[Finding]:
    only(folder, "patient/1_T1/T1", "patient/2_FLAIR/FLAIR")
    return survey(folder)[1]


@attempt(NAMES, "two cases that would get one name")
def one_name(folder: Path) -> list[Finding]:
    only(folder, "a/b_c/T1", "a_b/c/T1")
    return survey(folder)[1]


@attempt(NAMES, "a folder beside the cases whose names say nothing")
def odd_folder(folder: Path) -> list[Finding]:
    only(folder, "p1/T1", "p2/first")
    return survey(folder)[1]


@attempt(NAMES, "numbered files without an order")
def no_order(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    save(folder / "x_0000.nii.gz", np.zeros(SHAPE, np.uint8))


@attempt(NAMES, "numbered files beside others")
def numbered_and_others(folder: Path) -> None:
    only(folder, "x_0000", "x_0001", "seg")


@attempt(NAMES, "numbered files of other images")
def computed_tomography(folder: Path) -> None:
    no_order(folder)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}}))


@attempt(NAMES, "a number beyond the order")
def beyond(folder: Path) -> list[Finding]:
    only(folder, "x_0004")
    return error_of(lambda: find_case(folder, channel_order=("t1", "t2")))


@attempt(NAMES, "a single file as a case")
def single_file(folder: Path) -> list[Finding]:
    return judge(folder / "x_t2.nii.gz")


@attempt(NAMES, "two files given for each other's sequence")
def given_for_another(folder: Path) -> list[Finding]:
    return read_case(given_case({"t1c": folder / "x_flair.nii.gz", "flair": folder / "x_t1ce.nii.gz"})).findings
