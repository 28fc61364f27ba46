"""What a header says that nibabel passes over in silence."""

from __future__ import annotations

from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
from nibabel.eulerangles import euler2mat

from lora_moe_hgd.model.findings import Finding
from lora_moe_hgd.model.header_rules import header_findings

KINDS = pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header], ids=["NIfTI-1", "NIfTI-2"])


def affine_of(angles: tuple[float, float, float] = (0.1, 0.2, 0.3), sizes: tuple[float, ...] = (1, 1.5, 3)):
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(*angles) @ np.diag(sizes)
    affine[:3, 3] = (90, -126, -72)
    return affine


def header_with(kind=nib.Nifti1Header, *, sform: np.ndarray | None = None, qform: np.ndarray | None = None):
    header = kind()
    header.set_data_shape((2, 3, 4))
    if qform is not None:
        header.set_qform(qform, code="scanner")
    if sform is not None:
        header.set_sform(sform, code="scanner")
    return header


@KINDS
def test_forms_that_agree_or_are_alone_are_no_finding(kind) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        sizes = generator.uniform(0.2, 5, 3) * generator.choice([-1, 1], 3)
        affine = affine_of(generator.uniform(-np.pi, np.pi, 3), sizes)
        for forms in ({}, {"sform": affine}, {"qform": affine}, {"sform": affine, "qform": affine}):
            assert header_findings(header_with(kind, **forms), "t1") == []


@KINDS
def test_forms_that_disagree_about_the_voxel_size_are_found(kind) -> None:
    header = header_with(kind, sform=affine_of(), qform=affine_of(sizes=(1, 1.5, 1.5)))
    expected = (
        "The header's sform and qform disagree about the voxel size: the sform gives 1 x 1.5 x 3 mm, and the qform "
        "gives 1 x 1.5 x 1.5 mm. The sform is used, as in nibabel. If the qform is right, set the sform code to 0."
    )
    assert header_findings(header, "t1") == [Finding("t1", expected)]


@KINDS
@pytest.mark.parametrize(
    ("sform", "degrees"),
    [
        (affine_of((0.1, 0.2, 0.34)), "2.28"),
        (affine_of() @ np.diag([-1, 1, 1, 1]), "180"),
        (affine_of()[:, [1, 0, 2, 3]] @ np.diag([1 / 1.5, 1.5, 1, 1]), "90"),
    ],
    ids=["turned", "mirrored", "swapped"],
)
def test_forms_that_disagree_about_directions_are_found(kind, sform, degrees) -> None:
    (finding,) = header_findings(header_with(kind, sform=sform, qform=affine_of()), "t1")
    assert f"disagree about the directions of the axes, by up to {degrees} degrees" in finding.message


def test_forms_that_differ_by_less_than_a_degree_or_in_their_origin_are_no_finding() -> None:
    elsewhere = affine_of((0.1, 0.2, 0.31))
    elsewhere[:3, 3] += 20
    assert header_findings(header_with(sform=elsewhere, qform=affine_of()), "t1") == []


def broken(change: Callable[[nib.Nifti1Header], None], **forms: np.ndarray) -> nib.Nifti1Header:
    header = header_with(**forms)
    change(header)
    return header


def put(field: str, value: object, at: int | None = None) -> Callable[[nib.Nifti1Header], None]:
    def change(header: nib.Nifti1Header) -> None:
        if at is None:
            header[field] = value
        else:
            header[field][at] = value

    return change


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (broken(put("pixdim", 0, 2), qform=affine_of()), "no voxel size for axis 2 (`pixdim` is 0). 1 mm is assumed"),
        (broken(put("pixdim", 0, 3)), "no voxel size for axis 3"),
        (broken(put("pixdim", -3, 3), qform=affine_of()), "a negative voxel size (1 x 1.5 x -3 mm). The sign is"),
        (broken(put("pixdim", 3, 0), qform=affine_of()), "`pixdim[0]` is 3, but only 1 and -1 are defined"),
        (broken(put("pixdim", np.nan, 0), qform=affine_of()), "`pixdim[0]` is nan"),
        (broken(put("pixdim", 0, 2), qform=affine_of(), sform=affine_of()), "the qform gives 1 x 0 x 3 mm"),
        (broken(put("pixdim", np.nan, 2), qform=affine_of(), sform=affine_of()), "the qform gives 1 x nan x 3 mm"),
        (broken(put("quatern_b", 2), qform=affine_of(), sform=affine_of()), "quaternion is not a rotation"),
        (broken(put("quatern_b", np.nan), qform=affine_of(), sform=affine_of()), "quaternion is not a rotation"),
        (broken(put("sform_code", 7), qform=affine_of(), sform=affine_of()), "sform code of the header is 7"),
        (broken(put("qform_code", -1), qform=affine_of(), sform=affine_of()), "qform code of the header is -1"),
        (broken(put("xyzt_units", 1), sform=affine_of()), "lengths in metres. All lengths are read as millimetres"),
        (broken(put("xyzt_units", 8 | 3), sform=affine_of()), "lengths in micrometres"),
    ],
)
def test_what_nibabel_repairs_or_ignores_is_found(header, message) -> None:
    (finding,) = header_findings(header, "t1")
    assert message in finding.message
    assert finding.level == "warning"


@pytest.mark.parametrize(
    "change",
    [put("pixdim", 0, 0), put("xyzt_units", 0), put("xyzt_units", 8), put("srow_x", np.nan)],
    ids=["handedness not said", "units not said", "units of time", "singular sform"],
)
def test_what_the_standard_allows_or_the_reader_refuses_is_no_finding(change) -> None:
    assert header_findings(broken(change, sform=affine_of(), qform=affine_of()), "t1") == []


def test_the_header_is_left_as_it_is() -> None:
    header = broken(put("pixdim", 0, 2), qform=affine_of(), sform=affine_of())
    before = header.binaryblock
    header_findings(header, "t1")
    assert header.binaryblock == before
