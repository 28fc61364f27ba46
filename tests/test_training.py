"""A run from its configuration to its checkpoints: what is saved, what is frozen, how it goes on."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from small import EVERY_SUBSET, random_volumes, small_network
from small_runs import build_small
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoModel

from lora_moe_hgd import LoraMoeHgdConfig, load_checkpoint, pretrained_path
from lora_moe_hgd.adapters.presets import add_adapter, merged
from lora_moe_hgd.model import modeling_lora_moe_hgd as modeling
from lora_moe_hgd.model.losses import total_loss
from lora_moe_hgd.training import engine
from lora_moe_hgd.training.averaging import WeightAverage, trained_parameters
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.engine import build_network
from lora_moe_hgd.training.metrics_log import read_metrics
from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]
SMALL = ["--num-workers", "0", "--subsets", "[flair]", "--crop-size", "[32, 32, 32]", "--crops-per-case", "1"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train_from_scratch(output_dir: Path, cache: Path, *options: str) -> None:
    config = str(ROOT / "configs/smoke.yaml")
    words = ["--config", config, "--output-dir", str(output_dir), "--cache-dir", str(cache), *SMALL, *options]
    with mock.patch.object(engine, "build_network", build_small):
        run("train", words)


def train_adapter(output_dir: Path, data: Path, *options: str) -> None:
    config = str(ROOT / "configs/brats2018.yaml")
    arguments = ["--config", config, "--output-dir", str(output_dir), "--data", str(data), "--epochs", "1"]
    arguments += ["--cache-dir", str(output_dir.with_name("cache"))]
    run("train", [*arguments, *SMALL, *options])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    output_dir = tmp_path_factory.mktemp("run") / "run"
    train_from_scratch(output_dir, cache, "--epochs", "3")
    return output_dir


def test_a_run_leaves_two_checkpoints_that_load_and_its_logs(uninterrupted: Path) -> None:
    for name in ("best", "last"):
        files = {path.name for path in (uninterrupted / name).iterdir() if path.suffix != ".py"}
        assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
        network = AutoModel.from_pretrained(uninterrupted / name)
        assert network(random_volumes()).logits.isfinite().all()
        assert AutoImageProcessor.from_pretrained(uninterrupted / name).target_spacing_mm == [4.0, 4.0, 4.0]
    assert json.loads((uninterrupted / "run.json").read_text())["finished"]
    assert list((uninterrupted / "logs").rglob("events.out.tfevents.*"))
    files = {path.name for path in uninterrupted.iterdir()}
    assert files == {"best", "last", "logs", "metrics.jsonl", "pictures", "resume", "run.json", "split.csv"}
    assert len(list((uninterrupted / "pictures").iterdir())) == 3


def test_what_a_run_measures_is_logged(uninterrupted: Path) -> None:
    steps = [row for row in read_metrics(uninterrupted) if "loss/total" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    for row in steps:
        parts = sum(row[f"loss/{name}"] for name in ("dice", "cross_entropy"))
        routing = 1e-2 * row["loss/load_balance"] + 1e-3 * row["loss/router_z"]
        assert row["loss/total"] == pytest.approx(parts + routing, rel=1e-5)
        assert sum(row[f"router_load/1/{expert}"] for expert in range(8)) == pytest.approx(1)
        assert row["dropped_tokens"] == 0
        assert 0 <= row["time/data_wait_share"] < 1
        assert row.keys() > {"lr", "gradient_norm", "train_dice/wt", "time/samples_per_second", "memory/peak_gb"}
    assert sum("dice_flair/wt" in row for row in read_metrics(uninterrupted)) == 3


def test_the_pt_name_of_a_command_means_the_folder(uninterrupted: Path) -> None:
    network, _ = load_checkpoint(uninterrupted / "best.pt")
    expected, _ = load_checkpoint(uninterrupted / "best")
    for value, other in zip(network.parameters(), expected.parameters(), strict=True):
        assert_close(value, other, rtol=0, atol=0)


def spoil_losses(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Let the loss of these steps, counted from 0, be no number."""
    calls = itertools.count()
    monkeypatch.setattr(
        modeling, "total_loss", lambda *given: total_loss(*given) * (math.nan if next(calls) in steps else 1.0)
    )


