"""Convolutional stem that reads only the sequences that are present.

A volume is one sequence of one case. Only the present volumes of a batch are processed, packed along the batch axis.
So an absent sequence costs no computation and cannot influence the result. The shapes of a compiled or exported graph
cannot depend on the mask. Therefore a graph replaces absent volumes by zeros, processes all volumes, and masks the
results of absent volumes. Only `presence_of` chooses between packing and masking.

Shape letters: B cases, M modalities, P processed volumes of the whole batch, S slots for the volumes of a case
(`Slots`), C channels, D H W voxels.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_lora_moe_hgd import STEM_STRIDES, LoraMoeHgdConfig

# Types of the tensors that autocast converts to the type of the computation.
AUTOCAST_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def group_norm(num_channels: int) -> nn.GroupNorm:
    """Group normalisation with up to four groups.

    `eps` is large: a volume that is constant in a crop has almost no variance, so each norm multiplies its gradients
    by about `eps ** -0.5`, and the network has many norms in a row.
    """
    return nn.GroupNorm(math.gcd(num_channels, 4), num_channels, eps=1e-3)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; return float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def add_per_channel(x: Tensor, values: Tensor) -> Tensor:
    """Add `values (B, C)` to all voxels of `x (B, C, D, H, W)`, in place."""
    # In channels-last layout on the CPU, PyTorch would add the values voxel by voxel. Adding a row of voxels at a time
    # is several times as fast.
    rows = values.to(x.dtype)[..., None, None, None].expand(-1, -1, 1, 1, x.shape[-1])
    return x.add_(rows.contiguous(memory_format=torch.channels_last_3d))


class InputConv3d(nn.Conv3d):
    """Convolution that converts its input to the data type of its weights.

    Callers cannot convert the input themselves, because between calls, offloading and sharding may store the weights
    in another data type than the type that the weights have during the call.
    """

    def forward(self, x: Tensor) -> Tensor:
        # Autocast converts these types by itself. Converting before would copy half precision to float32 and back.
        if not torch.is_autocast_enabled(x.device.type) or x.dtype not in AUTOCAST_TYPES:
            x = x.to(self.weight.dtype)
        return super().forward(x)


class PointwiseConv3d(nn.Conv3d):
    """Convolution with a kernel of one voxel, `(B, C, ...) -> (B, C', ...)`.

    The convolution is computed as a matrix product over the channels. On channels-last volumes, PyTorch's own
    convolution of a single voxel would copy its input and use a slow kernel on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        voxels = x.movedim(1, -1)
        # Flatten to a plain matrix. For other shapes, PyTorch's algorithm, and so the rounding, would depend on
        # whether the weight is trained.
        rows = nn.functional.linear(voxels.flatten(0, -2), self.weight.flatten(1), self.bias)
        return rows.unflatten(0, voxels.shape[:-1]).movedim(-1, 1)


