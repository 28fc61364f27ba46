"""Adapters after training: several at once, switched, taken out, combined, merged, listed and compared."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from small import random_volumes, small_network
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModel

from lora_moe_hgd import (
    LoraMoeHgdForSegmentation,
    LoraMoeHgdImageProcessor,
    adapter_disabled,
    combine_adapters,
    load_adapters,
    load_checkpoint,
    merge_adapter,
    using_adapter,
)
from lora_moe_hgd.adapters.card import write_run_card
from lora_moe_hgd.adapters.presets import add_adapter
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.evaluation.evaluate import evaluate
from lora_moe_hgd.training.averaging import trained_parameters
from lora_moe_hgd_cli import run

VOLUMES = random_volumes(1, (16, 16, 32))
# Name: preset and options.
ADAPTERS: dict[str, tuple[str, dict]] = {
    "site_a": ("lora", {"r": 4}),
    "site_b": ("lora", {"r": 2, "use_rslora": True, "lora_dropout": 0.5}),
    "full_a": ("lora+decoder", {"r": 4}),
    "full_b": ("lora+decoder", {"r": 4}),
}
# Rounding: the order of sums differs between an adapter at work and one that is merged or combined.
ROUNDING = {"rtol": 0.0, "atol": 1e-5}
SAME = {"rtol": 0.0, "atol": 0.0}


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(VOLUMES).logits


def save_adapter(folder: Path, base: Path, preset: str, options: dict, *, seed: int) -> Tensor:
    """Save an adapter as if it had been trained, and return its logits."""
    network = LoraMoeHgdForSegmentation.from_pretrained(base)
    adapted = add_adapter(network, preset, options=options, base=str(base)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in trained_parameters(adapted):
            value += 0.05 * torch.randn(value.shape, generator=generator)
    adapted.save_pretrained(str(folder))
    write_run_card(folder, base=str(base), preset=preset, score=f"mean Dice 0.{seed}50")
    return logits(adapted)


class Shelf:
    """A base and adapters on disk, and the logits of each; those of the base are called `base`."""

    def __init__(self, folder: Path) -> None:
        self.base = folder / "base"
        small_network().save_pretrained(self.base)
        LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0)).save_pretrained(self.base)
        self.logits = {"base": logits(self.fresh())}
        self.folders = {}
        for seed, (name, (preset, options)) in enumerate(ADAPTERS.items(), start=1):
            self.folders[name] = folder / "runs" / name / "best" / "adapter"
            self.logits[name] = save_adapter(self.folders[name], self.base, preset, options, seed=seed)

    def fresh(self) -> LoraMoeHgdForSegmentation:
        return LoraMoeHgdForSegmentation.from_pretrained(self.base).eval()

    def load(self, *names: str) -> PeftModel:
        return load_adapters(self.base, {name: self.folders[name] for name in names})

    def of_transformers(self, *names: str) -> LoraMoeHgdForSegmentation:
        """The network with adapters loaded by transformers itself; the last is active."""
        network = self.fresh()
        for name in names:
            network.load_adapter(str(self.folders[name]), adapter_name=name)
        return network

    def assert_is(self, network: nn.Module, name: str) -> None:
        found = logits(network)
        nearest = min(self.logits, key=lambda known: (self.logits[known] - found).abs().max().item())
        assert nearest == name
        assert_close(found, self.logits[name], **ROUNDING)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


def frozen_and_trained(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


@pytest.fixture(params=["peft", "transformers"])
def all_four(request: pytest.FixtureRequest, shelf: Shelf) -> Iterator[nn.Module]:
    """All adapters over one network, `site_a` active, whichever library loaded them."""
    if request.param == "peft":
        yield shelf.load("site_a", "site_b", "full_a", "full_b")
    else:
        yield shelf.of_transformers("full_b", "full_a", "site_b", "site_a")


def test_the_first_of_several_is_active_and_all_are_frozen(shelf: Shelf) -> None:
    model = shelf.load("full_a", "site_a", "full_b")
    shelf.assert_is(model, "full_a")
    assert not any(frozen_and_trained(model))


def test_adapters_are_added_to_those_that_are_there(shelf: Shelf) -> None:
    model = load_adapters(shelf.load("site_a"), {"second": shelf.folders["full_a"]})
    shelf.assert_is(model, "full_a")
    with using_adapter(model, "site_a"):
        shelf.assert_is(model, "site_a")


def test_an_adapter_is_used_for_a_block_and_the_one_before_afterwards(shelf: Shelf, all_four: nn.Module) -> None:
    shelf.assert_is(all_four, "site_a")
    for name in ("full_a", "site_b", "full_b", "site_a"):
        with using_adapter(all_four, name):
            shelf.assert_is(all_four, name)
            with using_adapter(all_four, "full_b"):
                shelf.assert_is(all_four, "full_b")
            shelf.assert_is(all_four, name)
        shelf.assert_is(all_four, "site_a")


def test_an_exception_puts_the_adapter_back(shelf: Shelf, all_four: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="full disk"), using_adapter(all_four, "full_a"):
        raise RuntimeError("full disk")
    shelf.assert_is(all_four, "site_a")
    with using_adapter(all_four, "full_a"):
        with pytest.raises(RuntimeError, match="full disk"), adapter_disabled(all_four):
            raise RuntimeError("full disk")
        shelf.assert_is(all_four, "full_a")


def test_a_disabled_adapter_leaves_the_base_and_comes_back_whole(shelf: Shelf, all_four: nn.Module) -> None:
    for name in ADAPTERS:
        with using_adapter(all_four, name):
            with adapter_disabled(all_four):
                shelf.assert_is(all_four, "base")
                with adapter_disabled(all_four):
                    shelf.assert_is(all_four, "base")
                shelf.assert_is(all_four, "base")
                with using_adapter(all_four, "full_b"):
                    shelf.assert_is(all_four, "full_b")
                shelf.assert_is(all_four, "base")
            shelf.assert_is(all_four, name)


def test_what_an_auto_class_loaded_can_be_disabled(shelf: Shelf) -> None:
    network = AutoModel.from_pretrained(shelf.folders["full_a"]).eval()
    with adapter_disabled(network):
        shelf.assert_is(network, "base")
    shelf.assert_is(network, "full_a")


def test_transformers_does_not_put_back_what_was_trained_in_full(shelf: Shelf) -> None:
    """When this fails `adapter_disabled` may become `disable_adapters` and `enable_adapters` of transformers."""
    network = shelf.of_transformers("full_a")
    network.disable_adapters()
    network.enable_adapters()
    assert (logits(network) - shelf.logits["full_a"]).abs().max() > 1


@pytest.mark.parametrize("preset", ["lora", "lora+decoder"])
def test_switching_changes_nothing_about_what_is_trained(shelf: Shelf, preset: str) -> None:
    in_training = add_adapter(shelf.fresh(), preset, options={"r": 4}, base=str(shelf.base))
    model = load_adapters(in_training, {"site_a": shelf.folders["site_a"]})
    before = frozen_and_trained(model)
    assert any(before)
    with using_adapter(model, "default"):
        assert frozen_and_trained(model) == before
        with adapter_disabled(model):
            pass
        assert frozen_and_trained(model) == before
    assert frozen_and_trained(model) == before


def changes(model: nn.Module, name: str) -> dict[str, Tensor]:
    """What an adapter adds to each weight."""
    return {
        place: module.get_delta_weight(name)
        for place, module in model.named_modules()
        if isinstance(module, LoraLayer) and name in module.lora_A
    }


@pytest.mark.parametrize("weights", [{"site_a": 0.5, "site_b": 2.0}, {"site_b": 1.0, "site_a": -0.7}, {"site_b": 0.3}])
def test_a_combination_is_the_weighted_sum_of_the_changes(shelf: Shelf, weights: dict[str, float]) -> None:
    model = shelf.load("site_a", "site_b")
    combine_adapters(model, weights, into="both")
    single = {name: changes(model, name) for name in weights}
    for place, change in changes(model, "both").items():
        expected = sum(weight * single[name][place] for name, weight in weights.items())
        assert_close(change, expected, rtol=0, atol=1e-6)


def test_a_combination_is_an_adapter_like_any_other(shelf: Shelf, tmp_path: Path) -> None:
    model = shelf.load("site_a", "site_b")
    combine_adapters(model, {"site_b": 1.0, "site_a": 1.0}, into="both")
    shelf.assert_is(model, "site_a")
    assert not any(frozen_and_trained(model))
    with using_adapter(model, "both"):
        both = logits(model)
        # The dropout of site_b would make each call another.
        assert_close(logits(model), both, **SAME)
    model.save_pretrained(str(tmp_path), selected_adapters=["both"])
    assert_close(logits(load_adapters(shelf.base, {"again": tmp_path / "both"})), both, **ROUNDING)


@pytest.mark.parametrize(
    ("weights", "into", "rule"),
    [
        (
            {"site_a": 1.0, "full_a": 1.0},
            "new",
            "'full_a' trained all weights of .*`modules_to_save`.* with the preset `lora`",
        ),
        ({"site_a": 1.0}, "site_b", "The name 'site_b' is in use"),
        ({"site_c": 1.0}, "new", "No adapter is named 'site_c'. The names are: site_a, site_b, full_a"),
        ({}, "new", "at least one"),
    ],
)
def test_what_cannot_be_combined_is_refused(shelf: Shelf, weights: dict[str, float], into: str, rule: str) -> None:
    model = shelf.load("site_a", "site_b", "full_a")
    with pytest.raises(ValueError, match=rule):
        combine_adapters(model, weights, into=into)
    shelf.assert_is(model, "site_a")


@pytest.mark.parametrize(
    ("options", "rule"),
    [({"use_dora": True}, "'odd' uses DoRA"), ({"bias": "lora_only"}, "'odd' trained biases")],
)
def test_what_is_no_sum_of_low_rank_matrices_is_refused(
    shelf: Shelf, tmp_path: Path, options: dict, rule: str
) -> None:
    save_adapter(tmp_path, shelf.base, "lora", {"r": 2, **options}, seed=7)
    model = load_adapters(shelf.base, {"odd": tmp_path})
    with pytest.raises(ValueError, match=rule):
        combine_adapters(model, {"odd": 1.0}, into="new")


def test_an_adapter_with_biases_cannot_be_taken_out(shelf: Shelf, tmp_path: Path) -> None:
    save_adapter(tmp_path, shelf.base, "lora", {"r": 2, "bias": "lora_only"}, seed=7)
    model = load_adapters(shelf.base, {"odd": tmp_path})
    with pytest.raises(ValueError, match="`bias` is none, but 'odd' has `bias` lora_only"), adapter_disabled(model):
        pass


@pytest.mark.parametrize("name", ["", "site.a", "train"])
def test_a_name_that_torch_cannot_hold_is_refused(shelf: Shelf, name: str) -> None:
    with pytest.raises(ValueError, match=f"The adapter name '{name}' is empty, has a dot or"):
        load_adapters(shelf.base, {name: shelf.folders["site_a"]})


def test_a_name_given_twice_is_refused(shelf: Shelf) -> None:
    model = shelf.load("site_a")
    with pytest.raises(ValueError, match="The name 'site_a' is in use"):
        load_adapters(model, {"site_a": shelf.folders["site_b"]})


def test_a_folder_without_an_adapter_is_refused(shelf: Shelf) -> None:
    with pytest.raises(ValueError, match=f"{shelf.base} contains no adapter"):
        load_adapters(shelf.base, {"a": shelf.base})


def test_no_adapter_is_known_by_a_wrong_name(shelf: Shelf) -> None:
    with (
        pytest.raises(ValueError, match=r"No adapter is named 'b'\. The names are: site_a"),
        using_adapter(shelf.load("site_a"), "b"),
    ):
        pass
    with pytest.raises(ValueError, match="`model` has no adapter"), adapter_disabled(shelf.fresh()):
        pass


def recorded_base(folder: Path, base: str | None) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))


def test_an_adapter_of_another_base_is_refused_by_its_record(shelf: Shelf, tmp_path: Path) -> None:
    other, copy = tmp_path / "other", tmp_path / "copy"
    shutil.copytree(shelf.base, copy)
    small_network(seed=5).save_pretrained(other)
    site_a = {"site_a": shelf.folders["site_a"]}
    for base in (other, LoraMoeHgdForSegmentation.from_pretrained(other)):
        with pytest.raises(ValueError, match=f"trained on the base {shelf.base}, not on {other}"):
            load_adapters(base, site_a)
    # The same weights in another place are the same base, and a network that was never saved may be any.
    shelf.assert_is(load_adapters(copy, site_a), "site_a")
    load_adapters(small_network(), site_a)


def test_names_on_the_hub_are_compared_and_unknown_ones_are_not(shelf: Shelf, tmp_path: Path) -> None:
    adapter = shutil.copytree(shelf.folders["site_a"], tmp_path / "adapter")
    network = shelf.fresh()
    for recorded, given, fits in [
        ("someone/base", "someone/other", False),
        ("someone/base@v1", "someone/base", True),
        ("someone/base", str(shelf.base), True),
        ("/of/another/machine", "someone/other", True),
        (None, "someone/other", True),
    ]:
        recorded_base(adapter, recorded)
        network.name_or_path = given
        if fits:
            shelf.assert_is(load_adapters(network, {"a": adapter}).eval(), "site_a")
            network = shelf.fresh()
        else:
            with pytest.raises(ValueError, match="trained on the base someone/base, not on someone/other"):
                load_adapters(network, {"a": adapter})


@pytest.mark.parametrize(
    "sizes",
    [{"hidden_size": 32}, {"num_hidden_layers": 3, "hidden_state_depths": (1, 2, 3)}],
    ids=["width", "depth"],
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(shelf: Shelf, sizes: dict) -> None:
    with pytest.raises(ValueError, match=r"does not fit the base: .") as caught:
        load_adapters(small_network(**sizes), {"a": shelf.folders["site_a"]})
    assert "\n" not in str(caught.value)


def test_an_adapter_over_a_merged_adapter_finds_its_base(shelf: Shelf, tmp_path: Path) -> None:
    second = tmp_path / "second"
    merged, _ = load_checkpoint(shelf.folders["site_a"])
    adapted = add_adapter(merged, "lora", options={"r": 2}, base=str(shelf.folders["site_a"]))
    adapted.save_pretrained(str(second))
    for base in (shelf.folders["site_a"], load_checkpoint(shelf.folders["site_a"])[0]):
        shelf.assert_is(load_adapters(base, {"second": second}), "site_a")


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_a_merged_network_that_was_saved_is_the_adapter(shelf: Shelf, tmp_path: Path, name: str, capsys) -> None:
    run("adapters", ["merge", "--checkpoint", str(shelf.folders[name]), "--out", str(tmp_path / "whole")])
    assert f"The network is in {tmp_path / 'whole'}." in capsys.readouterr().out
    network, processor = load_checkpoint(tmp_path / "whole")
    shelf.assert_is(network, name)
    assert processor.target_spacing_mm == [4.0] * 3


def test_a_scale_goes_straight_from_the_base_to_the_adapter(shelf: Shelf) -> None:
    base, adapted = shelf.fresh().state_dict(), load_checkpoint(shelf.folders["full_a"])[0].state_dict()
    for scale, exactly in ((0.0, base), (1.0, adapted)):
        for key, value in merge_adapter(shelf.folders["full_a"], scale=scale)[0].state_dict().items():
            assert torch.equal(value, exactly[key])
    quarter = merge_adapter(shelf.folders["full_a"], scale=0.25)[0].state_dict()
    changed = [key for key in base if not torch.equal(base[key], adapted[key])]
    for part in ("attention.q.weight", "decoder.", "stem."):
        assert any(part in key for key in changed)
    for key in changed:
        assert_close(quarter[key], 0.75 * base[key] + 0.25 * adapted[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--scale", "1.5"], "`scale` must be between 0 (the base) and 1 (the adapter), got 1.5"),
        (["--checkpoint", "{base}"], "contains no adapter (adapter_config.json). Give the folder of an adapter."),
        (["--out", "{base}"], "exists already. Choose another"),
    ],
)
def test_a_merge_that_cannot_be_made_leaves_nothing(
    shelf: Shelf, tmp_path: Path, capsys, options: list[str], rule: str
) -> None:
    words = ["merge", "--checkpoint", str(shelf.folders["site_a"]), "--out", str(tmp_path / "whole")]
    with pytest.raises(SystemExit) as stopped:
        run("adapters", [*words, *(word.format(base=shelf.base) for word in options)])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert rule in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_list_says_what_each_adapter_is(shelf: Shelf, capsys) -> None:
    runs = shelf.folders["site_a"].parents[2]
    (runs / ".half-written").mkdir()
    shutil.copy(shelf.folders["site_a"] / "adapter_config.json", runs / ".half-written")
    run("adapters", ["list", str(runs)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["adapter", "base", "preset", "rank", "trained parameters", "MB", "validation"]
    assert {row[0] for row in rows[2:]} == {str(folder) for folder in shelf.folders.values()}
    for seed, name in enumerate(ADAPTERS, start=1):
        (row,) = (cells for cells in rows if cells[0] == str(shelf.folders[name]))
        weights = shelf.folders[name] / "adapter_model.safetensors"
        trained = sum(value.numel() for value in load_file(weights).values())
        preset, options = ADAPTERS[name]
        size = f"{weights.stat().st_size / 1e6:.1f}"
        assert row[1:] == ["base", preset, str(options["r"]), str(trained), size, f"mean Dice 0.{seed}50"]


def test_a_list_of_nothing_is_an_error(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run("adapters", ["list", str(tmp_path)])
    assert f"error: There is no adapter (adapter_config.json) in or below {tmp_path}." in capsys.readouterr().err


def test_adapters_are_compared_with_their_base_case_by_case(
    shelf: Shelf, dummy_root: Path, tmp_path: Path, capsys
) -> None:
    places = ["--data", str(dummy_root), "--out", str(tmp_path), "--cases", "case_000,case_001", "--subsets", "flair"]
    run("adapters", ["compare", *places, str(shelf.base), str(shelf.folders["site_a"]), str(shelf.folders["full_a"])])
    shown = capsys.readouterr().out
    folders = [tmp_path / name for name in ("0-base", "1-site_a", "2-full_a")]
    table = pd.read_csv(tmp_path / "comparison.csv")
    first = pd.read_csv(folders[0] / "scores.csv")
    for folder in folders[1:]:
        assert f"Dice of {folder} (second) minus Dice of {folders[0]} (first), compared case by case." in shown
        row = table[(table["compared"] == str(folder)) & (table["subset"] == "mean") & (table["region"] == "mean")]
        second = pd.read_csv(folder / "scores.csv")
        assert row["cases"].item() == 2
        assert row["difference"].item() == pytest.approx(second["dice"].mean() - first["dice"].mean(), abs=1e-6)
    assert not first["dice"].equals(second["dice"])


def test_an_evaluation_is_not_taken_for_that_of_another_adapter(
    shelf: Shelf, all_four: nn.Module, dummy_root: Path, tmp_path: Path
) -> None:
    processor = LoraMoeHgdImageProcessor.from_pretrained(shelf.base)
    cases = find_cases(dummy_root)[:1]

    def expected_dice() -> list[float]:
        found = evaluate(all_four, processor, cases, out=tmp_path, subsets=[(False, False, False, True)])
        return [row["expected_dice"] for row in found.scores["case_000"].rows]

    results = [expected_dice()]
    with using_adapter(all_four, "full_a"):
        results.append(expected_dice())
    with adapter_disabled(all_four):
        results.append(expected_dice())
    assert expected_dice() == results[0]
    assert all(first != second for first, second in itertools.combinations(results, 2))


def test_a_missing_adapter_is_found_before_anything_is_evaluated(
    shelf: Shelf, dummy_root: Path, tmp_path: Path
) -> None:
    places = ["--data", str(dummy_root), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        run("adapters", ["compare", *places, str(shelf.base), "/nowhere/adapter"])
    assert not (tmp_path / "out").exists()
