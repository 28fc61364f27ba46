"""What users of transformers expect of every model holds for this one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from small import random_volumes, small_network
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from lora_moe_hgd import LoraMoeHgdConfig, LoraMoeHgdImageProcessor

# Two cases of different sequences.
MASK = torch.tensor([[True, True, False, True], [False, False, True, True]])


def logits_of(network: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return network(random_volumes(), MASK).logits


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    """A volume of 4 mm voxels as large as a brain."""
    volume = np.zeros((40, 40, 40), dtype=np.float32)
    volume[4:-4, 4:-4, 4:-4] = np.random.default_rng(0).normal(100, 20, (32, 32, 32))
    return volume


def test_the_output_of_the_processor_is_the_input_of_the_model(brain: np.ndarray) -> None:
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0))
    options = {"spacing_mm": 4, "allow_partial": True, "return_tensors": "pt"}
    inputs = processor({"t1c": brain}, (brain > 120).astype(np.uint8), label_scheme="brats2023", **options)
    output = small_network(0)(**inputs)
    assert output.logits.shape == inputs["labels"].shape
    assert output.loss.isfinite()


def test_the_processor_refuses_tensors_of_other_frameworks(brain: np.ndarray) -> None:
    with pytest.raises(ValueError, match="`return_tensors` must be 'pt', got 'tf'"):
        LoraMoeHgdImageProcessor()({"t1c": brain}, return_tensors="tf")


def test_the_labels_of_a_configuration_are_its_regions(tmp_path: Path) -> None:
    config = LoraMoeHgdConfig()
    assert (config.num_labels, config.id2label) == (3, {0: "wt", 1: "tc", 2: "et"})
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).label2id == {"wt": 0, "tc": 1, "et": 2}
    with pytest.raises(ValueError, match=r"`num_labels` must be the number of regions, 3 \(wt, tc, et\), got 2"):
        LoraMoeHgdConfig(num_labels=2)


def test_the_trainer_gives_logits_and_labels_to_the_metrics(tmp_path: Path) -> None:
    network = small_network(0)
    samples = [
        {
            "pixel_values": volume,
            "modality_mask": torch.ones(4, dtype=torch.bool),
            "labels": torch.zeros(3, *volume.shape[1:]),
        }
        for volume in random_volumes()
    ]
    seen = []
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=1)
    trainer = Trainer(
        network, arguments, eval_dataset=samples, compute_metrics=lambda found: seen.append(found) or {"seen": 1.0}
    )
    assert trainer.evaluate()["eval_seen"] == 1.0
    assert seen[0].predictions.shape == seen[0].label_ids.shape == (len(samples), 3, *samples[0]["labels"].shape[1:])


def test_weights_may_wait_outside_the_device(tmp_path: Path) -> None:
    network = small_network(0)
    network.save_pretrained(tmp_path / "saved")
    parts = {"encoder.stem": "cpu", "encoder.vit": "disk", "decoder": "disk"}
    spread = AutoModel.from_pretrained(tmp_path / "saved", device_map=parts, offload_folder=tmp_path / "parts")
    expected = logits_of(network)
    assert torch.equal(logits_of(cpu_offload(small_network(0), execution_device="cpu")), expected)
    for offloaded in (spread, disk_offload(small_network(0), tmp_path / "disk", execution_device="cpu")):
        # Rounding depends on how the memory of the weights is aligned, and files align it differently.
        assert_close(logits_of(offloaded), expected, rtol=0, atol=1e-5)
