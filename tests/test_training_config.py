"""One YAML file, one tree of dataclasses: every key known, every type checked."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.options import RunConfig

ROOT = Path(__file__).parents[1]
REFERENCE = str(ROOT / "configs/brats2018.yaml")


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    read_config(["--config", str(path)])


def test_the_reference_run_is_the_lora_enhanced_one() -> None:
    config = read_config(["--config", REFERENCE])
    assert (config.base, config.adapter, config.data.root) == ("tiny", "lora+decoder", "data/brats2018")
    assert config.output_dir == "checkpoints"


@pytest.mark.parametrize("option", ["--num-workers", "--num_workers", "--data.num_workers", "--data.num-workers"])
def test_any_field_can_be_set_on_the_command_line(option: str) -> None:
    assert read_config(["--config", REFERENCE, option, "7"]).data.num_workers == 7
    assert read_config(["--config", REFERENCE, f"{option}=7"]).data.num_workers == 7


def test_data_alone_is_the_folder_of_cases() -> None:
    assert read_config(["--config", REFERENCE, "--data", "cases"]).data.root == "cases"


def test_options_of_peft_pass_as_a_mapping() -> None:
    config = read_config(["--config", REFERENCE, "--lora", "{r: 4, use_dora: true}"])
    assert config.lora == {"r": 4, "use_dora": True}
    with pytest.raises(ValueError, match=r"`lora` must be of type dict\[str, Any\] \| None, but is 8"):
        read_config(["--config", REFERENCE, "--lora", "8"])


def test_a_mapping_replaces_that_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {root: cases}\nlora: {r: 16, use_dora: true}")
    assert read_config(["--config", path, "--lora", "{r: 4}"]).lora == {"r": 4}


def test_lists_and_numbers_on_the_command_line_have_the_right_types() -> None:
    config = read_config(["--config", REFERENCE, "--crop-size", "[32, 48, 64]", "--lr", "1", "--precision", "no"])
    assert (config.sample.crop_size, config.optim.lr, config.optim.precision) == ((32, 48, 64), 1.0, "no")
    config = read_config(["--config", REFERENCE, "--lr", "1e-4", "--subsets", "[flair]", "--size", "null"])
    assert (config.optim.lr, config.validation.subsets, config.size) == (1e-4, ("flair",), None)


@pytest.mark.parametrize(("text", "lr"), [("1", 1.0), ("1e-4", 1e-4), ("5.0e-4", 5e-4)])
def test_lists_and_numbers_in_the_file_have_the_right_types(tmp_path: Path, text: str, lr: float) -> None:
    parts = ["data: {root: cases}", f"optim: {{lr: {text}, precision: no}}", "sample: {crop-size: [32, 48, 64]}"]
    path = written(tmp_path, "\n".join([*parts, "size: null", f"lora: {{lora_dropout: {text}}}"]))
    config = read_config(["--config", path])
    assert config.lora == {"lora_dropout": lr}
    assert (config.optim.lr, type(config.optim.lr), config.optim.precision) == (lr, float, "no")
    assert (config.sample.crop_size, config.size) == ((32, 48, 64), None)


def test_options_overrule_the_file_wherever_it_is_named() -> None:
    config = read_config(["--epochs", "3", "--config", REFERENCE, "--continue", "--warmup=0.1"])
    assert (config.epochs, config.optim.warmup, config.continue_run) == (3, 0.1, True)
    assert read_config(["--config", REFERENCE]).continue_run is False


def test_help_explains_every_option_with_its_type_and_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit, match="0"):
        read_config(["--help"])
    line = re.compile(r"^  --([\w.]+) \S+\s+\S.*\. \(type: .+, default: .+\)$", re.MULTILINE)
    shown = capsys.readouterr().out
    explained = line.findall(shown)
    assert explained == list(leaves(RunConfig))
    assert sorted(re.findall(r"^  --(\S+)", shown, re.MULTILINE)) == sorted([*explained, "config", "continue"])
    # The last part of a name is enough because no two options share it.
    assert len({name.rpartition(".")[2] for name in explained}) == len(explained)


def leaves(part: type, prefix: str = "") -> Iterator[str]:
    kinds = typing.get_type_hints(part)
    for item in dataclasses.fields(part):
        if dataclasses.is_dataclass(kinds[item.name]):
            yield from leaves(kinds[item.name], f"{prefix}{item.name}.")
        elif item.init:
            yield prefix + item.name


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--epoch", "3"], r"Unknown option --epoch. Did you mean 'epochs'\?"),
        (["--num-worker", "3"], "Did you mean 'num_workers'"),
        (["--epochs"], "--epochs: expected one argument"),
        (["epochs", "3"], "unrecognized arguments: epochs 3"),
        (["--continue-run", "true"], "Unknown option --continue-run"),
        (["--epochs", "many"], "^`epochs` must be of type int, but is many.$"),
        (["--epochs", "0"], "`epochs` must be at least 1, but is 0"),
        (["--num-workers", "true"], "^`data.num_workers` must be of type int, but is True.$"),
        (["--folds", "many"], r"^`data.folds` must be of type int \| None, but is many.$"),
        (["--sample", "{batch_size: 1}"], "Unknown option --sample"),
        (["--crop-size", "[30, 32, 32]"], r"three positive multiples of 16, but is \(30, 32, 32\)"),
        (["--crop-size", "[32, 32]"], r"`sample.crop_size` must be of type tuple\[int, int, int\], but is \[32, 32\]"),
        (["--adapter", "dora"], "`adapter` must be lora, lora\\+decoder or none, but is dora"),
        (["--base", "null", "--size", "tiny"], "Without a `base`, `adapter` must be none"),
        (["--size", "base"], "or `size` must be null.* `base` is tiny and `size` is base"),
        (["--base", "null"], "but not both.* `base` is None and `size` is None"),
        (["--spacing-mm", "0"], "`sample.spacing_mm` must be positive, but is 0.0"),
        (["--subsets", "t1c"], r"`validation.subsets` must be of type tuple\[str, ...\] \| None, but is t1c"),
        (["--subsets", "[t1c+t3]"], "Unknown sequence.* t3"),
        (["--subsets", "[all, t1+t1c+t2+flair]"], "names a subset twice"),
        (["--folds", "5"], "With 5 folds, `data.fold` must be from 0 to 4, but is missing"),
        (["--folds", "5", "--fold", "5"], "With 5 folds, `data.fold` must be from 0 to 4, but is 5"),
        (["--folds", "1", "--fold", "0"], "`data.folds` must be at least 2, but is 1"),
        (["--data", "null", "--phantoms", "3", "--val-phantoms", "0"], "`data.val_phantoms` must be at least 1"),
        (["--data", "null"], "nothing to train on"),
        (["--data", "null", "--dataset", "x"], "`data.label_scheme` must be one of .* but is missing"),
        (["--dataset", "x", "--label-scheme", "msd"], r"`data.root` \(data/brats2018\) and `data.dataset` \(x\) excl"),
    ],
)
def test_a_wrong_option_is_refused_with_rule_and_value(arguments: list[str], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_config(["--config", REFERENCE, *arguments])


PHANTOMS_ALONE = ["--data", "null", "--phantoms", "3"]
DATASET = ["--data", "null", "--dataset", "x", "--label-scheme", "msd"]
SCRATCH = ["--base", "null", "--size", "tiny", "--adapter", "none"]


@pytest.mark.parametrize(
    ("others", "option", "value", "reason"),
    [
        ([], "data.split", "train", "The option .* `data.dataset`"),
        (DATASET, "data.skip_bad", "true", "The option .* `data.root`"),
        (PHANTOMS_ALONE, "data.skip_bad", "false", "The option .* `data.root`"),
        (DATASET, "data.channel_order", "[t1, t1c, t2, flair]", "The option .* `data.root`"),
        (PHANTOMS_ALONE, "data.label_scheme", "msd", r"The option .* cases \(`data.root` or"),
        ([], "data.label_maps", "maps", r"The option .* \(`data.phantoms`\)"),
        ([], "data.phantom_share", "0.5", "The run does not mix cases"),
        (PHANTOMS_ALONE, "data.phantom_share", "0.5", "The run does not mix cases"),
        ([], "data.val_phantoms", "8", "A run with cases"),
        (["--phantoms", "3"], "data.val_phantoms", "8", "A run with cases"),
        (PHANTOMS_ALONE, "data.val_fraction", "0.2", "A run without cases"),
        (PHANTOMS_ALONE, "data.folds", "2", "A run without cases"),
        (PHANTOMS_ALONE, "data.split_file", "split.csv", "A run without cases"),
        (PHANTOMS_ALONE, "data.val_on_train", "true", "A run without cases"),
        (["--folds", "2", "--fold", "0"], "data.val_fraction", "0.2", "`data.folds` already"),
        (["--split-file", "split.csv"], "data.val_fraction", "0.2", "`data.split_file` already"),
        (["--val-on-train", "true"], "data.val_fraction", "0.2", "`data.val_on_train` already"),
        (["--split-file", "split.csv", "--fold", "0"], "data.folds", "2", "`data.split_file` already"),
        (["--val-on-train", "true"], "data.split_file", "split.csv", "`data.val_on_train` already"),
        ([], "data.fold", "0", "Only `data.folds` and `data.split_file`"),
        (["--adapter", "none"], "lora", "{r: 8}", "With `adapter: none`"),
        ([], "sample.spacing_mm", "2.0", r"With `adapter: lora\+decoder`"),
        ([*SCRATCH, "--objective", "reconstruct"], "validation.subsets", "[all]", "With `objective: reconstruct`"),
    ],
)
def test_an_option_without_effect_is_refused_even_with_its_default_value(
    others: list[str], option: str, value: str, reason: str
) -> None:
    # Left out, or unset, it is no error.
    read_config(["--config", REFERENCE, *others])
    read_config(["--config", REFERENCE, *others, f"--{option}", "null"])
    with pytest.raises(ValueError, match=f"`{option}` has no effect in this run. {reason}"):
        read_config(["--config", REFERENCE, *others, f"--{option}", value])


def test_a_split_file_needs_cases_with_names() -> None:
    with pytest.raises(ValueError, match=r"`data\.split_file` needs `data\.root`"):
        read_config(["--config", REFERENCE, *DATASET, "--split-file", "split.csv"])


def test_what_is_left_out_has_its_default_where_it_has_an_effect() -> None:
    cases = read_config(["--config", REFERENCE])
    assert (cases.lora, cases.data.val_fraction, cases.data.val_phantoms) == ({"r": 8}, 0.2, None)
    phantoms = read_config(["--config", REFERENCE, *PHANTOMS_ALONE])
    assert (phantoms.data.val_fraction, phantoms.data.val_phantoms, phantoms.data.phantom_share) == (None, 8, None)
    mixed = read_config(["--config", REFERENCE, "--phantoms", "3"])
    assert (mixed.data.phantom_share, mixed.data.val_fraction) == (0.5, 0.2)
    assert read_config(["--config", REFERENCE, *DATASET]).data.split == "train"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("data: {rot: x}", "Unknown key 'rot' in data of .*Did you mean 'data.root'"),
        ("epoch: 3", "Unknown key 'epoch' in .*run.yaml.*Did you mean 'epochs'"),
        ("data: x", "must contain keys and values, but is 'x'"),
        ("- a", "must contain keys and values"),
        ("a: [", "is not valid YAML"),
        ("continue_run: true", "Unknown key 'continue_run'"),
        ("config: other.yaml", "Unknown key 'config'"),
        ("epochs: many", "`epochs` must be of type int, but is many"),
        ("data: {root: 3}", r"`data.root` must be of type str \| None, but is 3"),
        ("validation: {subsets: flair}", "`validation.subsets` must be of type tuple"),
        ("epochs: 3", "nothing to train on"),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_key(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_config(["--config", written(tmp_path, text)])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"The configuration file none\.yaml does not exist"):
        read_config(["--config", "none.yaml"])


@pytest.mark.parametrize(("supported", "precision"), [(False, "no"), (True, "bf16")])
def test_bf16_is_the_default_only_where_the_processor_is_fast_in_it(monkeypatch, supported, precision) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert read_config(["--config", REFERENCE]).optim.precision == precision
    assert read_config(["--config", REFERENCE, "--precision", "bf16"]).optim.precision == "bf16"
