"""Ablations of the network and of its training: train variants for equal steps, and print a table of their Dice.

`python benchmarks/ablations.py --data ROOT` trains each variant from scratch on phantoms mixed with the cases in ROOT,
with two seeds. Finished runs are not repeated when the command is started again. Dice is the mean over the 15 subsets,
on phantoms that no run trains on, and on the cases of ROOT that are held out from training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from trials import Trial, main, without_curriculum

from lora_moe_hgd.model.configuration_lora_moe_hgd import LoraMoeHgdConfig
from lora_moe_hgd.model.hgd_decoder import PointwiseBlock, upsample
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation, LoraMoeHgdSegmenterOutput
from lora_moe_hgd.model.moe import ExpertRouter
from lora_moe_hgd.training.engine import FROM_SCRATCH_SPACING_MM, Build

SECOND_LOSS_WEIGHT = 0.1


class PlainUpsampling(nn.Module):
    """Decoder that joins stem features and tokens at stride 8, without a codebook."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        self.guidance = PointwiseBlock(config.stem_channels[-1] + config.hidden_size, config.codeword_size)
        self.output = PointwiseBlock(config.codeword_size, config.codeword_size)

    def forward(self, fine: Tensor, context: Tensor, codebook: Tensor, mean_base: Tensor) -> Tensor:
        return self.output(self.guidance(torch.cat([fine, upsample(context, fine.shape[2:])], dim=1)))


class OpenRouter(ExpertRouter):
    """Router that lets any token use any expert."""

    def forward(self, x_TD: Tensor, modality_T: Tensor) -> Tensor:
        return nn.functional.linear(x_TD.float(), self.weight.float())


class DenseConfig(LoraMoeHgdConfig):
    """Configuration with dense feed-forward blocks in all layers."""

    def has_experts(self, layer: int) -> bool:
        return False


class TwiceSeen(LoraMoeHgdForSegmentation):
    """Network that sees each training sample also with one sequence less; a second loss compares the two outputs."""

    def forward(self, pixel_values: Tensor, modality_mask: Tensor, **others: Any) -> LoraMoeHgdSegmenterOutput:
        if not self.training:
            return super().forward(pixel_values, modality_mask, **others)
        others["output_codebook"] = True
        more = super().forward(pixel_values, modality_mask, **others)
        fewer = super().forward(pixel_values, _without_one(modality_mask), **others)
        more.loss = (more.loss + fewer.loss) / 2 + SECOND_LOSS_WEIGHT * self.compare(more, fewer)
        return more

    def compare(self, more: LoraMoeHgdSegmenterOutput, fewer: LoraMoeHgdSegmenterOutput) -> Tensor:
        raise NotImplementedError


class Ranked(TwiceSeen):
    """Network with a ranking loss: more sequences must not give a larger loss than fewer sequences (SimMLM)."""

    def compare(self, more: LoraMoeHgdSegmenterOutput, fewer: LoraMoeHgdSegmenterOutput) -> Tensor:
        return (more.loss - fewer.loss).relu()


class Distilled(TwiceSeen):
    """Network that is trained to make codewords from fewer sequences similar in direction to those from more."""

    def compare(self, more: LoraMoeHgdSegmenterOutput, fewer: LoraMoeHgdSegmenterOutput) -> Tensor:
        return 1 - nn.functional.cosine_similarity(fewer.codebook, more.codebook.detach(), dim=1).mean()


def _without_one(mask: Tensor) -> Tensor:
    """Drop a random sequence from the mask `(B, M)` of each case that has two or more sequences."""
    dropped = torch.where(mask, torch.rand(mask.shape, device=mask.device), -1.0).argmax(dim=1, keepdim=True)
    fewer = mask.scatter(1, dropped, False)
    return torch.where(fewer.any(dim=1, keepdim=True), fewer, mask)


def plain_upsampling(network: LoraMoeHgdForSegmentation) -> None:
    network.decoder.assembly = PlainUpsampling(network.config)
    network.decoder.assembly.apply(network._init_weights)


def open_routers(network: LoraMoeHgdForSegmentation) -> None:
    for layer in network.encoder.vit.layers:
        if layer.with_experts:
            layer.moe.router.__class__ = OpenRouter


def built(
    network: type[LoraMoeHgdForSegmentation] = LoraMoeHgdForSegmentation,
    *,
    config: type[LoraMoeHgdConfig] = LoraMoeHgdConfig,
    change: Callable[[LoraMoeHgdForSegmentation], None] = lambda network: None,
    **sizes: Any,
) -> Build:
    """Return a function that builds a network from these classes and sizes, and then applies `change`."""

    def build(run: Any) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
        made = network(config(**sizes))
        change(made)
        return made, LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM)

    return build


# Variants that see each sample twice get half of the steps.
HALF = ("--crops-per-case", "1")
TRIALS: dict[str, Trial] = {
    "default": Trial(built()),
    "plain upsampling, no codebook": Trial(built(change=plain_upsampling)),
    "no prior codewords": Trial(built(num_prior_codewords=0)),
    # A token needs as many multiplications as with one shared and two routed experts.
    "dense feed-forward, no experts": Trial(built(config=DenseConfig, intermediate_size=960)),
    "no expert owned by a sequence": Trial(built(change=open_routers)),
    "ranking loss": Trial(built(Ranked), options=HALF),
    "codebook distillation": Trial(built(Distilled), options=HALF),
    "no curriculum": Trial(built(), training=without_curriculum),
    "half the channels at full resolution": Trial(built(full_resolution_channels=8, refinement_channels=(64, 32, 8))),
}

if __name__ == "__main__":
    main(TRIALS, about=__doc__, out="runs/ablations")
