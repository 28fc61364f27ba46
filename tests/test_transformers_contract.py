"""What users of transformers expect of every model holds for this one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.big_modeling import attach_layerwise_casting_hooks
from accelerate.utils import send_to_device
from peft import LoraConfig, get_peft_model
from small import EVERY_SUBSET, random_volumes, small_network
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, BatchFeature, EvalPrediction, Trainer, TrainingArguments
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lora_moe_hgd import LoraMoeHgdConfig, LoraMoeHgdImageProcessor, LoraMoeHgdModel
from lora_moe_hgd.model.stem import PointwiseConv3d

# Two cases of different sequences.
MASK = torch.tensor([[True, True, False, True], [False, False, True, True]])


def logits_of(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(random_volumes(), MASK).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    small_network(0).save_pretrained(folder)
    return folder


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
    with pytest.raises(ValueError, match=r"`num_labels` must be 3 \(the number of the regions wt, tc, et\), got 2"):
        LoraMoeHgdConfig(num_labels=2)


def test_the_trainer_trains_and_evaluates_cases_of_different_size(brain: np.ndarray, tmp_path: Path) -> None:
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0))
    half = brain.copy()
    half[:, 18:] = 0
    cases = [{"t1c": brain, "flair": brain}, {"t2": half}]

    def collate(batch: list[dict[str, np.ndarray]]) -> BatchFeature:
        # With the geometry, which must pass through devices and processes.
        labels = [(next(iter(case.values())) > 120).astype(np.uint8) for case in batch]
        return processor(batch, labels, spacing_mm=4, allow_partial=True, return_tensors="pt")

    seen: list[EvalPrediction] = []
    arguments = TrainingArguments(
        str(tmp_path),
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=1,
        eval_do_concat_batches=False,
        remove_unused_columns=False,
        max_steps=1,
    )
    trainer = Trainer(
        small_network(0),
        arguments,
        data_collator=collate,
        train_dataset=cases,
        eval_dataset=cases,
        compute_metrics=lambda found: seen.append(found) or {"seen": float(len(found.predictions))},
    )
    trainer.train()
    assert trainer.evaluate()["eval_seen"] == 2.0
    found = trainer.predict(cases)
    for predictions, labels in ((seen[0].predictions, seen[0].label_ids), (found.predictions, found.label_ids)):
        shapes = [prediction.shape for prediction in predictions]
        assert shapes == [label.shape for label in labels]
        assert len(set(shapes)) == 2


def test_accelerate_moves_the_output_of_the_processor_to_a_device(brain: np.ndarray) -> None:
    inputs = LoraMoeHgdImageProcessor()({"t1c": brain}, spacing_mm=4, allow_partial=True)
    for moved in (send_to_device(inputs, "meta"), inputs.to("meta")):
        assert moved["pixel_values"].device.type == moved["modality_mask"].device.type == "meta"
        assert moved["geometry"] == inputs["geometry"]


def test_weights_may_wait_outside_the_device(saved: Path, tmp_path: Path) -> None:
    parts = {"encoder.stem": "cpu", "encoder.vit": "disk", "decoder": "disk"}
    spread = AutoModel.from_pretrained(saved, device_map=parts, offload_folder=tmp_path / "parts")
    expected = logits_of(small_network(0))
    assert torch.equal(logits_of(cpu_offload(small_network(0), execution_device="cpu")), expected)
    for offloaded in (spread, disk_offload(small_network(0), tmp_path / "disk", execution_device="cpu")):
        # Rounding depends on how the memory of the weights is aligned, and files align it differently.
        assert_close(logits_of(offloaded), expected, rtol=0, atol=1e-5)


def test_a_case_is_segmented_in_bf16_while_weights_wait_outside_the_device() -> None:
    volumes, mask = torch.randn(1, 4, 32, 32, 32), torch.ones(1, 4, dtype=torch.bool)
    expected = small_network(0).segment_volume(volumes, mask, bf16=True)
    assert not torch.equal(expected, small_network(0).segment_volume(volumes, mask))
    offloaded = cpu_offload(small_network(0), execution_device="cpu")
    assert torch.equal(offloaded.segment_volume(volumes, mask, bf16=True), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int16], ids=str)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_images_may_have_any_type_of_number(dtype: torch.dtype, bf16: bool) -> None:
    volumes = torch.randint(-3, 4, (1, 4, 32, 32, 32))
    network = small_network(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits, expected = (network(pixel_values=volumes.to(kind)).logits for kind in (dtype, torch.float32))
    assert torch.equal(logits, expected)


def test_a_tuple_instead_of_an_output_is_asked_for_in_the_configuration_or_the_call(saved: Path) -> None:
    expected = logits_of(AutoModel.from_pretrained(saved))
    always = AutoModel.from_pretrained(saved, return_dict=False)
    with torch.no_grad():
        assert torch.equal(always(random_volumes(), MASK)[0], expected)
        assert torch.equal(always(random_volumes(), MASK, return_dict=True).logits, expected)
        assert isinstance(always.encoder(random_volumes(), MASK), tuple)
    # What the package does with a network does not depend on it.
    assert always.segment_volume(random_volumes()[:1], MASK[:1]).shape == expected[:1].shape


def test_hidden_states_and_attention_weights_are_asked_for_in_the_configuration_or_the_call(
    saved: Path, tmp_path: Path
) -> None:
    always = AutoModel.from_pretrained(saved, output_hidden_states=True, output_attentions=True)
    always.save_pretrained(tmp_path)
    for network in (always, AutoModel.from_pretrained(tmp_path)):
        found = network(random_volumes(), MASK)
        assert [len(found.hidden_states), len(found.attentions)] == [1 + 4, 4]
    # Of the second case the tokens of two sequences of six patches are real, of the first those of three.
    assert found.hidden_states[0].shape == (2, 18, 24)
    for weights in found.attentions:
        assert_close(weights.sum(dim=-1), torch.ones(2, 2, 18))
        assert weights[1, :, :, 12:].eq(0).all()
        assert weights[1, :, :, :12].gt(0).all()
    none = network(random_volumes(), MASK, output_hidden_states=False, output_attentions=False)
    assert list(none) == ["logits"]


def test_attention_is_the_one_that_is_asked_for(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = AutoModel.from_pretrained(saved)
    assert network.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="`output_attentions` needs the attention `eager`, got sdpa"):
        network(random_volumes(), output_attentions=True)
    expected = logits_of(network)
    eager = AutoModel.from_pretrained(saved, attn_implementation="eager")
    assert_close(logits_of(eager), expected, rtol=0, atol=1e-5)

    def of_a_user(*args, **options):
        calls.append(options)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](*args, **options)

    calls: list[dict] = []
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "of_a_user", of_a_user)
    network.set_attn_implementation("of_a_user")
    assert torch.equal(logits_of(network), expected)
    assert len(calls) == network.config.num_hidden_layers


def test_eager_attention_never_reads_missing_sequences(saved: Path) -> None:
    network = AutoModel.from_pretrained(saved, attn_implementation="eager")
    for number, mask in enumerate(torch.tensor(EVERY_SUBSET)):
        # The second case has other sequences, so that there is padding.
        masks = torch.stack([mask, torch.tensor(EVERY_SUBSET[number - 1])])
        volumes = random_volumes(shape=(16, 16, 32))
        with torch.no_grad():
            expected = network(volumes, masks).logits
            volumes[~masks] = float("nan")
            assert torch.equal(network(volumes, masks).logits, expected)


def random_labels(shape: tuple[int, int, int] = (16, 32, 48)) -> Tensor:
    return torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) > 0.8


class OnlyDouble(TorchDispatchMode):
    """No operation within the block gives floats of less than double precision."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                assert tensor.dtype == torch.float64, func
        return found


