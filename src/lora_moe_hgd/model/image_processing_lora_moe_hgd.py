"""Image processor: convert the sequences of a case to network input, and logits to label maps on the case's grid."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from .brain import brain_of
from .case_rules import SettledCase, result_warnings, settle
from .confidence import calibrated_dice, expected_dice
from .configuration_lora_moe_hgd import TOKEN_STRIDE
from .findings import BadInputError
from .geometry import (
    CaseGeometry,
    canonical_spacing_mm,
    canonical_view,
    close_gaps,
    resample,
    resampled_shape,
    to_canonical,
)
from .label_schemes import LabelScheme
from .label_schemes import label_scheme as find_label_scheme
from .parts import largest_parts
from .sources import volume_of
from .task import BRAIN_TUMOUR, Task


class LoraMoeHgdImagesKwargs(ImagesKwargs, total=False):
    """Settings of the processor that are saved in a checkpoint."""

    modalities: list[str]
    target_spacing_mm: list[float]
    intensity_clip: float
    label_scheme: str
    least_part: float
    confidence_weights: list[list[float]] | None
    task: dict[str, Any] | None


class LoraMoeHgdImageProcessor(BaseImageProcessor):
    """Preprocess cases (canonical orientation, voxel size, brain crop, robust z-score) and post-process logits.

    Args:
        modalities: Names of the sequences in channel order, or `None` for the sequences of the task.
        target_spacing_mm: Voxel size of the network's input along the canonical axes, in millimetres.
        intensity_clip: Robust z-scores are clipped to plus and minus this value.
        label_scheme: Name of the default label scheme, which gives each value of a label map its meaning.
            `label_scheme=None` chooses brats2023 for brain tumours, and the only scheme of any other task.
        least_part: Connected parts of a region that are smaller than this share of the largest part are removed; 0
            keeps all parts.
        confidence_weights: Weights of `confidence.calibrated_dice` for each region, fitted to real cases. Without
            weights, the confidence is the Dice that the probabilities imply, which is too high.
        task: Task of the network (its sequences and regions), as a dictionary from `Task.to_dict`, or `None` for the
            brain-tumour task.

    Raises:
        ValueError: If a setting is outside its range.

    Example:
        >>> processor = LoraMoeHgdImageProcessor()
        >>> volume = np.zeros((20, 24, 28), dtype=np.float32)
        >>> volume[2:-2, 2:-2, 2:-2] = np.random.default_rng(0).normal(100, 20, (16, 20, 24))
        >>> inputs = processor({"t1": None, "t1c": volume, "t2": None, "flair": None}, spacing_mm=5)
        >>> tuple(inputs["pixel_values"].shape), inputs["modality_mask"].tolist()
        ((1, 4, 80, 112, 128), [[False, True, False, False]])
    """

    model_input_names = ["pixel_values", "modality_mask"]
    valid_kwargs = LoraMoeHgdImagesKwargs

    def __init__(
        self,
        modalities: Sequence[str] | None = None,
        target_spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        intensity_clip: float = 10.0,
        label_scheme: str | None = None,
        least_part: float = 0.0,
        confidence_weights: Sequence[Sequence[float]] | None = None,
        task: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(target_spacing_mm) != 3 or min(target_spacing_mm) <= 0:
            raise ValueError(f"`target_spacing_mm` must be three positive numbers, got {target_spacing_mm}.")
        if intensity_clip <= 0:
            raise ValueError(f"`intensity_clip` must be positive, got {intensity_clip}.")
        if not 0 <= least_part <= 1:
            raise ValueError(f"`least_part` must be between 0 and 1, got {least_part}.")
        self.task = None if task is None else Task.from_dict(task).to_dict()
        names = self.segmentation_task.modalities
        if task is not None and modalities is not None and tuple(modalities) != names:
            raise ValueError(
                f"`modalities` must be {', '.join(names)} (the sequences of the task), got {', '.join(modalities)}."
            )
        self.modalities = list(modalities or names)
        self.target_spacing_mm = [float(spacing) for spacing in target_spacing_mm]
        self.intensity_clip = float(intensity_clip)
        usual = "brats2023" if task is None else self.segmentation_task.name
        self.label_scheme = self.scheme(label_scheme or usual).name
        self.least_part = float(least_part)
        if confidence_weights is not None:
            lengths = [len(weights) for weights in confidence_weights]
            regions = self.segmentation_task.regions
            needed = 2 + len(regions) + len(self.modalities)
            if lengths != [needed] * len(regions):
                raise ValueError(
                    f"`confidence_weights` must have {needed} numbers for each region ({', '.join(regions)}), but has"
                    f" {lengths} numbers. A checkpoint from an earlier version has fewer numbers. Set"
                    " `confidence_weights` to null in the checkpoint's preprocessor_config.json. If the checkpoint was"
                    " trained from a shipped checkpoint, you can copy the `confidence_weights` of the shipped"
                    " checkpoint instead."
                )
            confidence_weights = [[float(weight) for weight in weights] for weights in confidence_weights]
        self.confidence_weights = confidence_weights

    @property
    def segmentation_task(self) -> Task:
        """Task of the network: its sequences and regions."""
        return BRAIN_TUMOUR if self.task is None else Task.from_dict(self.task)

    def scheme(self, name: str | None = None) -> LabelScheme:
        """Return the task's label scheme of this name; `None` means the processor's default scheme.

        Raises:
            ValueError: If the task has no label scheme of this name.
        """
        return find_label_scheme(name or self.label_scheme, self.segmentation_task.schemes)

    def __call__(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        return self.preprocess(images, segmentation_maps, **kwargs)

    def preprocess(
        self,
        images: Mapping[str, Any] | SettledCase | Sequence[Mapping[str, Any] | SettledCase],
        segmentation_maps: Any = None,
        *,
        label_scheme: str | None = None,
        spacing_mm: float | Sequence[float] | None = None,
        allow_skull: bool = False,
        allow_partial: bool = False,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Preprocess one case or a list of cases.

        Every case follows the rules of `case_rules.settle`: all sequences and the label map are resampled to the grid
        of the first sequence that states its affine (or of the first sequence if none states it). A problem with which
        the case can still be used is reported as a warning.

        Args:
            images: For each case, a dict from sequence name to a path (NIfTI or `.npy`), a nibabel image, a MONAI
                `MetaTensor`, an array or a tensor `(D, H, W)`. Absent sequences are left out or `None`. Instead of a
                dict, a case may be a result of `settle`.
            segmentation_maps: Label map of each case, in the same forms as the sequences. For a result of `settle`,
                which already contains its label map, the label map given here is ignored.
            label_scheme: Name of the label scheme, which gives each value of a label map its meaning, or `None` for
                the processor's default scheme.
            spacing_mm: Voxel size of arrays without an affine, in millimetres; `None` means 1 mm. Such arrays must be
                in RAS order.
            allow_skull: Accept heads with their skull.
            allow_partial: Accept volumes that show only a part of a brain.
            return_tensors: Type of the returned tensors; only `pt` (PyTorch) is supported.

        Returns:
            `pixel_values (B, M, D, H, W)`, float32, zero outside the brain and in absent sequences, padded at the end
            of each axis to a multiple of 16. `modality_mask (B, M)`, bool, true for present sequences. `geometry`, one
            `CaseGeometry` per case, which contains the warnings and is needed for post-processing. `labels (B, R, D,
            H, W)`, uint8, the masks of the regions, if label maps were given.

        Raises:
            ValueError: If a case cannot be used. The error message names the case, the sequence and the remedy.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(
                f"`return_tensors` must be 'pt', got {return_tensors!r}, because the network needs PyTorch."
            )
        is_single = isinstance(images, Mapping | SettledCase)
        cases = [images] if isinstance(images, Mapping | SettledCase) else list(images)
        if segmentation_maps is None:
            maps: list[Any] = [None] * len(cases)
        else:
            maps = [segmentation_maps] if is_single else list(segmentation_maps)
            if len(maps) != len(cases) or any(label_map is None for label_map in maps):
                given = sum(label_map is not None for label_map in maps)
                raise ValueError(
                    f"Give a label map for each case, or for none of them. Label maps: {given}, cases: {len(cases)}."
                )
        scheme = self.scheme(label_scheme)
        settled = []
        for number, (case, label_map) in enumerate(zip(cases, maps, strict=True)):
            if isinstance(case, SettledCase):
                settled.append(case.raise_errors())
                continue
            where = "" if is_single else f"case {number}: "
            settled.append(self._settle(case, label_map, scheme.name, spacing_mm, where, allow_skull, allow_partial))
        labelled = [case.labels is not None for case in settled]
        if any(labelled) and not all(labelled):
            raise ValueError(
                "Give a label map for each case, or for none of them. "
                f"Label maps: {sum(labelled)}, cases: {len(cases)}."
            )
        volumes, labels, geometries = [], [], []
        for case in settled:
            volume, geometry = self._prepare(case)
            volumes.append(volume)
            geometries.append(geometry)
            if case.labels is not None:
                regions = to_canonical_regions(case.regions, case.affine, geometry)
                labels.append((resample(torch.from_numpy(regions).float(), geometry.resampled_shape) >= 0.5).byte())
        data = {
            "pixel_values": _pad_and_stack(volumes),
            "modality_mask": torch.tensor([[name in case.arrays for name in self.modalities] for case in settled]),
            "geometry": geometries,
        }
        if labels:
            data["labels"] = _pad_and_stack(labels)
        return BatchFeature(data)

    def _settle(
        self,
        case: Mapping[str, Any],
        label_map: Any,
        scheme: str,
        spacing_mm: float | Sequence[float] | None,
        where: str,
        allow_skull: bool,
        allow_partial: bool,
    ) -> SettledCase:
        """Read the present sequences in channel order, and apply `case_rules.settle`.

        Raises:
            ValueError: If the case cannot be used.
        """
        unknown = sorted(set(case) - set(self.modalities))
        if unknown:
            raise ValueError(
                f"{where}Unknown sequence {', '.join(map(str, unknown))}. The names are {', '.join(self.modalities)}, "
                "in lower case."
            )
        present = {name: case[name] for name in self.modalities if case.get(name) is not None}
        if not present:
            raise ValueError(f"{where}No sequence was given. Give at least one of {', '.join(self.modalities)}.")
        volumes = {
            name: volume_of(source, where=f"{where}{name}", spacing_mm=spacing_mm) for name, source in present.items()
        }
        labels = None
        if label_map is not None:
            labels = volume_of(label_map, where=f"{where}label map", spacing_mm=None)
        settled = settle(
            volumes,
            label_map=labels,
            label_schemes=(scheme,),
            allow_skull=allow_skull,
            allow_partial=allow_partial,
            task=self.segmentation_task,
        )
        for finding in settled.findings:
            if finding.level == "error":
                raise BadInputError(f"{where}{finding.where}", finding.message)
            warnings.warn(f"{where}{finding}", stacklevel=4)
        return settled

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        geometry: Sequence[CaseGeometry],
        *,
        label_scheme: str | None = None,
    ) -> list[np.ndarray]:
        """Convert logits to label maps on each case's own grid (see `CaseGeometry`).

        Args:
            outputs: Network output with `logits (B, R, D, H, W)`, or the logits themselves.
            geometry: The `geometry` that `preprocess` returned for these cases.
            label_scheme: Name of the label scheme, which gives each value of a label map its meaning, or `None` for
                the processor's default scheme.

        Returns:
            Label map of each case, uint8 in the case's own shape and orientation.
        """
        scheme = self.scheme(label_scheme)
        return [scheme.encode(regions) for regions, _ in self.post_process_regions(outputs, geometry)]

    def post_process_regions(
        self, outputs: Any, geometry: Sequence[CaseGeometry]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Convert logits to regions and probabilities on each case's own grid (see `CaseGeometry`).

        Logits are interpolated to the voxels of the case's own grid and passed through a sigmoid. The probability of a
        region is then limited to the probability of each region that contains it: TC is at most WT, and ET is at most
        TC. Probabilities outside the brain are set to zero. The mask of a region contains the voxels with a
        probability above 0.5 (see `regions_of`).

        Args:
            outputs: Network output with `logits (B, R, D, H, W)`, or the logits themselves.
            geometry: The `geometry` that `preprocess` returned for these cases.

        Returns:
            For each case, the region masks, bool, and the region probabilities, float32, both `(R, D, H, W)` in the
            case's own shape and orientation. For brain tumours, the regions are WT, TC and ET.
        """
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        results = []
        for case_logits, case_geometry in zip(logits, geometry, strict=True):
            in_box = self.post_process_in_box(case_logits, case_geometry)
            results.append((case_geometry.to_own_grid(in_box[0]), case_geometry.to_own_grid(in_box[1])))
        return results

    def post_process_in_box(self, logits: Tensor, geometry: CaseGeometry) -> tuple[np.ndarray, np.ndarray]:
        """Convert the logits of one case like `post_process_regions`, but only inside the bounding box of its brain.

        All regions and probabilities are zero outside the box. `geometry.to_own_grid` converts regions and
        probabilities to the case's own grid.

        Args:
            logits: Region logits of the case, `(R, D, H, W)`.
            geometry: The `geometry` that `preprocess` returned for this case.

        Returns:
            The region masks, bool, and the region probabilities, float32, both `(R, *geometry.box_shape)` in canonical
            order.
        """
        depth, height, width = geometry.resampled_shape
        in_box = resample(logits[:, :depth, :height, :width].float(), geometry.box_shape)
        probabilities = self.segmentation_task.nested(in_box.sigmoid()).cpu().numpy()
        probabilities *= geometry.brain
        return self.regions_of(probabilities), probabilities

    def confidence(
        self, probabilities: np.ndarray, regions: np.ndarray, *, voxel_ml: float, present: Sequence[bool]
    ) -> dict[str, float | None]:
        """Return the expected Dice of each region, by the name of the region; `None` for an empty region.

        Args:
            probabilities: Probabilities of the regions, `(R, D, H, W)` in [0, 1].
            regions: Masks of the segmented regions, `(R, D, H, W)` bool.
            voxel_ml: Volume of a voxel in millilitres.
            present: Whether each sequence is available, in channel order.
        """
        found: dict[str, float | None] = {}
        names = self.segmentation_task.regions
        volumes_ml = [np.count_nonzero(region) * voxel_ml for region in regions]
        for index, (name, value) in enumerate(zip(names, expected_dice(probabilities, regions), strict=True)):
            if volumes_ml[index] == 0:
                found[name] = None
            elif self.confidence_weights is None:
                found[name] = value
            else:
                found[name] = calibrated_dice(value, volumes_ml, present, self.confidence_weights[index])
        return found

    def regions_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Threshold probabilities at 0.5, remove small parts (`least_part`), and return masks `(R, D, H, W)` bool.

        Voxels that are removed from a region are also removed from the regions inside it.
        """
        regions = probabilities > 0.5
        if self.least_part > 0:
            for region, around in zip(regions, self.segmentation_task.around, strict=True):
                for number in around:
                    region &= regions[number]
                region[:] = largest_parts(region, self.least_part)
        return regions

    def _prepare(self, case: SettledCase) -> tuple[Tensor, CaseGeometry]:
        """Crop all sequences to the brain, resample and normalise them; return images `(M, D, H, W)` and geometry."""
        shape = next(iter(case.arrays.values())).shape
        inside = to_canonical(brain_of(case.arrays.values()), case.affine)
        bounds = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        limits = [(int(index[0]), int(index[-1]) + 1) for index in bounds]
        box = (limits[0], limits[1], limits[2])
        box_shape = (box[0][1] - box[0][0], box[1][1] - box[1][0], box[2][1] - box[2][0])
        spacing = canonical_spacing_mm(case.affine)
        new_shape = resampled_shape(box_shape, spacing, tuple(self.target_spacing_mm))
        brain = close_gaps(inside[tuple(slice(low, high) for low, high in box)], spacing)
        warned = result_warnings(case.arrays, self.segmentation_task)
        messages = tuple(str(finding) for finding in (*case.findings, *warned))
        geometry = CaseGeometry((shape[0], shape[1], shape[2]), case.affine, box, new_shape, brain, messages)
        volume = torch.zeros(len(self.modalities), *new_shape)
        for name, array in case.arrays.items():
            cropped = canonical_view(array, case.affine)[tuple(slice(low, high) for low, high in box)]
            # Copy the array, because PyTorch does not accept negative strides.
            values = resample_brain(torch.from_numpy(cropped.copy()), new_shape)
            volume[self.modalities.index(name)] = robust_z_score(values, clip=self.intensity_clip)
        return volume, geometry


def to_canonical_regions(regions: np.ndarray, affine: np.ndarray, geometry: CaseGeometry) -> np.ndarray:
    """Reorder region masks `(R, ...)` to canonical order and crop them to the brain's bounding box."""
    box = tuple(slice(low, high) for low, high in geometry.box)
    return canonical_view(regions, affine)[:, *box].copy()


