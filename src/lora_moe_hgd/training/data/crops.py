"""Random augmented crops of cases, with random subsets of their sequences."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .datasets import CaseSource
from .transforms import random_crop, random_flip, random_intensity

SubsetDraw = Callable[[Tensor, float, torch.Generator], Tensor]


class CropDataset(Dataset):
    """Random augmented crops. A crop depends only on the seed, the epoch, the index of the crop and the case.

    The method `sample` of a subclass defines the content of a sample.

    Args:
        source: Cases to crop.
        crop_size: Edges of a crop in voxels.
        crops_per_case: Number of crops of each case in an epoch.
        seed: Seed of the run.
    """

    def __init__(self, source: CaseSource, *, crop_size: tuple[int, int, int], crops_per_case: int, seed: int) -> None:
        self.source = source
        self.crop_size = crop_size
        self.crops_per_case = crops_per_case
        self.seed = seed
        self.epoch = 0
        self.progress = 0.0

    def begin_epoch(self, epoch: int, *, progress: float) -> None:
        """Set the epoch, and the progress of the run from 0 to 1. The random choices for a crop depend on both."""
        self.epoch, self.progress = epoch, progress

    def __len__(self) -> int:
        return len(self.source) * self.crops_per_case

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = sample_generator(self.seed, self.epoch, index)
        case = self.source[index % len(self.source)]
        pixel_values, labels = random_crop(case["pixel_values"], case["labels"], self.crop_size, generator)
        pixel_values, labels = random_flip(pixel_values, labels, generator)
        return self.sample(pixel_values, labels, case["modality_mask"], generator)

    def sample(
        self, pixel_values: Tensor, labels: Tensor, acquired: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Build a sample from a randomly mirrored crop. `acquired` marks the acquired sequences, `(M,)` bool."""
        raise NotImplementedError


class SubsetCrops(CropDataset):
    """Crops with labels. Each crop keeps a random subset of its sequences, and its intensities are augmented.

    Args:
        source: Cases to crop.
        draw_subset: Function of the acquired sequences, the progress of the run and a random generator. The function
            returns the sequences that a sample keeps.
        others: Other arguments of `CropDataset`.
    """

    def __init__(self, source: CaseSource, *, draw_subset: SubsetDraw, **others: Any) -> None:
        super().__init__(source, **others)
        self.draw_subset = draw_subset

    def sample(
        self, pixel_values: Tensor, labels: Tensor, acquired: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        pixel_values = random_intensity(pixel_values, generator)
        kept = self.draw_subset(acquired, self.progress, generator)
        pixel_values = torch.where(kept[:, None, None, None], pixel_values, 0.0)
        return {"pixel_values": pixel_values, "modality_mask": kept, "labels": labels.contiguous()}


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Random generator whose seed is different for each sample and epoch, and for each seed of a run."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
