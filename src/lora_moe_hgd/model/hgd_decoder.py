"""Holistically guided decoder for 3-D volumes with missing tokens, followed by a refinement to full resolution.

As in EfficientFCN (Liu et al., ECCV 2020, https://arxiv.org/abs/2008.10487), the decoder computes a codebook of
holistic codewords from the coarse tokens. At each position of stride 8, a fine feature map determines the weights with
which the codewords are summed. There are two differences from the paper: absent tokens are masked in the spatial
softmax, and learned prior codewords are added to the codebook. A refinement to full resolution follows, because stride
8 is too coarse: on real masks, even perfect logits at stride 8 reach a Dice of only about 0.82 for the enhancing
tumour.

Shape letters: B cases, N tokens of a case, d fusion width, q codeword size, n codewords from the image, k prior
codewords.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_lora_moe_hgd import LoraMoeHgdConfig
from .encoder import EncoderOutput, TokenLayout
from .stem import PointwiseConv3d, ResidualBlock3d, StemOutput, at_least_float32, group_norm


def upsample(x: Tensor, size: torch.Size) -> Tensor:
    """Trilinear interpolation of `(B, C, D, H, W)` to the spatial shape `size`."""
    return nn.functional.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


class PointwiseBlock(nn.Sequential):
    """Convolution with a kernel of one voxel, GroupNorm and ReLU: `ReLU(norm(conv1(x)))`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            PointwiseConv3d(in_channels, out_channels, kernel_size=1), group_norm(out_channels), nn.ReLU(inplace=True)
        )


