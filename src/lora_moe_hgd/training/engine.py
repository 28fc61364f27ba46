"""The training loop, over Accelerate: one process or many, CPU or GPU, float32 or mixed precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.datasets import CaseDataset, CaseSource, CropDataset, PhantomDataset
from ..data.layouts import find_cases
from ..evaluation.evaluate import validate
from ..evaluation.subsets import parse_subset
from ..loading import base_name, load_checkpoint
from ..model.configuration_lora_moe_hgd import REGIONS, LoraMoeHgdConfig
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .adapters import add_adapter
from .averaging import WeightAverage, load_trained, trained_parameters
from .config import RunConfig, read_config
from .run_folder import Place, RunFolder, RunState
from .schedule import draw_subset, learning_rate_factor, region_weights

Network = LoraMoeHgdForSegmentation | PeftModel

# Validation phantoms come from seeds that no training set reaches.
VALIDATION_SEED = 9_000_000

FROM_SCRATCH_SPACING_MM = (2.0, 2.0, 2.0)


def main(argv: Sequence[str]) -> None:
    """Train as the command line says."""
    train(read_config(argv))


def train(config: RunConfig) -> Path:
    """Train, and return the folder of the best checkpoint.

    Raises:
        ValueError: If the data or the base cannot be used; found before the first step.
    """
    accelerator = Accelerator(
        mixed_precision=config.optim.precision,
        gradient_accumulation_steps=config.optim.accumulate,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=config.output_dir),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        step_scheduler_with_optimizer=False,
    )
    set_seed(config.seed)
    network, processor = build_network(config)
    with accelerator.main_process_first():
        source, validation = build_data(config, processor, show=accelerator.is_main_process)
    run = RunFolder(config)
    if accelerator.is_main_process:
        run.open()
    accelerator.wait_for_everyone()
    return _Loop(config, accelerator, network, processor, source, validation, run).run_epochs()


def build_network(config: RunConfig) -> tuple[Network, LoraMoeHgdImageProcessor]:
    """The network to train, with its adapter, and its processor."""
    if config.base is None:
        sizes = {"tiny": LoraMoeHgdConfig.tiny, "base": LoraMoeHgdConfig.base}
        network = LoraMoeHgdForSegmentation(sizes[str(config.size)]())
        processor = LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM)
    else:
        network, processor = load_checkpoint(config.base)
    if config.sample.spacing_mm is not None:
        processor.target_spacing_mm = [config.sample.spacing_mm] * 3
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-arg]  # transformers wraps it without its type
    if config.optim.gradient_checkpointing:
        network.activation_checkpointing_enable()
    if config.adapter == "none" or config.base is None:
        return network, processor
    return add_adapter(network, config.adapter, rank=config.lora_rank, base=base_name(config.base)), processor


def build_data(
    config: RunConfig, processor: LoraMoeHgdImageProcessor, *, show: bool
) -> tuple[CaseSource, list[CaseSource]]:
    """Training and validation cases; every file is read once here: a bad one is found before training."""
    data = config.data
    if data.root is None:
        cache = Path(data.cache_dir).expanduser()
        training = PhantomDataset(data.phantoms, seed=config.seed, processor=processor, cache_dir=cache)
        held_out = PhantomDataset(data.val_phantoms, seed=VALIDATION_SEED, processor=processor, cache_dir=cache)
        for phantoms in (training, held_out):
            phantoms.make_all(num_workers=data.num_workers, progress=show)
        return training, [held_out]
    cases = find_cases(Path(data.root))
    order = torch.randperm(len(cases), generator=torch.Generator().manual_seed(config.seed)).tolist()
    num_validation = max(1, round(data.val_fraction * len(cases)))
    if data.val_on_train:
        chosen, rest = order, order
    elif len(cases) > num_validation:
        chosen, rest = order[:num_validation], order[num_validation:]
    else:
        raise ValueError(f"{data.root} must hold at least 2 cases, one of them for validation, got {len(cases)}.")
    training_cases = CaseDataset([cases[i] for i in sorted(rest)], processor=processor)
    validation_cases = CaseDataset([cases[i] for i in sorted(chosen)], processor=processor)
    for dataset in (training_cases, validation_cases):
        for index in tqdm(range(len(dataset)), desc="reading", unit="case", disable=not show):
            dataset[index]
    return training_cases, [validation_cases]


def build_optimizer(network: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    embeddings = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    for name, value in trained_parameters(network):
        (free if value.ndim < 2 or name in embeddings else decayed).append(value)
    groups = [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.optim.lr)


class _Loop:
    """One run from its first or its resumed epoch to the last."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        network: Network,
        processor: LoraMoeHgdImageProcessor,
        source: CaseSource,
        validation: list[CaseSource],
        run: RunFolder,
    ) -> None:
        self.config, self.accelerator, self.processor, self.run = config, accelerator, processor, run
        self.validation = validation
        self.subsets = [parse_subset(name) for name in config.validation.subsets]
        self.crops = CropDataset(
            source,
            crop_size=config.sample.crop_size,
            crops_per_case=config.sample.crops_per_case,
            seed=config.seed,
            draw_subset=draw_subset,
        )
        loader = DataLoader(
            self.crops,
            batch_size=config.sample.batch_size,
            shuffle=True,
            drop_last=len(self.crops) >= config.sample.batch_size * accelerator.num_processes,
            num_workers=config.data.num_workers,
        )
        optimizer = build_optimizer(network, config)
        self.network, self.optimizer, self.loader = accelerator.prepare(network, optimizer, loader)
        self.average = WeightAverage(self.bare, decay=config.optim.ema_decay)
        self.place = Place()
        if (state := run.read_state()) is not None:
            self._restore(state)
        self.total_steps = config.epochs * math.ceil(len(self.loader) / config.optim.accumulate)

    @property
    def bare(self) -> Network:
        """The network without what Accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.network)

    @property
    def progress(self) -> float:
        """From 0 to 1, in the middle of the step that comes next: the first learning rate is not zero."""
        return min((self.place.step + 0.5) / self.total_steps, 1.0)

    def run_epochs(self) -> Path:
        self.accelerator.init_trackers("logs")
        try:
            while self.place.epoch < self.config.epochs:
                self._train_epoch()
                self.place.epoch += 1
                due = self.place.epoch % self.config.validation.every == 0
                if due or self.place.epoch == self.config.epochs:
                    self._validate_and_save()
                self._save_state()
        except KeyboardInterrupt:
            self.accelerator.print(
                f"\nStopped in epoch {self.place.epoch + 1} of {self.config.epochs}. The same command goes on from "
                f"the end of epoch {self.place.epoch}; checkpoints so far are in {self.run.path}."
            )
            raise SystemExit(130) from None
        self.accelerator.end_training()
        if self.accelerator.is_main_process:
            self.run.close()
        self.accelerator.print(
            f"Best mean Dice {self.place.best_dice:.3f}. Checkpoints are in {self.run.path}: best, last."
        )
        return self.run.path / "best"

    def _train_epoch(self) -> None:
        self.network.train()
        self.crops.begin_epoch(self.place.epoch, progress=self.progress)
        self.loader.set_epoch(self.place.epoch)
        title = f"epoch {self.place.epoch + 1}/{self.config.epochs}"
        bar = tqdm(self.loader, desc=title, unit="batch", disable=not self.accelerator.is_main_process)
        overlap = torch.zeros(2, len(REGIONS), device=self.accelerator.device)
        for batch in bar:
            with self.accelerator.accumulate(self.network):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.config.optim.lr * learning_rate_factor(self.progress, self.config.optim.warmup)
                output = self.network(
                    pixel_values=batch["pixel_values"].contiguous(memory_format=torch.channels_last_3d),
                    modality_mask=batch["modality_mask"],
                    labels=batch["labels"],
                    region_weights=torch.tensor(region_weights(self.progress), device=self.accelerator.device),
                )
                self._check_finite(output.loss)
                self.accelerator.backward(output.loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.optim.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            overlap = 0.95 * overlap + _overlap(output.logits, batch["labels"])
            if self.accelerator.sync_gradients:
                self.place.step += 1
                self.average.update(self.bare, step=self.place.step)
                dice = (2 * overlap[0] / overlap[1].clamp(min=1)).tolist()
                bar.set_postfix(loss=f"{output.loss.item():.3f}", **_named(dice, "{:.2f}"))
                self._log_step(output.loss, output.losses, norm, dice)

    def _log_step(self, loss: Tensor, parts: dict[str, Tensor], norm: Tensor, dice: list[float]) -> None:
        values = {f"loss/{name}": part.item() for name, part in parts.items()}
        values |= {f"train_dice/{name}": value for name, value in zip(REGIONS, dice, strict=True)}
        values |= {"loss/total": loss.item(), "gradient_norm": float(norm), "lr": self.optimizer.param_groups[0]["lr"]}
        self.accelerator.log(values, step=self.place.step)

    def _check_finite(self, loss: Tensor) -> None:
        if not loss.isfinite():
            raise ValueError(
                f"The loss must be finite, got {loss.item()} at step {self.place.step}. Lower `optim.lr`, or train "
                f"with --precision no; the last good state is in {self.run.path}."
            )

    @torch.no_grad()
    def _validate_and_save(self) -> None:
        if self.accelerator.is_main_process:
            self.bare.eval()
            with self.average.in_use(self.bare):
                mean = self._validation_dice()
                self.run.save_checkpoint("last", self.bare, self.processor)
                if mean > self.place.best_dice:
                    self.place.best_dice = mean
                    self.run.save_checkpoint("best", self.bare, self.processor)
        self.accelerator.wait_for_everyone()

    def _validation_dice(self) -> float:
        """Mean Dice over held-out cases, the chosen subsets and the regions; printed and logged by subset."""
        means = []
        cases = [source[index] for source in self.validation for index in range(len(source))]
        for name, subset in zip(self.config.validation.subsets, self.subsets, strict=True):
            scores = []
            for case in cases:
                present = tuple(a and b for a, b in zip(subset, case["modality_mask"].tolist(), strict=True))
                if any(present):
                    volume, labels = case["pixel_values"], case["labels"]
                    with self.accelerator.autocast():
                        scores.append(validate(self.bare, volume.to(self.accelerator.device), labels, present))
            if scores:
                dice = torch.tensor(scores).mean(dim=0).tolist()
                means.append(sum(dice) / len(dice))
                words = "  ".join(f"{region} {value:.3f}" for region, value in zip(REGIONS, dice, strict=True))
                self.accelerator.print(f"  epoch {self.place.epoch} validation {name}: {words}")
                values = {f"dice_{name}/{region}": value for region, value in zip(REGIONS, dice, strict=True)}
                self.accelerator.log(values, step=self.place.step)
        return sum(means) / len(means)

    def _save_state(self) -> None:
        if self.accelerator.is_main_process:
            weights = {name: value.detach() for name, value in trained_parameters(self.bare)}
            optimizer = self.optimizer.state_dict()
            self.run.save_state(RunState(self.place, weights, self.average.weights, optimizer))
        self.accelerator.wait_for_everyone()

    def _restore(self, state: RunState) -> None:
        load_trained(self.bare, state.weights)
        self.average.weights = {name: value.to(self.accelerator.device) for name, value in state.average.items()}
        self.optimizer.load_state_dict(state.optimizer)
        self.place = state.place
        self.accelerator.print(f"Going on after epoch {self.place.epoch} of {self.config.epochs}.")


def _overlap(logits: Tensor, labels: Tensor) -> Tensor:
    """Voxels in both, and in prediction plus truth, per region, `(2, R)`."""
    predicted, truth = logits.detach() > 0, labels.bool()
    axes = (0, 2, 3, 4)
    return torch.stack([(predicted & truth).sum(axes), predicted.sum(axes) + truth.sum(axes)])


def _named(values: Sequence[float], form: str) -> dict[str, str]:
    return {name: form.format(value) for name, value in zip(REGIONS, values, strict=True)}
