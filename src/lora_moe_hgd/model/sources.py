"""Convert user input to a volume: a path, a nibabel image, a MONAI `MetaTensor`, an array or a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .findings import BadInputError
from .grids import Volume
from .header_rules import KNOWN_CODES, header_findings

try:
    import nibabel as nib
except ImportError:
    nib = None  # type: ignore[assignment]

MAX_EDGE = 1024
MAX_BYTES = 4 * 1024**3


def volume_of(source: Any, *, where: str, spacing_mm: float | Sequence[float] | None = None) -> Volume:
    """Read one 3-D volume as float32.

    Args:
        source: Path of a NIfTI or `.npy` file, nibabel image, `MetaTensor`, array or tensor.
        where: Name of the volume in messages.
        spacing_mm: Voxel size of arrays without an affine, in millimetres; `None` means 1 mm. Such arrays must be in
            RAS order.

    Raises:
        BadInputError: If `source` has none of these types, cannot be read, or is not a single volume of real numbers.
        ImportError: If a NIfTI file is given and nibabel is not installed.
    """
    if isinstance(source, str | Path):
        return _volume_of_file(str(source), where, spacing_mm)
    if nib is not None and isinstance(source, nib.spatialimages.SpatialImage):
        return volume_of_image(source, where=where)
    if isinstance(source, Tensor) and getattr(source, "affine", None) is not None:
        return _of_meta_tensor(source, where)
    if isinstance(source, Tensor):
        # NumPy has no bfloat16.
        source = (source.float() if source.dtype == torch.bfloat16 else source).detach().cpu().numpy()
    if not isinstance(source, np.ndarray):
        kind = type(source).__name__
        raise BadInputError(where, f"A volume must be a path, a nibabel image, an array or a tensor, got {kind}.")
    edges = np.broadcast_to(np.asarray(1.0 if spacing_mm is None else spacing_mm, dtype=np.float64), 3)
    return Volume(_checked(source, where), np.diag([*edges, 1.0]), spacing_mm is not None)


def volume_of_image(image: Any, *, where: str, header: Any = None) -> Volume:
    """Convert a nibabel image to a float32 volume.

    Args:
        image: A nibabel image.
        where: Name of the volume in messages.
        header: Header as it is in the file, or `None` for the header of `image`, which nibabel may have repaired.

    Raises:
        BadInputError: If the image is not a single volume of real numbers.
    """
    array, affine = _checked(image.dataobj, where), np.asarray(image.affine, dtype=np.float64)
    if not isinstance(image.header, nib.Nifti1Header):
        # Formats other than NIfTI always state an affine.
        return Volume(array, affine)
    stated = any(int(image.header[code]) in KNOWN_CODES for code in ("sform_code", "qform_code"))
    oddities = [finding.message for finding in header_findings(header or image.header, where)]
    if not stated and np.isfinite(affine).all():
        codes = "".join(nib.aff2axcodes(affine))
        oddities.append(
            f"The header states no orientation (sform and qform codes are 0). The orientation {codes} is assumed."
        )
    return Volume(array, affine, stated, tuple(oddities))


def _volume_of_file(path: str, where: str, spacing_mm: float | Sequence[float] | None) -> Volume:
    is_array = path.lower().endswith(".npy")
    if not is_array and nib is None:
        raise ImportError("Reading NIfTI files needs nibabel. Install it with: pip install nibabel")
    try:
        if is_array:
            array = np.load(path, allow_pickle=False, mmap_mode="r")
            _check_size(path, array.shape)
            return volume_of(np.array(array), where=where, spacing_mm=spacing_mm)
        image: Any = nib.load(path)
        _check_size(path, image.shape)
        header = None
        if isinstance(image.header, nib.Nifti1Header):
            with image.file_map["header" if "header" in image.file_map else "image"].get_prepare_fileobj("rb") as file:
                header = type(image.header).from_fileobj(file, check=False)
        return volume_of_image(image, where=where, header=header)
    except BadInputError:
        raise
    except FileNotFoundError as error:
        raise BadInputError(path, "There is no such file. Check the path.") from error
    # Nibabel and NumPy raise various errors for damaged files.
    except Exception as error:
        raise BadInputError(path, f"The file cannot be read: {error or type(error).__name__}") from error


def _check_size(path: str, shape: tuple[int, ...]) -> None:
    """Refuse a file whose header gives an impossible shape, before the voxels are read."""
    if any(not 1 <= edge <= MAX_EDGE for edge in shape) or math.prod(shape) * 4 > MAX_BYTES:
        raise BadInputError(path, f"The header announces the shape {shape}, which is empty or too large for a head.")


def _of_meta_tensor(tensor: Any, where: str) -> Volume:
    """Convert a `MetaTensor`, which has its affine as an attribute and may have a leading channel axis."""
    array = tensor.detach().cpu().numpy()
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    affine = np.asarray(tensor.affine, dtype=np.float64)
    if str(tensor.meta.get("space", "RAS")).upper().endswith("LPS"):
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return Volume(_checked(array, where), affine)


def _checked(array: Any, where: str) -> np.ndarray:
    """Convert the array to `(D, H, W)` float32. Trailing axes of length one are dropped."""
    array = np.asarray(array)
    if 0 in array.shape:
        raise BadInputError(where, f"The volume has no voxel: its shape is {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise BadInputError(
            where,
            f"The voxels must be real numbers, got {array.dtype}. Give the magnitude of complex numbers, or one "
            "channel of a colour image.",
        )
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise BadInputError(
            where, f"A volume must have three axes, but the shape is {array.shape}. Give each sequence separately."
        )
    return array.astype(np.float32, copy=False)