class HolisticCodebook(nn.Module):
    """Compute codewords, each of which is a convex combination of the base vectors of the present tokens.

    `m = Linear(cat[X_l1, X_l2, X_L])`, `Bas = ReLU(norm(Linear m))`, `A = softmax over tokens of MLP(m)`, `C = Bas^T
    A`, `C+ = cat[C, P]`, with `X_l` the hidden states after block `l`, and `P` the learned prior codewords.
    """

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        self.fusion = nn.Linear(len(config.hidden_state_depths) * config.hidden_size, config.fusion_size)
        self.base = nn.Linear(config.fusion_size, config.codeword_size)
        self.base_norm = nn.LayerNorm(config.codeword_size)
        self.weighting = nn.Sequential(
            nn.Linear(config.fusion_size, config.num_codewords),
            nn.ReLU(),
            nn.Linear(config.num_codewords, config.num_codewords),
        )
        self.num_priors = config.num_prior_codewords
        self.prior = nn.Embedding(config.num_prior_codewords, config.codeword_size)

    def forward(self, hidden_states: tuple[Tensor, ...], layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Return the codebook `C+ (B, q, n + k)` and the mean base vector `(B, q)`."""
        fused_BNd = self.fusion(torch.cat(hidden_states, dim=-1))
        base_BNq = nn.functional.relu(self.base_norm(self.base(fused_BNd)))
        logits_BNn = at_least_float32(self.weighting(fused_BNd))
        logits_BNn = logits_BNn.masked_fill(~layout.present_BN[..., None], -math.inf)
        weights_BNn = logits_BNn.softmax(dim=1).to(base_BNq.dtype)
        codewords_Bqn = base_BNq.transpose(1, 2) @ weights_BNn
        # Call the embedding instead of reading its `.weight`: offloading, sharding and LoRA act when a module is
        # called.
        prior_kq = self.prior(torch.arange(self.num_priors, device=fused_BNd.device))
        prior_Bqk = prior_kq.T.to(codewords_Bqn.dtype).expand(codewords_Bqn.shape[0], -1, -1)
        return torch.cat([codewords_Bqn, prior_Bqk], dim=2), layout.mean_over_tokens(base_BNq)


class HolisticallyGuidedAssembly(nn.Module):
    """Weighted sum of the codewords at each position of stride 8.

    The inputs are the stem's features at stride 8 (`f8`), the last hidden states (`X_L`), the codebook (`C+`) and the
    mean base vector (`g`). The steps are `G = ReLU(norm(conv1(cat[f8, up(mean over sequences of X_L)])))`, `W =
    ReLU(norm(conv1(ReLU(norm(conv1(G + g))))))`, `F = (n + k)^-1/2 C+ W` and `out = ReLU(norm(conv1(cat[F, G])))`.
    Here, `conv1` has a kernel of one voxel, and `up` interpolates from stride 16 to stride 8. Note that the output
    uses `G`, not `G + g`, and that the coefficients `W` are the result of a ReLU, not of a softmax.
    """

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        num_codewords = config.num_codewords + config.num_prior_codewords
        self.guidance = PointwiseBlock(config.stem_channels[-1] + config.hidden_size, config.codeword_size)
        self.coefficients = nn.Sequential(
            PointwiseBlock(config.codeword_size, num_codewords), PointwiseBlock(num_codewords, num_codewords)
        )
        self.output = PointwiseBlock(2 * config.codeword_size, config.codeword_size)

    def forward(self, fine: Tensor, context: Tensor, codebook: Tensor, mean_base: Tensor) -> Tensor:
        """Sum the codewords at each position of the fine features, with weights that depend on the features.

        Args:
            fine: The stem's features at stride 8, fused over the present sequences, `(B, C, *S8)`.
            context: Last hidden state averaged over the present sequences, `(B, hidden, *S16)`.
            codebook: Codewords `C+`, `(B, q, n + k)`.
            mean_base: Mean base vector `g` of each case, `(B, q)`.

        Returns:
            Features at stride 8, `(B, q, *S8)`.
        """
        guidance = self.guidance(torch.cat([fine, upsample(context, fine.shape[2:]).to(fine.dtype)], dim=1))
        coefficients = self.coefficients(guidance + mean_base[..., None, None, None])
        assembled = codebook @ coefficients.flatten(2) * codebook.shape[2] ** -0.5
        return self.output(torch.cat([assembled.unflatten(2, guidance.shape[2:]), guidance], dim=1))


class RefinementStage(GradientCheckpointingLayer):
    """Double the resolution: reduce channels, upsample, concatenate the skip features, convolve."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = PointwiseConv3d(in_channels, skip_channels, kernel_size=1)
        self.mix = nn.Conv3d(2 * skip_channels, out_channels, kernel_size=3, padding=1)
        self.norm = group_norm(out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Refine `x (B, in, *S)` with `skip (B, skip, *2S)` to `(B, out, *2S)`."""
        x = torch.cat([upsample(self.reduce(x), skip.shape[2:]).to(skip.dtype), skip], dim=1)
        return nn.functional.leaky_relu(self.norm(self.mix(x)), inplace=True)


@dataclass
class DecoderOutput:
    """Region logits from coarse to fine, and the codebook.

    Attributes:
        logits: Logits at strides 8, 4 and 1, each `(B, R, D/s, H/s, W/s)`, in float32 or float64.
        codebook: Codewords `C+`, `(B, q, n + k)`.
    """

    logits: tuple[Tensor, Tensor, Tensor]
    codebook: Tensor


class HolisticallyGuidedDecoder(nn.Module):
    """Codebook, assembly at stride 8, refinement over strides 4 and 2 to 1, and logits at strides 8, 4 and 1."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        half, quarter, _ = config.stem_channels
        at4, at2, at1 = config.refinement_channels
        self.hidden_state_depths = config.hidden_state_depths
        self.codebook = HolisticCodebook(config)
        self.assembly = HolisticallyGuidedAssembly(config)
        self.refine4 = RefinementStage(config.codeword_size, quarter, at4)
        self.block4 = ResidualBlock3d(at4)
        self.refine2 = RefinementStage(at4, half, at2)
        self.block2 = ResidualBlock3d(at2)
        self.refine1 = RefinementStage(at2, config.full_resolution_channels, at1)
        self.heads = nn.ModuleList(
            PointwiseConv3d(channels, len(config.regions), kernel_size=1)
            for channels in (config.codeword_size, at4, at1)
        )

    def forward(self, stem: StemOutput, encoded: EncoderOutput) -> DecoderOutput:
        assert stem.skips is not None
        assert stem.full_resolution is not None
        at_depths = tuple(encoded.hidden_states[depth] for depth in self.hidden_state_depths)
        codebook, mean_base = self.codebook(at_depths, encoded.layout)
        context = encoded.layout.mean_over_sequences(encoded.hidden_states[-1])
        at8 = self.assembly(stem.skips[2], context, codebook, mean_base)
        at4 = self.block4(self.refine4(at8, stem.skips[1]))
        at2 = self.block2(self.refine2(at4, stem.skips[0]))
        at1 = self.refine1(at2, stem.full_resolution)
        logits8, logits4, logits1 = (
            at_least_float32(head(features)) for head, features in zip(self.heads, (at8, at4, at1), strict=True)
        )
        return DecoderOutput((logits8, logits4, logits1), codebook)
