"""The examples run, and `transformers.Trainer` trains as it should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from commands import ROOT, execute
from small import random_volumes, small_network
from small_runs import shipping
from torch.testing import assert_close
from transformers import AutoModel, Trainer, TrainingArguments

from lora_moe_hgd import load_checkpoint

EXAMPLES = ROOT / "examples"


def test_an_adapter_is_fitted_with_the_plain_apis(dummy_root: Path, tmp_path: Path) -> None:
    shown = execute(f"python {EXAMPLES}/finetune_adapter.py --data {dummy_root} --out a --crop 32", tmp_path)
    assert "trainable params" in shown
    assert (tmp_path / "a/adapter_model.safetensors").stat().st_size < 5e6


def test_trainer_trains_a_model_that_loads(dummy_root: Path, tmp_path: Path) -> None:
    execute(f"python {EXAMPLES}/train_with_trainer.py --data {dummy_root} --out t --crop 32", tmp_path)
    network, _ = load_checkpoint(tmp_path / "t")
    base, _ = load_checkpoint("tiny")
    assert not torch.equal(network.decoder.heads[2].weight, base.decoder.heads[2].weight)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "t"), type(network))


@pytest.mark.slow
def test_an_adapter_is_compared_at_its_site_and_at_another(tmp_path: Path, small_weights: Path) -> None:
    small = ["--cases", "1", "--unseen", "1", "--steps", "1", "--crop", "32", "--spacing-mm", "4"]
    options = ["--out", str(tmp_path), "--subsets", "flair", *small]
    with shipping(small_weights):
        shown = execute(f"python {EXAMPLES}/two_scanners.py", tmp_path, options=options)
    table = (tmp_path / "table.md").read_text()
    assert table in shown
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [row[0] for row in rows[2:]] == ["flair", "mean"]
    assert all(len(row) == 7 for row in rows)
    scores = {name: pd.DataFrame(read_rows(tmp_path / name)) for name in ("base_on_a", "adapter_on_a", "base_on_b")}
    # The row `mean` is over cases and subsets, at its place in the table.
    means = {name: f"{frame['dice'].mean():.3f}" for name, frame in scores.items()}
    assert [rows[-1][1], rows[-1][2], rows[-1][4]] == list(means.values())
    # The same cases by two scanners.
    cases = [tmp_path / "sites" / site / "unseen/case_000" for site in "ab"]
    tumours, images = (
        [np.asarray(nib.load(case / f"{name}.nii.gz").dataobj) for case in cases] for name in ("seg", "T1")
    )
    assert np.array_equal(*tumours)
    assert not np.array_equal(*images)


def read_rows(folder: Path) -> list[dict]:
    return [row for path in sorted((folder / "cases").iterdir()) for row in json.loads(path.read_text())["rows"]]


@pytest.fixture
def own_accelerate_state() -> Iterator[None]:
    """Accelerate fixes the precision of a process when it is first used: others are to choose for themselves."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer_loss_and_weights(folder: Path, *, batch_size: int, accumulate: int) -> tuple[float, float, torch.Tensor]:
    volumes = random_volumes(4, (16, 16, 16))
    masks = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 1, 1, 1]]).bool()
    labels = torch.stack([volumes[:, 0] > 0, volumes[:, 0] > 0.5, volumes[:, 0] > 1], dim=1).float()
    samples = [
        {"pixel_values": volume, "modality_mask": mask, "labels": label}
        for volume, mask, label in zip(volumes, masks, labels, strict=True)
    ]
    network = small_network()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        logging_steps=1,
        label_names=["labels"],
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(model=network, args=arguments, train_dataset=samples)
    trainer.train()
    (logged,) = (row for row in trainer.state.log_history if "grad_norm" in row)
    return logged["loss"], logged["grad_norm"], network.decoder.heads[2].weight.detach()


@pytest.mark.usefixtures("own_accelerate_state")
def test_trainer_accumulates_to_the_loss_of_the_large_batch(tmp_path: Path) -> None:
    loss, norm, weight = trainer_loss_and_weights(tmp_path / "large", batch_size=4, accumulate=1)
    split = trainer_loss_and_weights(tmp_path / "small", batch_size=1, accumulate=4)
    # Trainer rounds what it logs.
    assert split[0] == pytest.approx(loss, rel=1e-3)
    assert split[1] == pytest.approx(norm, rel=1e-3)
    assert_close(split[2], weight, rtol=0, atol=1e-5)
