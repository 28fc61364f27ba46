"""Masked pre-training: the encoder learns to predict hidden patches and hidden sequences.

Patches are hidden as in SimMIM (https://arxiv.org/abs/2111.09886). Instead of a hidden patch, the stem gets zeros and
the transformer gets a learned token. A linear head predicts the hidden patches, and the loss is the absolute error
over hidden voxels. Sequences are hidden as in M3AE (https://arxiv.org/abs/2303.05302): the network does not get a
hidden sequence, and predicts it from the visible sequences. Labels are not read. The checkpoint is a segmenter with a
trained encoder and an untrained decoder. A segmentation run starts from this checkpoint with `--base`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from ..model.configuration_lora_moe_hgd import TOKEN_STRIDE, LoraMoeHgdConfig
from ..model.losses import total_loss
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .data.crops import CropDataset
from .data.datasets import CaseSource
from .objectives import Log
from .options import RunConfig
from .sources import RunData

HIDDEN_PATCHES = 0.75


@dataclass
class ReconstructionOutput(ModelOutput):
    """Predicted sequences of a batch.

    Attributes:
        loss: Scalar.
        losses: Parts of the loss by name.
        predicted: `(B, M, D, H, W)`, predicted intensities of all sequences at all voxels.
        router_logits: One tensor `(T, E)` per MoE layer, minus infinity where a token may not use an expert.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    predicted: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


class MaskedReconstruction(nn.Module):
    """Encoder of a segmenter, with a mask token and a linear head for reconstruction.

    Args:
        segmenter: Segmenter whose encoder is trained. The segmenter's decoder is frozen and is not run.
    """

    def __init__(self, segmenter: LoraMoeHgdForSegmentation) -> None:
        super().__init__()
        self.segmenter = segmenter
        segmenter.decoder.requires_grad_(False)
        # Reconstruction uses neither the gates that fuse the sequences for the decoder nor the full-resolution branch.
        stem = segmenter.encoder.stem
        for unused in (stem.fusions, stem.full_resolution, stem.availability, stem.full_resolution_norm):
            unused.requires_grad_(False)
        hidden_size, voxels = self.config.hidden_size, TOKEN_STRIDE**3
        self.mask_token = nn.Parameter(torch.empty(hidden_size))
        self.head = nn.Linear(hidden_size, len(self.config.modalities) * voxels)
        for weight in (self.mask_token, self.head.weight):
            init.trunc_normal_(weight, std=self.config.initializer_range)
        init.zeros_(self.head.bias)

    @property
    def config(self) -> LoraMoeHgdConfig:
        return self.segmenter.config

    def forward(
        self, pixel_values: Tensor, modality_mask: Tensor, acquired: Tensor, hidden_patches: Tensor
    ) -> ReconstructionOutput:
        """Predict hidden patches and sequences.

        Args:
            pixel_values: `(B, M, D, H, W)`, z-scored, zero outside the brain. Only the loss reads hidden voxels.
            modality_mask: `(B, M)`, true for the sequences that the network sees.
            acquired: `(B, M)`, true for the sequences that were acquired.
            hidden_patches: `(B, M, D/16, H/16, W/16)`, true for the patches that the network does not see.
        """
        hidden_voxels = _to_voxels(hidden_patches)
        seen = pixel_values.masked_fill(hidden_voxels | ~modality_mask[..., None, None, None], 0.0)
        stem = self.segmenter.encoder.stem(seen, modality_mask)
        presence = stem.presence
        hidden_P = hidden_patches[presence.case_P, presence.modality_P].unsqueeze(1)
        token = self.mask_token[:, None, None, None].to(stem.patches.dtype)
        encoded = self.segmenter.encoder.vit(torch.where(hidden_P, token, stem.patches), presence)
        patches = encoded.layout.mean_over_sequences(encoded.hidden_states[-1])  # (B, hidden, d, h, w)
        predicted = self.head(patches.movedim(1, -1))
        predicted = predicted.unflatten(-1, (len(self.config.modalities), *[TOKEN_STRIDE] * 3))
        # (B, d, h, w, M, z, y, x) -> (B, M, d, z, h, y, w, x) -> (B, M, D, H, W)
        predicted = predicted.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        counted = (hidden_voxels | ~modality_mask[..., None, None, None]) & acquired[..., None, None, None]
        losses = {"reconstruction": masked_error(predicted, pixel_values, counted & (pixel_values != 0))}
        losses |= encoded.router_losses(self.config.num_experts_per_tok)
        loss = total_loss(losses, self.config.loss_coefficients)
        return ReconstructionOutput(loss=loss, losses=losses, predicted=predicted, router_logits=encoded.router_logits)


