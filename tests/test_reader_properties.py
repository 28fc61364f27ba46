"""Properties of reading: as nibabel does for every valid header; for every file an end, soon and in little memory."""

from __future__ import annotations

import gzip
import io
import math
import re
import tempfile
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.eulerangles import euler2mat

from lora_moe_hgd.cases.nifti import read_image
from lora_moe_hgd.cases.volume_rules import MAX_EDGE
from lora_moe_hgd.model.findings import BadInputError


def saved(kind: type[nib.Nifti1Image]) -> bytes:
    array = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    return kind(array, np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes()


def saved_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((5, 6, 7), np.float32))
    return stream.getvalue()


# A machine with other work takes long over an example now and then.
FEW = settings(max_examples=120, deadline=5000, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=3000)
GOOD = {"1.nii": saved(nib.Nifti1Image), "2.nii": saved(nib.Nifti2Image), "3.npy": saved_npy()}
# Most of what matters stands at the beginning.
PLACES = st.one_of(st.integers(0, 560), st.integers(0, 10_000))
EDITS = st.lists(st.tuples(PLACES, st.binary(min_size=1, max_size=8)), min_size=0, max_size=6)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """Name and content of a file that was good once."""
    name = draw(st.sampled_from(sorted(GOOD)))
    content = bytearray(GOOD[name])
    for place, piece in draw(EDITS):
        content[place % len(content) : place % len(content) + len(piece)] = piece
    if name == "1.nii" and draw(st.booleans()):
        # Sizes that pass for those of a volume.
        content[42:48] = np.array(draw(st.tuples(*[st.integers(1, MAX_EDGE)] * 3)), np.int16).tobytes()
    content = content[: draw(st.one_of(st.none(), st.integers(0, len(content))))]
    if name.endswith(".nii") and draw(st.booleans()):
        name, content = f"{name}.gz", bytearray(gzip.compress(bytes(content)))
        for place, bit in draw(st.lists(st.tuples(PLACES, st.integers(0, 7)), max_size=3)):
            content[place % len(content)] ^= 1 << bit
    return name, bytes(content)


