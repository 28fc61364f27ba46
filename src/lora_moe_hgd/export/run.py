"""Segment a case with network.onnx: `python run.py seg.nii.gz --case FOLDER`, or `--t1c FILE --flair FILE`.

The program needs numpy, nibabel, scipy and onnxruntime. The images must be skull-stripped and on one grid. The program
refuses some cases that the package lora-moe-hgd would repair. Research use, not a medical device.
"""

import argparse
import itertools
import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
from scipy import ndimage


def find(folder, settings):
    found = {}
    for path in sorted(folder.glob("*.nii*")):
        *words, last = re.findall("[a-z0-9]+", re.sub(r"\.nii(\.gz)?$", "", path.name.lower())) or [""]
        for name in [name for name, endings in settings["file_names"].items() if last in endings]:
            if name in found or set(settings["unclear_words"]) & set(words):
                raise ValueError(f"{path}: it is not clear which sequence this is. Name each file: --{name} FILE.")
            found[name] = path
    return found


def read(path):
    image = nib.load(path)
    if len(image.shape) != 3 or max(image.shape) > 1024 or np.prod(image.shape, dtype=float) > 2**28:
        raise ValueError(f"{path}: the image must be one 3-D volume of a head, but its shape is {image.shape}.")
    array = np.asarray(image.dataobj, dtype=np.float32)
    if not np.isfinite(array).all() or len(np.unique(array)) <= 8:
        raise ValueError(f"{path}: the image has NaN or infinite voxels, or too few different values for an image.")
    brain = array != 0
    litres = brain.sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1e6
    if array[tuple(slice(None, None, edge - 1 or 1) for edge in array.shape)].any():
        raise ValueError(f"{path}: a corner of the image is not zero. Remove the skull and set the background to 0.")
    if not 0.5 <= litres <= 2.8:
        raise ValueError(f"{path}: {litres:.2g} litres of tissue cannot be a brain without its skull.")
    dark = np.mean(np.abs(array[brain]) < 0.2 * np.percentile(array[brain], 90))
    if litres > 1.95 or (dark >= 0.2 and (array < 0).sum() <= 0.25 * brain.sum()):
        tissue = f"the image shows {litres:.2g} litres of tissue, and {dark:.0%} of the tissue is dark"
        print(f"warning: {path}: {tissue}. Check that skull and noise were removed.", file=sys.stderr)
    return nib.Nifti1Image(array, image.affine)


def resample(volume, shape):
    """Resample each axis. Coarser voxels get the mean of the voxels that they cover; finer voxels are interpolated."""
    for axis, new in zip((-3, -2, -1), shape):
        old = volume.shape[axis]
        step, cells = old / new, np.arange(old)
        centres = np.clip((np.arange(new) + 0.5) * step - 0.5, 0, old - 1)
        weights = np.maximum(0, 1 - np.abs(centres[:, None] - cells))
        if new < old:
            weights = np.diff(np.clip(np.arange(new + 1)[:, None] * step - cells, 0, 1), axis=0) / step
        volume = np.moveaxis(np.moveaxis(volume, axis, -1) @ weights.astype(np.float32).T, -1, axis)
    return volume


def normalise(volume, shape, clip):
    """Intensities of the brain as robust z-scores, at the network's voxel size. Voxels outside the brain are zero."""
    share = resample((volume != 0).astype(np.float32), shape)
    volume = np.where(share >= 0.5, resample(volume, shape) / np.maximum(share, 0.5), 0)
    median = np.percentile(volume[volume != 0], 50, method="lower")
    spread = 1.4826 * np.percentile(np.abs(volume[volume != 0] - median), 50, method="lower")
    if spread == 0:
        raise ValueError("More than half of the brain in a sequence has the same value. Leave this sequence out.")
    return np.where(volume != 0, np.clip((volume - median) / spread, -clip, clip), 0)