class ResidualBlock3d(GradientCheckpointingLayer):
    """Residual block `x + conv(act(norm(x)))` with a 3^3 kernel. The shape `(P, C, D, H, W)` does not change."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(num_channels)
        self.conv = nn.Conv3d(num_channels, num_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.leaky_relu(self.norm(x), inplace=True)).add_(x)


@dataclass
class Slots:
    """Features of the sequences of a batch, by case. Each case has S slots. A slot holds one sequence or is empty.

    Attributes:
        values: Features of the volumes, `(B, S, ...)`, where S is the largest number of sequences of a case.
        modality_BS: Index of each slot's sequence in channel order; meaningless for empty slots.
        present_BS: True where a slot holds a volume of a present sequence.
        filled: Case index and slot index of each volume, each `(P,)`; `None` if all slots hold a volume.
    """

    values: Tensor
    modality_BS: Tensor
    present_BS: Tensor
    filled: tuple[Tensor, Tensor] | None


@dataclass
class Presence(ABC):
    """Case and sequence of each processed volume, sorted by case, then by sequence.

    The methods combine the volumes of each case.

    Attributes:
        mask_BM: True where a sequence was acquired.
        case_P: Index of each processed volume's case.
        modality_P: Index of each processed volume's sequence in channel order.
    """

    is_dense: ClassVar[bool]

    mask_BM: Tensor
    case_P: Tensor
    modality_P: Tensor

    @abstractmethod
    def pack(self, volumes: Tensor) -> Tensor:
        """Select the volumes to process, `(B, M, ...) -> (P, ...)`; the values of absent volumes are not read."""

    @abstractmethod
    def weigh(self, gates: Tensor) -> Tensor:
        """Softmax of the gates `(P, ...)` over the present sequences of each case; zero for absent sequences."""

    @abstractmethod
    def sum_per_case(self, packed: Tensor) -> Tensor:
        """Sum the volumes of each case, `(P, ...) -> (B, ...)`, always in channel order, for reproducible rounding."""

    @abstractmethod
    def slots(self, packed: Tensor) -> Slots:
        """Arrange the volumes `(P, ...)` by case."""


@dataclass
class PackedPresence(Presence):
    """Layout of a batch in which only the present volumes are processed.

    Attributes:
        counts: Number of present volumes of each case, at least 1.
    """

    is_dense = False

    counts: list[int]

    @classmethod
    def from_mask(cls, modality_mask: Tensor) -> PackedPresence:
        """Build the layout from a boolean mask `(B, M)`, true where a sequence was acquired.

        Raises:
            ValueError: If a case has no sequence at all.
        """
        # Copy the mask to the host once, because reading each index from a tensor on a GPU would wait for the GPU.
        on_host = modality_mask.cpu()
        counts = on_host.sum(dim=1).tolist()
        if 0 in counts:
            raise ValueError(
                f"Each case needs at least one present sequence, but `modality_mask` has none for case "
                f"{counts.index(0)}."
            )
        case_P, modality_P = (index.to(modality_mask.device, non_blocking=True) for index in torch.where(on_host))
        return cls(modality_mask, case_P, modality_P, counts)

    def pack(self, volumes: Tensor) -> Tensor:
        return volumes[self.case_P, self.modality_P]

    def weigh(self, gates: Tensor) -> Tensor:
        logits = gates.new_full((*self.mask_BM.shape, *gates.shape[1:]), -math.inf)
        logits = logits.index_put((self.case_P, self.modality_P), gates)
        return logits.softmax(dim=1)[self.case_P, self.modality_P]

    def sum_per_case(self, packed: Tensor) -> Tensor:
        # Add complete volumes, because a reduction over the first axis has a slow memory access pattern. Keep the
        # axis of the cases: concatenating volumes keeps their layout in memory, stacking does not.
        return torch.cat([functools.reduce(torch.add, part.split(1)) for part in packed.split(self.counts)])

    def slots(self, packed: Tensor) -> Slots:
        num_slots = max(self.counts)
        slot_P = (self.mask_BM.cumsum(dim=1) - 1)[self.case_P, self.modality_P]
        place = (self.case_P, slot_P)
        modality_BS = self.modality_P.new_zeros(len(self.counts), num_slots).index_put(place, self.modality_P)
        values = packed.new_zeros(*modality_BS.shape, *packed.shape[1:]).index_put(place, packed)
        present_BS = torch.arange(num_slots, device=packed.device) < self.mask_BM.sum(dim=1, keepdim=True)
        return Slots(values, modality_BS, present_BS, filled=None if min(self.counts) == num_slots else place)


@dataclass
class DensePresence(Presence):
    """Layout of a batch in which every volume is processed, so that no shape depends on the mask.

    Absent volumes are replaced by zeros. The mask is applied wherever volumes of a case are combined. A case without
    any sequence gives NaN and no error, because a graph cannot check the mask.
    """

    is_dense = True

    @classmethod
    def from_mask(cls, modality_mask: Tensor) -> DensePresence:
        """Build the layout from a boolean mask `(B, M)`, true where a sequence was acquired."""
        num_cases, num_modalities = modality_mask.shape
        case_B, modality_M = (torch.arange(size, device=modality_mask.device) for size in modality_mask.shape)
        case_P = case_B[:, None].expand(-1, num_modalities).flatten()
        return cls(modality_mask, case_P, modality_M.expand(num_cases, -1).flatten())

    def pack(self, volumes: Tensor) -> Tensor:
        return torch.where(self._mask_like(volumes), volumes, torch.zeros_like(volumes)).flatten(0, 1)

    def weigh(self, gates: Tensor) -> Tensor:
        logits = self._by_case(gates)
        return logits.masked_fill(~self._mask_like(logits), -math.inf).softmax(dim=1).flatten(0, 1)

    def sum_per_case(self, packed: Tensor) -> Tensor:
        return functools.reduce(torch.add, self._by_case(packed).unbind(dim=1))

    def slots(self, packed: Tensor) -> Slots:
        return Slots(self._by_case(packed), self._by_case(self.modality_P), self.mask_BM, filled=None)

    def _by_case(self, packed: Tensor) -> Tensor:
        return packed.unflatten(0, self.mask_BM.shape)

    def _mask_like(self, volumes: Tensor) -> Tensor:
        return self.mask_BM[(..., *[None] * (volumes.ndim - 2))]


def presence_of(modality_mask: Tensor) -> Presence:
    """Return a `DensePresence` in a graph of `torch.compile` or `torch.export`, and a `PackedPresence` otherwise.

    The choice depends only on `torch.compiler.is_compiling`. Therefore callers need no option, and the choice does not
    split the graph.

    Raises:
        ValueError: If a case has no sequence at all. A graph cannot check this, and does not raise.
    """
    presence: type[PackedPresence | DensePresence] = DensePresence if torch.compiler.is_compiling() else PackedPresence
    return presence.from_mask(modality_mask)


class ModalityFusion(nn.Module):
    """Weighted mean of the features of a case's present sequences, with weights from learned gates at each voxel."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.gate = PointwiseConv3d(num_channels, 1, kernel_size=1)

    def forward(self, features: Tensor, presence: Presence) -> Tensor:
        """Fuse `(P, C, D, H, W)` to `(B, C, D, H, W)`."""
        gates = at_least_float32(self.gate(features).squeeze(1))  # (P, D, H, W)
        weights = presence.weigh(gates).unsqueeze(1)
        return presence.sum_per_case(features * weights.to(features.dtype))