def test_double_precision_stays_double() -> None:
    network = small_network(0).double()
    size = (16, 16, 32)
    inputs = (random_volumes(shape=size).double(), MASK, random_labels(size))
    names, shapes = zip(*((name, weight.shape) for name, weight in network.named_parameters()), strict=True)

    def loss_of(weights: Tensor) -> Tensor:
        parts = weights.split([shape.numel() for shape in shapes])
        replaced = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(network, replaced, inputs).loss

    with OnlyDouble():
        network(*inputs[:2])
    assert network.segment_volume(inputs[0][:1], MASK[:1]).dtype == torch.float64
    # One vector of all weights: a check of each on its own takes a minute.
    weights = torch.cat([weight.detach().flatten() for weight in network.parameters()]).requires_grad_()
    assert torch.autograd.gradcheck(loss_of, weights, fast_mode=True)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_takes_images_in_float32(precision: torch.dtype) -> None:
    assert_close(logits_of(small_network(0).to(precision)), logits_of(small_network(0)), rtol=0.1, atol=0.3)


def test_weights_stored_in_bfloat16_compute_in_float32() -> None:
    stored, rounded = small_network(0), small_network(0)
    attach_layerwise_casting_hooks(stored, storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            weight.copy_(stored.get_parameter(name))
    assert torch.equal(logits_of(stored), logits_of(rounded))
    assert stored.encoder.stem.full_resolution.weight.dtype == torch.bfloat16


def test_the_encoder_alone_has_no_parameter_without_a_gradient(saved: Path) -> None:
    encoder = LoraMoeHgdModel.from_pretrained(saved)
    encoder(random_volumes(), MASK).last_hidden_state.square().mean().backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is None] == []


def test_lora_trains_and_merges_on_every_layer() -> None:
    # In double precision, where rounding does not blur what is exact.
    network = small_network(0).double()
    # PEFT cannot merge adapters of convolutions of a single voxel.
    layers = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Embedding | nn.Conv3d) and not isinstance(layer, PointwiseConv3d)
    ]
    adapted = get_peft_model(network, LoraConfig(r=2, target_modules=layers)).double()
    generator = torch.Generator().manual_seed(2)
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len(layers)
    with torch.no_grad():
        for weight in trained.values():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    adapted(random_volumes(), MASK, labels=random_labels()).loss.backward()
    assert [name for name, weight in trained.items() if not weight.grad.abs().sum() > 0] == []
    expected = logits_of(adapted)
    assert_close(logits_of(adapted.merge_and_unload()), expected, rtol=0, atol=1e-9)