def test_a_single_bad_step_is_left_out_and_counted(tmp_path: Path, cache: Path, monkeypatch, capsys) -> None:
    spoil_losses(monkeypatch, {1})
    train_from_scratch(tmp_path / "run", cache, "--epochs", "2")
    assert "Steps skipped: 1." in capsys.readouterr().out
    rows = [row for row in read_metrics(tmp_path / "run") if "loss/total" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1]
    for value in load_file(tmp_path / "run/last/model.safetensors").values():
        assert value.isfinite().all()


def test_many_bad_steps_in_a_row_stop_the_run_with_a_word(tmp_path: Path, cache: Path, monkeypatch, capsys) -> None:
    spoil_losses(monkeypatch, {1, 2})
    monkeypatch.setattr("lora_moe_hgd.training.loop.MOST_SKIPPED_IN_A_ROW", 2)
    with pytest.raises(SystemExit):
        train_from_scratch(tmp_path / "run", cache, "--epochs", "2")
    shown = capsys.readouterr().err
    assert "The gradient was not finite in 2 steps in a row, up to step 3 (norm nan)." in shown
    assert "Lower `optim.lr`" in shown


def test_a_finished_run_is_moved_aside_and_kept(tmp_path: Path, cache: Path, capsys) -> None:
    train_from_scratch(tmp_path / "run", cache, "--epochs", "1")
    before = (tmp_path / "run/best/model.safetensors").read_bytes()
    train_from_scratch(tmp_path / "run", cache, "--epochs", "1", "--lr", "1.0e-4")
    (aside,) = (path for path in tmp_path.iterdir() if path.name != "run")
    assert f"The earlier run is now in {aside}, and a new run begins." in capsys.readouterr().out
    assert (aside / "best/model.safetensors").read_bytes() == before
    assert (tmp_path / "run/best/model.safetensors").read_bytes() != before


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, cache: Path, capsys) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit):
        train_from_scratch(tmp_path, cache)
    assert f"{tmp_path} contains files, but no run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_bad_data_is_found_before_the_output_folder_is_made(tmp_path: Path, dummy_root: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        train_adapter(tmp_path / "run", tmp_path / "nowhere")
    assert "nowhere: There is no such folder. Check the path." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_base_keeps_its_voxel_size_unless_another_is_asked_for() -> None:
    options = ["--config", str(ROOT / "configs/brats2018.yaml"), "--adapter", "none"]
    own = AutoImageProcessor.from_pretrained(pretrained_path("tiny")).target_spacing_mm
    for asked, expected in ([], own), (["--spacing-mm", "1"], [1.0] * 3):
        _, processor = build_network(read_config([*options, *asked]))
        assert processor.target_spacing_mm == expected


def test_without_a_base_the_network_has_the_size_that_is_asked_for() -> None:
    network, _ = build_network(read_config(["--config", str(ROOT / "configs/smoke.yaml")]))
    sizes, expected = network.config.to_dict(), LoraMoeHgdConfig.tiny().to_dict()
    assert {name: sizes[name] for name in ("hidden_size", "stem_channels", "num_hidden_layers")} == {
        name: expected[name] for name in ("hidden_size", "stem_channels", "num_hidden_layers")
    }


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, dummy_root: Path, small_shipped: None) -> Path:
    output_dir = tmp_path_factory.mktemp("adapted") / "checkpoints"
    train_adapter(output_dir, dummy_root)
    return output_dir


def test_the_reference_run_trains_adapter_stem_routers_and_decoder_only(adapted: Path) -> None:
    base, trained = (load_file(path / "model.safetensors") for path in (pretrained_path("tiny"), adapted / "last"))
    changed = {name for name, value in trained.items() if not torch.equal(value, base[name].float())}
    for name in changed:
        assert name.startswith(("encoder.stem.", "decoder.")) or any(
            part in name for part in (".attention.", ".experts.", ".shared_expert.", ".router.")
        ), name
    for part in ("encoder.stem.", "decoder.", ".attention.q.", ".shared_expert.fc2.", ".router."):
        assert any(part in name for name in changed), part
    # Which of the experts learn in a run this short depends on where its few tokens go.
    assert any(re.search(r"\.experts\.\d+\.fc1\.", name) for name in changed)
    assert any(name.endswith("layers.0.mlp.fc1.weight") for name in trained.keys() - changed)


