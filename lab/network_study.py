"""Which small changes of the network find the tumour core and the enhancing tumour early, from scratch.

`PYTHONPATH=benchmarks python lab/network_study.py --data BRATS_AFRICA --steps 300 ...` takes the options of
benchmarks/compare_peers.py, and `--only` of the trials below.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from trials import Trial, main, without_curriculum

from lora_moe_hgd.model.configuration_lora_moe_hgd import STEM_STRIDES, LoraMoeHgdConfig
from lora_moe_hgd.model.encoder import EncoderOutput
from lora_moe_hgd.model.hgd_decoder import DecoderOutput, HolisticallyGuidedDecoder, upsample
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from lora_moe_hgd.model.stem import ModalityStem, StemOutput, presence_of
from lora_moe_hgd.training.engine import FROM_SCRATCH_SPACING_MM, Build


class OwnKernelStem(ModalityStem):
    """Each sequence has its own first kernel."""

    def forward(self, pixel_values: Tensor, modality_mask: Tensor) -> StemOutput:
        presence = presence_of(modality_mask)
        volumes = presence.pack(pixel_values).unsqueeze(1)
        first = self.downsample[0]
        kernels = first.weight.unflatten(0, (len(modality_mask[0]), -1))
        skips = []
        x = torch.cat(
            [
                nn.functional.conv3d(volume[None], kernels[modality], stride=2, padding=1)
                for volume, modality in zip(volumes, presence.modality_P.tolist(), strict=True)
            ]
        )
        for stage in range(len(STEM_STRIDES)):
            if stage == 0:
                x = x + self.modality_embedding(presence.modality_P)[..., None, None, None]
            else:
                x = self.downsample[stage](x)
            x = self.blocks[stage](x)
            skips.append(self.fusions[stage](x, presence))
        patches = self.patch_projection(nn.functional.leaky_relu(self.patch_norm(x), inplace=True))
        return StemOutput(
            full_resolution=self._fuse_early(pixel_values, modality_mask),
            skips=(skips[0], skips[1], skips[2]),
            patches=patches,
            presence=presence,
        )


class ResidualHeads(HolisticallyGuidedDecoder):
    """The logits of each coarse head are added to those of the next finer head."""

    def forward(self, stem: StemOutput, encoded: EncoderOutput) -> DecoderOutput:
        decoded = super().forward(stem, encoded)
        logits8, logits4, logits1 = decoded.logits
        logits4 = logits4 + upsample(logits8, logits4.shape[2:])
        logits1 = logits1 + upsample(logits4, logits1.shape[2:])
        return DecoderOutput((logits8, logits4, logits1), decoded.codebook)


def own_kernels(network: LoraMoeHgdForSegmentation) -> None:
    stem = network.encoder.stem
    channels = network.config.stem_channels[0]
    stem.downsample[0] = nn.Conv3d(1, 4 * channels, kernel_size=3, stride=2, padding=1, bias=False)
    network._init_weights(stem.downsample[0])
    stem.__class__ = OwnKernelStem


def residual_heads(network: LoraMoeHgdForSegmentation) -> None:
    network.decoder.__class__ = ResidualHeads


def fast_heads(network: LoraMoeHgdForSegmentation) -> None:
    """Heads that a step of AdamW changes four times as much."""
    for head in network.decoder.heads:
        head.register_forward_hook(lambda module, inputs, output: 4 * output)
        with torch.no_grad():
            head.weight.div_(4)


def built(*changes: Callable[[LoraMoeHgdForSegmentation], None]) -> Build:
    def build(run: object) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
        network = LoraMoeHgdForSegmentation(LoraMoeHgdConfig())
        for change in changes:
            change(network)
        return network, LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM)

    return build


TRIALS = {
    "tiny": Trial(built(), training=without_curriculum),
    "residual heads": Trial(built(residual_heads), training=without_curriculum),
    "own first kernels": Trial(built(own_kernels), training=without_curriculum),
    "fast heads": Trial(built(fast_heads), training=without_curriculum),
    "tiny, rate x 3": Trial(built(), training=without_curriculum, options=("--lr", "3e-3")),
}

if __name__ == "__main__":
    main(TRIALS, about=__doc__, out="runs/network_study")
