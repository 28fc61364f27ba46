"""What becomes of a run that is in the output folder already."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from unittest import mock

import pytest
from safetensors import SafetensorError
from small import small_network
from small_runs import ROOT, small_run

from lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.evaluation.trained_on import trained_among
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.splits import Split, read_run_split
from lora_moe_hgd.training import plot
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.metrics_log import read_metrics
from lora_moe_hgd.training.objectives import SegmentationObjective
from lora_moe_hgd.training.run_folder import RunFolder
from lora_moe_hgd.training.states import Progress, RunState, write_state

SPLIT = Split(train=["a", "b", "c"], validation=["d"])
MADE_FROM = {"package version": "1.0", "base weights": "12ab", "processes": 1}


class Runs:
    """Opens the folder of one run again and again, with other options."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run"

    def open(self, *options: str, split: Split = SPLIT, **made_from: object) -> RunFolder:
        words = ["--config", str(ROOT / "configs/brats2018.yaml"), "--output-dir", str(self.path), *options]
        run = RunFolder(read_config(words))
        made = {**MADE_FROM, **{name.replace("_", " "): value for name, value in made_from.items()}}
        run.open(split, made_from=made)
        return run

    def begin(self, *, epochs_done: int, finished: bool = False) -> None:
        """Begin a run of 50 epochs, of which some are done."""
        run = self.open()
        state = RunState(Progress(epoch=epochs_done, step=7), {}, {}, {"state": {}, "param_groups": []}, {})
        write_state(self.path / "resume", state)
        if finished:
            run.close()

    def aside(self) -> list[Path]:
        return [path for path in self.path.parent.iterdir() if path != self.path]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


HARMLESS = [
    ["--num-workers", "0"],
    ["--cache-dir", "elsewhere"],
    ["--tracker", "none"],
    ["--save-every", "7"],
    ["--gradient-checkpointing", "true"],
    ["--skip-bad", "true"],
    # The split is compared, not how it was chosen.
    ["--folds", "4", "--fold", "0"],
    ["--split-file", "split.csv"],
]


@pytest.mark.parametrize("options", HARMLESS, ids=lambda options: options[0])
def test_options_that_do_not_change_the_result_do_not_break_a_resume(runs: Runs, options: list[str], capsys) -> None:
    runs.begin(epochs_done=2)
    run = runs.open(*options)
    assert run.read_state()[0] is not None
    assert runs.aside() == []
    assert capsys.readouterr().out == ""


def test_the_folder_may_be_renamed_or_be_named_otherwise(runs: Runs) -> None:
    runs.begin(epochs_done=2)
    runs.path = runs.path.rename(runs.path.with_name("renamed"))
    assert runs.open().read_state()[0] is not None


CHANGED = [
    (["--lr", "1.0e-4"], {}, "optim.lr 0.0005 -> 0.0001"),
    (["--epochs", "60", "--seed", "3"], {}, "epochs 50 -> 60; seed 0 -> 3"),
    (["--crop-size", "[32, 32, 32]"], {}, r"sample.crop_size \[64, 64, 64\] -> \[32, 32, 32\]"),
    (["--adapter", "lora"], {}, r"adapter lora\+decoder -> lora"),
    ([], {"split": Split(["a", "b"], ["d", "e"])}, r"train cases -c; validation cases \+e"),
    ([], {"package_version": "1.1"}, "package version 1.0 -> 1.1"),
    ([], {"processes": 2}, "processes 1 -> 2"),
]


@pytest.mark.parametrize(("options", "made_from", "change"), CHANGED)
def test_a_changed_run_is_moved_aside_and_what_changed_is_said(
    runs: Runs, options: list[str], made_from: dict, change: str, capsys
) -> None:
    runs.begin(epochs_done=2)
    assert runs.open(*options, **made_from).read_state() == (None, [])
    (aside,) = runs.aside()
    assert (aside / "resume").is_dir()
    shown = capsys.readouterr().out
    assert re.search(
        rf"contained an earlier run \(unfinished, with other options: {change}\)\. The earlier run is now in {aside}",
        shown,
    ), shown