def masked_error(predicted: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean absolute error over the voxels where `counted` is true; 0, with finite gradients, if there are none."""
    error = (predicted.float() - target.float()).abs()
    return torch.where(counted, error, 0.0).sum() / counted.sum().clamp(min=1)


def draw_hidden(acquired: Tensor, grid: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the sequences that the network sees and the patches that are hidden.

    Args:
        acquired: `(M,)` bool.
        grid: Number of patches along depth, height and width.
        generator: Random generator of the draws.

    Returns:
        Two boolean masks. The first, `(M,)`, is true for the visible sequences, which are a random half of the
        acquired sequences, rounded up. The second, `(M, *grid)`, is true for the hidden patches, which are a random
        share `HIDDEN_PATCHES` of the patches of each sequence.
    """
    present = torch.where(acquired)[0]
    order = torch.randperm(len(present), generator=generator)
    seen = torch.zeros_like(acquired)
    seen[present[order[: (len(present) + 1) // 2]]] = True
    num_patches = grid[0] * grid[1] * grid[2]
    ranks = torch.rand(len(acquired), num_patches, generator=generator).argsort(dim=1).argsort(dim=1)
    return seen, (ranks < round(HIDDEN_PATCHES * num_patches)).unflatten(1, grid)


class MaskedCrops(CropDataset):
    """Crops with randomly hidden patches and sequences.

    Intensities are not augmented, because a random change cannot be predicted.
    """

    def sample(
        self, pixel_values: Tensor, labels: Tensor, acquired: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        grid = tuple(edge // TOKEN_STRIDE for edge in self.crop_size)
        seen, hidden = draw_hidden(acquired, (grid[0], grid[1], grid[2]), generator)
        return {
            "pixel_values": pixel_values.contiguous(),
            "modality_mask": seen,
            "acquired": acquired,
            "hidden_patches": hidden,
        }


class ReconstructionObjective:
    """Predict hidden patches and sequences of crops.

    Args:
        config: Options of the run.
        accelerator: Devices, precision and processes.
        data: Cases of the run.
    """

    def __init__(self, config: RunConfig, accelerator: Accelerator, data: RunData) -> None:
        self.config, self.accelerator = config, accelerator
        # Each validation sees the same crops with the same parts hidden.
        self.held_out = self.crops(data.validation)
        self.sums = torch.zeros((), device=accelerator.device)

    def crops(self, source: CaseSource) -> MaskedCrops:
        sample = self.config.sample
        return MaskedCrops(
            source, crop_size=sample.crop_size, crops_per_case=sample.crops_per_case, seed=self.config.seed
        )

    def forward(self, network: nn.Module, batch: dict[str, Tensor], *, progress: float) -> Any:
        return network(**batch)

    def measured(self, sums: Tensor) -> dict[str, float]:
        return {}

    def validate(self, network: nn.Module, *, epoch: int, log: Log) -> float:
        """Minus the mean absolute error over hidden voxels of validation crops, so that a higher score is better.

        Each process scores a part of the crops.
        """
        own = range(self.accelerator.process_index, len(self.held_out), self.accelerator.num_processes)
        errors = []
        shows = self.accelerator.is_main_process
        for index in tqdm(own, desc="validation", unit="crop", leave=False, disable=not shows):
            batch = {name: value[None].to(self.accelerator.device) for name, value in self.held_out[index].items()}
            with self.accelerator.autocast():
                errors.append(network(**batch).losses["reconstruction"].item())
        errors = sorted(gather_object(errors))
        error = sum(errors) / len(errors)
        self.accelerator.print(f"  epoch {epoch}: mean absolute error {error:.3f}")
        log({"reconstruction_error": error})
        return -error

    def segmenter(self, network: MaskedReconstruction) -> LoraMoeHgdForSegmentation:
        return network.segmenter

    def describe(self, score: float) -> str:
        return f"mean absolute error {-score:.3f}"


def _to_voxels(patches: Tensor) -> Tensor:
    """Repeat each patch over its voxels, `(..., d, h, w) -> (..., D, H, W)`."""
    for axis in (-3, -2, -1):
        patches = patches.repeat_interleave(TOKEN_STRIDE, dim=axis)
    return patches
