"""MONAI's networks with the interface of the segmenter, so that training, saving and evaluation can use them.

These networks get a channel of zeros for an absent sequence, which is usual for networks that need all sequences.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES, REGIONS, LoraMoeHgdConfig
from lora_moe_hgd.model.losses import segmentation_losses, total_loss
from lora_moe_hgd.model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation, LoraMoeHgdSegmenterOutput
from lora_moe_hgd.model.sliding_window import sliding_window_logits

CHANNELS: dict[str, Any] = {"in_channels": len(MODALITIES), "out_channels": len(REGIONS)}
STRIDES = (1, 2, 2, 2, 2)

PEERS = ("SegResNet-16", "UNETR", "DynUNet", "SwinUNETR-24")


class PeerConfig(PreTrainedConfig):
    """Name of the network, and edge of its crops in voxels, for which UNETR stores position embeddings."""

    model_type = "peer"
    name: str = "SegResNet-16"
    edge: int = 64
    # Training reads this field to log the routing. Zero means that there are no routers.
    num_experts_per_tok: int = 0


def monai_network(config: PeerConfig) -> nn.Module:
    """Build the named network with MONAI's default sizes, except for a width in the name.

    Raises:
        ValueError: If the name is unknown.
    """
    if config.name == "SegResNet-16":
        return SegResNet(init_filters=16, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1), **CHANNELS)
    if config.name == "UNETR":
        return UNETR(img_size=config.edge, feature_size=16, **CHANNELS)
    if config.name == "SwinUNETR-24":
        return SwinUNETR(feature_size=24, **CHANNELS)
    if config.name == "DynUNet":
        # nnU-Net plans this architecture for crops of such a size.
        return DynUNet(3, **CHANNELS, kernel_size=[3] * 5, strides=STRIDES, upsample_kernel_size=STRIDES[1:])
    raise ValueError(f"`name` must be one of {', '.join(PEERS)}, got {config.name}.")


class PeerForSegmentation(PreTrainedModel):
    """Segmenter that contains one of MONAI's networks and is called like `LoraMoeHgdForSegmentation`."""

    config_class = PeerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        self.network = monai_network(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing, because MONAI has already initialised the weights."""

    def forward(
        self,
        pixel_values: Tensor,
        modality_mask: Tensor | None = None,
        labels: Tensor | None = None,
        region_weights: Tensor | None = None,
        output_router_logits: bool = False,
    ) -> LoraMoeHgdSegmenterOutput:
        """Segment a batch like `LoraMoeHgdForSegmentation.forward`, with the same loss on one scale only."""
        if modality_mask is not None:
            pixel_values = torch.where(modality_mask.bool()[..., None, None, None], pixel_values, 0.0)
        logits = self.network(pixel_values).float()
        if labels is None:
            return LoraMoeHgdSegmenterOutput(logits=logits)
        weights = torch.ones(len(REGIONS)) if region_weights is None else region_weights
        losses = segmentation_losses([logits], labels, scale_weights=[1.0], region_weights=weights.to(logits))
        return LoraMoeHgdSegmenterOutput(loss=total_loss(losses, {}), logits=logits, losses=losses, router_logits=())

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Save configuration and weights.

        Weights that DynUNet registers twice are copied, because safetensors refuses shared weights.
        """
        self.config.save_pretrained(save_directory)
        weights = {
            name: value.clone(memory_format=torch.contiguous_format) for name, value in self.state_dict().items()
        }
        save_file(weights, Path(save_directory) / "model.safetensors")

    def segment_volume(
        self, pixel_values: Tensor, modality_mask: Tensor, *, mirror: bool = False, progress: bool = False
    ) -> Tensor:
        """Segment a case like `LoraMoeHgdForSegmentation.segment_volume`."""
        window = (self.config.edge,) * 3
        return sliding_window_logits(
            self, pixel_values, modality_mask, window=window, mirror=mirror, progress=progress
        )


def make_network(name: str, edge: int) -> PreTrainedModel:
    """Build `tiny`, `base` or one of `PEERS` for crops of this edge, with random weights in channels-last layout."""
    network: PreTrainedModel
    if name in ("tiny", "base"):
        network = LoraMoeHgdForSegmentation(getattr(LoraMoeHgdConfig, name)())
    else:
        network = PeerForSegmentation(PeerConfig(name=name, edge=edge))
    nn.Module.to(network, memory_format=torch.channels_last_3d)
    return network


def num_parameters(network: nn.Module) -> float:
    """Number of parameters, in millions."""
    return sum(math.prod(value.shape) for value in network.parameters()) / 1e6
