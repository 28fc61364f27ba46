"""Find regions and probabilities of a preprocessed case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation


def find_regions(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    inputs: Mapping[str, Any],
    *,
    mirror: bool = False,
    bf16: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Segment one preprocessed case, and return the result on the case's own grid.

    The arguments are those of `find_in_box`.

    Returns:
        Regions (WT, TC and ET for brain tumours), `(R, D, H, W)` bool, and their probabilities, float32 of the same
        shape.
    """
    (geometry,) = inputs["geometry"]
    regions, probabilities = find_in_box(network, processor, inputs, mirror=mirror, bf16=bf16)
    return geometry.to_own_grid(regions), geometry.to_own_grid(probabilities)


def find_in_box(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    inputs: Mapping[str, Any],
    *,
    mirror: bool = False,
    bf16: bool = False,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Segment one preprocessed case, and return the result only for the bounding box of its brain.

    Args:
        network: Network in evaluation mode.
        processor: Image processor, which resamples the logits to the voxels of the case.
        inputs: Output of the processor for one case. Channels that `modality_mask` marks as absent are never read.
        mirror: Average the logits of the case and of its left-right mirror image, which takes twice as long.
        bf16: Compute the network in bfloat16.
        progress: Show a progress bar.

    Returns:
        Regions, `(R, *box_shape)` bool, and their probabilities, float32 of the same shape. The axes of the box are in
        RAS order.
    """
    logits = network.segment_volume(
        inputs["pixel_values"].to(network.device),
        inputs["modality_mask"].to(network.device),
        mirror=mirror,
        bf16=bf16,
        progress=progress,
    )
    (geometry,) = inputs["geometry"]
    return processor.post_process_in_box(logits[0], geometry)
