"""A case in memory to its regions, in its own space, from whichever sequences it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from ..model.case_rules import SettledCase
from ..model.configuration_lora_moe_hgd import REGIONS
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import label_scheme
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation


@dataclass(frozen=True)
class Segmentation:
    """What was found in a case, on the case's own grid.

    Attributes:
        regions: WT, TC and ET, nested, `(3, D, H, W)` bool.
        probabilities: Of the same regions, float32 in [0, 1].
        voxel_ml: Volume of a voxel in millilitres.
        warnings: What the user should know of the case, a sentence each.
    """

    regions: np.ndarray
    probabilities: np.ndarray
    voxel_ml: float
    warnings: tuple[str, ...] = ()

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each region in millilitres."""
        return {name: float(region.sum()) * self.voxel_ml for name, region in zip(REGIONS, self.regions, strict=True)}


def segment(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    images: Mapping[str, nib.Nifti1Image] | SettledCase,
    *,
    mirror: bool = False,
    progress: bool = False,
) -> Segmentation:
    """Segment the case whose present sequences are `images`; `mirror` averages over the case and its mirror image.

    Raises:
        ValueError: If the case cannot be used.
    """
    return segment_inputs(network, processor, processor(images), mirror=mirror, progress=progress)


def segment_inputs(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    inputs: Mapping[str, Any],
    *,
    mirror: bool = False,
    progress: bool = False,
) -> Segmentation:
    """Segment a case that has been preprocessed; absent sequences may lie in `pixel_values` and are not read."""
    logits = network.segment_volume(
        inputs["pixel_values"].to(network.device),
        inputs["modality_mask"].to(network.device),
        mirror=mirror,
        progress=progress,
    )
    ((labels, probabilities),) = processor.post_process_semantic_segmentation(
        logits, inputs["geometry"], return_probabilities=True
    )
    return Segmentation(
        regions=label_scheme(processor.label_scheme).decode(labels),
        probabilities=probabilities,
        voxel_ml=inputs["geometry"][0].voxel_ml,
        warnings=inputs["geometry"][0].warnings,
    )
