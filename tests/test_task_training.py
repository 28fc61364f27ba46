"""Training of a task of one's own: its curriculum, its start from another task, its options, and its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small import small_network
from small_runs import ROOT
from test_task_cases import TEXT
from torch.testing import assert_close

from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.task import Task, make_task
from lora_moe_hgd.splits import Split
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.engine import build_network
from lora_moe_hgd.training.run_folder import RunFolder
from lora_moe_hgd.training.schedule import draw_subset, most_dropped, region_weights
from lora_moe_hgd.training.start import start_from
from lora_moe_hgd.training.validation import default_subsets, scored_subsets

SMOKE = ["--config", str(ROOT / "configs/smoke.yaml")]


def task_of(sequences: str, regions: str) -> Task:
    """A task with a label for each region."""
    return make_task(
        {
            "name": "made-up",
            "target": "thing",
            "sequences": {name: [name] for name in sequences.split()},
            "regions": {name: [number] for number, name in enumerate(regions.split(), start=1)},
        },
        where="test",
    )


def test_the_curriculum_follows_the_order_of_the_regions() -> None:
    assert region_weights(0.0, 1) == (1.0,)
    for progress in (0.0, 0.1, 0.2, 0.3):
        weights = region_weights(progress, 5)
        assert list(weights) == sorted(weights, reverse=True)
        assert weights[:3] == region_weights(progress)
    assert len(set(region_weights(0.14, 5))) == 5
    assert region_weights(1.0, 8) == (1.0,) * 8


def test_at_the_end_all_sequences_but_one_may_be_dropped() -> None:
    assert [most_dropped(1.0, sequences) for sequences in (1, 3, 6)] == [0, 2, 5]
    generator = torch.Generator().manual_seed(0)
    drawn = {tuple(draw_subset(torch.ones(5).bool(), 1.0, generator).tolist()) for _ in range(600)}
    assert len(drawn) == 31


def test_subsets_of_a_task_are_scored() -> None:
    task = task_of("flair dwi", "old new")
    assert default_subsets(task) == ("all", "flair", "dwi")
    assert scored_subsets(None, {"a": (True, False)}, task) == {"all": [], "flair": ["a"], "dwi": []}


def test_what_both_tasks_have_is_kept_and_nothing_else() -> None:
    base = small_network()
    processor = LoraMoeHgdImageProcessor(least_part=0.1, target_spacing_mm=(4.0, 4.0, 4.0))
    started, made, lines = start_from(base, processor, task_of("flair dwi t1", "et lesion"))
    assert lines[:2] == [
        "  sequences: kept flair, t1; new dwi; left out t1c, t2",
        "  regions: kept et; new lesion; left out wt, tc",
    ]
    assert (made.modalities, made.least_part, made.target_spacing_mm) == (["flair", "dwi", "t1"], 0.0, [4.0] * 3)
    assert started.config.id2label == {0: "et", 1: "lesion"}
    mask = torch.tensor([[True, False, True]])
    volumes = torch.randn(1, 4, 16, 32, 16, generator=torch.Generator().manual_seed(0))
    # The network of the base without T1c and T2 is the new one without DWI, up to what availability adds.
    torch.nn.init.zeros_(base.encoder.stem.availability.weight)
    torch.nn.init.zeros_(started.encoder.stem.availability.weight)
    with torch.no_grad():
        before = base(volumes, torch.tensor([[True, False, False, True]])).logits
        after = started(torch.stack([volumes[:, 3], volumes[:, 1], volumes[:, 0]], dim=1), mask).logits
    assert_close(after[:, 0], before[:, 2], rtol=0, atol=2e-5)  # Sums run in another order of the sequences.
    assert (after[:, 1] - before[:, 0]).abs().max() > 0.01
    kept, total = (int(number) for number in lines[2].split() if number.isdigit())
    assert total == sum(weight.numel() for weight in started.state_dict().values())
    experts = sum(weight.numel() for weight in started.encoder.vit.layers[1].moe.experts[0].parameters())
    # DWI has two experts, two rows of routers, two embeddings, a kernel and its availability; the lesion three heads.
    rows = 2 * 24 + (24 + 4) + 4 * 27 + 4
    assert total - kept == 2 * experts + rows + sum(head.weight[0].numel() + 1 for head in started.decoder.heads)


def test_the_same_task_with_other_words_keeps_everything() -> None:
    base, processor = small_network(), LoraMoeHgdImageProcessor(least_part=0.1, confidence_weights=[[0.0] * 9] * 3)
    renamed = make_task(
        {
            **{
                "name": "own-names",
                "target": "tumour",
                "sequences": {name: [f"x{name}"] for name in processor.modalities},
            },
            "regions": {"wt": [1, 2, 3], "tc": [2, 3], "et": [3]},
        },
        where="test",
    )
    started, made, _ = start_from(base, processor, renamed)
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, started.state_dict()[name]), name
    assert (made.least_part, made.confidence_weights) == (0.1, [[0.0] * 9] * 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "task.yaml"
    path.write_text(TEXT)
    return path


CASES = ("--phantoms", "0", "--val-phantoms", "null", "--data", "cases")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*CASES, "--subsets", "[t1c]"], "Unknown sequence.* t1c in 't1c'. The names are flair, dwi"),
        ([*CASES, "--label-scheme", "msd"], "no effect in this run. The task stroke has only one label scheme"),
        ([*CASES, "--channel-order", "[t1, dwi]"], "A channel order lists flair, dwi"),
        ([], "phantoms show brain tumours"),
        ([*CASES, "--task", "nowhere.yaml"], "The task file does not exist"),
    ],
)
def test_options_are_checked_against_the_task(file: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config([*SMOKE, "--task", str(file), *options])


def test_a_task_from_scratch_has_its_inputs_and_outputs(file: Path) -> None:
    network, processor = build_network(read_config([*SMOKE, *CASES, "--task", str(file)]))
    assert (network.config.modalities, network.config.regions) == (("flair", "dwi"), ("old", "new"))
    assert processor.segmentation_task.name == "stroke"


def test_a_run_keeps_its_task_and_cannot_continue_with_another(tmp_path: Path) -> None:
    words = [*SMOKE, "--output-dir", str(tmp_path / "run")]
    task = task_of("flair dwi", "old new")
    RunFolder(read_config(words)).open(Split([], []), made_from={"task content": "a"}, task=task)
    assert Task.from_dict(json.loads((tmp_path / "run/run.json").read_text())["task"]) == task
    with pytest.raises(ValueError, match="cannot change task content"):
        RunFolder(read_config([*words, "--continue"])).open(Split([], []), made_from={"task content": "b"}, task=task)


@pytest.mark.usefixtures("small_shipped")
def test_the_start_from_a_base_is_printed_and_takes_no_adapter(file: Path, capsys) -> None:
    words = [*SMOKE, *CASES, "--task", str(file), "--size", "null", "--base", "tiny", "--spacing-mm", "null"]
    network, _ = build_network(read_config(words))
    printed = capsys.readouterr().out
    assert "stroke starts from tiny." in printed
    assert "  sequences: kept flair; new dwi; left out t1, t1c, t2" in printed
    assert network.config.regions == ("old", "new")
    with pytest.raises(ValueError, match="`adapter` must be none, but is lora"):
        build_network(read_config([*words, "--adapter", "lora"]))
