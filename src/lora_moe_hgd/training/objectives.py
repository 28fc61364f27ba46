"""Objectives of training. An objective defines the samples, the loss of a batch, and the validation score."""

from __future__ import annotations

import sys
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

from ..files import counted, reason_of
from ..masks import dice
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..model.sliding_window import OVERLAP, sliding_window_logits
from ..model.task import BRAIN_TUMOUR, Task
from ..pictures import save_overlay
from ..subsets import Mask, parse_subset
from .data.crops import CropDataset, SubsetCrops
from .data.datasets import Case, CaseSource
from .metrics_log import RunningDice
from .options import RunConfig
from .run_folder import RunFolder
from .schedule import draw_subset, region_weights
from .sources import RunData
from .validation import describe_subsets, scored_subsets

Log = Callable[[dict[str, float]], None]


class Objective(Protocol):
    """Interface of an objective, such as `SegmentationObjective`.

    Attributes:
        sums: Running sums over the batches of this process, from which `measured` computes the values to log. A saved
            state contains these sums.
    """

    sums: Tensor

    def crops(self, source: CaseSource) -> CropDataset:
        """Build the data set of training samples from the training cases."""
        ...

    def forward(self, network: nn.Module, batch: dict[str, Tensor], *, progress: float) -> Any:
        """Run the network, update `sums`, and return the output: `loss`, its parts `losses`, and `router_logits`."""
        ...

    def measured(self, sums: Tensor) -> dict[str, float]:
        """Compute the values to log from the total of `sums` over all processes.

        The progress bar shows the values whose names begin with `train_dice/`.
        """
        ...

    def validate(self, network: nn.Module, *, epoch: int, log: Log) -> float:
        """Score the validation cases, print and log details, and return one score; a higher score is better."""
        ...

    def segmenter(self, network: Any) -> PeftModel | LoraMoeHgdForSegmentation:
        """Return the part of the network that is saved in a checkpoint."""
        ...

    def describe(self, score: float) -> str:
        """Describe a score in words, such as `mean Dice 0.812`."""
        ...


class SegmentationObjective:
    """Segment the regions of the task from random subsets of the sequences, with the curriculum of `schedule`.

    Args:
        config: Options of the run.
        accelerator: Devices, precision and processes.
        processor: Image processor that preprocesses the cases.
        data: Cases of the run.
        run: Folder of the run. A picture of each validation is written to this folder.

    Raises:
        ValueError: If no validation case has all sequences of a subset in `validation.subsets` or, without this
            option, of any default subset.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        processor: LoraMoeHgdImageProcessor,
        data: RunData,
        run: RunFolder,
    ) -> None:
        self.config, self.accelerator, self.processor, self.run = config, accelerator, processor, run
        self.task = processor.segmentation_task
        self.validation = data.validation
        cases = (self.validation[index] for index in range(len(self.validation)))
        acquired = {case["case_id"]: tuple(case["modality_mask"].tolist()) for case in cases}
        self.scored = scored_subsets(config.validation.subsets, acquired, self.task)
        for line in describe_subsets(self.scored, list(acquired)):
            accelerator.print(line)
        self.dice = RunningDice(accelerator.device, self.task)

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
            region_weights=torch.tensor(
                region_weights(progress, len(self.task.regions)), device=self.accelerator.device
            ),
            output_router_logits=True,
        )
        self.dice.update(output.logits, batch["labels"], batch["modality_mask"])
        return output

    def measured(self, sums: Tensor) -> dict[str, float]:
        dice = RunningDice(self.accelerator.device, self.task)
        dice.overlap = sums
        return {f"train_dice/{name}": value for name, value in (dice.of_regions() | dice.by_count()).items()}

    def validate(self, network: nn.Module, *, epoch: int, log: Log) -> float:
        """Mean Dice over the subsets.

        The Dice of a subset is the mean over the regions and over the cases that have all of its sequences. Each
        process scores a part of the cases.
        """
        own = range(self.accelerator.process_index, len(self.validation), self.accelerator.num_processes)
        scores: list[tuple[str, str, list[float]]] = []
        shows = self.accelerator.is_main_process
        bar = tqdm(own, desc="validation", unit="case", leave=False, disable=not shows)
        for index in bar:
            case = self.validation[index]
            volume, truth = case["pixel_values"].to(self.accelerator.device), case["labels"].bool()
            for name in (name for name, able in self.scored.items() if case["case_id"] in able):
                bar.set_postfix_str(name)
                subset = parse_subset(name, self.task.modalities)
                with self.accelerator.autocast():
                    predicted = predict(network, volume, subset, self.task)
                if shows and not scores:
                    try:
                        self._draw(case, name, subset, predicted, epoch=epoch)
                    # An error in a picture must never end a run.
                    except Exception as error:
                        reason = reason_of(error)
                        tqdm.write(f"warning: epoch {epoch} has no picture: {reason}", file=sys.stderr)
                dices = [dice(*pair) for pair in zip(predicted, truth, strict=True)]
                scores.append((name, case["case_id"], dices))
        # Sort the scores, because the mean must not depend on which process scored which case.
        scores = sorted(gather_object(scores))
        means = []
        for name, able in self.scored.items():
            log({f"validation_cases/{name}": len(able)})
            if not able:
                continue
            regions = torch.tensor([dices for subset, _, dices in scores if subset == name]).mean(dim=0).tolist()
            means.append(sum(regions) / len(regions))
            words = "  ".join(
                f"{region} {value:.3f}" for region, value in zip(self.task.regions, regions, strict=True)
            )
            self.accelerator.print(f"  epoch {epoch}, {name}, {counted(len(able), 'case')}: Dice {words}")
            log({f"dice_{name}/{region}": value for region, value in zip(self.task.regions, regions, strict=True)})
        return sum(means) / len(means)

    def segmenter(self, network: PeftModel | LoraMoeHgdForSegmentation) -> PeftModel | LoraMoeHgdForSegmentation:
        return network

    def describe(self, score: float) -> str:
        return f"mean Dice {score:.3f}"

    def _draw(self, case: Case, subset: str, present: Mask, predicted: Tensor, *, epoch: int) -> None:
        """Draw the ground truth of a validation case above its segmentation, in `pictures/epoch_001.png` and so on."""
        affine = np.diag([*self.processor.target_spacing_mm, 1.0])
        images = {
            name: nib.Nifti1Image(volume.numpy(), affine)
            for name, volume, there in zip(self.task.modalities, case["pixel_values"], present, strict=True)
            if there
        }
        save_overlay(
            self.run.picture_path(epoch),
            images,
            {"ground truth": case["labels"].bool().numpy(), "segmentation": predicted.numpy()},
            title=f"{case['case_id']}, epoch {epoch}, segmented from {subset}",
            task=self.task,
        )


def predict(
    network: nn.Module,
    pixel_values: Tensor,
    subset: Mask,
    task: Task = BRAIN_TUMOUR,
    *,
    overlap: float = OVERLAP,
) -> Tensor:
    """Segment one preprocessed case on the voxel grid of the network. Return the regions, `(R, D, H, W)` bool.

    Nothing is resampled, so this function is fast enough for use during training.

    Args:
        network: Network with the call signature of `LoraMoeHgdForSegmentation`.
        pixel_values: `(M, D, H, W)`.
        subset: Sequences to use.
        task: Task of the network, which defines the regions and their nesting.
        overlap: Share of a window that overlaps with the next window.
    """
    mask = torch.tensor([subset], device=pixel_values.device)
    logits = sliding_window_logits(network, pixel_values[None], mask, overlap=overlap)[0]
    return (task.nested(logits.sigmoid()) > 0.5).cpu()
