"""Training steps with Accelerate: one process or many, CPU or GPU, float32 or mixed precision.

A training step depends only on the saved state. Each sample has its own random generator, and each batch has its own
seed for all other random numbers. A run that is killed and resumed therefore gives weights that are bit-identical to
those of a run without interruption.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .averaging import WeightAverage, gathered_tensors, load_trained, trained_parameters
from .data.datasets import CaseSource
from .metrics_log import MetricsLog, peak_memory_gb, router_statistics
from .objectives import Objective
from .options import RunConfig
from .reconstruction import MaskedReconstruction
from .run_folder import RunFolder
from .schedule import learning_rate_factor
from .sharding import gathered, laid_out_like
from .states import Progress, RunState

Network = LoraMoeHgdForSegmentation | PeftModel | MaskedReconstruction

# After this many steps in a row without a finite gradient, a run does not recover.
MOST_SKIPPED_IN_A_ROW = 20

# The progress bar shows the running Dice of each region, but not the values per number of sequences.
TRAIN_DICE = re.compile(r"train_dice/\w+")


class TrainingLoop:
    """Training from the first step, or from the newest saved state, to the last step.

    Args:
        config: Options of the run.
        accelerator: Devices, precision and processes.
        network: Network to train.
        processor: Image processor that is saved with the network.
        source: Training cases.
        objective: Objective, which defines samples, loss and validation score.
        run: Folder of the run, which `RunFolder.open` has prepared.
        scored_on: Fingerprint of everything that validation scores depend on, except the weights.
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
        *,
        scored_on: str,
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
        # The averaged weights are validated and saved. They need their own copy of the network, because the trained
        # weights may be sharded.
        self.averaged = copy.deepcopy(network).to(accelerator.device).eval()
        self.network, self.optimizer, self.loader = accelerator.prepare(network, optimizer, loader)
        self.average = WeightAverage(self.bare, decay=config.optim.ema_decay)
        # The loss and its parts, summed over the batches of a step.
        self.losses = torch.zeros((), device=accelerator.device)
        self.done = Progress(batches=len(self.loader), scored_on=scored_on)
        self.stopping = self.validating = False
        self._restore()

    @property
    def bare(self) -> Network:
        """The network without the wrapper of Accelerate."""
        return self.accelerator.unwrap_model(self.network)

    def step_size(self, batch: int) -> int:
        """Number of batches in the step that begins with batch number `batch` of the epoch, counted from 0.

        The last step of an epoch may have fewer batches than the others.
        """
        return min(self.config.optim.accumulate, self.done.batches - batch)

    def progress(self, batch: int) -> float:
        """Progress of the run, from 0 to 1, in the middle of the step that begins with batch `batch` of an epoch."""
        done = (batch + self.step_size(batch) / 2) / self.done.batches
        return (self.done.epoch + done) / self.config.epochs

    def run_epochs(self) -> Path:
        """Train to the end, and return the folder of the best checkpoint.

        Raises:
            SystemExit: After Ctrl-C or SIGTERM, when the state has been saved.
            ValueError: If many steps in a row have no finite gradient, or if a state cannot be written.
        """
        self._start_logs()
        with _signals_to(self._ask_to_stop):
            while self.done.epoch < self.config.epochs:
                self._train_epoch()
                epoch = self.done.epoch + 1
                due = epoch % self.config.validation.every == 0 or epoch == self.config.epochs
                if due:
                    # A run that resumes from the end of an epoch validates first.
                    self._save_state()
                self.done.epoch, self.done.batch = epoch, 0
                if due:
                    self._validate_and_save()
                self._save_state()
        self.accelerator.end_training()
        if self.accelerator.is_main_process:
            self.run.close()
        skipped = f" Steps skipped: {self.done.skipped}." if self.done.skipped else ""
        self.accelerator.print(
            f"Best validation score: {self.objective.describe(self.done.best_score)}.{skipped} "
            f"The checkpoints `best` and `last` are in {self.run.path}."
        )
        return self.run.path / "best"

    def _start_logs(self) -> None:
        # `purge_step` makes TensorBoard hide earlier values of steps that are repeated.
        options = {"tensorboard": {"purge_step": self.done.step + 1}} if self.config.tracker == "tensorboard" else {}
        self.accelerator.init_trackers("logs", init_kwargs=options)
        if self.accelerator.is_main_process:
            self.metrics = MetricsLog(self.run.path, step=self.done.step)

    def _log(self, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=self.done.step)
        if self.accelerator.is_main_process:
            self.metrics.append(values, step=self.done.step)

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        """Stop the run after the current step. During validation, or after a second signal, stop the run at once.

        A resumed run repeats an interrupted validation.
        """
        if self.stopping or self.validating:
            raise KeyboardInterrupt
        self.stopping = True
        self.accelerator.set_trigger()

    def _train_epoch(self) -> None:
        done = self.done
        self.network.train()
        self.crops.begin_epoch(done.epoch, progress=self.progress(0))
        self.loader.set_epoch(done.epoch)
        left = skip_first_batches(self.loader, done.batch) if done.batch else self.loader
        bar = tqdm(
            total=done.batches,
            initial=done.batch,
            desc=f"epoch {done.epoch + 1}/{self.config.epochs}",
            unit="batch",
            disable=not self.accelerator.is_main_process,
        )
        begin, samples, waited, since = done.batch, 0, 0.0, time.perf_counter()
        for seconds, batch in _with_waiting_time(left):
            waited += seconds
            samples += len(batch["modality_mask"]) * self.accelerator.num_processes
            set_seed(batch_seed(self.config.seed, done.epoch, done.batch, self.accelerator.process_index))
            with self.accelerator.accumulate(self.network):
                output, norm = self._step(batch, begin)
            done.batch += 1
            bar.update()
            if not self.accelerator.sync_gradients:
                continue
            done.step += 1
            values = self._measure_step(output, norm, begin)
            elapsed = time.perf_counter() - since
            timing = {"time/samples_per_second": samples / elapsed, "time/data_wait_share": waited / elapsed}
            self._log({**values, **timing, "memory/peak_gb": peak_memory_gb()})
            begin, samples, waited, since = done.batch, 0, 0.0, time.perf_counter()
            dices = {name.split("/")[1]: value for name, value in values.items() if TRAIN_DICE.fullmatch(name)}
            bar.set_postfix({name: f"{value:.2f}" for name, value in (dices | {"loss": values["loss/total"]}).items()})
            last = done.batch == done.batches
            if self.accelerator.check_trigger():
                self._save_state()
                bar.close()
                self.accelerator.print(
                    f"Stopped after step {done.step}. The same command resumes the run. The checkpoints so far are "
                    f"in {self.run.path}."
                )
                self.accelerator.end_training()
                raise SystemExit(130)
            if done.step % self.config.save_every == 0 and not last:
                self._save_state()
        bar.close()

    def _step(self, batch: dict[str, Tensor], begin: int) -> tuple[Any, Tensor]:
        """Run the forward and the backward pass. After the last batch of a step, update the weights.

        Args:
            batch: The batch.
            begin: Number of this step's first batch in the epoch, counted from 0.

        Returns:
            The output of the network, and the norm of the gradient. The norm is NaN for all batches of a step but the
            last.
        """
        done, optim = self.done, self.config.optim
        progress = self.progress(begin)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * learning_rate_factor(progress, optim.warmup)
        output = self.objective.forward(self.network, batch, progress=progress)
        # Accelerate divides the loss by `accumulate`, but the last step of an epoch may have fewer batches.
        self.accelerator.backward(output.loss * (optim.accumulate / self.step_size(begin)))
        self.losses = self.losses + torch.stack([output.loss, *output.losses.values()]).detach()
        norm = torch.tensor(math.nan)
        if self.accelerator.sync_gradients:
            norm = gathered(self.accelerator.clip_grad_norm_(self.network.parameters(), optim.max_grad_norm))
            # The gradient is the mean over the processes, so all of them see the same norm and decide alike.
            if norm.isfinite():
                done.skipped_in_a_row = 0
                self.optimizer.step()
                self.average.update(self.bare, step=done.step + 1)
            else:
                self._skip(norm)
        self.optimizer.zero_grad()
        return output, norm

    def _skip(self, norm: Tensor) -> None:
        """Skip a step because its gradient is not finite. The loss scaler of fp16 is still updated.

        Raises:
            ValueError: If `MOST_SKIPPED_IN_A_ROW` steps in a row were skipped.
        """
        self.done.skipped += 1
        self.done.skipped_in_a_row += 1
        if self.accelerator.scaler is not None:
            self.optimizer.step()
        if self.done.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            raise ValueError(
                f"The gradient was not finite in {MOST_SKIPPED_IN_A_ROW} steps in a row, up to step "
                f"{self.done.step + 1} (norm {norm.item()}). Lower `optim.lr`, or train with `--precision no`. The "
                f"last saved state and the checkpoints are in {self.run.path}."
            )

    def _measure_step(self, output: Any, norm: Tensor, begin: int) -> dict[str, float]:
        """Values to log after a step: losses and Dice over all processes, router statistics of this process alone."""
        means = self.accelerator.reduce(self.losses / self.step_size(begin), reduction="mean").tolist()
        self.losses = torch.zeros((), device=self.accelerator.device)
        return {
            **{f"loss/{name}": mean for name, mean in zip(("total", *output.losses), means, strict=True)},
            "lr": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm.item(),
            "skipped_steps": self.done.skipped,
            **self.objective.measured(self.accelerator.reduce(self.objective.sums, reduction="sum")),
            **router_statistics(output.router_logits, self.experts_per_token),
        }

    @torch.no_grad()
    def _validate_and_save(self) -> None:
        load_trained(self.averaged, gathered_tensors(self.average.weights))
        self.validating = True
        try:
            score = self.objective.validate(self.averaged, epoch=self.done.epoch, log=self._log)
        except KeyboardInterrupt:
            self.accelerator.print(
                f"Stopped during the validation after epoch {self.done.epoch}. The same command resumes the run and "
                f"repeats this validation. The checkpoints so far are in {self.run.path}."
            )
            raise SystemExit(130) from None
        self.validating = False
        if self.accelerator.is_main_process:
            names = ["last", "best"] if score > self.done.best_score else ["last"]
            segmenter, words = self.objective.segmenter(self.averaged), self.objective.describe(score)
            for name in names:
                self.run.save_checkpoint(name, segmenter, self.processor, score=words)
        self.done.best_score = max(score, self.done.best_score)
        self.accelerator.wait_for_everyone()

    def _save_state(self) -> None:
        # All processes must gather sharded tensors together, although only the main process writes them.
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {index: gathered_tensors(values) for index, values in sorted(optimizer["state"].items())}
        scaler = self.accelerator.scaler
        state = RunState(
            progress=self.done,
            weights=gathered_tensors(dict(trained_parameters(self.bare))),
            average=gathered_tensors(self.average.weights),
            optimizer=optimizer,
            others={"sums": self.accelerator.gather(self.objective.sums[None])},
            scaler={} if scaler is None else scaler.state_dict(),
        )
        if self.accelerator.is_main_process:
            self.run.save_state(state)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        state, warnings = self.run.read_state()
        for warning in warnings:
            self.accelerator.print(warning)
        if state is None:
            return
        load_trained(self.bare, state.weights)
        for name, average in self.average.weights.items():
            average.copy_(laid_out_like(state.average[name], average))
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        for index, values in state.optimizer["state"].items():
            values |= {key: laid_out_like(value, parameters[index]) for key, value in values.items() if value.ndim}
        # Take the group settings from the configuration: it may have changed since the state was written.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state.optimizer["state"], "param_groups": groups})
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        sums = state.others["sums"].to(self.accelerator.device)
        if len(sums) != self.accelerator.num_processes:
            # The number of processes has changed: give the total to the first process.
            total = sums.sum(dim=0)
            sums = torch.stack([total, *[torch.zeros_like(total)] * (self.accelerator.num_processes - 1)])
        self.objective.sums = sums[self.accelerator.process_index]
        self._take_up(state.progress)

    def _take_up(self, done: Progress) -> None:
        """Continue from `done`, the progress in a saved state. Options may have changed since the state was saved."""
        batches, scored_on = self.done.batches, self.done.scored_on
        self.accelerator.print(f"Resuming after step {done.step}, in epoch {done.epoch + 1}.")
        if done.batch and done.batches != batches:
            self.accelerator.print(
                f"The number of batches in an epoch has changed, so epoch {done.epoch + 1} starts again."
            )
            done.batch = 0
        if done.scored_on != scored_on and done.best_score > -math.inf:
            self.accelerator.print(
                "The validation has changed, so new scores cannot be compared with earlier scores. The next "
                "checkpoint replaces `best`, whatever its score."
            )
            done.best_score = -math.inf
        self.done = replace(done, batches=batches, scored_on=scored_on)


def build_optimizer(network: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """Build AdamW with weight decay for matrices and kernels only.

    The fused version is used, because it makes no temporary copies of the weights.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    embeddings = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    for name, value in trained_parameters(network):
        (free if value.ndim < 2 or name in embeddings else decayed).append(value)
    groups = [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.optim.lr, fused=True)


def batch_seed(seed: int, epoch: int, batch: int, process: int) -> int:
    """Seed that is different for each batch, epoch and process of a run.

    Example:
        >>> batch_seed(0, 1, 2, 0) == batch_seed(0, 1, 1, 1)
        False
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{batch}/{process}".encode()).digest()
    # NumPy accepts seeds of at most 32 bits.
    return int.from_bytes(digest[:4], "little")


def _with_waiting_time(batches: Iterable[dict[str, Tensor]]) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Yield the seconds of waiting for a batch together with this batch."""
    since = time.perf_counter()
    for batch in batches:
        yield time.perf_counter() - since, batch
        since = time.perf_counter()


@contextmanager
def _signals_to(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler` handle Ctrl-C and SIGTERM inside the `with` block. Cluster queues send SIGTERM to stop a job."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
