"""Store the results of finished steps of a preparation, so that a stopped run continues after its last finished step.

The file name of a result contains a digest of all its inputs: voxels, affine, options, code and version. A change of
an input changes the digest, so that a result of other inputs is never used. Only brain masks and motions are stored,
because these show no face. The headers of the masks contain only geometry.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..cases.nifti import read_image, save_image
from ..files import read_json, replacing
from ..fingerprints import code_fingerprint, fingerprint
from ..model.grids import Volume
from .prepared import image_on
from .registration import Motion

# Hidden folder in the output folder. It is removed when the output is complete.
UNFINISHED = ".unfinished"


class Steps:
    """Store of the results of the finished steps of one preparation.

    Args:
        folder: Folder for the results. `None` stores nothing.

    Attributes:
        reused: Names of the steps whose results were reused.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.reused: list[str] = []

    def brain(self, sequence: str, volume: Volume, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the brain mask of a volume, bool in the shape of the volume.

        A mask that is not stored yet is computed.

        Args:
            sequence: Name of the sequence.
            volume: Image with the skull.
            make: Function that computes the mask with deepbet.
        """
        if self.folder is None:
            return make()
        code = code_fingerprint(f"{__package__}.brain_extraction")
        path = self.folder / f"brain-{sequence}-{fingerprint(content_of(volume), code)}.nii.gz"
        stored = _stored_mask(path, volume.array.shape)
        if stored is not None:
            self.reused.append(f"brain of {sequence}")
            return stored
        brain = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_image(path, image_on(volume.affine, brain.astype(np.uint8)))
        return brain

    def motion(
        self,
        sequence: str,
        reference: str,
        images: tuple[Volume, Volume],
        brains: tuple[np.ndarray | None, np.ndarray | None],
        make: Callable[[], Motion],
    ) -> Motion:
        """Return the rigid motion that registers a sequence to the reference.

        A motion that is not stored yet is computed.

        Args:
            sequence: Name of the moving image.
            reference: Name of the image to which the moving image is registered.
            images: Reference and moving image.
            brains: Brain masks of the reference and of the moving image; `None` for an unknown mask.
            make: Function that computes the motion.
        """
        if self.folder is None:
            return make()
        contents = [content_of(image) for image in images]
        contents += ["" if brain is None else content_of(Volume(brain, np.eye(4))) for brain in brains]
        code = code_fingerprint(f"{__package__}.registration")
        path = self.folder / f"motion-{sequence}-to-{reference}-{fingerprint(*contents, code)}.json"
        stored = _stored_motion(path)
        if stored is not None:
            self.reused.append(f"{sequence} to {reference}")
            return stored
        motion = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            scratch.write_text(json.dumps({**asdict(motion), "matrix": motion.matrix.tolist()}))
        return motion


@contextmanager
def steps_in(out: Path) -> Iterator[Steps]:
    """Store the results of finished steps in a hidden folder of the output folder.

    The hidden folder is removed when the `with` block ends without error.
    """
    folder = out / UNFINISHED
    try:
        yield Steps(folder)
    except KeyboardInterrupt:
        if folder.is_dir():
            print(
                f"\nThe results of the finished steps are in {folder}. Start the same command again to continue.",
                file=sys.stderr,
            )
        raise
    shutil.rmtree(folder, ignore_errors=True)


def content_of(volume: Volume) -> str:
    """SHA-256 of voxels, shape and affine, in hexadecimal."""
    digest = hashlib.sha256(f"{volume.array.dtype.str} {volume.array.shape} {volume.affine.tolist()}".encode())
    digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


def _stored_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Read a stored mask; `None` if the file is missing or damaged."""
    try:
        image = read_image(path).image
    except ValueError:
        return None
    return np.asarray(image.dataobj) > 0 if image.shape == shape else None


def _stored_motion(path: Path) -> Motion | None:
    """Read a stored motion; `None` if the file is missing or damaged."""
    try:
        content = read_json(path)
        motion = Motion(**{**content, "matrix": np.array(content["matrix"], dtype=np.float64)})
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return motion if motion.matrix.shape == (4, 4) else None
