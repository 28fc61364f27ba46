"""The steps of a run, over Accelerate: one process or many, CPU or GPU, float32 or mixed precision.

A step depends on the state alone: its samples have generators of their own, whatever else is random is seeded by the
step's number. So a run that was killed goes on bit for bit.
"""

from __future__ import annotations

import copy
import math
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.datasets import CaseSource
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .averaging import WeightAverage, load_trained, trained_parameters, whole_tensors
from .config import RunConfig
from .metrics_log import MetricsLog, peak_memory_gb, router_statistics
from .objectives import Objective
from .reconstruction import MaskedReconstruction
from .run_folder import RunFolder
from .schedule import learning_rate_factor
from .sharding import laid_out_like, whole
from .states import Place, RunState

Network = LoraMoeHgdForSegmentation | PeftModel | MaskedReconstruction

# A run whose gradients are not finite for so many steps in a row will not mend itself.
MOST_SKIPPED_IN_A_ROW = 20

# Of the running Dice the progress bar shows the regions, not their parts by number of sequences.
TRAIN_DICE = re.compile(r"train_dice/\w+")


class TrainingLoop:
    """One run from its first or its resumed step to the last.

    Args:
        config: The run.
        accelerator: Devices, precision and processes.
        network: What is trained.
        processor: Saved beside the network.
        source: Training cases.
        objective: What the run is for.
        run: Where results go.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        network: Network,
        processor: LoraMoeHgdImageProcessor,
        source: CaseSource,
        objective: Objective,
        run: RunFolder,
    ) -> None:
        self.config, self.accelerator, self.processor, self.run = config, accelerator, processor, run
        self.objective = objective
        self.crops = objective.crops(source)
        loader = DataLoader(
            self.crops,
            batch_size=config.sample.batch_size,
            shuffle=True,
            drop_last=len(self.crops) >= config.sample.batch_size * accelerator.num_processes,
            num_workers=config.data.num_workers,
        )
        optimizer = build_optimizer(network, config)
        self.experts_per_token = network.config.num_experts_per_tok
        # Gets the averaged weights, to be validated and saved: the trained ones may lie in parts on many processes.
        self.averaged = copy.deepcopy(network).to(accelerator.device).eval()
        self.network, self.optimizer, self.loader = accelerator.prepare(network, optimizer, loader)
        self.average = WeightAverage(self.bare, decay=config.optim.ema_decay)
        # The loss and its parts, summed over the batches of a step.
        self.losses = torch.zeros((), device=accelerator.device)
        self.place = Place()
        self.stopping = False
        self.steps_per_epoch = math.ceil(len(self.loader) / config.optim.accumulate)
        self._restore()

    @property
    def bare(self) -> Network:
        """The network without what Accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.network)

    def progress(self, step: int) -> float:
        """From 0 to 1, in the middle of step number `step`: the first learning rate is not zero."""
        return min((step + 0.5) / (self.config.epochs * self.steps_per_epoch), 1.0)

    def run_epochs(self) -> Path:
        """Train to the end, and return the folder of the best checkpoint.

        Raises:
            SystemExit: After Ctrl-C or SIGTERM, with the state saved.
            ValueError: If gradients stay infinite, or a state cannot be written.
        """
        self._start_logs()
        with _signals_to(self._ask_to_stop):
            while self.place.epoch < self.config.epochs:
                self._train_epoch()
                self.place.epoch, self.place.batch = self.place.epoch + 1, 0
                due = self.place.epoch % self.config.validation.every == 0
                if due or self.place.epoch == self.config.epochs:
                    self._validate_and_save()
                self._save_state()
        self.accelerator.end_training()
        if self.accelerator.is_main_process:
            self.run.close()
        skipped = f" {self.place.skipped} steps were skipped." if self.place.skipped else ""
        self.accelerator.print(
            f"Best {self.objective.describe(self.place.best_score)}.{skipped} "
            f"Checkpoints are in {self.run.path}: best, last."
        )
        return self.run.path / "best"

    def _start_logs(self) -> None:
        # TensorBoard then hides what it was told of steps that are done again.
        options = {"tensorboard": {"purge_step": self.place.step + 1}} if self.config.tracker == "tensorboard" else {}
        self.accelerator.init_trackers("logs", init_kwargs=options)
        if self.accelerator.is_main_process:
            self.metrics = MetricsLog(self.run.path, step=self.place.step)

    def _log(self, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=self.place.step)
        if self.accelerator.is_main_process:
            self.metrics.append(values, step=self.place.step)

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        """Stop after the step that is under way; a second signal stops at once."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        self.accelerator.set_trigger()

    def _train_epoch(self) -> None:
        place, accumulate = self.place, self.config.optim.accumulate
        self.network.train()
        self.crops.begin_epoch(place.epoch, progress=self.progress(place.epoch * self.steps_per_epoch))
        self.loader.set_epoch(place.epoch)
        left = skip_first_batches(self.loader, place.batch) if place.batch else self.loader
        bar = tqdm(
            total=len(self.loader),
            initial=place.batch,
            desc=f"epoch {place.epoch + 1}/{self.config.epochs}",
            unit="batch",
            disable=not self.accelerator.is_main_process,
        )
        waited, since = 0.0, time.perf_counter()
        for seconds, batch in _with_waiting_time(left):
            waited += seconds
            set_seed(self.config.seed + place.step, device_specific=True)
            with self.accelerator.accumulate(self.network):
                output, norm = self._step(batch)
            place.batch += 1
            bar.update()
            if not self.accelerator.sync_gradients:
                continue
            place.step += 1
            values = self._measure_step(output, norm)
            samples = len(batch["modality_mask"]) * self.accelerator.num_processes * accumulate
            elapsed = time.perf_counter() - since
            timing = {"time/samples_per_second": samples / elapsed, "time/data_wait_share": waited / elapsed}
            self._log({**values, **timing, "memory/peak_gb": peak_memory_gb()})
            waited, since = 0.0, time.perf_counter()
            dices = {name.split("/")[1]: value for name, value in values.items() if TRAIN_DICE.fullmatch(name)}
            bar.set_postfix({name: f"{value:.2f}" for name, value in (dices | {"loss": values["loss/total"]}).items()})
            last = place.batch == len(self.loader)
            if self.accelerator.check_trigger():
                self._save_state()
                bar.close()
                self.accelerator.print(
                    f"Stopped after step {place.step}. The same command goes on from there; checkpoints so far are in "
                    f"{self.run.path}."
                )
                self.accelerator.end_training()
                raise SystemExit(130)
            if place.step % self.config.save_every == 0 and not last:
                self._save_state()
        bar.close()

    def _step(self, batch: dict[str, Tensor]) -> tuple[Any, Tensor]:
        """Forward, backward and, after the last batch of a step, the update.

        Returns:
            The output, and the norm of the gradient so far, NaN before the last batch.
        """
        place, optim = self.place, self.config.optim
        progress = self.progress(place.step)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * learning_rate_factor(progress, optim.warmup)
        output = self.objective.forward(self.network, batch, progress=progress)
        self.accelerator.backward(output.loss)
        self.losses = self.losses + torch.stack([output.loss, *output.losses.values()]).detach()
        norm = torch.tensor(math.nan)
        if self.accelerator.sync_gradients:
            norm = whole(self.accelerator.clip_grad_norm_(self.network.parameters(), optim.max_grad_norm))
            # The gradient is the mean over the processes: all see the same norm and decide alike.
            if norm.isfinite():
                place.skipped_in_a_row = 0
                self.optimizer.step()
                self.average.update(self.bare, step=place.step + 1)
            else:
                self._skip(norm)
        self.optimizer.zero_grad()
        return output, norm

    def _skip(self, norm: Tensor) -> None:
        """Leave a step out, its gradient being no number; the loss scaler of fp16 still hears of it.

        Raises:
            ValueError: If the last steps were all left out.
        """
        self.place.skipped += 1
        self.place.skipped_in_a_row += 1
        if self.accelerator.scaler is not None:
            self.optimizer.step()
        if self.place.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            raise ValueError(
                f"The gradient must be finite, got a norm of {norm.item()} in {MOST_SKIPPED_IN_A_ROW} steps in a row, "
                f"the last being step {self.place.step}. Lower `optim.lr`, or train with --precision no; the last "
                f"good state and checkpoints are in {self.run.path}."
            )

    def _measure_step(self, output: Any, norm: Tensor) -> dict[str, float]:
        """What is logged of a step: losses and Dice over all processes, the router over the first one's tokens."""
        means = self.accelerator.reduce(self.losses / self.config.optim.accumulate, reduction="mean").tolist()
        self.losses = torch.zeros((), device=self.accelerator.device)
        return {
            **{f"loss/{name}": mean for name, mean in zip(("total", *output.losses), means, strict=True)},
            "lr": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm.item(),
            "skipped_steps": self.place.skipped,
            **self.objective.measured(self.accelerator.reduce(self.objective.sums, reduction="sum")),
            **router_statistics(output.router_logits, self.experts_per_token),
        }

    @torch.no_grad()
    def _validate_and_save(self) -> None:
        load_trained(self.averaged, whole_tensors(self.average.weights))
        score = self.objective.validate(self.averaged, epoch=self.place.epoch, log=self._log)
        if self.accelerator.is_main_process:
            names = ["last", "best"] if score > self.place.best_score else ["last"]
            segmenter, words = self.objective.segmenter(self.averaged), self.objective.describe(score)
            for name in names:
                self.run.save_checkpoint(name, segmenter, self.processor, score=words)
        self.place.best_score = max(score, self.place.best_score)
        self.accelerator.wait_for_everyone()

    def _save_state(self) -> None:
        # What lies in parts on many processes all of them must gather, in one order, not only the one that writes.
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {index: whole_tensors(values) for index, values in sorted(optimizer["state"].items())}
        scaler = self.accelerator.scaler
        state = RunState(
            place=self.place,
            weights=whole_tensors(dict(trained_parameters(self.bare))),
            average=whole_tensors(self.average.weights),
            optimizer=optimizer,
            others={"sums": self.accelerator.gather(self.objective.sums[None])},
            scaler={} if scaler is None else scaler.state_dict(),
        )
        if self.accelerator.is_main_process:
            self.run.save_state(state)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        state, complaints = self.run.read_state()
        for complaint in complaints:
            self.accelerator.print(complaint)
        if state is None:
            return
        load_trained(self.bare, state.weights)
        for name, average in self.average.weights.items():
            average.copy_(laid_out_like(state.average[name], average))
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        for index, values in state.optimizer["state"].items():
            values |= {key: laid_out_like(value, parameters[index]) for key, value in values.items() if value.ndim}
        self.optimizer.load_state_dict(state.optimizer)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        sums = state.others["sums"].to(self.accelerator.device)
        if len(sums) != self.accelerator.num_processes:
            # As if the first of the processes had seen all batches.
            total = sums.sum(dim=0)
            sums = torch.stack([total, *[torch.zeros_like(total)] * (self.accelerator.num_processes - 1)])
        self.objective.sums = sums[self.accelerator.process_index]
        self.place = state.place
        self.accelerator.print(f"Going on after step {self.place.step}, epoch {self.place.epoch + 1}.")


def build_optimizer(network: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only; fused, which holds no copies during a step."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    embeddings = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    for name, value in trained_parameters(network):
        (free if value.ndim < 2 or name in embeddings else decayed).append(value)
    groups = [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.optim.lr, fused=True)


def _with_waiting_time(batches: Iterable[dict[str, Tensor]]) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Each batch with the seconds that were spent waiting for it."""
    since = time.perf_counter()
    for batch in batches:
        yield time.perf_counter() - since, batch
        since = time.perf_counter()


@contextmanager
def _signals_to(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM, which cluster queues send, go to `handler`."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
