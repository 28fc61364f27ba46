"""What the README and the examples show has been run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pytest
from commands import MAKE_DATA, ROOT, execute, execute_cheaply, launch, workspace
from small_runs import shipping

from lora_moe_hgd import pretrained
from lora_moe_hgd.pretrained import shipped_names

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]

SEED_COMMANDS = [
    MAKE_DATA,
    "python train.py --config configs/brats2018.yaml --epochs 2 --num-workers 0",
    "python infer.py --checkpoint checkpoints/best.pt --in-path data/brats2018/case_000 --out-path outputs/case_000",
]


def is_long(command: str) -> bool:
    """Whether a command trains otherwise than the seed's, or uses what such a command has written."""
    return command not in SEED_COMMANDS and ("train.py" in command or "runs/" in command)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, small_shipped: None) -> Path:
    """A workspace in which the commands of the seed have run, as all that follows, with a small network."""
    folder = workspace(tmp_path_factory.mktemp("workspace"))
    for command in SEED_COMMANDS:
        execute_cheaply(command, folder)
    return folder


@pytest.fixture
def real_weights() -> Iterator[None]:
    """The names of what is shipped mean what is shipped."""
    with shipping(Path(pretrained.__file__).parent):
        yield


def test_the_commands_of_the_seed_run(used: Path) -> None:
    assert len(list((used / "data/brats2018").iterdir())) == 4
    assert {"best", "last", "metrics.jsonl"} <= {path.name for path in (used / "checkpoints").iterdir()}
    assert {path.name for path in (used / "outputs/case_000").iterdir()} == {
        "seg.nii.gz",
        "overlay.png",
        "report.json",
    }


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if is_long(command) else [])
        for command in dict.fromkeys(COMMANDS)
        if command not in SEED_COMMANDS and not command.startswith(("make", "pip"))
    ],
)
def test_every_command_runs(used: Path, command: str) -> None:
    execute_cheaply(command, used)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make")])
def test_every_make_target_exists(command: str) -> None:
    assert f"\n{command.split()[1]}: " in (ROOT / "Makefile").read_text()


def test_the_python_of_the_readme_runs(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    monkeypatch.chdir(used)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    saved = nib.load("outputs/example/seg.nii.gz")
    assert names["seg"].label_map.shape == saved.shape


def table_rows(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {name.removesuffix(" over the 15 subsets"): cells for name, *cells in rows}


def means_of(card: str, title: str) -> dict[str, list[str]]:
    """Mean Dice by subset of the sequences, WT, TC and ET; in a card an interval follows each mean."""
    section = (ROOT / f"model_cards/{card}.md").read_text().split(f"### {title}")[1]
    rows = table_rows(section.split("Means of the other metrics")[0])
    return {name: [cell.split(" ")[0] for cell in cells[1:4]] for name, cells in rows.items()}


@pytest.mark.parametrize(("card", "template"), [("tiny", "base"), ("glioma", "adapter")])
def test_a_card_has_the_text_of_its_template(card: str, template: str) -> None:
    rest = (ROOT / f"model_cards/{card}.md").read_text()
    for piece in re.split(r"{{.*?}}|{%.*?%}", (ROOT / f"model_cards/{template}.md.jinja").read_text()):
        assert piece.strip() in rest
        rest = rest.split(piece.strip(), 1)[1] if piece.strip() else rest


def test_each_text_about_training_is_in_one_card() -> None:
    cards = [(ROOT / f"model_cards/{name}.md").read_text() for name in ("tiny", "glioma")]
    for part in (ROOT / "model_cards/training.md").read_text().split("\n## ")[1:]:
        name, text = part.split("\n", 1)
        assert [text.strip() in card for card in cards].count(True) == 1, name


def test_the_results_of_the_readme_are_those_of_the_cards() -> None:
    (adapter,) = set(shipped_names()) - {"tiny"}
    columns = [means_of(name, "Real") for name in ("tiny", adapter)]
    shown = table_rows(README.split("## Results")[1].split("## Train")[0])
    assert {"flair", "t1c+flair", "t1+t1c+t2+flair", "mean"} < set(shown)
    for name in columns[0].keys() & shown.keys() - {"sequences"}:
        assert shown[name] == [mean for column in columns for mean in column[name]]


def test_the_example_of_a_case_runs(used: Path) -> None:
    shown = execute("python examples/segment_case.py data/brats2018/case_000 outputs/example_script", used)
    assert "labels: brats2023 (0 background" in shown
    assert (used / "outputs/example_script/seg.nii.gz").is_file()


def test_the_demonstration_compares_with_the_truth(used: Path, real_weights: None) -> None:
    shown = execute("python examples/demo.py", used)
    assert "from t1c and flair, without t1 and t2" in shown
    scores = [float(line.split()[1]) for line in shown.splitlines() if line.startswith(("WT", "TC", "ET"))]
    # The README shows this case from these sequences.
    assert len(scores) == 3
    assert scores[0] > 0.8
    assert (used / "outputs/demo/comparison.png").is_file()


def test_every_file_of_the_map_exists() -> None:
    table = (ROOT / "docs/network.md").read_text().split("in reading order")[1].split("\n\n")[1]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)]
    assert len(named) > 10
    for name in named:
        assert (ROOT / "src/lora_moe_hgd" / name).exists(), name


@pytest.mark.slow
def test_the_commands_of_the_seed_run_as_they_are(tmp_path: Path) -> None:
    folder = workspace(tmp_path)
    for command in SEED_COMMANDS:
        launch(shlex.split(command), folder)
    assert (folder / "outputs/case_000/seg.nii.gz").is_file()


@pytest.mark.slow
def test_an_installed_package_brings_its_weights(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True, timeout=600)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lora_moe_hgd; lora_moe_hgd.load_checkpoint('tiny')"
    )
    code += f"; assert lora_moe_hgd.__file__.startswith({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=300)
