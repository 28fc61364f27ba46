"""What each part of the network and of its training is worth: variants trained for the same time, as a table.

`python benchmarks/ablations.py --data ROOT` trains each variant from scratch on phantoms mixed with the cases in ROOT,
with two seeds; runs that are done are kept, so that it can be stopped and started again. Dice is the mean over the 15
subsets, on phantoms that no run trains on and on the cases held out from ROOT.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from lora_moe_hgd.data.datasets import CaseSource, PhantomDataset
from lora_moe_hgd.evaluation.metrics import dice
from lora_moe_hgd.evaluation.subsets import EVERY_SUBSET
from lora_moe_hgd.files import replacing
from lora_moe_hgd.model.configuration_lora_moe_hgd import REGIONS, LoraMoeHgdConfig
from lora_moe_hgd.model.hgd_decoder import PointwiseBlock, upsample
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation, LoraMoeHgdSegmenterOutput
from lora_moe_hgd.model.moe import ExpertRouter
from lora_moe_hgd.training import objectives
from lora_moe_hgd.training.config import RunConfig, read_config
from lora_moe_hgd.training.engine import FROM_SCRATCH_SPACING_MM, VALIDATION_SEED, build_data, train
from lora_moe_hgd.training.objectives import predict
from lora_moe_hgd.training.schedule import draw_subset

ROOT = Path(__file__).parents[1]
VAL_PHANTOMS = 6
SECOND_LOSS_WEIGHT = 0.1


class PlainUpsampling(nn.Module):
    """Stem and tokens joined at stride 8, without a codebook."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        self.guidance = PointwiseBlock(config.stem_channels[-1] + config.hidden_size, config.codeword_size)
        self.output = PointwiseBlock(config.codeword_size, config.codeword_size)

    def forward(self, fine: Tensor, context: Tensor, codebook: Tensor, mean_base: Tensor) -> Tensor:
        return self.output(self.guidance(torch.cat([fine, upsample(context, fine.shape[2:])], dim=1)))


class OpenRouter(ExpertRouter):
    """Any token may use any expert."""

    def forward(self, x_TD: Tensor, modality_T: Tensor) -> Tensor:
        return nn.functional.linear(x_TD.float(), self.weight.float())


class DenseConfig(LoraMoeHgdConfig):
    """Dense feed-forward blocks in all layers."""

    def has_experts(self, layer: int) -> bool:
        return False


class TwiceSeen(LoraMoeHgdForSegmentation):
    """Each sample is seen a second time with one sequence less, and a second loss compares the two."""

    def forward(self, pixel_values: Tensor, modality_mask: Tensor, **others: Any) -> LoraMoeHgdSegmenterOutput:
        if not self.training:
            return super().forward(pixel_values, modality_mask, **others)
        others["output_codebook"] = True
        more = super().forward(pixel_values, modality_mask, **others)
        fewer = super().forward(pixel_values, _without_one(modality_mask), **others)
        more.loss = (more.loss + fewer.loss) / 2 + SECOND_LOSS_WEIGHT * self.compare(more, fewer)
        return more

    def compare(self, more: LoraMoeHgdSegmenterOutput, fewer: LoraMoeHgdSegmenterOutput) -> Tensor:
        raise NotImplementedError


class Ranked(TwiceSeen):
    """More sequences must not be worse (SimMLM)."""

    def compare(self, more: LoraMoeHgdSegmenterOutput, fewer: LoraMoeHgdSegmenterOutput) -> Tensor:
        return (more.loss - fewer.loss).relu()


class Distilled(TwiceSeen):
    """The codewords made from fewer sequences must point where those made from more do."""

    def compare(self, more: LoraMoeHgdSegmenterOutput, fewer: LoraMoeHgdSegmenterOutput) -> Tensor:
        return 1 - nn.functional.cosine_similarity(fewer.codebook, more.codebook.detach(), dim=1).mean()


def _without_one(mask: Tensor) -> Tensor:
    """The mask `(B, M)` with a random sequence less in each case that has two or more."""
    dropped = torch.where(mask, torch.rand(mask.shape, device=mask.device), -1.0).argmax(dim=1, keepdim=True)
    fewer = mask.scatter(1, dropped, False)
    return torch.where(fewer.any(dim=1, keepdim=True), fewer, mask)


def without_curriculum() -> AbstractContextManager[Any]:
    """All regions and all subsets from the first step."""
    return patch.multiple(
        objectives,
        region_weights=lambda progress: (1.0, 1.0, 1.0),
        draw_subset=lambda acquired, progress, generator: draw_subset(acquired, 1.0, generator),
    )


def plain_upsampling(network: LoraMoeHgdForSegmentation) -> None:
    network.decoder.assembly = PlainUpsampling(network.config)
    network.decoder.assembly.apply(network._init_weights)


