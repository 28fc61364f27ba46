"""Whatever bytes a file holds, reading it ends soon, in a volume or in a `BadInputError`, and in little memory."""

from __future__ import annotations

import gzip
import io
import tempfile
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_moe_hgd.data.findings import BadInputError
from lora_moe_hgd.data.nifti import MAX_EDGE, read_image


def saved(kind: type[nib.Nifti1Image]) -> bytes:
    array = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    return kind(array, np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes()


def saved_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((5, 6, 7), np.float32))
    return stream.getvalue()


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


@settings(max_examples=600, deadline=5000, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
def test_a_damaged_file_is_read_or_refused(file: tuple[str, bytes]) -> None:
    read_in_bounds(*file)


@settings(max_examples=100, deadline=5000)
@given(st.sampled_from(["a.nii", "a.nii.gz", "a.npy"]), st.binary(max_size=2000))
def test_random_bytes_are_refused(name: str, content: bytes) -> None:
    read_in_bounds(name, content)
