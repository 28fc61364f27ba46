"""Measurements of a run in the file `metrics.jsonl`, which is written in addition to any tracker of Accelerate.

Each line is a JSON object with `step` and values by name. When a run is resumed from a saved state, the lines of steps
after this state are removed, so that no step appears twice. Values named `time/...` or `memory/...` depend on the
machine.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path

import torch
from torch import Tensor

from ..files import replacing
from ..model.task import BRAIN_TUMOUR, Task

FILE_NAME = "metrics.jsonl"

# Decay of the running Dice per batch. The weight of a batch halves after about fourteen further batches.
MEMORY = 0.95


class MetricsLog:
    """Append to `metrics.jsonl` of a run.

    Args:
        folder: Folder of the run.
        step: Last step before the run is resumed. The lines of later steps are removed, because the run repeats these
            steps.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        self.path = folder / FILE_NAME
        kept = [row for row in read_metrics(folder) if row["step"] <= step] if self.path.is_file() else []
        with replacing(self.path) as scratch:
            scratch.write_text("".join(f"{json.dumps(row)}\n" for row in kept))

    def append(self, values: dict[str, float], *, step: int) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read all lines of a run's log, without an incomplete last line, which a killed run may have left."""
    rows = []
    for line in (folder / FILE_NAME).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class RunningDice:
    """Dice of training crops by region and number of sequences; recent batches count more than older ones."""

    def __init__(self, device: torch.device, task: Task = BRAIN_TUMOUR) -> None:
        self.task = task
        # Number of voxels in the overlap, and sum of the voxels in prediction and ground truth.
        self.overlap = torch.zeros(2, len(task.modalities), len(task.regions), device=device)

    def update(self, logits: Tensor, labels: Tensor, modality_mask: Tensor) -> None:
        """Add a batch: logits and labels `(B, R, D, H, W)`, and the mask of the sequences of each crop, `(B, M)`."""
        predicted, truth = logits.detach() > 0, labels.bool()
        axes = (2, 3, 4)
        counted = torch.stack([(predicted & truth).sum(axes), predicted.sum(axes) + truth.sum(axes)]).float()
        present = modality_mask.sum(dim=1) - 1
        self.overlap = MEMORY * self.overlap
        self.overlap = self.overlap.index_add(1, present, counted)

    def of_regions(self) -> dict[str, float]:
        """Dice of each region over all crops, whatever their number of sequences."""
        both, total = self.overlap.sum(dim=1)
        return dict(zip(self.task.regions, (2 * both / total.clamp(min=1)).tolist(), strict=True))

    def by_count(self) -> dict[str, float]:
        """Dice for each region and number of sequences, under names such as `wt/2_sequences`.

        The Dice is left out if the crops with this number have neither a predicted nor a true voxel of the region.
        """
        both, total = self.overlap
        return {
            f"{region}/{count + 1}_sequences": (2 * both[count, index] / total[count, index]).item()
            for index, region in enumerate(self.task.regions)
            for count in range(len(self.task.modalities))
            if total[count, index] >= 1
        }


def router_statistics(router_logits: tuple[Tensor, ...], experts_per_token: int) -> dict[str, float]:
    """Per MoE layer: share of each expert in the routing choices, and entropy of the routing probabilities.

    `dropped_tokens` counts choices that reached no expert. Experts have no capacity limit, so `dropped_tokens` must
    stay 0.

    Args:
        router_logits: One tensor `(T, E)` per MoE layer, minus infinity where a token may not use an expert.
        experts_per_token: Number of experts that a token chooses.
    """
    values: dict[str, float] = {}
    dropped = 0
    for number, logits_TE in enumerate(router_logits):
        logits_TE = logits_TE.detach().float()
        probability_TE = logits_TE.softmax(dim=-1)
        chosen_TK = probability_TE.topk(experts_per_token, dim=-1)
        load_E = torch.bincount(chosen_TK.indices.flatten(), minlength=logits_TE.shape[1])
        dropped += int((chosen_TK.values == 0).sum())
        entropy_T = torch.special.entr(probability_TE).sum(dim=-1)
        values |= {
            f"router_load/{number}/{expert}": share for expert, share in enumerate((load_E / load_E.sum()).tolist())
        }
        values[f"router_entropy/{number}"] = entropy_T.mean().item()
    return {**values, "dropped_tokens": dropped} if router_logits else values


def peak_memory_gb() -> float:
    """Peak memory of this process so far, in 10^9 bytes. With a GPU, only GPU memory is counted."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
