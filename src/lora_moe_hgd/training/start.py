"""Initialisation of a network from a checkpoint of another task."""

from __future__ import annotations

import re

import torch

from ..model.configuration_lora_moe_hgd import LoraMoeHgdConfig
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..model.task import Task

# Tensors with one slice per sequence, region or routed expert: end of the name, axis of the slices, kind. The experts
# of the sequences come before the free experts.
SEQUENCE, REGION, EXPERT = "sequence", "region", "expert"
ROWS = (
    (r"stem\.full_resolution\.weight", 1, SEQUENCE),
    (r"stem\.availability\.weight", 1, SEQUENCE),
    (r"stem\.modality_embedding\.weight", 0, SEQUENCE),
    (r"vit\.modality_embedding\.weight", 0, SEQUENCE),
    (r"router\.weight", 0, EXPERT),
    (r"decoder\.heads\.\d+\.(?:weight|bias)", 0, REGION),
)
OWN_EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")


def differing(old: Task, new: Task) -> bool:
    """Whether the networks of the two tasks have different inputs or outputs."""
    return (old.modalities, old.regions) != (new.modalities, new.regions)


def start_from(
    network: LoraMoeHgdForSegmentation, processor: LoraMoeHgdImageProcessor, task: Task
) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor, list[str]]:
    """Build the network of a task, and copy all weights that fit from a network of another task.

    Sequences and regions are matched by name. Weights of new sequences and heads of new regions are initialised
    randomly.

    Args:
        network: Network of the other task.
        processor: Image processor of the other task.
        task: The new task.

    Returns:
        The network, its processor, and lines of text that say which sequences and regions are kept or new, and how
        many weights are kept.
    """
    old = processor.segmentation_task
    settings = {name: getattr(network.config, name) for name in LoraMoeHgdConfig.__annotations__}
    started = LoraMoeHgdForSegmentation(
        LoraMoeHgdConfig(**{**settings, "modalities": task.modalities, "regions": task.regions})
    )
    places = {
        SEQUENCE: _places(old.modalities, task.modalities),
        REGION: _places(old.regions, task.regions),
    }
    free = range(network.config.num_free_experts)
    places[EXPERT] = [*places[SEQUENCE], *(len(old.modalities) + number for number in free)]
    weights, source = started.state_dict(), network.state_dict()
    kept = total = 0
    with torch.no_grad():
        for name, weight in weights.items():
            total += weight.numel()
            kept += _copy(name, weight, source, places)
    started.load_state_dict(weights)
    settings_kept = processor.to_dict()
    changes = differing(old, task)
    made = LoraMoeHgdImageProcessor(
        target_spacing_mm=settings_kept["target_spacing_mm"],
        intensity_clip=settings_kept["intensity_clip"],
        # These values were chosen for the regions of the other task.
        least_part=0.0 if changes else settings_kept["least_part"],
        confidence_weights=None if changes else settings_kept["confidence_weights"],
        task=task.to_dict(),
    )
    lines = [
        _line("sequences", old.modalities, task.modalities),
        _line("regions", old.regions, task.regions),
        f"  weights: {kept} of {total} are kept, and the others are initialised randomly",
    ]
    return started.eval(), made, lines


def _places(old: tuple[str, ...], new: tuple[str, ...]) -> list[int | None]:
    """Index in `old` of each name in `new`; `None` for a name that `old` lacks."""
    return [old.index(name) if name in old else None for name in new]


def _copy(
    name: str, weight: torch.Tensor, source: dict[str, torch.Tensor], places: dict[str, list[int | None]]
) -> int:
    """Copy the matching values of `source` into the tensor `weight`, and return the number of copied values."""
    expert = OWN_EXPERT.fullmatch(name)
    if expert is not None:
        place = places[EXPERT][int(expert[2])]
        if place is None:
            return 0
        weight.copy_(source[f"{expert[1]}{place}{expert[3]}"])
        return weight.numel()
    for pattern, axis, kind in ROWS:
        if re.fullmatch(rf".*\.?{pattern}", name):
            kept = [(new, place) for new, place in enumerate(places[kind]) if place is not None]
            for new, place in kept:
                weight.select(axis, new).copy_(source[name].select(axis, place))
            return weight.numel() // len(places[kind]) * len(kept)
    weight.copy_(source[name])
    return weight.numel()


def _line(what: str, old: tuple[str, ...], new: tuple[str, ...]) -> str:
    parts = {
        "kept": [name for name in new if name in old],
        "new": [name for name in new if name not in old],
        "left out": [name for name in old if name not in new],
    }
    return f"  {what}: " + "; ".join(f"{word} {', '.join(names) or 'none'}" for word, names in parts.items())