def test_the_adapter_alone_over_the_base_is_the_merged_checkpoint(adapted: Path) -> None:
    assert (adapted / "last/adapter/adapter_model.safetensors").is_file()
    alone, _ = load_checkpoint(adapted / "last/adapter")
    whole, _ = load_checkpoint(adapted / "last")
    with torch.no_grad():
        # Float rounding: one merges before saving, the other after loading.
        assert_close(alone(random_volumes()).logits, whole(random_volumes()).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("preset", ["lora", "lora+decoder"])
def test_a_new_adapter_changes_nothing(preset: str) -> None:
    network = small_network()
    with torch.no_grad():
        expected = [network(random_volumes(1), torch.tensor([mask])).logits for mask in EVERY_SUBSET]
        adapted = add_adapter(network, preset, options={"r": 4}, base="base").eval()
        for mask, logits in zip(EVERY_SUBSET, expected, strict=True):
            assert_close(adapted(random_volumes(1), torch.tensor([mask])).logits, logits, rtol=0, atol=0)


@pytest.mark.parametrize("preset", ["lora", "lora+decoder"])
def test_merging_equals_the_adapter_and_leaves_it_as_it_was(preset: str) -> None:
    adapted = add_adapter(small_network(), preset, options={"r": 4}, base="base").eval()
    with torch.no_grad():
        for _, value in trained_parameters(adapted):
            value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        expected = adapted(random_volumes()).logits
        assert_close(merged(adapted)(random_volumes()).logits, expected, rtol=1e-4, atol=1e-4)
        assert_close(adapted(random_volumes()).logits, expected, rtol=0, atol=0)


def test_lora_alone_trains_adapter_matrices_only() -> None:
    adapted = add_adapter(small_network(), "lora", options={"r": 4}, base="base")
    names = [name for name, _ in trained_parameters(adapted)]
    assert all("lora_A" in name or "lora_B" in name for name in names)
    # Per block: four projections of attention; per block with experts: 8 routed and one shared, two layers each.
    assert len(names) == 2 * (4 * 4 + 2 * 9 * 2)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"attention.q": 2}}])
def test_any_option_of_peft_passes(options: dict) -> None:
    adapted = add_adapter(small_network(), "lora", options={"r": 4, **options}, base="base")
    for name, value in options.items():
        assert getattr(adapted.peft_config["default"], name) == value
    ranks = {value.shape[0] for name, value in trained_parameters(adapted) if ".q.lora_A" in name}
    assert ranks == {2 if "rank_pattern" in options else 4}


def test_convolutions_can_have_adapters_too() -> None:
    targets = r".*(stem\.downsample\.\d|decoder\.refine\d\.mix|attention\.q)"
    adapted = add_adapter(small_network(), "lora", options={"r": 2, "target_modules": targets}, base="base")
    names = [name for name, _ in trained_parameters(adapted)]
    assert any("downsample" in name for name in names)
    assert any("refine1.mix" in name for name in names)
    with torch.no_grad():
        assert_close(adapted(random_volumes()).logits, small_network()(random_volumes()).logits, rtol=0, atol=0)


def test_adapters_of_convolutions_merge_exactly() -> None:
    targets = r".*(stem\.(downsample\.\d|patch_projection)|decoder\.refine\d\.mix|decoder\.block\d\.conv)"
    adapted = add_adapter(small_network(), "lora", options={"r": 2, "target_modules": targets}, base="base").eval()
    with torch.no_grad():
        before = adapted(random_volumes()).logits
        for _, value in trained_parameters(adapted):
            value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        trained = adapted(random_volumes()).logits
        assert (trained - before).abs().max() > 1e-2
        assert_close(merged(adapted)(random_volumes()).logits, trained, rtol=0, atol=1e-4)


def test_convolutions_of_a_single_voxel_are_refused_as_peft_cannot_merge_them() -> None:
    with pytest.raises(ValueError, match=r"decoder\.refine4\.reduce, a convolution whose kernel has one voxel"):
        add_adapter(small_network(), "lora", options={"target_modules": r".*\.reduce"}, base="base")


def test_an_option_that_peft_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'use_dorra', but .* has no such option\. Did you mean 'use_dora'"):
        add_adapter(small_network(), "lora", options={"use_dorra": True}, base="base")


def test_the_base_is_the_same_after_training_an_adapter(adapted: Path) -> None:
    files = sorted(path.name for path in (adapted / "last/adapter").iterdir())
    assert files == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "preprocessor_config.json",
    ]
    card = (adapted / "last/adapter/README.md").read_text()
    assert "This is an adapter of tiny." in card
    assert str(pretrained_path("tiny")) not in card


def test_the_average_of_weights_follows_its_formula() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average, expected = WeightAverage(layer, decay=0.9), 0.0
    for step in range(1, 100):
        torch.nn.init.constant_(layer.weight, float(step))
        average.update(layer, step=step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-5)
