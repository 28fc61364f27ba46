"""Image processor: the sequences of a case, some of them absent, to network input, and logits back to its own grid."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from .configuration_lora_moe_hgd import MODALITIES, TOKEN_STRIDE
from .geometry import CaseGeometry, canonical_spacing_mm, close_gaps, resample, resampled_shape, to_canonical
from .label_schemes import label_scheme as find_label_scheme

try:
    import nibabel as nib
except ImportError:
    nib = None  # type: ignore[assignment]

try:
    from scipy import ndimage
except ImportError:
    ndimage = None

AFFINE_TOLERANCE_MM = 1e-3


class LoraMoeHgdImagesKwargs(ImagesKwargs, total=False):
    """Settings of the processor that a checkpoint carries."""

    modalities: list[str]
    target_spacing_mm: list[float]
    intensity_clip: float
    label_scheme: str
    least_part: float


class LoraMoeHgdImageProcessor(BaseImageProcessor):
    """Canonical orientation, one voxel size, brain crop, robust z-score; and the way back.

    Args:
        modalities: Sequences in channel order.
        target_spacing_mm: Voxel size the network works at, along the canonical axes.
        intensity_clip: Robust z-scores are clipped to plus and minus this.
        label_scheme: Scheme of label maps when none is named in a call, see `label_schemes`.
        least_part: Parts of a region smaller than this share of its largest part are taken for false; 0 keeps all.

    Raises:
        ValueError: If a setting is outside its range.
        ImportError: If small parts are to be left out and scipy is not installed.

    Example:
        >>> processor = LoraMoeHgdImageProcessor()
        >>> volume = np.ones((20, 24, 28), dtype=np.float32)
        >>> volume[::2] = 2
        >>> inputs = processor({"t1": None, "t1c": volume, "t2": None, "flair": None})
        >>> tuple(inputs["pixel_values"].shape), inputs["modality_mask"].tolist()
        ((1, 4, 32, 32, 32), [[False, True, False, False]])
    """

    model_input_names = ["pixel_values", "modality_mask"]
    valid_kwargs = LoraMoeHgdImagesKwargs

    def __init__(
        self,
        modalities: Sequence[str] = MODALITIES,
        target_spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        intensity_clip: float = 10.0,
        label_scheme: str = "brats2023",
        least_part: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(target_spacing_mm) != 3 or min(target_spacing_mm) <= 0:
            raise ValueError(f"`target_spacing_mm` must be three positive numbers, got {target_spacing_mm}.")
        if intensity_clip <= 0:
            raise ValueError(f"`intensity_clip` must be positive, got {intensity_clip}.")
        if not 0 <= least_part <= 1:
            raise ValueError(f"`least_part` must be between 0 and 1, got {least_part}.")
        if least_part > 0 and ndimage is None:
            raise ImportError("Leaving out small parts of regions (`least_part`) needs scipy: pip install scipy")
        self.modalities = list(modalities)
        self.target_spacing_mm = [float(spacing) for spacing in target_spacing_mm]
        self.intensity_clip = float(intensity_clip)
        self.label_scheme = find_label_scheme(label_scheme).name
        self.least_part = float(least_part)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        return self.preprocess(images, **kwargs)

    def preprocess(
        self,
        images: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        segmentation_maps: Any = None,
        *,
        label_scheme: str | None = None,
        spacing_mm: float | Sequence[float] = 1.0,
    ) -> BatchFeature:
        """Prepare one case or a list of cases.

        Args:
            images: For each case a dict from sequence name to a path (NIfTI, or `.npy`), a nibabel image or an array
                `(D, H, W)`; absent sequences are left out or `None`.
            segmentation_maps: Label map of each case, in the same forms and on the same grid.
            label_scheme: Scheme of the label maps; the processor's own when `None`.
            spacing_mm: Voxel size of bare arrays, which are taken to be in RAS order.

        Returns:
            `pixel_values (B, M, D, H, W)` float32, zero outside the brain and in absent sequences, padded at the far
            end to a multiple of 16; `modality_mask (B, M)` bool; `geometry`, one per case, to go back; and, with label
            maps, `labels (B, 3, D, H, W)` uint8, the nested regions.

        Raises:
            ValueError: If a name is unknown, a case has no sequence, sequences lie on different grids, or a sequence
                has no voxel that differs from zero; the message names the case, the sequence and the value.
        """
        cases = [images] if isinstance(images, Mapping) else list(images)
        if segmentation_maps is None:
            maps: list[Any] = [None] * len(cases)
        else:
            maps = [segmentation_maps] if isinstance(images, Mapping) else list(segmentation_maps)
        if len(maps) != len(cases):
            raise ValueError(f"There must be one label map per case, got {len(maps)} for {len(cases)} cases.")
        scheme = find_label_scheme(label_scheme or self.label_scheme)
        volumes, labels, masks, geometries = [], [], [], []
        for number, (case, label_map) in enumerate(zip(cases, maps, strict=True)):
            arrays, affine = self._read_case(case, spacing_mm, where=f"case {number}")
            box = brain_box(list(arrays.values()))
            volume, geometry = self._prepare(arrays, affine, box, next(iter(arrays.values())).shape)
            volumes.append(volume)
            geometries.append(geometry)
            masks.append([name in arrays for name in self.modalities])
            if label_map is not None:
                array, _ = _read(label_map, spacing_mm)
                if array.shape != geometry.shape:
                    raise ValueError(
                        f"The label map of case {number} must have the images' shape {geometry.shape}, "
                        f"got {array.shape}."
                    )
                regions = to_canonical_regions(scheme.decode(array), affine, geometry)
                labels.append((resample(torch.from_numpy(regions).float(), geometry.resampled_shape) >= 0.5).byte())
        data = {
            "pixel_values": _pad_and_stack(volumes),
            "modality_mask": torch.tensor(masks),
            "geometry": geometries,
        }
        if labels:
            data["labels"] = _pad_and_stack(labels)
        return BatchFeature(data)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        geometry: Sequence[CaseGeometry],
        *,
        label_scheme: str | None = None,
        return_probabilities: bool = False,
    ) -> list[np.ndarray] | list[tuple[np.ndarray, np.ndarray]]:
        """Bring logits back to each case's own grid.

        Logits are interpolated, passed through a sigmoid, nested (TC never exceeds WT, nor ET TC) and cut at 0.5, see
        `regions_of`; outside the brain there is no tumour.

        Args:
            outputs: Network output with `logits (B, 3, D, H, W)`, or the logits themselves.
            geometry: What `preprocess` returned for these cases.
            label_scheme: Scheme of the label maps; the processor's own when `None`.
            return_probabilities: Also return the probabilities.

        Returns:
            Per case the label map, uint8 in the case's own shape and orientation; with probabilities a pair of it and
            float32 `(3, ...)`.
        """
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        scheme = find_label_scheme(label_scheme or self.label_scheme)
        results: list[Any] = []
        for case_logits, case_geometry in zip(logits, geometry, strict=True):
            depth, height, width = case_geometry.resampled_shape
            at_case = resample(case_logits[:, :depth, :height, :width].float(), case_geometry.box_shape)
            probabilities = at_case.sigmoid().cummin(dim=0).values.cpu().numpy() * case_geometry.brain
            label_map = case_geometry.to_own_grid(scheme.encode(self.regions_of(probabilities)))
            if return_probabilities:
                results.append((label_map, np.stack([case_geometry.to_own_grid(region) for region in probabilities])))
            else:
                results.append(label_map)
        return results

    def regions_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Nested regions `(3, D, H, W)` bool of nested probabilities, without the parts that are too small.

        What is left out of a region is left out of those inside it before their parts are looked at.
        """
        regions = probabilities > 0.5
        if self.least_part > 0:
            around = np.ones_like(regions[0])
            for region in regions:
                region &= around
                around = region[:] = largest_parts(region, self.least_part)
        return regions

    def _read_case(
        self, case: Mapping[str, Any], spacing_mm: float | Sequence[float], *, where: str
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Read the present sequences in channel order; all must lie on the grid of the first."""
        unknown = sorted(set(case) - set(self.modalities))
        if unknown:
            raise ValueError(
                f"Unknown sequence(s) {', '.join(unknown)} in {where}; the names are {', '.join(self.modalities)}."
            )
        present = {name: case[name] for name in self.modalities if case.get(name) is not None}
        if not present:
            raise ValueError(f"At least one of {', '.join(self.modalities)} must be given in {where}, got none.")
        arrays: dict[str, np.ndarray] = {}
        affine, first = np.eye(4), ""
        for name, source in present.items():
            array, own_affine = _read(source, spacing_mm)
            if not first:
                affine, first = own_affine, name
            if array.shape != arrays.get(first, array).shape:
                raise ValueError(
                    f"All sequences of {where} must lie on one grid, but {name} has shape {array.shape} "
                    f"and {first} {arrays[first].shape}."
                )
            if not np.allclose(own_affine, affine, rtol=0, atol=AFFINE_TOLERANCE_MM):
                raise ValueError(
                    f"All sequences of {where} must lie on one grid, but the affines of {name} and {first} differ by "
                    f"up to {np.abs(own_affine - affine).max():.3g} mm."
                )
            if not np.isfinite(array).all():
                count = int((~np.isfinite(array)).sum())
                warnings.warn(f"{count} voxels of {name} in {where} are not finite; they count as zero.", stacklevel=4)
                array = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
            if not array.any():
                raise ValueError(f"No voxel of {name} in {where} differs from zero; leave the sequence out if absent.")
            arrays[name] = array
        return arrays, affine

    def _prepare(
        self,
        arrays: Mapping[str, np.ndarray],
        affine: np.ndarray,
        box_of_own: np.ndarray,
        shape: tuple[int, ...],
    ) -> tuple[Tensor, CaseGeometry]:
        """Normalised volume `(M, D, H, W)` on the brain's box, and the geometry."""
        inside = to_canonical(box_of_own, affine)
        bounds = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        limits = [(int(index[0]), int(index[-1]) + 1) for index in bounds]
        box = (limits[0], limits[1], limits[2])
        box_shape = (box[0][1] - box[0][0], box[1][1] - box[1][0], box[2][1] - box[2][0])
        spacing = canonical_spacing_mm(affine)
        new_shape = resampled_shape(box_shape, spacing, tuple(self.target_spacing_mm))
        brain = close_gaps(inside[tuple(slice(low, high) for low, high in box)], spacing)
        geometry = CaseGeometry((shape[0], shape[1], shape[2]), affine, box, new_shape, brain)
        volume = torch.zeros(len(self.modalities), *new_shape)
        for name, array in arrays.items():
            cropped = to_canonical(array, affine)[tuple(slice(low, high) for low, high in box)]
            values = resample_brain(torch.from_numpy(cropped), new_shape)
            volume[self.modalities.index(name)] = robust_z_score(values, clip=self.intensity_clip)
        return volume, geometry


def largest_parts(mask: np.ndarray, least_part: float) -> np.ndarray:
    """Without the parts, joined by faces, edges or corners, that are smaller than a share of the largest part."""
    labelled, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labelled.ravel())
    # The first is what lies outside.
    sizes[0] = 0
    return mask & (sizes >= least_part * sizes.max())[labelled]


