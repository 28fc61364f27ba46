"""What is put into the package is what was trained, at the strength asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close

from lora_moe_hgd import load_checkpoint, merge_adapter
from lora_moe_hgd.adapters.presets import add_adapter
from lora_moe_hgd.loading import checkpoint_folder

SCRIPT = Path(__file__).parents[1] / "scripts/ship_weights.py"
spec = importlib.util.spec_from_file_location("ship_weights", SCRIPT)
assert spec is not None
assert spec.loader is not None
ship_weights = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ship_weights)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter over the shipped network, every trained weight of which differs from the base's."""
    torch.manual_seed(0)
    base, _ = load_checkpoint("tiny")
    network: PeftModel = add_adapter(base, "lora+decoder", options={"r": 2}, base="tiny")
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("adapter")
    network.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_a_shipped_adapter_is_as_far_from_its_base_as_asked(adapter: Path, tmp_path: Path, scale: float) -> None:
    ship_weights.ship_adapter(adapter, tmp_path, scale=scale)
    shipped = load_checkpoint(tmp_path)[0].state_dict()
    wanted = merge_adapter(adapter, scale=scale)[0].state_dict()
    for name, value in wanted.items():
        # bfloat16 keeps eight bits.
        assert_close(shipped[name], value, rtol=2**-8, atol=1e-3 * float(value.abs().max()))


def test_a_shipped_network_is_rounded_and_brings_no_code(tmp_path: Path) -> None:
    ship_weights.ship_network("tiny", tmp_path, shipped=tmp_path, scale=1.0)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    again, shipped = (load_checkpoint(name)[0] for name in (tmp_path, "tiny"))
    assert again.dtype == torch.float32
    # Shipped weights are rounded already.
    for pair in zip(again.parameters(), shipped.parameters(), strict=True):
        assert torch.equal(*pair)


def test_a_shipped_network_goes_as_far_from_what_was_shipped_as_asked(adapter: Path, tmp_path: Path) -> None:
    start, trained = load_checkpoint("tiny")[0], merge_adapter(adapter)[0]
    shipped = checkpoint_folder("tiny")
    trained.save_pretrained(tmp_path / "trained")
    load_checkpoint("tiny")[1].save_pretrained(tmp_path / "trained")
    ship_weights.ship_network(tmp_path / "trained", tmp_path / "quarter", shipped=shipped, scale=0.25)
    quarter, after = load_checkpoint(tmp_path / "quarter")[0].state_dict(), trained.state_dict()
    for name, before in start.state_dict().items():
        wanted = torch.lerp(before, after[name], 0.25)
        assert_close(quarter[name], wanted, rtol=2**-8, atol=1e-3 * float(wanted.abs().max()))
    for nothing in (tmp_path / "other", adapter):
        with pytest.raises(ValueError, match=rf"must be 1 if no network {nothing.name} is shipped yet, got 0\.5"):
            ship_weights.ship_network(tmp_path / "trained", tmp_path / "half", shipped=nothing, scale=0.5)