def resample_brain(volume: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Resample a skull-stripped volume so that the zeros around the brain do not darken its border."""
    if tuple(volume.shape) == tuple(shape):
        return volume
    share = resample((volume != 0).float(), shape)
    return torch.where(share >= 0.5, resample(volume, shape) / share.clamp(min=0.5), 0.0)


def robust_z_score(volume: Tensor, *, clip: float) -> Tensor:
    """`(x - median) / (1.4826 MAD)` over the non-zero voxels, clipped to plus and minus `clip`. Zeros stay zero.

    Raises:
        ValueError: If more than half of the non-zero voxels are equal, because the MAD is then zero.

    Example:
        >>> robust_z_score(torch.tensor([0.0, 1.0, 2.0, 3.0]), clip=5.0)
        tensor([ 0.0000, -0.6745,  0.0000,  0.6745])
    """
    brain = volume != 0
    values = volume[brain]
    median = values.median()
    spread = 1.4826 * (values - median).abs().median()
    if spread == 0:
        raise ValueError(f"More than half of the brain has the value {median:g}, so intensities cannot be normalised.")
    return torch.where(brain, ((volume - median) / spread).clamp(-clip, clip), 0.0)


def _pad_and_stack(volumes: Sequence[Tensor]) -> Tensor:
    """Stack `(C, D, H, W)` volumes, zero-padded at the end of each axis to a common multiple of 16."""
    edges = [-(-max(volume.shape[axis] for volume in volumes) // TOKEN_STRIDE) * TOKEN_STRIDE for axis in (1, 2, 3)]
    stacked = volumes[0].new_zeros(len(volumes), volumes[0].shape[0], *edges)
    for number, volume in enumerate(volumes):
        stacked[number, :, : volume.shape[1], : volume.shape[2], : volume.shape[3]] = volume
    return stacked


__all__ = ["LoraMoeHgdImageProcessor"]