@dataclass
class StemOutput:
    """Output of the stem.

    Attributes:
        full_resolution: Features at stride 1 from a convolution that reads all sequences, `(B, C, D, H, W)`. `None`
            without a decoder.
        skips: Features at strides 2, 4 and 8, fused over the present sequences, each `(B, C, D/s, H/s, W/s)`. `None`
            without a decoder.
        patches: One vector per processed volume and patch, `(P, hidden, D/16, H/16, W/16)`.
        presence: Case and sequence of each processed volume.
    """

    full_resolution: Tensor | None
    skips: tuple[Tensor, Tensor, Tensor] | None
    patches: Tensor
    presence: Presence


class ModalityStem(nn.Module):
    """Features of each present sequence at strides 2, 4 and 8, and patch vectors at stride 16.

    The same convolutions process all sequences.

    Args:
        config: Sizes of the network.
        with_skips: Add the layers that fuse the features for a decoder. Without a decoder, these layers would get no
            gradient.
    """

    def __init__(self, config: LoraMoeHgdConfig, *, with_skips: bool) -> None:
        super().__init__()
        self.with_skips = with_skips
        num_modalities = len(config.modalities)
        widths = (1, *config.stem_channels)
        if with_skips:
            self.full_resolution = InputConv3d(
                num_modalities, config.full_resolution_channels, kernel_size=3, padding=1
            )
            self.availability = nn.Linear(num_modalities, config.full_resolution_channels)
            self.full_resolution_norm = group_norm(config.full_resolution_channels)
        self.modality_embedding = nn.Embedding(num_modalities, config.stem_channels[0])
        self.downsample = nn.ModuleList(
            InputConv3d(fine, coarse, kernel_size=3, stride=2, padding=1)
            for fine, coarse in itertools.pairwise(widths)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock3d(width) for _ in range(depth)))
            for width, depth in zip(config.stem_channels, config.stem_depths, strict=True)
        )
        if with_skips:
            self.fusions = nn.ModuleList(ModalityFusion(width) for width in config.stem_channels)
        self.patch_norm = group_norm(config.stem_channels[-1])
        self.patch_projection = nn.Conv3d(config.stem_channels[-1], config.hidden_size, kernel_size=2, stride=2)

    def forward(self, pixel_values: Tensor, modality_mask: Tensor) -> StemOutput:
        """Read `pixel_values (B, M, D, H, W)` only where `modality_mask (B, M)` is true.

        Raises:
            ValueError: If a case has no sequence.
        """
        presence = presence_of(modality_mask)
        x = presence.pack(pixel_values).unsqueeze(1)  # (P, 1, D, H, W)
        skips = []
        for stage in range(len(STEM_STRIDES)):
            x = self.downsample[stage](x)
            if stage == 0:
                add_per_channel(x, self.modality_embedding(presence.modality_P))
            x = self.blocks[stage](x)
            if self.with_skips:
                skips.append(self.fusions[stage](x, presence))
        patches = self.patch_projection(nn.functional.leaky_relu(self.patch_norm(x), inplace=True))
        return StemOutput(
            full_resolution=self._fuse_early(pixel_values, modality_mask) if self.with_skips else None,
            skips=(skips[0], skips[1], skips[2]) if self.with_skips else None,
            patches=patches,
            presence=presence,
        )

    def _fuse_early(self, pixel_values: Tensor, modality_mask: Tensor) -> Tensor:
        present = torch.where(modality_mask[..., None, None, None], pixel_values, 0.0)
        x = self.full_resolution(present)
        add_per_channel(x, self.availability(modality_mask.to(x.dtype)))
        return nn.functional.leaky_relu(self.full_resolution_norm(x), inplace=True)
