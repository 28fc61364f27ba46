"""Situations that users of such packages reported: each is made anew, and a command or a call says what it says."""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from bad_input import AFFINE, SHAPE, array_of, good_case, save
from monai.data import MetaTensor

from lora_moe_hgd import LoraMoeHgdConfig, LoraMoeHgdImageProcessor
from lora_moe_hgd_cli import run

# Title, command as a user types it, and what is done in an empty folder; the result is what is said.
Situation = tuple[str, str, Callable[[Path], str]]
CHECK = "lora-moe-hgd check COHORT"


def said_by(command: str, *words: str) -> str:
    """What a command prints, on either stream, without its last lines of counts."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
        run(command, list(words))
    # The progress bar rewrites its own line.
    return "\n".join(line.rpartition("\r")[2] for line in printed.getvalue().splitlines())


def check(folder: Path) -> str:
    lines = said_by("check", str(folder)).splitlines()
    findings = [line for line in lines if line.startswith(("error ", "warning "))]
    summary = next(line for line in lines if line.startswith("1 case") or " cases, " in line)
    return "; ".join(" ".join(line.split()) for line in [*findings, summary])


def refused(call: Callable[[], object]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except (ValueError, TypeError) as error:
        return str(error)
    raise AssertionError("Nothing was refused.")


def with_extensions(root: Path) -> str:
    folder = good_case(root / "a")
    for path, sizes in zip(sorted(folder.iterdir()), itertools.cycle([(16,), (100_000,), (64, 5000, 16)])):
        image = nib.load(path)
        image.header.extensions.extend(nib.nifti1.Nifti1Extension("comment", b"x" * size) for size in sizes)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    return check(root)


def without_scaling(root: Path) -> str:
    folder = good_case(root / "a")
    for path, slope in zip(sorted(folder.iterdir()), itertools.cycle([0.0, np.nan])):
        image = nib.load(path)
        content = bytearray(nib.Nifti1Image(np.rint(image.dataobj).astype(np.int16), image.affine).to_bytes())
        content[112:116] = np.float32(slope).tobytes()
        path.unlink()
        path.with_suffix("").write_bytes(content)
    return check(root)


def two_voxel_sizes(root: Path) -> str:
    path = good_case(root / "a") / "x_t1.nii.gz"
    image = nib.Nifti1Image(array_of(path), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE @ np.diag([1, 1, 2, 1]), 1)
    nib.save(image, path)
    return check(root)


def labels_stored_otherwise(root: Path) -> str:
    path = good_case(root / "a") / "x_seg.nii.gz"
    image = nib.load(path)
    ornt = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("RAS"))
    nib.save(image.as_reoriented(ornt), path)
    return check(root)


def meta_tensor(root: Path) -> str:
    array = array_of(good_case(root / "a") / "x_t1.nii.gz")
    inputs = LoraMoeHgdImageProcessor()({"t1": MetaTensor(array, affine=AFFINE)})
    return f"a voxel has {1000 * inputs['geometry'][0].voxel_ml:g} microlitres"


def raw_head(root: Path) -> Path:
    """A head as scanned: skull and scalp, air with noise, the neck cut by the field of view."""
    folder = root / "head"
    folder.mkdir()
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, edge) for edge in SHAPE), indexing="ij"))
    head = (grid[:2] ** 2).sum(axis=0) < 0.9
    tissue = np.random.default_rng(0).normal(100, 10, SHAPE)
    noise = np.abs(np.random.default_rng(1).normal(0, 3, SHAPE)) + 1e-3
    for name in ("t1", "flair"):
        save(folder / f"x_{name}.nii.gz", np.where(head, tissue, noise).astype(np.float32))
    return folder


def head_by_command(root: Path) -> str:
    return said_by("segment", "--in-path", str(raw_head(root)), "--out-path", str(root / "out")).splitlines()[-1]


def head_in_python(root: Path) -> str:
    folder = raw_head(root)
    return refused(lambda: LoraMoeHgdImageProcessor()({"t1": folder / "x_t1.nii.gz"}))


def named(names: Sequence[str]) -> Callable[[Path], str]:
    def attempt(root: Path) -> str:
        folder = good_case(root / "a")
        for path, name in zip(sorted(folder.glob("x_[tf]*")), names, strict=False):
            path.rename(folder / f"{name}.nii.gz")
        (folder / "x_seg.nii.gz").unlink()
        for path in folder.glob("x_*"):
            path.unlink()
        lines = said_by("check", str(root), "--no-labels").splitlines()
        return "; ".join(" ".join(line.split()) for line in lines if line.startswith(("error ", "files of ")))

    return attempt


def one_label_map_for_two(root: Path) -> str:
    volume = array_of(good_case(root / "a") / "x_t1.nii.gz")
    cases = [{"t1": volume}, {"t1": volume}]
    labels = np.zeros(SHAPE, np.uint8)
    return refused(lambda: LoraMoeHgdImageProcessor()(cases, [labels, None], spacing_mm=4))


def sessions(root: Path) -> str:
    for session in ("ses-01", "ses-02"):
        good_case(root / "sub-01" / session)
    return check(root)


def slip_of_the_pen(root: Path) -> str:
    return refused(lambda: LoraMoeHgdConfig(depth=12))


def trained(*options: str) -> Callable[[Path], str]:
    def attempt(root: Path) -> str:
        (root / "run.yaml").write_text("base: tiny\n")
        return said_by("train", "--config", str(root / "run.yaml"), *options).splitlines()[-1]

    return attempt


SITUATIONS: list[Situation] = [
    ("files with header extensions, as in BraTS 2018 and BraTS-GLI 2023", CHECK, with_extensions),
    ("files whose `scl_slope` is 0 or NaN", CHECK, without_scaling),
    ("a MONAI `MetaTensor` with voxels of 4 mm", "processor({'t1': tensor})", meta_tensor),
    ("sform and qform with other voxel sizes", CHECK, two_voxel_sizes),
    ("a label map stored in another orientation than its images", CHECK, labels_stored_otherwise),
    ("a head with its skull, by the command", "lora-moe-hgd segment --in-path HEAD --out-path OUT", head_by_command),
    ("a head with its skull, in Python", "processor({'t1': 'x_t1.nii.gz'})", head_in_python),
    (
        "names of a clinic",
        "lora-moe-hgd check COHORT --no-labels",
        named(["ax_t2_flair", "t1_mprage_gad", "ax_t2_tse", "ax_t1_se"]),
    ),
    ("a FLAIR registered to T1", "lora-moe-hgd check COHORT --no-labels", named(["P1_flair_to_t1"])),
    ("before and after contrast", "lora-moe-hgd check COHORT --no-labels", named(["T1_post", "T1_pre"])),
    ("a name that says nothing", "lora-moe-hgd check COHORT --no-labels", named(["T2", "scan7"])),
    ("a label map for one of two cases", "processor([a, b], [labels, None])", one_label_map_for_two),
    ("an unknown setting of the network", "LoraMoeHgdConfig(depth=12)", slip_of_the_pen),
    (
        "an option that has no effect",
        "lora-moe-hgd train --config RUN.yaml --dataset NAME --label-scheme msd --skip-bad true",
        trained("--dataset", "a/b", "--label-scheme", "msd", "--skip-bad", "true"),
    ),
    ("sessions of one patient", CHECK, sessions),
]