def read_in_bounds(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        refusal, image = None, None
        tracemalloc.start()
        try:
            image = read_image(path).image
        except BadInputError as error:
            refusal = error
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        if refusal is not None:
            assert refusal.finding.where == path
            assert "\n" not in str(refusal)
        else:
            assert image.ndim == 3
            assert max(image.shape) <= MAX_EDGE
            assert np.isfinite(image.affine).all()
            assert np.asarray(image.dataobj).dtype == np.float32
        # No more than can be unpacked from such a file, three times over, and the blocks that it is read in.
        assert peak < 3 * 1032 * len(content) + 8 * 1024**2


@FEW
@given(damaged())
def test_a_damaged_file_is_read_or_refused(file: tuple[str, bytes]) -> None:
    read_in_bounds(*file)


@pytest.mark.slow
@MANY
@given(damaged())
def test_many_damaged_files_are_read_or_refused(file: tuple[str, bytes]) -> None:
    read_in_bounds(*file)


@settings(FEW, max_examples=30)
@given(st.sampled_from(["a.nii", "a.nii.gz", "a.npy"]), st.binary(max_size=2000))
def test_random_bytes_are_refused(name: str, content: bytes) -> None:
    read_in_bounds(name, content)


TYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8", "c16")
CODES = st.sampled_from([0, 0, 1, 2, 4, 5, 7, -1])
PATIENT = b"Jane Doe "
NOT_READ = re.compile(
    r"Each voxel must be one real number, but the voxels are complex numbers|The file contains \d+ volumes"
)


def affine_of(generator: np.random.Generator) -> np.ndarray:
    affine = np.eye(4)
    sizes = generator.uniform(0.2, 5, 3) * generator.choice([-1, 1], 3)
    affine[:3, :3] = euler2mat(*generator.uniform(-np.pi, np.pi, 3)) @ np.diag(sizes)
    affine[:3, 3] = generator.uniform(-200, 200, 3)
    return affine


@st.composite
def valid_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Name and content of a file whose header is valid, or wrong in a way that nibabel knows to repair."""
    kind = draw(st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    header = kind(endianness=draw(st.sampled_from("<>")))
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3)) + tuple(
        draw(st.lists(st.sampled_from([1] * 7 + [2]), max_size=4))
    )
    header.set_data_shape(shape)
    header.set_data_dtype(np.dtype(draw(st.sampled_from(TYPES))))
    header.set_qform(affine_of(generator), 0)
    header.set_sform(affine_of(generator), 0)
    header["qform_code"], header["sform_code"] = draw(CODES), draw(CODES)
    if draw(st.booleans()):
        header["scl_slope"] = draw(st.sampled_from([1, 0, np.nan, np.inf, 2.5, -0.5]))
        header["scl_inter"] = draw(st.sampled_from([0, np.nan, -3.25]))
    header["pixdim"][draw(st.integers(0, 3))] *= draw(st.sampled_from([1, 1, 0, -1, 3]))
    header["quatern_b"] *= draw(st.sampled_from([1, 1, 1, 10]))
    header["xyzt_units"] = draw(st.sampled_from([0, 1, 2, 3, 5, 10]))
    header["intent_code"] = draw(st.sampled_from([0, 3, 1002, 1007]))
    header["magic"] = draw(st.sampled_from([header.single_magic, header.single_magic, header.pair_magic]))
    header["descrip"] = PATIENT
    if kind is nib.Nifti2Header:
        header["eol_check"] = draw(st.sampled_from([(13, 10, 26, 10), (0, 0, 0, 0)]))
    else:
        header["sizeof_hdr"] = draw(st.sampled_from([348, 348, 0]))
    before = io.BytesIO()
    sizes = draw(st.lists(st.one_of(st.integers(1, 40), st.integers(41, 6250)), max_size=3))
    before.write(b"\1\0\0\0" if sizes else bytes(4))
    for size in sizes:
        extension = nib.nifti1.Nifti1Extension(
            draw(st.sampled_from([4, 6, 18, 40])), (PATIENT * 2 * size)[: 16 * size - 8]
        )
        extension.write_to(before, header.endianness == ">")
    before.write(bytes(draw(st.sampled_from([0, 0, 1, 15]))))
    header["vox_offset"] = len(header.binaryblock) + before.tell()
    voxels = generator.integers(0, 256, math.prod(shape) * header.get_data_dtype().itemsize, np.uint8).tobytes()
    content = header.binaryblock + before.getvalue() + voxels + draw(st.sampled_from([b"", b"", b"\0", b"more"]))
    packed = draw(st.booleans())
    name = draw(st.sampled_from(["a.nii", "A.NII"])) + (draw(st.sampled_from([".gz", ".GZ"])) if packed else "")
    return name, gzip.compress(content, 1) if packed else content


def by_nibabel(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Values and affine; `None` if nibabel refuses the file."""
    try:
        image = nib.load(path)
        with np.errstate(all="ignore"):
            return np.asarray(image.dataobj), image.affine
    except Exception:
        return None


def read_as_nibabel_does(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        expected = by_nibabel(path)
        try:
            image = read_image(path).image
        except BadInputError as error:
            message = error.finding.message
            refusal = NOT_READ.match(message)
            assert expected is None or refusal, message
            return
    assert expected is not None
    array, affine = expected
    with np.errstate(all="ignore"):
        values = array.astype(np.float32)
    np.testing.assert_array_equal(np.asarray(image.dataobj), values.reshape(image.shape))
    np.testing.assert_array_equal(image.affine, affine)
    assert PATIENT not in image.to_bytes()


@settings(FEW, max_examples=60)
@given(valid_files())
def test_a_file_that_nibabel_reads_is_read_as_nibabel_reads_it(file: tuple[str, bytes]) -> None:
    read_as_nibabel_does(*file)


@pytest.mark.slow
@MANY
@given(valid_files())
def test_many_files_that_nibabel_reads_are_read_as_nibabel_reads_them(file: tuple[str, bytes]) -> None:
    read_as_nibabel_does(*file)
