"""One YAML file, one tree of dataclasses: every key known, every type checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_moe_hgd.training.config import read_config

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
    with pytest.raises(ValueError, match=r"lora of .* must be of type dict, got 8"):
        read_config(["--config", REFERENCE, "--lora", "8"])


def test_lists_and_numbers_on_the_command_line_have_the_right_types() -> None:
    config = read_config(["--config", REFERENCE, "--crop-size", "[32, 48, 64]", "--lr", "1", "--precision", "no"])
    assert (config.sample.crop_size, config.optim.lr, config.optim.precision) == ((32, 48, 64), 1.0, "no")


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--epoch", "3"], r"Unknown option --epoch. Did you mean 'epochs'\?"),
        (["--num-worker", "3"], "Did you mean 'num_workers'"),
        (["--epochs"], "--epochs needs a value"),
        (["epochs", "3"], "Expected an option such as --epochs, got 'epochs'"),
        (["--epochs", "many"], "epochs of .* must be of type int, got 'many'"),
        (["--epochs", "0"], "`epochs` must be at least 1, got 0"),
        (["--lr", "2e-4"], "must be of type float, got '2e-4'. Write numbers as 2.0e-4"),
        (["--crop-size", "[30, 32, 32]"], r"three positive multiples of 16, got \(30, 32, 32\)"),
        (["--crop-size", "[32, 32]"], "three positive multiples of 16"),
        (["--adapter", "dora"], "`adapter` must be lora, lora\\+decoder or none, got dora"),
        (["--base", "null", "--size", "tiny"], "Without a `base`, `adapter` must be none"),
        (["--size", "base"], "either `base`, a checkpoint, or `size`.* got base tiny and size base"),
        (["--base", "null"], "either `base`, a checkpoint, or `size`"),
        (["--spacing-mm", "1"], "`sample.spacing_mm` needs `adapter: none`.* got 1.0"),
        (["--spacing-mm", "0"], "`sample.spacing_mm` must be positive, got 0.0"),
        (["--subsets", "t1c+t3"], "Unknown sequence.* t3"),
    ],
)
def test_a_wrong_option_is_refused_with_rule_and_value(arguments: list[str], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_config(["--config", REFERENCE, *arguments])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("data: {rot: x}", "Unknown key 'rot' in data of .*Did you mean 'root'"),
        ("epoch: 3", "Unknown key 'epoch' in .*run.yaml.*Did you mean 'epochs'"),
        ("data: x", "must hold keys and values, got 'x'"),
        ("data: {root: a, dataset: b}", "either `data.root` or `data.dataset`"),
        ("- a", "must hold keys and values"),
        ("a: [", "is no valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_key(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_config(["--config", written(tmp_path, text)])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"no configuration file none\.yaml"):
        read_config(["--config", "none.yaml"])
