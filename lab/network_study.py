"""Which small changes of the network find the tumour core and the enhancing tumour early, from scratch.

`PYTHONPATH=benchmarks python lab/network_study.py --data BRATS_AFRICA --steps 300 ...` takes the options of
benchmarks/compare_peers.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import PEERS, make_network
from torch import Tensor, nn
from trials import Trial, main, without_curriculum

from lora_moe_hgd.model.configuration_lora_moe_hgd import STEM_STRIDES, LoraMoeHgdConfig
from lora_moe_hgd.model.encoder import EncoderOutput
from lora_moe_hgd.model.hgd_decoder import DecoderOutput, HolisticallyGuidedDecoder, upsample
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from lora_moe_hgd.model.stem import ModalityStem, ResidualBlock3d, StemOutput, at_least_float32, presence_of
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


class StudyDecoder(HolisticallyGuidedDecoder):
    """Decoder with the changes under study."""

    residual_heads = False

    def forward(self, stem: StemOutput, encoded: EncoderOutput) -> DecoderOutput:
        at_depths = tuple(encoded.hidden_states[depth] for depth in self.hidden_state_depths)
        codebook, mean_base = self.codebook(at_depths, encoded.layout)
        context = encoded.layout.mean_over_sequences(encoded.hidden_states[-1])
        at8 = self.assembly(stem.skips[2], context, codebook, mean_base)
        at4 = self.block4(self.refine4(at8, stem.skips[1]))
        at2 = self.block2(self.refine2(at4, stem.skips[0]))
        at1 = self.refine1(at2, stem.full_resolution)
        if hasattr(self, "block1"):
            at1 = self.block1(at1)
        logits8, logits4, logits1 = (
            at_least_float32(head(features)) for head, features in zip(self.heads, (at8, at4, at1), strict=True)
        )
        if hasattr(self, "head2"):
            logits2 = at_least_float32(self.head2(at2))
            if self.residual_heads:
                logits4 = logits4 + upsample(logits8, logits4.shape[2:])
                logits2 = logits2 + upsample(logits4, logits2.shape[2:])
                logits1 = logits1 + upsample(logits2, logits1.shape[2:])
            return DecoderOutput((logits8, logits4, logits2, logits1), codebook)
        if self.residual_heads:
            logits4 = logits4 + upsample(logits8, logits4.shape[2:])
            logits1 = logits1 + upsample(logits4, logits1.shape[2:])
        return DecoderOutput((logits8, logits4, logits1), codebook)


def own_kernels(network: LoraMoeHgdForSegmentation) -> None:
    stem = network.encoder.stem
    channels = network.config.stem_channels[0]
    stem.downsample[0] = nn.Conv3d(1, 4 * channels, kernel_size=3, stride=2, padding=1, bias=False)
    network._init_weights(stem.downsample[0])
    stem.__class__ = OwnKernelStem


def residual_heads(network: LoraMoeHgdForSegmentation) -> None:
    network.decoder.__class__ = StudyDecoder
    network.decoder.residual_heads = True


def full_block(network: LoraMoeHgdForSegmentation) -> None:
    network.decoder.__class__ = StudyDecoder
    network.decoder.block1 = ResidualBlock3d(network.config.refinement_channels[-1])
    network.decoder.block1.apply(network._init_weights)


def supervised_at2(network: LoraMoeHgdForSegmentation) -> None:
    network.decoder.__class__ = StudyDecoder
    network.decoder.head2 = type(network.decoder.heads[0])(network.config.refinement_channels[1], 3, kernel_size=1)
    network._init_weights(network.decoder.head2)
    network.config.deep_supervision_weights = (0.25, 0.5, 0.5)


def low_prior(network: LoraMoeHgdForSegmentation) -> None:
    for head in network.decoder.heads:
        nn.init.constant_(head.bias, -2.0)


def wide_heads(network: LoraMoeHgdForSegmentation) -> None:
    """Heads that a step of AdamW changes four times as much."""
    for head in network.decoder.heads:
        head.register_forward_hook(lambda module, inputs, output: 4 * output)
        with torch.no_grad():
            head.weight.div_(4)


def built(*changes: Callable[[LoraMoeHgdForSegmentation], None], **sizes: object) -> Build:
    def build(run: object) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
        network = LoraMoeHgdForSegmentation(LoraMoeHgdConfig(**sizes))
        for change in changes:
            change(network)
        return network, LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM)

    return build


def peer(name: str) -> Build:
    return lambda config: (
        make_network(name, config.sample.crop_size[0]),
        LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM),
    )


BUILDS = {
    "tiny": built(),
    "residual heads": built(residual_heads),
    "own first kernels": built(own_kernels),
    "block at stride 1": built(full_block),
    "head at stride 2": built(supervised_at2),
    "prior of the heads": built(low_prior),
    "fast heads": built(wide_heads),
    "residual heads, own first kernels": built(residual_heads, own_kernels),
    "fast heads, own first kernels": built(wide_heads, own_kernels),
    "residual heads, own first kernels, block at stride 1": built(residual_heads, own_kernels, full_block),
    **{name: peer(name) for name in PEERS},
}

if __name__ == "__main__":
    trials = {name: Trial(build, training=without_curriculum) for name, build in BUILDS.items()}
    for factor in (3,):
        for name in ("tiny", "residual heads", "fast heads", "DynUNet", "SegResNet-16"):
            trials[f"{name}, rate x {factor}"] = Trial(
                BUILDS[name], training=without_curriculum, options=("--lr", str(factor * 1e-3))
            )
    main(trials, about=__doc__, out="runs/network_study")
