"""What a run is for: the loop asks an objective for samples, the loss of a batch, and a score of held-out cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import nibabel as nib
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from tqdm import tqdm

from ..data.crops import CropDataset, SubsetCrops
from ..data.datasets import Case, CaseSource
from ..evaluation.metrics import dice
from ..evaluation.subsets import Mask, parse_subset
from ..inference.picture import BEST_BACKGROUND, save_overlay
from ..model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..model.sliding_window import sliding_window_logits
from .config import RunConfig
from .metrics_log import RunningDice
from .run_folder import RunFolder
from .schedule import draw_subset, region_weights

Log = Callable[[dict[str, float]], None]


class Objective(Protocol):
    """One kind of training.

    Attributes:
        sums: Running sums over this process's batches, which a state keeps, too.
    """

    sums: Tensor

    def crops(self, source: CaseSource) -> CropDataset:
        """Training samples."""
        ...

    def forward(self, network: nn.Module, batch: dict[str, Tensor], *, progress: float) -> Any:
        """Output with `loss`, its parts `losses` and `router_logits`; updates `sums`."""
        ...

    def measured(self, sums: Tensor) -> dict[str, float]:
        """What to log of the sums over all processes; the progress bar shows values under `train_dice/`."""
        ...

    def validate(self, network: nn.Module, *, epoch: int, log: Log) -> float:
        """Score of held-out cases, higher is better; what it is made of is printed and logged."""
        ...

    def segmenter(self, network: Any) -> PeftModel | LoraMoeHgdForSegmentation:
        """What a checkpoint holds of the network."""
        ...

    def describe(self, score: float) -> str:
        """Words for a score."""
        ...


class SegmentationObjective:
    """Nested regions from random subsets of the sequences, under the curriculum of `schedule`."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        processor: LoraMoeHgdImageProcessor,
        validation: list[CaseSource],
        run: RunFolder,
    ) -> None:
        self.config, self.accelerator, self.processor, self.run = config, accelerator, processor, run
        self.validation = validation
        self.subsets = [parse_subset(name) for name in config.validation.subsets]
        self.dice = RunningDice(accelerator.device)

    @property
    def sums(self) -> Tensor:
        return self.dice.overlap

    @sums.setter
    def sums(self, value: Tensor) -> None:
        self.dice.overlap = value

    def crops(self, source: CaseSource) -> CropDataset:
        sample = self.config.sample
        return SubsetCrops(
            source,
            crop_size=sample.crop_size,
            crops_per_case=sample.crops_per_case,
            seed=self.config.seed,
            draw_subset=draw_subset,
        )

    def forward(self, network: nn.Module, batch: dict[str, Tensor], *, progress: float) -> Any:
        output = network(
            pixel_values=batch["pixel_values"].contiguous(memory_format=torch.channels_last_3d),
            modality_mask=batch["modality_mask"],
            labels=batch["labels"],
            region_weights=torch.tensor(region_weights(progress), device=self.accelerator.device),
            output_router_logits=True,
        )
        self.dice.update(output.logits, batch["labels"], batch["modality_mask"])
        return output

    def measured(self, sums: Tensor) -> dict[str, float]:
        dice = RunningDice(self.accelerator.device)
        dice.overlap = sums
        return {f"train_dice/{name}": value for name, value in (dice.of_regions() | dice.by_count()).items()}

    def validate(self, network: nn.Module, *, epoch: int, log: Log) -> float:
        """Mean Dice over held-out cases, the chosen subsets and the regions; the processes share the cases."""
        places = [(source, index) for source in self.validation for index in range(len(source))]
        own = places[self.accelerator.process_index :: self.accelerator.num_processes]
        scores: list[tuple[str, str, list[float]]] = []
        shows = self.accelerator.is_main_process
        for source, index in tqdm(own, desc="validation", unit="case", leave=False, disable=not shows):
            case = source[index]
            volume = case["pixel_values"].to(self.accelerator.device)
            for name, subset in zip(self.config.validation.subsets, self.subsets, strict=True):
                present = tuple(a and b for a, b in zip(subset, case["modality_mask"].tolist(), strict=True))
                if not any(present):
                    continue
                with self.accelerator.autocast():
                    predicted = predict(network, volume, present)
                truth = case["labels"].bool()
                dices = [dice(*pair) for pair in zip(predicted, truth, strict=True)]
                if shows and not scores:
                    self._draw(case, name, present, predicted, epoch=epoch)
                scores.append((name, case["case_id"], dices))
        # Sorted: the mean must not depend on which process had which case.
        scores = sorted(gather_object(scores))
        means = []
        for name in self.config.validation.subsets:
            chosen = [dice for subset, _, dice in scores if subset == name]
            if not chosen:
                continue
            regions = torch.tensor(chosen).mean(dim=0).tolist()
            means.append(sum(regions) / len(regions))
            words = "  ".join(f"{region} {value:.3f}" for region, value in zip(REGIONS, regions, strict=True))
            self.accelerator.print(f"  epoch {epoch} validation {name}: {words}")
            log({f"dice_{name}/{region}": value for region, value in zip(REGIONS, regions, strict=True)})
        return sum(means) / len(means)

    def segmenter(self, network: PeftModel | LoraMoeHgdForSegmentation) -> PeftModel | LoraMoeHgdForSegmentation:
        return network

    def describe(self, score: float) -> str:
        return f"mean Dice {score:.3f}"

    def _draw(self, case: Case, subset: str, present: Mask, predicted: Tensor, *, epoch: int) -> None:
        """Write `pictures/epoch_001.png`: the ground truth of a held-out case above its segmentation."""
        name = next(name for name in BEST_BACKGROUND if present[MODALITIES.index(name)])
        volume = case["pixel_values"][MODALITIES.index(name)].numpy()
        spacing = self.processor.target_spacing_mm
        save_overlay(
            self.run.picture_path(epoch),
            nib.Nifti1Image(volume, np.diag([*spacing, 1.0])),
            {"ground truth": case["labels"].bool().numpy(), "segmentation": predicted.numpy()},
            title=f"{case['case_id']}, epoch {epoch}: from {subset}, shown on {name}",
        )


def predict(network: nn.Module, pixel_values: Tensor, subset: Mask) -> Tensor:
    """Nested regions `(3, D, H, W)`, boolean, of one preprocessed case on the network's own grid.

    Fast, for use during training: nothing is resampled.

    Args:
        network: Called as the segmenter is.
        pixel_values: `(M, D, H, W)`.
        subset: Sequences to use.
    """
    mask = torch.tensor([subset], device=pixel_values.device)
    logits = sliding_window_logits(network, pixel_values[None], mask)[0]
    return (logits.sigmoid().cummin(dim=0).values > 0.5).cpu()