def test_a_record_that_is_too_large_or_damaged_is_named(runs: Runs) -> None:
    runs.begin(epochs_done=2)
    (runs.path / "metrics.jsonl").write_text('{"step": 1}\n')
    record = runs.path / "run.json"
    content = record.read_text()
    for changed, rule in (
        (content + 1_000_000 * " ", "has more than 1000000 bytes"),
        (content[:-1], "is not valid JSON"),
    ):
        record.write_text(changed)
        for read, remedy in (
            (runs.open, "Restore the file, or choose another `--output-dir`"),
            (
                lambda: trained_among([], runs.path / "best"),
                "To score without knowledge of the training cases, copy the folder best ",
            ),
            (
                lambda: plot.main([str(runs.path)]),
                "Restore the file\\. If the task is brain tumours, you can also copy",
            ),
        ):
            with pytest.raises(BadInputError, match=rf"run\.json: The file {rule}.* {remedy}"):
                read()


def test_a_finished_run_with_the_same_options_is_moved_aside(runs: Runs, capsys) -> None:
    runs.begin(epochs_done=50, finished=True)
    runs.open()
    assert "contained an earlier run (finished, with the same options)." in capsys.readouterr().out
    assert len(runs.aside()) == 1


@pytest.mark.parametrize(
    ("options", "made_from", "change"),
    [changed for changed in CHANGED if "adapter" not in changed[2] and "train" not in changed[2]],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_changed_run_can_be_continued_and_what_changed_is_said(
    runs: Runs, options: list[str], made_from: dict, change: str, finished: bool, capsys
) -> None:
    runs.begin(epochs_done=50 if finished else 2, finished=finished)
    options = [*options, *(["--epochs", "60"] if finished and "--epochs" not in options else [])]
    run = runs.open("--continue", *options, **made_from)
    assert run.read_state()[0] is not None
    assert runs.aside() == []
    assert re.search(rf"Continuing the run in {runs.path}\. Changed: .*{change}", capsys.readouterr().out)
    # A run that is broken off again is the same run, with or without the option.
    assert runs.open(*options, **made_from).read_state()[0] is not None
    assert runs.aside() == []


def test_a_run_that_has_not_changed_can_be_continued_too(runs: Runs, capsys) -> None:
    runs.begin(epochs_done=2)
    assert runs.open("--continue").read_state()[0] is not None
    assert "Nothing has changed." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("begun", "options", "made_from", "reason"),
    [
        (None, [], {}, "contains no run to continue"),
        (
            {"epochs_done": 2},
            ["--adapter", "lora"],
            {},
            r"cannot change adapter, .* \(changes: adapter lora\+decoder -> lora\)",
        ),
        ({"epochs_done": 2}, ["--lora", "{r: 4}"], {}, "cannot change lora, "),
        ({"epochs_done": 2}, [], {"base_weights": "34cd"}, "cannot change base weights"),
        ({"epochs_done": 5}, ["--epochs", "5"], {}, r"has already done 5 epochs\. Continue the run with more"),
        ({"epochs_done": 50, "finished": True}, [], {}, "has already done 50 epochs"),
        (
            {"epochs_done": 2},
            [],
            {"split": Split(["a", "b"], ["c", "d"])},
            r"missing from the training cases of the new split: c\. Keep the old split with `--split-file .*csv`",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused_and_left_alone(
    runs: Runs, begun: dict | None, options: list[str], made_from: dict, reason: str
) -> None:
    if begun is not None:
        runs.begin(**begun)
    before = sorted(path.name for path in runs.path.rglob("*"))
    with pytest.raises(ValueError, match=reason):
        runs.open("--continue", *options, **made_from)
    assert sorted(path.name for path in runs.path.rglob("*")) == before
    assert runs.aside() == []


def test_a_finished_run_without_a_state_names_its_checkpoint_as_a_base(runs: Runs) -> None:
    runs.open().close()
    with pytest.raises(ValueError, match=rf"no state to continue from.*`--base {runs.path}/last`"):
        runs.open("--continue", "--epochs", "60")


def test_the_split_of_a_run_is_recorded(runs: Runs) -> None:
    runs.open()
    assert read_run_split(runs.path) == SPLIT


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_finished_run_is_trained_further_with_new_options(tmp_path: Path, cache: Path, capsys) -> None:
    folder = tmp_path / "run"
    small_run(folder, cache, "--subsets", "[t1]")
    options = ["--continue", "--epochs", "3", "--weight-decay", "0.0", "--lr", "1.0e-4"]
    small_run(folder, cache, "--subsets", "[t1, t2]", *options, "--batch-size", "4")
    shown = capsys.readouterr().out
    for change in ("epochs 1 -> 3", "optim.lr 0.001 -> 0.0001", "sample.batch_size 2 -> 4"):
        assert change in shown
    assert "Resuming after step 2, in epoch 2." in shown
    assert "The next checkpoint replaces `best`, whatever its score." in shown
    steps = [row["step"] for row in read_metrics(folder) if "loss/total" in row]
    assert steps == [1, 2, 3, 4]
    (state,) = (folder / "resume").iterdir()
    content = json.loads((state / "progress.json").read_text())
    assert [group["weight_decay"] for group in content["optimizer"]["groups"]] == [0.0, 0.0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_epoch_begins_anew_when_its_batches_have_changed(tmp_path: Path, cache: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr("lora_moe_hgd.training.loop.peak_memory_gb", lambda: 1 / (not (folder / "resume").exists()))
    options = ["--batch-size", "1", "--save-every", "2", "--subsets", "[t1]"]
    # The third step ends it, after the state of the second.
    with pytest.raises(ZeroDivisionError):
        small_run(folder, cache, *options)
    monkeypatch.undo()
    small_run(folder, cache, *options, "--continue", "--batch-size", "2")
    assert "The number of batches in an epoch has changed, so epoch 1 starts again." in capsys.readouterr().out
    steps = [row["step"] for row in read_metrics(folder) if "loss/total" in row]
    assert steps == [1, 2, 3, 4]


def test_a_checkpoint_that_does_not_fit_on_the_disk_ends_the_run_with_a_word(tmp_path: Path) -> None:
    network, processor = small_network(), LoraMoeHgdImageProcessor()
    words = ["--config", str(ROOT / "configs/brats2018.yaml"), "--output-dir", str(tmp_path)]
    run = RunFolder(read_config(words))
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with (
        mock.patch.object(type(network), "save_pretrained", side_effect=full),
        pytest.raises(OSError, match=r"No space left on device.*Free some space"),
    ):
        run.save_checkpoint("best", network, processor, score="mean Dice 0.5")
    assert not (tmp_path / "best").exists()


def test_a_run_that_is_stopped_during_validation_resumes_with_that_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = small_run(tmp_path / "whole", tmp_path / "cache", "--epochs", "1")
    validate = SegmentationObjective.validate

    def stopped(*args: object, **options: object) -> float:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("A signal during validation stops at once.")

    with mock.patch.object(SegmentationObjective, "validate", stopped), pytest.raises(SystemExit, match="130"):
        small_run(tmp_path / "run", tmp_path / "cache", "--epochs", "1")
    assert "Stopped during the validation after epoch 1" in capsys.readouterr().out
    with mock.patch.object(SegmentationObjective, "validate", autospec=True, side_effect=validate) as again:
        best = small_run(tmp_path / "run", tmp_path / "cache", "--epochs", "1")
    again.assert_called_once()
    same = [(folder / "model.safetensors").read_bytes() for folder in (whole, best)]
    assert same[0] == same[1]
