"""Find regions and probabilities of a preprocessed case, on the case's own grid."""

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
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Segment one case that the processor has preprocessed.

    Args:
        network: Segments the case.
        processor: Resamples the logits to the grid of the case.
        inputs: Result of the processor. Channels that `modality_mask` marks as absent are never read.
        mirror: Average over the case and its mirror image.
        progress: Show a progress bar.

    Returns:
        The regions, WT, TC and ET of a tumour, `(R, D, H, W)` bool, and their probabilities, float32 of the same
        shape.
    """
    logits = network.segment_volume(
        inputs["pixel_values"].to(network.device),
        inputs["modality_mask"].to(network.device),
        mirror=mirror,
        progress=progress,
    )
    (found,) = processor.post_process_regions(logits, inputs["geometry"])
    return found
