"""Find the brain in an image with the skull, with deepbet, with a command of the user, or from a mask file.

deepbet (Fisch et al. 2024, doi 10.1016/j.compbiomed.2024.108845; MIT) was trained on T1 images of healthy adults. On
raw T1, T2 and FLAIR images of patients, the masks of deepbet agree with published masks (see docs/scans.md). Only the
files of deepbet's two networks are read. The deepbet package itself is not imported, because its import needs a
graphical user interface.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import subprocess
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from ..cases.nifti import read_image
from ..masks import dice, largest_part
from ..model.findings import BadInputError
from ..model.geometry import orientation, to_canonical
from ..model.grids import Volume, on_grid_of

# SHA-256 of deepbet 1.0.2's network files. A TorchScript network contains code, so no other file is loaded.
NETWORKS = {
    "bbox_model.pt": "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
    "model.pt": "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
}
COARSE, FINE = (128, 128, 128), (256, 256, 256)
# A plane belongs to the box of the brain if the coarse mask covers more than `LEAST_SHARE` of the plane. The box is
# then enlarged on each side by `BOX_MARGIN` times its size.
LEAST_SHARE, BOX_MARGIN = 0.02, 0.1
# Least Dice between the brain masks of the two networks. In an image without a brain, each network also marks a region
# of plausible volume, but the two regions differ: for noise, blocks and cylinders like legs and trunks, their Dice is
# at most 0.85. For six raw images of open-ms the Dice is at least 0.96, and for the composed head of docs/scans.md at
# least 0.89.
LEAST_AGREEMENT = 0.87
OTHER_EXTRACTION = "Give a mask with --brain-mask or another program with --brain-extraction."
NO_BRAIN = (
    "No brain was found. If this is an image of a complete head, give a mask with --brain-mask or another program "
    "with --brain-extraction. If the skull is removed already, give --brain-extraction none."
)
COMMAND_TIMEOUT_S = 3600


def extract_brain(volume: Volume, where: str) -> np.ndarray:
    """Find the brain with deepbet's networks. Return a bool mask in the shape of the volume.

    Args:
        volume: Image with the skull, in any orientation and voxel size.
        where: Name of the image in error messages.

    Raises:
        BadInputError: If no brain is found.
        ValueError: If deepbet's network files are missing or belong to another version.
    """
    axes, flips = orientation(volume.affine)
    canonical = torch.from_numpy(np.ascontiguousarray(to_canonical(volume.array, volume.affine), dtype=np.float32))
    found = torch.zeros(canonical.shape, dtype=torch.bool)
    with torch.inference_mode():
        small = _resized(canonical, COARSE)
        low, high = small.quantile(0.005), small.quantile(0.995)
        if high <= low:
            raise BadInputError(where, f"{NO_BRAIN} (Nearly all voxels have the same value.)")
        inside = _network("bbox_model.pt")(_normalised(small, low, high)[None, None])[0, 1] > 0.5
        coarse = largest_part(inside.numpy())
        box = _box(coarse, tuple(canonical.shape))
        if box is None:
            raise BadInputError(where, NO_BRAIN)
        fine = _resized(canonical[box], FINE)
        probability = _network("model.pt")(_normalised(fine, low, high)[None, None])[0, 1]
        found[box] = _resized(probability, tuple(canonical[box].shape)) > 0.5
    mask = ndimage.binary_fill_holes(largest_part(found.numpy()))
    agreement = dice(coarse, _resized(torch.from_numpy(mask).float(), COARSE).numpy() > 0.5)
    if agreement < LEAST_AGREEMENT:
        raise BadInputError(
            where, f"{NO_BRAIN} (The masks of deepbet's two networks differ: their Dice is only {agreement:.2f}.)"
        )
    flipped = np.flip(mask, axis=tuple(axis for axis in range(3) if flips[axis]))
    return np.ascontiguousarray(np.transpose(flipped, np.argsort(axes)))


def brain_by_command(command: str, volume: Volume, where: str, scratch: Path) -> np.ndarray:
    """Find the brain with a command of the user, such as HD-BET or SynthStrip.

    Args:
        command: Command that contains `{input}` and `{output}`. These words are replaced by the paths of the image and
            of the result, both with the extension `.nii.gz`. The result is a mask, or the image with zeros outside the
            brain. The command is not run in a shell.
        volume: Image with the skull.
        where: Name of the image in error messages.
        scratch: Folder for two temporary files: the image, and the result of the command.

    Raises:
        BadInputError: If the command fails, or if its result is not a brain mask.
        ValueError: If the command lacks `{input}` or `{output}`.
    """
    if "{input}" not in command or "{output}" not in command:
        raise ValueError(
            f"--brain-extraction must be deepbet, none, or a command with {{input}} and {{output}}, got '{command}'."
        )
    folder = Path(tempfile.mkdtemp(dir=scratch))
    source, target = folder / "head.nii.gz", folder / "brain.nii.gz"
    nib.save(nib.Nifti1Image(volume.array, volume.affine), source)
    words = [word.replace("{input}", str(source)).replace("{output}", str(target)) for word in shlex.split(command)]
    try:
        done = subprocess.run(words, capture_output=True, check=False, timeout=COMMAND_TIMEOUT_S)
    except FileNotFoundError as error:
        raise BadInputError(
            where, f"The program {words[0]} for brain extraction was not found. Check --brain-extraction."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BadInputError(
            where, f"The brain extraction took more than {COMMAND_TIMEOUT_S} s. {OTHER_EXTRACTION}"
        ) from error
    if done.returncode or not target.is_file():
        last = "".join(done.stderr.decode(errors="replace").strip().rstrip(".").splitlines()[-1:]) or "none"
        raise BadInputError(
            where,
            f"{words[0]} failed with exit code {done.returncode}. Its last message: {last}. {OTHER_EXTRACTION}",
        )
    return brain_by_mask(target, volume, where)


def brain_by_mask(path: Path, volume: Volume, where: str) -> np.ndarray:
    """Read a brain mask from a file, and resample the mask to the grid of the volume.

    The mask may have any grid, but it must have been drawn on the volume or registered to it. The mask must be zero
    outside the brain.

    Raises:
        BadInputError: If the mask cannot be read, or if it marks no voxel or every voxel of the volume.
    """
    image = read_image(path).image
    mask = Volume((np.asarray(image.dataobj) != 0).astype(np.float32), image.affine)
    placed, _, _ = on_grid_of(mask, volume, labels=True)
    brain = placed.array > 0
    if not brain.any() or brain.all():
        share = "no voxel" if not brain.any() else "every voxel"
        raise BadInputError(
            where,
            f"The brain mask marks {share} of this image. Give a mask that was drawn on this image or registered to "
            "it.",
        )
    return brain


@cache
def _network(name: str) -> torch.jit.ScriptModule:
    """Load a network of deepbet after checking that the file belongs to the supported version.

    Raises:
        ValueError: If the file is missing or belongs to another version.
    """
    files = metadata.files("deepbet") or []
    path = next((Path(str(file.locate())) for file in files if file.name == name), None)
    content = b"" if path is None or not path.is_file() else path.read_bytes()
    if hashlib.sha256(content).hexdigest() != NETWORKS[name]:
        raise ValueError(
            f"The network file {name} of deepbet 1.0.2 is missing or differs, so the network was not loaded. "
            'Install deepbet again: pip install --force-reinstall --no-deps "deepbet==1.0.2".'
        )
    # Load the bytes that were checked: the file may have changed since.
    return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()


def _resized(volume: Tensor, shape: tuple[int, ...]) -> Tensor:
    return nn.functional.interpolate(volume[None, None], shape, mode="nearest-exact")[0, 0]


def _normalised(volume: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip the intensities, and scale them to the mean and standard deviation of the networks' training data."""
    clipped = ((volume - low) / (high - low)).clamp(0, 1)
    return 0.226 * (clipped - clipped.mean()) / clipped.std() + 0.449


def _box(coarse: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """Bounding box of the brain, with a margin, in a volume of `shape`; `None` if the mask is nearly empty.

    `coarse` is a brain mask of the same volume, resampled to another number of voxels.
    """
    box = []
    for axis in range(3):
        share = coarse.mean(axis=tuple(other for other in range(3) if other != axis))
        planes = np.flatnonzero(share > LEAST_SHARE)
        if not len(planes):
            return None
        scale = shape[axis] / coarse.shape[axis]
        centre = round(scale * (planes[-1] + 1 + planes[0]) / 2)
        size = round((1 + 2 * BOX_MARGIN) * scale * (planes[-1] + 1 - planes[0]))
        box.append(slice(max(0, int(centre - size / 2)), min(shape[axis], int(centre + size / 2))))
    return tuple(box)
