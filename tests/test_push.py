"""What is pushed: whole, with its own scores, and nothing that only this machine understands."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from small import small_network

from lora_moe_hgd import LoraMoeHgdImageProcessor, load_checkpoint
from lora_moe_hgd.adapters.presets import add_adapter
from lora_moe_hgd.hub import push
from lora_moe_hgd.hub.card import make_card, model_index
from lora_moe_hgd.hub.checksums import check_sums, read_sums
from lora_moe_hgd_cli import run

TOLD = ["--license", "cc-by-4.0", "--training-data", "Made-up cases (doi 10/x)."]
SUBSETS = ("t1", "t1c+flair")


@pytest.fixture(scope="module")
def network_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "network"
    small_network().save_pretrained(folder)
    LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluation(network_folder: Path, dummy_root: Path) -> Path:
    out = network_folder.with_name("evaluation")
    words = ["--checkpoint", str(network_folder), "--data", str(dummy_root), "--out", str(out)]
    run("evaluate", [*words, "--cases", "case_000,case_001", "--subsets", ",".join(SUBSETS)])
    return out


def adapter_over(base: Path, folder: Path, preset: str) -> Path:
    network, _ = load_checkpoint(base)
    adapted: PeftModel = add_adapter(network, preset, options={}, base=str(base))
    adapted.save_pretrained(folder)
    return folder


def staged(folder: Path, into: Path, **options) -> ModelCard:
    defaults = {"repo": "me/net", "base": None, "license": "mit", "training_data": "Made-up cases."}
    defaults |= {"training_cost": None}
    into.mkdir(exist_ok=True)
    return push.stage(folder, into, **{**defaults, "evaluation": None, "max_shard_size": "5GB", **options})


def test_a_network_is_staged_with_code_scores_and_sums(network_folder: Path, evaluation: Path, tmp_path: Path) -> None:
    card = staged(network_folder, tmp_path, evaluation=evaluation)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "pipeline_lora_moe_hgd.py"} < names
    assert {"evaluation/table.json", "evaluation/heat_map.png", "README.md", "SHA256SUMS"} < names
    assert set(read_sums(tmp_path / "SHA256SUMS")) == names - {"README.md", "SHA256SUMS"}
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    # What a patient's folder is called is not for the public.
    assert not any(b"case_000" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert card.data.to_dict() == ModelCard.load(tmp_path / "README.md").data.to_dict()


def test_the_card_tells_the_scores_of_every_subset_and_region(network_folder: Path, evaluation: Path) -> None:
    table = json.loads((evaluation / "table.json").read_text())
    card = make_card("me/net", license="mit", training_data="Made-up cases.", evaluation=evaluation)
    results = ModelCard(str(card)).data.eval_results
    found = {(result.dataset_config, result.metric_name): result.metric_value for result in results}
    expected = {
        (row["subset"], f"Dice {row['region'].upper()}"): round(row["mean"], 4)
        for row in table["summary"]
        if row["metric"] == "dice" and row["subset"] in SUBSETS and row["region"] in ("wt", "tc", "et")
    }
    assert len(expected) == 6
    assert expected.items() <= found.items()
    assert ("mean over subsets", "Dice WT") in found
    assert len(model_index(table)) == len(found)
    assert "Made-up cases." in card.text
    assert (evaluation / "table.md").read_text().strip() in card.text


def test_the_card_says_what_a_release_must_say(network_folder: Path, evaluation: Path, tmp_path: Path) -> None:
    card = staged(network_folder, tmp_path, evaluation=evaluation, training_cost="Two minutes on a laptop.")
    heads = [line for line in card.text.splitlines() if line.startswith("## ")]
    wanted = ["Intended use", "Out of scope", "Training data", "Cost of training", "Scores", "Limits"]
    assert heads == [f"## {name}" for name in (*wanted, "Licence and citation")]
    assert "Two minutes on a laptop." in card.text
    assert "Calibration by number of sequences" in card.text
    # The gallery shows pictures that are in the repository.
    assert "<Gallery />" in card.text
    shown = [picture["output"]["url"] for picture in card.data.widget]
    assert len(shown) == 3
    assert all((tmp_path / name).is_file() for name in shown)


def test_weights_are_split_as_asked(network_folder: Path, tmp_path: Path) -> None:
    staged(network_folder, tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(path.stat().st_size < 60_000 for path in shards)
    parts = [load_file(path) for path in shards]
    whole = load_file(network_folder / "model.safetensors")
    assert {name for part in parts for name in part} == set(whole)
    assert (tmp_path / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize(("preset", "combines"), [("lora", True), ("lora+decoder", False)])
def test_an_adapter_goes_with_the_name_of_its_base(
    network_folder: Path, tmp_path: Path, preset: str, combines: bool
) -> None:
    adapter = adapter_over(network_folder, tmp_path / "adapter", preset)
    with pytest.raises(ValueError, match=r"is only on this machine\. Push the base too"):
        staged(adapter, tmp_path / "staged")
    card = staged(adapter, tmp_path / "out", base="me/net")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "SHA256SUMS"}
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/net"
    assert (card.data.library_name, card.data.base_model) == ("peft", "me/net")
    assert ("can be combined" in card.text) is combines
    assert str(tmp_path) not in str(card)


def test_an_adapter_over_a_repository_keeps_it(network_folder: Path, tmp_path: Path) -> None:
    adapter = adapter_over(network_folder, tmp_path / "adapter", "lora")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "me/net"}))
    assert staged(adapter, tmp_path / "out").data.base_model == "me/net"
    with pytest.raises(ValueError, match="was trained on the base me/net, so --base cannot be me/other"):
        staged(adapter, tmp_path / "out", base="me/other")


def test_scores_of_other_weights_are_refused(evaluation: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    small_network(seed=1).save_pretrained(other)
    LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0)).save_pretrained(other)
    with pytest.raises(ValueError, match="was made with other weights or settings"):
        staged(other, tmp_path / "staged", evaluation=evaluation)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repo", "me/net"], "one of the arguments --evaluation --without-evaluation is required"),
        (["--repo", "not a name", "--without-evaluation"], "--repo must be a name such as me/brats-tiny, got not a"),
        (["--repo", "me/net", "--without-evaluation", "--base", "me/x"], "--base is for adapters"),
        (["--repo", "me/net", "--evaluation", "nowhere"], "nowhere contains no table.json"),
    ],
)
def test_what_cannot_be_pushed_is_refused_in_one_line(network_folder: Path, words, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("push", ["--checkpoint", str(network_folder), *TOLD, *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_dry_run_shows_files_and_sizes_and_asks_nobody(
    network_folder: Path, evaluation: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "HfApi", None)
    words = ["--checkpoint", str(network_folder), "--repo", "me/net", "--evaluation", str(evaluation), "--dry-run"]
    run("push", [*words, *TOLD])
    printed = capsys.readouterr().out
    size = (network_folder / "model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in printed
    assert "Nothing was pushed to me/net" in printed


def test_sums_find_what_is_absent_or_changed(network_folder: Path, tmp_path: Path) -> None:
    staged(network_folder, tmp_path)
    sums = read_sums(tmp_path / "SHA256SUMS")
    check_sums(tmp_path, sums)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json has the SHA-256"):
        check_sums(tmp_path, sums)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"lists config\.json, but this file is missing"):
        check_sums(tmp_path, sums)
    # A name that leads out of the folder is not looked up on the disk.
    with pytest.raises(ValueError, match="but this file is missing"):
        check_sums(tmp_path, {"../network/config.json": "0" * 64})