def windowed(session, volume, mask, settings):
    """Logits of overlapping windows, averaged with Gaussian weights. Windows without brain are skipped."""
    window = settings["window"]
    short = [max(0, edge - size) for edge, size in zip(window, volume.shape[1:])]
    padded = np.pad(volume, [(0, 0), *((lack // 2, lack - lack // 2) for lack in short)])
    curves = [np.exp(-0.5 * ((np.arange(edge) - (edge - 1) / 2) / (0.125 * edge)) ** 2) for edge in window]
    weight = np.maximum(np.einsum("i,j,k->ijk", *curves), 1e-3).astype(np.float32)
    total, weights = np.zeros((len(settings["labels"]), *padded.shape[1:]), np.float32), np.zeros_like(padded[0])
    strides = [max(1, int(edge * (1 - settings["overlap"]))) for edge in window]
    starts = [sorted({min(at, n - e) for at in range(0, n, s)}) for n, e, s in zip(padded.shape[1:], window, strides)]
    for corner in itertools.product(*starts):
        place = tuple(slice(at, at + edge) for at, edge in zip(corner, window))
        if padded[:, *place].any():
            inputs = {"pixel_values": padded[None, :, *place], "modality_mask": mask}
            total[:, *place] += weight * session.run(None, inputs)[0][0]
            weights[place] += weight
    logits = np.where(weights > 0, total / np.maximum(weights, 1e-30), settings["background_logit"])
    return logits[:, *(slice(lack // 2, lack // 2 + n) for lack, n in zip(short, volume.shape[1:]))]


def segment(images, session, settings):
    """Segment the images, and return the label map on the grid of the first image."""
    first = next(iter(images.values()))
    for name, image in images.items():
        apart = np.linalg.norm((image.affine - first.affine) @ [*first.shape, 1])
        if image.shape != first.shape or apart > 0.25 * min(np.linalg.norm(first.affine[:3, :3], axis=0)):
            raise ValueError(f"{name} has another grid than the first sequence. Resample all sequences to one grid.")
    arrays = {name: nib.as_closest_canonical(image).get_fdata(dtype=np.float32) for name, image in images.items()}
    inside = np.logical_or.reduce([array != 0 for array in arrays.values()])
    (box,) = ndimage.find_objects(inside.astype(int))
    spacing = np.linalg.norm(nib.as_closest_canonical(first).affine[:3, :3], axis=0)
    shape = [max(1, round(edge)) for edge in inside[box].shape * spacing / settings["target_spacing_mm"]]
    # Gaps of up to 6 mm belong to the brain.
    gaps = [2 * round(3 / edge) + 1 for edge in spacing]
    rim = max(gaps)
    brain = ndimage.grey_closing(np.pad(inside[box], rim).astype(np.uint8), gaps)[(slice(rim, -rim),) * 3] > 0
    volume = np.zeros((len(settings["modalities"]), *(-(-edge // 16) * 16 for edge in shape)), np.float32)
    case = tuple(slice(edge) for edge in shape)
    mask = np.array([[name in images for name in settings["modalities"]]])
    for name, array in arrays.items():
        volume[settings["modalities"].index(name), *case] = normalise(array[box], shape, settings["intensity_clip"])
    logits = resample(windowed(session, volume, mask, settings)[:, *case], brain.shape)
    labels, found = np.zeros(inside.shape, np.uint8), []
    for region, outer, label in zip(logits > 0, settings["around"], settings["labels"].values()):
        region = np.logical_and.reduce([region, brain, *(found[number] for number in outer)])
        parts, _ = ndimage.label(region, np.ones((3, 3, 3)))
        counts = np.bincount(parts[parts > 0], minlength=2)
        found.append((parts > 0) & (counts >= settings["least_part"] * counts.max())[parts])
        labels[box][found[-1]] = label
    back = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], nib.io_orientation(first.affine))
    return nib.Nifti1Image(nib.orientations.apply_orientation(labels, back), first.affine)


def main():
    settings = json.loads(Path(__file__).with_name("preprocessing.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="label map to write, such as seg.nii.gz")
    for name in ("case", *settings["modalities"]):
        parser.add_argument(f"--{name}", type=Path, metavar="PATH")
    args = vars(parser.parse_args())
    try:
        paths = find(args["case"], settings) if args["case"] else {}
        paths |= {name: args[name] for name in settings["modalities"] if args[name]}
        images = {name: read(paths[name]) for name in settings["modalities"] if name in paths}
        if not images:
            raise ValueError("No sequence was found. Name each file, as in --t1c FILE.")
        print("\n".join(f"{name}: {paths[name]}" for name in images))
        session = onnxruntime.InferenceSession(Path(__file__).with_name("network.onnx"))
        nib.save(segment(images, session, settings), args["out"])
    except (ValueError, OSError, nib.filebasedimages.ImageFileError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
