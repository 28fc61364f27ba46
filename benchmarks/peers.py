"""MONAI's networks behind the interface of the segmenter: training, saving and evaluation take them as they are.

An absent sequence is a channel of zeros to them, as is usual for networks that were not made for absent sequences.
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
    """Which network, and for crops of which edge: UNETR stores positions for one size."""

    model_type = "peer"
    name: str = "SegResNet-16"
    edge: int = 64
    # What a run logs of routers.
    num_experts_per_tok: int = 0


def monai_network(config: PeerConfig) -> nn.Module:
    """The network by its name, with MONAI's own sizes but for the widths that its name tells.

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
        # The shape that nnU-Net plans for such crops.
        return DynUNet(3, **CHANNELS, kernel_size=[3] * 5, strides=STRIDES, upsample_kernel_size=STRIDES[1:])
    raise ValueError(f"`name` must be one of {', '.join(PEERS)}, got {config.name}.")


class PeerForSegmentation(PreTrainedModel):
    """One of MONAI's networks, called as `LoraMoeHgdForSegmentation` is."""

    config_class = PeerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        self.network = monai_network(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """MONAI has initialised them."""

    def forward(
        self,
        pixel_values: Tensor,
        modality_mask: Tensor | None = None,
        labels: Tensor | None = None,
        region_weights: Tensor | None = None,
        output_router_logits: bool = False,
    ) -> LoraMoeHgdSegmenterOutput:
        """Arguments and shapes as in `LoraMoeHgdForSegmentation.forward`; the loss is the same, on one scale."""
        if modality_mask is not None:
            pixel_values = torch.where(modality_mask.bool()[..., None, None, None], pixel_values, 0.0)
        logits = self.network(pixel_values).float()
        if labels is None:
            return LoraMoeHgdSegmenterOutput(logits=logits)
        weights = torch.ones(len(REGIONS)) if region_weights is None else region_weights
        losses = segmentation_losses([logits], labels, scale_weights=[1.0], region_weights=weights.to(logits))
        return LoraMoeHgdSegmenterOutput(loss=total_loss(losses, {}), logits=logits, losses=losses, router_logits=())

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Configuration and weights, those twice that DynUNet registers twice, which safetensors would refuse."""
        self.config.save_pretrained(save_directory)
        weights = {
            name: value.clone(memory_format=torch.contiguous_format) for name, value in self.state_dict().items()
        }
        save_file(weights, Path(save_directory) / "model.safetensors")

    def segment_volume(
        self, pixel_values: Tensor, modality_mask: Tensor, *, mirror: bool = False, progress: bool = False
    ) -> Tensor:
        """As `LoraMoeHgdForSegmentation.segment_volume`."""
        window = (self.config.edge,) * 3
        return sliding_window_logits(
            self, pixel_values, modality_mask, window=window, mirror=mirror, progress=progress
        )


def make_network(name: str, edge: int) -> PreTrainedModel:
    """`tiny`, `base` or a peer, for crops of this edge, with random weights; faster on channels-last volumes."""
    network: PreTrainedModel
    if name in ("tiny", "base"):
        network = LoraMoeHgdForSegmentation(getattr(LoraMoeHgdConfig, name)())
    else:
        network = PeerForSegmentation(PeerConfig(name=name, edge=edge))
    nn.Module.to(network, memory_format=torch.channels_last_3d)
    return network


def num_parameters(network: nn.Module) -> float:
    """In millions."""
    return sum(math.prod(value.shape) for value in network.parameters()) / 1e6
