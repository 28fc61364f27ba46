"""What is measured during a run: exact over a resume, and what its names say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_moe_hgd.masks import dice
from lora_moe_hgd.training.metrics_log import MetricsLog, RunningDice, read_metrics, router_statistics
from lora_moe_hgd_cli import run


def test_lines_of_steps_that_are_done_again_go(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, step=0)
    for step in (1, 2, 3):
        log.append({"loss/total": step / 10}, step=step)
    MetricsLog(tmp_path, step=2).append({"loss/total": 7.0}, step=3)
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss/total": 0.1},
        {"step": 2, "loss/total": 0.2},
        {"step": 3, "loss/total": 7.0},
    ]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    MetricsLog(tmp_path, step=0).append({"lr": 0.5}, step=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lr": 0.')
    assert read_metrics(tmp_path) == [{"step": 1, "lr": 0.5}]
    MetricsLog(tmp_path, step=2).append({"lr": 0.25}, step=3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]


def test_dice_of_one_batch_is_dice_by_region_and_number_of_sequences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, 4, 4, 4, generator=generator)
    labels = (torch.rand(3, 3, 4, 4, 4, generator=generator) > 0.5).to(torch.uint8)
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]).bool()
    running = RunningDice(torch.device("cpu"))
    running.update(logits, labels, mask)
    predicted, truth = logits > 0, labels.bool()
    for index, region in enumerate(("wt", "tc", "et")):
        one = dice(predicted[[0, 2], index].numpy(), truth[[0, 2], index].numpy())
        three = dice(predicted[1, index].numpy(), truth[1, index].numpy())
        assert running.of_regions()[region] == pytest.approx(
            dice(predicted[:, index].numpy(), truth[:, index].numpy())
        )
        by_count = {name: value for name, value in running.by_count().items() if name.startswith(region)}
        assert by_count == pytest.approx({f"{region}/1_sequences": one, f"{region}/3_sequences": three})


def test_router_statistics_are_shares_and_entropies() -> None:
    # Two tokens, four experts, of which each may use three; top 2.
    logits = torch.tensor([[0.0, -math.inf, 0.0, -20.0], [-math.inf, 0.0, 0.0, -20.0]])
    values = router_statistics((logits,), 2)
    assert [values[f"router_load/0/{expert}"] for expert in range(4)] == [0.25, 0.25, 0.5, 0.0]
    assert values["router_entropy/0"] == pytest.approx(math.log(2), abs=1e-6)
    assert values["dropped_tokens"] == 0
    one_way_out = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert router_statistics((one_way_out,), 2)["dropped_tokens"] == 1


def test_pictures_of_a_run_are_drawn(tmp_path: Path, capsys) -> None:
    row = {"step": 1, "loss/total": 1.0, "lr": 0.1, "gradient_norm": 1.0, "train_dice/wt": 0.5}
    row |= {f"router_load/0/{expert}": 1 / 8 for expert in range(8)}
    row |= {f"dice_all/{region}": 0.5 for region in ("wt", "tc", "et")}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"step": 2}) + "\n")
    run("plot", [str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().out
    for name in ("curves.png", "router_load.png"):
        assert min(Image.open(tmp_path / name).size) > 200


def test_a_folder_without_a_log_has_no_pictures(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run("plot", [str(tmp_path)])
    assert f"{tmp_path} is not the folder of a run, because it contains no metrics.jsonl" in capsys.readouterr().err