def brain_box(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Where any of the sequences differs from zero, bool in their own shape."""
    return np.logical_or.reduce([array != 0 for array in arrays])


def to_canonical_regions(regions: np.ndarray, affine: np.ndarray, geometry: CaseGeometry) -> np.ndarray:
    """Region masks `(3, ...)` of the case's own grid on the brain's box in canonical order."""
    box = tuple(slice(low, high) for low, high in geometry.box)
    return np.stack([to_canonical(region, affine)[box] for region in regions])


def resample_brain(volume: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Resample a skull-stripped volume so that the zeros around the brain do not darken its border."""
    if tuple(volume.shape) == tuple(shape):
        return volume
    share = resample((volume != 0).float(), shape)
    return torch.where(share >= 0.5, resample(volume, shape) / share.clamp(min=0.5), 0.0)


def robust_z_score(volume: Tensor, *, clip: float) -> Tensor:
    """`(x - median) / (1.4826 MAD)` over the voxels that are not zero, clipped to +-`clip`; zero elsewhere.

    A constant sequence has no spread and becomes zero everywhere.

    Example:
        >>> robust_z_score(torch.tensor([0.0, 1.0, 2.0, 3.0]), clip=5.0)
        tensor([ 0.0000, -0.6745,  0.0000,  0.6745])
    """
    brain = volume != 0
    values = volume[brain]
    median = values.median()
    spread = 1.4826 * (values - median).abs().median()
    if spread == 0:
        return torch.zeros_like(volume)
    return torch.where(brain, ((volume - median) / spread).clamp(-clip, clip), 0.0)


def _read(source: Any, spacing_mm: float | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Array `(D, H, W)` float32 and affine of a path, a nibabel image or an array."""
    if isinstance(source, str | Path):
        if str(source).endswith(".npy"):
            source = np.load(source, allow_pickle=False)
        elif nib is None:
            raise ImportError("Reading NIfTI files needs nibabel: pip install nibabel")
        else:
            source = nib.load(source)
    if isinstance(source, np.ndarray | Tensor):
        array = np.asarray(source, dtype=np.float32)
        affine = np.diag([*np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), 3), 1.0])
    elif nib is not None and isinstance(source, nib.spatialimages.SpatialImage):
        array, affine = np.asarray(source.dataobj, dtype=np.float32), np.asarray(source.affine)
    else:
        raise ValueError(f"A sequence must be a path, a nibabel image or an array, got {type(source).__name__}.")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise ValueError(f"A sequence must have three axes, got shape {array.shape}; give one sequence, not a stack.")
    return array, affine


def _pad_and_stack(volumes: Sequence[Tensor]) -> Tensor:
    """Stack `(C, D, H, W)` volumes, zero-padded at the far end to a common multiple of 16."""
    edges = [-(-max(volume.shape[axis] for volume in volumes) // TOKEN_STRIDE) * TOKEN_STRIDE for axis in (1, 2, 3)]
    stacked = volumes[0].new_zeros(len(volumes), volumes[0].shape[0], *edges)
    for number, volume in enumerate(volumes):
        stacked[number, :, : volume.shape[1], : volume.shape[2], : volume.shape[3]] = volume
    return stacked


__all__ = ["LoraMoeHgdImageProcessor"]