def open_routers(network: LoraMoeHgdForSegmentation) -> None:
    for layer in network.encoder.vit.layers:
        if layer.with_experts:
            layer.moe.router.__class__ = OpenRouter


@dataclass(frozen=True)
class Variant:
    """What is different from the default."""

    sizes: dict[str, Any] = field(default_factory=dict)
    config: type[LoraMoeHgdConfig] = LoraMoeHgdConfig
    network: type[LoraMoeHgdForSegmentation] = LoraMoeHgdForSegmentation
    change: Callable[[LoraMoeHgdForSegmentation], None] = lambda network: None
    training: Callable[[], AbstractContextManager[Any]] = nullcontext
    options: tuple[str, ...] = ()

    def build(self, config: RunConfig) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
        network = self.network(self.config(**self.sizes))
        self.change(network)
        return network, LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM)


# Those that see a sample twice get half of the steps.
HALF = ("--crops-per-case", "1")
VARIANTS: dict[str, Variant] = {
    "default": Variant(),
    "plain upsampling, no codebook": Variant(change=plain_upsampling),
    "no prior codewords": Variant(sizes={"num_prior_codewords": 0}),
    # As many multiplications for a token as with its shared and two routed experts.
    "dense feed-forward, no experts": Variant(config=DenseConfig, sizes={"intermediate_size": 960}),
    "no expert owned by a sequence": Variant(change=open_routers),
    "ranking loss": Variant(network=Ranked, options=HALF),
    "codebook distillation": Variant(network=Distilled, options=HALF),
    "no curriculum": Variant(training=without_curriculum),
    "half the channels at full resolution": Variant(
        sizes={"full_resolution_channels": 4, "refinement_channels": (64, 32, 8)}
    ),
}


def mean_dice(network: nn.Module, sources: list[CaseSource]) -> list[float]:
    """Mean Dice of each region over cases and subsets."""
    values = [
        [dice(*pair) for pair in zip(predict(network, case["pixel_values"], subset), case["labels"], strict=True)]
        for source in sources
        for case in (source[index] for index in range(len(source)))
        for subset in EVERY_SUBSET
    ]
    return np.mean(values, axis=0).tolist()


def run_variant(variant: Variant, config: RunConfig) -> dict[str, Any]:
    """Train, and score the last weights."""
    began = time.perf_counter()
    with variant.training():
        train(config, build=variant.build)
    seconds = time.perf_counter() - began
    network, processor = variant.build(config)
    load_model(network, Path(config.output_dir) / "last" / "model.safetensors")
    nn.Module.to(network.eval(), memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    cache_dir = Path(config.data.cache_dir).expanduser()
    phantoms = PhantomDataset(VAL_PHANTOMS, seed=VALIDATION_SEED, processor=processor, cache_dir=cache_dir)
    _, real = build_data(config, processor, show=False)
    return {"seconds": seconds, "phantoms": mean_dice(network, [phantoms]), "real": mean_dice(network, real)}


def to_markdown(results: dict[str, list[dict[str, Any]]]) -> str:
    """One row a variant: means over the seeds, and how far the seeds lie apart."""
    names = [f"{data} {region.upper()}" for data in ("phantoms", "real") for region in REGIONS]
    lines = [f"| variant | {' | '.join(names)} | mean | by seed | minutes |", "|---" * (len(names) + 4) + "|"]
    for name, runs in results.items():
        values = np.array([[*run["phantoms"], *run["real"]] for run in runs])
        cells = " | ".join(f"{value:.3f}" for value in values.mean(axis=0))
        by_seed = ", ".join(f"{value:.3f}" for value in values.mean(axis=1))
        minutes = np.mean([run["seconds"] for run in runs]) / 60
        lines.append(f"| {name} | {cells} | {values.mean():.3f} | {by_seed} | {minutes:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of labelled cases")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder for the runs")
    args, options = parser.parse_known_args()
    common = ["--config", str(ROOT / "configs/pretrain_phantom.yaml"), "--data", args.data, "--phantoms", "100"]
    common += ["--phantom-share", "0.8", "--epochs", "3", "--every", "3", "--subsets", "[all]", "--tracker", "none"]
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in (0, 1):
        for number, (name, variant) in enumerate(VARIANTS.items()):
            folder = args.out / f"{number}-{seed}"
            scores = folder / "scores.json"
            if not scores.is_file():
                words = [*common, *variant.options, *options, "--seed", str(seed), "--output-dir", str(folder)]
                result = run_variant(variant, read_config(words))
                with replacing(scores) as scratch:
                    scratch.write_text(json.dumps(result))
            results.setdefault(name, []).append(json.loads(scores.read_text()))
            print(f"{name}, seed {seed}: {results[name][-1]}", flush=True)
    print(to_markdown(results))


if __name__ == "__main__":
    main()
