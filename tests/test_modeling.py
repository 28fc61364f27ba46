"""The network as a transformers model: configuration, initialisation, saving, loading, precision."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from small import random_volumes, small_config, small_network
from torch.testing import assert_close

from lora_moe_hgd.model.configuration_lora_moe_hgd import LoraMoeHgdConfig
from lora_moe_hgd.model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation, LoraMoeHgdModel


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("hidden_size", 25, "multiple of `num_attention_heads`"),
        ("num_experts_per_tok", 6, r"at most 1 \+ `num_free_experts` \(5\)"),
        ("hidden_state_depths", (1, 2, 3), "`num_hidden_layers` \\(4\\)"),
        ("hidden_state_depths", (2, 4), "must have 3 entries"),
        ("num_codewords", 0, "must be at least 1, got 0"),
        ("modalities", ("t1", "t1"), "no name twice"),
    ],
)
def test_a_contradictory_configuration_names_rule_and_value(field: str, value: object, rule: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=rule):
        small_config(**{field: value})


@pytest.mark.parametrize("wrong", [{"num_free_experts": "4"}, {"load_balance_coef": "small"}, {"stem_channels": 16}])
def test_a_wrong_type_is_refused(wrong: dict) -> None:
    with pytest.raises(StrictDataclassFieldValidationError):
        LoraMoeHgdConfig(**wrong)


@pytest.mark.parametrize(("key", "nearest"), [("num_free_expert", "num_free_experts"), ("depth", "stem_depths")])
def test_a_key_that_is_no_field_is_refused_with_the_nearest_one(key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"`{key}` is not a field .*The nearest field is `{nearest}`"):
        LoraMoeHgdConfig(**{key: 12})


def test_what_transformers_passes_and_writes_into_a_configuration_is_taken(tmp_path) -> None:
    config = small_config(
        architectures=["LoraMoeHgdForSegmentation"],
        auto_map={"AutoConfig": "configuration_lora_moe_hgd.LoraMoeHgdConfig"},
        id2label={0: "wt", 1: "tc", 2: "et"},
        output_hidden_states=True,
        problem_type="multi_label_classification",
        return_dict=False,
        torch_dtype="bfloat16",
        attn_implementation="eager",
        _name_or_path="somewhere",
    )
    # By its Trainer, by pipelines and by quantisers.
    config.use_cache, config.custom_pipelines, config.quantization_config = False, {}, {"quant_method": "torchao"}
    config.save_pretrained(tmp_path)
    again = LoraMoeHgdConfig.from_pretrained(tmp_path, output_attentions=True, dtype="float32")
    assert again.problem_type == config.problem_type


def test_a_reloaded_configuration_equals_the_saved_one(tmp_path) -> None:
    config = small_config()
    config.save_pretrained(tmp_path)
    assert LoraMoeHgdConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


def test_named_sizes_are_about_seven_million_and_larger() -> None:
    with torch.device("meta"):
        tiny, base = (LoraMoeHgdForSegmentation(make()) for make in (LoraMoeHgdConfig.tiny, LoraMoeHgdConfig.base))
    assert 6e6 < tiny.num_parameters() < 8e6
    assert (base.config.hidden_size, base.config.num_hidden_layers) == (384, 12)


def test_a_saved_network_gives_the_same_logits(tmp_path) -> None:
    network = small_network()
    network.save_pretrained(tmp_path)
    # A copy: kernels round differently where weights lie unaligned in memory, as those mapped from a file do.
    loaded = copy.deepcopy(LoraMoeHgdForSegmentation.from_pretrained(tmp_path))
    with torch.no_grad():
        assert_close(loaded(random_volumes()).logits, network(random_volumes()).logits, rtol=0, atol=0)


def test_missing_weights_are_initialised_never_garbage(tmp_path) -> None:
    """Loading onto the meta device leaves uninitialised memory wherever `_init_weights` looks away."""
    LoraMoeHgdModel(small_config()).save_pretrained(tmp_path)
    network = LoraMoeHgdForSegmentation.from_pretrained(tmp_path)
    fresh = LoraMoeHgdForSegmentation(small_config())
    for (name, loaded), expected in zip(network.named_parameters(), fresh.parameters(), strict=True):
        assert loaded.isfinite().all(), name
        assert loaded.abs().max() < 10, name
        if loaded.numel() > 64:
            assert_close(loaded.std(), expected.std(), rtol=0.5, atol=1e-6, msg=name)
    assert not list(network.buffers())


def test_the_encoder_loads_from_a_segmenter(tmp_path) -> None:
    network = small_network()
    network.save_pretrained(tmp_path)
    encoder = copy.deepcopy(LoraMoeHgdModel.from_pretrained(tmp_path))
    with torch.no_grad():
        states = network(random_volumes(), output_hidden_states=True).hidden_states
        assert_close(encoder(random_volumes()).last_hidden_state, states[-1], rtol=0, atol=0)


def test_bfloat16_autocast_and_channels_last_stay_near_float32() -> None:
    network = small_network()
    with torch.no_grad():
        expected = network(random_volumes()).logits
        network = network.to(memory_format=torch.channels_last_3d)
        assert_close(network(random_volumes()).logits, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = network(random_volumes()).logits
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().mean() < 0.05 * expected.std()


def test_training_lowers_the_loss() -> None:
    network = small_network().train()
    labels = torch.zeros(2, 3, 16, 32, 48)
    labels[:, :, 4:12, 8:24, 8:24] = 1
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        loss = network(random_volumes(), labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_outputs_on_request_and_none_otherwise() -> None:
    network = small_network()
    plain = network(random_volumes())
    assert list(plain.keys()) == ["logits"]
    full = network(random_volumes(), output_hidden_states=True, output_router_logits=True, output_codebook=True)
    assert [len(full.hidden_states), len(full.router_logits)] == [5, 2]
    assert full.codebook.shape == (2, 16, 8)


@pytest.mark.parametrize(
    ("inputs", "rule"),
    [
        ({"pixel_values": torch.zeros(1, 3, 16, 16, 16)}, "4, depth, height, width.*t1, t1c, t2, flair"),
        ({"pixel_values": torch.zeros(1, 4, 16, 20, 16)}, r"multiple of 16.*\(16, 20, 16\)"),
        (
            {"pixel_values": torch.zeros(1, 4, 16, 16, 16), "modality_mask": torch.ones(1, 3)},
            r"`modality_mask` must have shape \(1, 4\)",
        ),
        (
            {"pixel_values": torch.zeros(1, 4, 16, 16, 16), "labels": torch.zeros(1, 16, 16, 16)},
            "`labels` must be region masks",
        ),
    ],
)
def test_a_wrong_shape_is_named(inputs: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        small_network()(**inputs)


def test_the_weights_of_a_saved_network_are_safetensors(tmp_path) -> None:
    small_network().save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".py"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "lora_moe_hgd"


def test_the_loss_of_a_batch_is_the_mean_of_its_cases() -> None:
    network = small_network(load_balance_coef=1.0, router_z_coef=1.0)
    volumes = random_volumes(3)
    masks = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 0, 1]]).bool()
    labels = torch.stack([volumes[:, 0] > level for level in (0.0, 0.5, 1.0)], dim=1)
    whole = network(volumes, masks, labels=labels)
    alone = [network(volumes[[i]], masks[[i]], labels=labels[[i]]) for i in range(3)]
    for name, value in whole.losses.items():
        assert_close(value, torch.stack([case.losses[name] for case in alone]).mean(), rtol=1e-5, atol=1e-6)
    assert_close(whole.loss, torch.stack([case.loss for case in alone]).mean(), rtol=1e-5, atol=1e-6)
