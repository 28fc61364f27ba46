"""An adapter works on another computer, over the base that it was trained over and over no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small import random_volumes, small_network
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoModel, pipeline

from lora_moe_hgd import LoraMoeHgdImageProcessor, load_checkpoint, loading, save_adapter
from lora_moe_hgd.adapters.presets import add_adapter
from lora_moe_hgd.hub.push import stage
from lora_moe_hgd.pretrained import pretrained_path
from lora_moe_hgd_cli import run

# Rounding: the order of sums differs between an adapter at work and one that is merged.
ROUNDING = {"rtol": 0.0, "atol": 1e-5}


def logits_of(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network.eval()(random_volumes()).logits


def save_over(base: str | Path, folder: Path) -> Tensor:
    """Save an adapter over a checkpoint as if it had been trained, and return its logits."""
    network, processor = load_checkpoint(base)
    adapted = add_adapter(network, "lora+decoder", options={"r": 2}, base=str(base))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=generator)
    processor.target_spacing_mm = [3.0, 3.0, 3.0]
    save_adapter(adapted, folder, processor=processor)
    return logits_of(adapted)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "runs" / "base" / "best"
    small_network(1).save_pretrained(folder)
    LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0)).save_pretrained(folder)
    return folder


def test_a_folder_of_runs_works_on_another_computer(base: Path, tmp_path: Path) -> None:
    adapter = base.parents[1] / "site" / "best" / "adapter"
    expected = save_over(base, adapter)
    second = save_over(adapter, base.parents[1] / "second")
    recorded = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert recorded == "../../../base/best"
    there = shutil.move(tmp_path / "here", tmp_path / "there") / "runs"
    for folder, logits in ((there / "site" / "best" / "adapter", expected), (there / "second", second)):
        assert not any(str(tmp_path).encode() in path.read_bytes() for path in folder.iterdir())
        assert_close(logits_of(load_checkpoint(folder)[0]), logits, **ROUNDING)
        loaded = AutoModel.from_pretrained(folder, attn_implementation="eager")
        assert loaded.config._attn_implementation == "eager"
        assert_close(logits_of(loaded), logits, **ROUNDING)
        segmenter = pipeline("brain-tumor-segmentation", model=str(folder), device="cpu")
        assert_close(logits_of(segmenter.model), logits, **ROUNDING)
        for processor in (segmenter.image_processor, AutoImageProcessor.from_pretrained(folder)):
            assert processor.target_spacing_mm == [3.0, 3.0, 3.0]


@pytest.mark.usefixtures("small_shipped")
def test_an_adapter_over_a_shipped_checkpoint_needs_no_path(tmp_path: Path) -> None:
    for name in ("tiny", "glioma"):
        expected = save_over(name, tmp_path / name)
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["base_model_name_or_path"] == name
        assert_close(logits_of(AutoModel.from_pretrained(tmp_path / name)), expected, **ROUNDING)
    # What PEFT alone writes names it, too.
    assert load_checkpoint("glioma")[0].name_or_path == "glioma"


@pytest.mark.usefixtures("small_shipped")
def test_a_base_that_was_a_copy_of_a_shipped_one_is_found_by_its_weights(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    network, processor = load_checkpoint("tiny")
    network.save_pretrained(copy, max_shard_size="20KB")
    processor.save_pretrained(copy)
    expected = save_over(copy, tmp_path / "adapter")
    shutil.rmtree(copy)
    assert_close(logits_of(load_checkpoint(tmp_path / "adapter")[0]), expected, **ROUNDING)


def test_a_base_elsewhere_is_named_and_one_of_other_weights_is_refused(base: Path, tmp_path: Path, capsys) -> None:
    adapter, elsewhere, other = (tmp_path / name for name in ("adapter", "elsewhere", "other"))
    expected = save_over(base, adapter)
    shutil.move(base, elsewhere)
    with pytest.raises(ValueError, match=r"The base of the adapter in .*adapter is not found: .*--base"):
        load_checkpoint(adapter)
    assert_close(logits_of(load_checkpoint(adapter, base=elsewhere)[0]), expected, **ROUNDING)
    run(
        "adapters", ["merge", "--checkpoint", str(adapter), "--base", str(elsewhere), "--out", str(tmp_path / "whole")]
    )
    assert_close(logits_of(load_checkpoint(tmp_path / "whole")[0]), expected, **ROUNDING)
    small_network(2).save_pretrained(other)
    rule = r"trained on the base best \(digest of the weights: [0-9a-f]{12}\), but .*other has other weights \(digest"
    with pytest.raises(ValueError, match=rule):
        load_checkpoint(adapter, base=other)
    shutil.move(other, base)
    with pytest.raises(ValueError, match="trained on the base best "):
        AutoModel.from_pretrained(adapter)
    for command in ("segment", "evaluate"):
        with pytest.raises(SystemExit):
            run(command, ["--help"])
        assert "--base BASE" in capsys.readouterr().out


@pytest.mark.usefixtures("small_shipped")
def test_the_weights_of_a_shipped_base_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_over("tiny", tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    config = json.loads(path.read_text())
    config["auto_mapping"][loading.BASE_DIGEST] = "0" * 64
    path.write_text(json.dumps(config))
    hashed: list[Path] = []
    monkeypatch.setattr(loading, "tensors_digest", lambda folder: hashed.append(folder) or "1" * 64)
    with pytest.raises(ValueError, match=r"weights: 0{12}\), but tiny has other weights \(digest: 1{12}\)"):
        loading.find_base(tmp_path / "adapter")
    assert hashed.count(pretrained_path("tiny")) == 1


@pytest.mark.usefixtures("small_shipped")
def test_an_adapter_over_a_shipped_base_is_pushed_over_the_repository_that_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_over("tiny", tmp_path / "adapter")
    monkeypatch.setenv("LORA_MOE_HGD_HUB_IDS", "tiny=me/lora-moe-hgd-tiny")
    about = {"license": "mit", "training_data": "Phantoms.", "training_cost": None, "evaluation": None}
    about["max_shard_size"] = "5GB"
    (tmp_path / "staged").mkdir()
    card = stage(tmp_path / "adapter", tmp_path / "staged", repo="me/site", base=None, **about)
    config = json.loads((tmp_path / "staged" / "adapter_config.json").read_text())
    assert card.data.base_model == config["base_model_name_or_path"] == "me/lora-moe-hgd-tiny"
    # Where the package is installed, nothing is fetched.
    load_checkpoint(tmp_path / "staged")
    monkeypatch.setenv("LORA_MOE_HGD_HUB_IDS", "tiny")
    with pytest.raises(ValueError, match="must look like tiny=OWNER/NAME,glioma=OWNER/NAME, got tiny"):
        stage(tmp_path / "adapter", tmp_path / "staged", repo="me/site", base=None, **about)
