"""A real case through the whole road from DICOM, against its direct segmentation: `python lab/scan_road.py HEAD OUT`.

HEAD is the folder of a head with its skull, `open-ms/skull-on/patient12_study1`. Its skull and scalp are put around
the brain of the example case, stretched to that brain. Three sequences are then moved, each is scanned on a grid of
its own, and all are written as DICOM. Needs `tests` on the path.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from dicoms import in_plane, study, write_series
from scipy import ndimage
from scipy.spatial.transform import Rotation

import lora_moe_hgd as lmh
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.grids import Volume, on_grid_of
from lora_moe_hgd_cli import run

HEAD_OF = {"t1": "t1", "t1c": "t1", "t2": "t2", "flair": "flair"}
# Voxels around the brain, whose field the case is cut to.
ROOM = 25
# Share of the brain's median that fluid between brain and skull has.
FLUID = {"t1": 0.3, "t1c": 0.3, "t2": 1.8, "flair": 0.3}
# Turn in degrees, shift in millimetres, voxel size (RAS order) and plane of each sequence.
SCANS = {
    "t1c": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), None, "LPS"),
    "t1": ((4.0, -3.0, 5.0), (4.0, -3.0, 6.0), (1.5, 1.0, 1.0), "PIL"),
    "t2": ((-6.0, 2.0, -4.0), (-5.0, 6.0, -4.0), (0.9, 0.9, 2.0), "LPS"),
    "flair": ((5.0, 5.0, -8.0), (3.0, 8.0, -6.0), (1.0, 2.0, 1.0), "LIP"),
}


def load(path: Path) -> Volume:
    image = nib.load(path)
    return Volume(np.asarray(image.dataobj, dtype=np.float32), image.affine)


def padded(volume: Volume) -> Volume:
    """The volume with room for a head around it."""
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3].sum(axis=1) * ROOM
    return Volume(np.pad(volume.array, ROOM), affine)


def box_mm(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and size of a mask along the axes of the patient."""
    points = (affine @ np.column_stack([np.argwhere(mask), np.ones(mask.sum())]).T)[:3]
    low, high = np.percentile(points, (0.5, 99.5), axis=1)
    return (low + high) / 2, high - low


def with_head(case: dict[str, Volume], folder: Path) -> dict[str, Volume]:
    """The sequences of a stripped case with the skull of another head around the brain."""
    brain = np.logical_or.reduce([volume.array != 0 for volume in case.values()])
    brain = ndimage.binary_fill_holes(brain)
    like = case["t1c"]
    centre, size = box_mm(brain, like.affine)
    heads = {}
    for name, volume in case.items():
        source = load(folder / f"{HEAD_OF[name]}.nii.gz")
        mask = load(folder / f"brainmask_{HEAD_OF[name]}.nii.gz").array > 0
        own_centre, own_size = box_mm(mask, source.affine)
        stretch = np.eye(4)
        stretch[:3, :3] = np.diag(size * 1.03 / own_size)
        stretch[:3, 3] = centre - stretch[:3, :3] @ own_centre
        affine = stretch @ source.affine
        around = on_grid_of(Volume(source.array + 1, affine), like)[0].array - 1
        inside = on_grid_of(Volume(mask.astype(np.float32) + 1, affine), like)[0].array >= 1.5
        median = float(np.median(volume.array[brain]))
        around = np.maximum(around, 0) * median / float(np.median(source.array[mask]))
        rng = np.random.default_rng(0)
        fluid = FLUID[name] * median * rng.normal(1, 0.05, around.shape)
        around = np.where(inside | ndimage.binary_dilation(brain, iterations=2), fluid, around)
        # A soft border, as partial volumes make one.
        weight = ndimage.gaussian_filter(brain.astype(np.float32), 0.6)
        heads[name] = Volume((np.where(brain, volume.array, around) * weight + around * (1 - weight)), like.affine)
    return heads


def scanned(volume: Volume, name: str) -> nib.Nifti1Image:
    """The head as it is scanned after it moved, on a grid of its own."""
    degrees, shift, voxel, plane = SCANS[name]
    image = nib.Nifti1Image(volume.array, volume.affine)
    if voxel is None:
        return in_plane(image, plane)
    centre = (volume.affine @ [*(np.array(volume.array.shape) / 2), 1])[:3]
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    motion[:3, 3] = centre + shift - motion[:3, :3] @ centre
    image = nib.as_closest_canonical(image)
    field = np.array(image.shape) * image.header.get_zooms()
    grid = np.diag([*voxel, 1.0])
    grid[:3, 3] = image.affine[:3, 3]
    shape = tuple(int(edge) for edge in np.ceil(field / voxel))
    moved = Volume(volume.array, motion @ volume.affine)
    placed, _, _ = on_grid_of(moved, Volume(np.zeros(shape, np.float32), grid))
    return in_plane(nib.Nifti1Image(placed.array, grid), plane)


def write_dicom(head: Path, folder: Path) -> None:
    """Write the example case with a head around it as a study."""
    files = find_case(lmh.example_case())
    heads = with_head({name: padded(load(path)) for name, path in files.images.items()}, head)
    shared = study()
    for number, (name, volume) in enumerate(heads.items(), start=1):
        write_series(folder / str(number), scanned(volume, name), name, number=number, shared=shared)


def main(argv: list[str]) -> None:
    """Write DICOM, run the command, compare."""
    head, out = Path(argv[0]), Path(argv[1])
    files = find_case(lmh.example_case())
    shutil.rmtree(out, ignore_errors=True)
    write_dicom(head, out / "dicom")
    started, cpu = time.perf_counter(), time.process_time()
    words = ["--in-path", str(out / "dicom"), "--out-path", str(out / "result"), "--keep", str(out / "kept")]
    run("segment", [*words, "--on", "all", "--html"])
    print(f"{time.perf_counter() - started:.0f} s, of which {time.process_time() - cpu:.0f} s of one core")
    direct = lmh.segment(lmh.example_case())
    label_map = nib.load(out / "result/seg.nii.gz")
    road = Volume(np.asarray(label_map.dataobj).astype(np.float32), label_map.affine)
    like = Volume(np.zeros(direct.label_map.shape, np.float32), direct.label_map.affine)
    labels = on_grid_of(road, like, labels=True)[0].array
    for name, first, second in zip(
        ("WT", "TC", "ET"), direct.regions, direct.label_scheme.decode(labels), strict=True
    ):
        print(f"{name}: Dice of the road with the direct segmentation {dice(first, second):.3f}")
    truth = direct.label_scheme.decode(np.asarray(nib.load(files.labelled()).dataobj))
    for found, title in ((direct.regions, "direct"), (direct.label_scheme.decode(labels), "road")):
        values = ", ".join(f"{dice(first, second):.3f}" for first, second in zip(found, truth, strict=True))
        print(f"{title} with the ground truth: {values}")
    kept = nib.load(out / "kept/brain_mask.nii.gz")
    brain = Volume(np.asarray(kept.dataobj).astype(np.float32), kept.affine)
    inside = on_grid_of(brain, like, labels=True)[0].array > 0
    print(f"share of the tumour inside the brain mask: {(truth[0] & inside).sum() / truth[0].sum():.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
