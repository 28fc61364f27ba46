"""From cases of a task of one's own to segmentations: a fifth sequence and a fourth region, and lesions of MS."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from commands import call, workspace
from small import small_network
from small_runs import ROOT

from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.phantoms.phantom import make_phantom
from lora_moe_hgd.phantoms.style import NARROW
from lora_moe_hgd.task_files import read_task
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.engine import train
from lora_moe_hgd.training.loop import Network
from lora_moe_hgd.training.options import RunConfig
from lora_moe_hgd.training.start import start_from
from lora_moe_hgd_cli import run

MS = ROOT.parent / "shared/data/open-ms/stripped"
FIVE = """
name: tumour-with-dwi
target: tumour
sequences:
  t1:
  t1c:
  t2:
  flair:
  dwi: [dwi]
regions:
  wt: [2, 1, 3, 4]
  tc: [1, 3]
  et: [3]
  dense: [4]
label_map: [truth]
"""


def write_phantom(folder: Path, seed: int) -> None:
    """A phantom with a DWI made from its T2, and with the front half of its oedema as a region of its own."""
    phantom = make_phantom(seed, spacing_mm=4.0, style=NARROW)
    whole, core, enhancing = phantom.regions.numpy()
    front = np.zeros_like(whole)
    front[:, int(np.median(np.nonzero(whole)[1])) :] = True
    labels = np.select([enhancing, core, whole & front, whole], [3, 1, 4, 2], 0).astype(np.uint8)
    volumes = {name: volume.numpy() for name, volume in phantom.volumes.items()}
    bright = volumes["t2"] * (1 + 0.5 * (labels == 4))
    volumes["dwi"] = np.where(volumes["t2"] != 0, bright, 0)
    folder.mkdir(parents=True)
    for name, array in {**volumes, "truth": labels}.items():
        array = array.astype(np.uint8 if name == "truth" else np.float32)
        nib.save(nib.Nifti1Image(array, phantom.affine), folder / f"{folder.name}_{name}.nii.gz")


@pytest.mark.slow
def test_a_fifth_sequence_and_a_fourth_region_are_trained_and_segmented(tmp_path: Path) -> None:
    for number in range(2):
        write_phantom(tmp_path / f"cases/p{number}", number)
    file = tmp_path / "task.yaml"
    file.write_text(FIVE)

    def build(config: RunConfig) -> tuple[Network, LoraMoeHgdImageProcessor]:
        processor = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0))
        network, processor, _ = start_from(small_network(), processor, read_task(str(config.task)))
        return network.train(), processor

    words = ["--config", str(ROOT / "configs/smoke.yaml"), "--task", str(file), "--data", str(tmp_path / "cases")]
    words += [
        "--phantoms",
        "0",
        "--val-phantoms",
        "null",
        "--crops-per-case",
        "1",
        "--epochs",
        "1",
        "--tracker",
        "none",
    ]
    words += ["--cache-dir", str(tmp_path / "cache"), "--output-dir", str(tmp_path / "run"), "--precision", "no"]
    words += ["--subsets", "[all, dwi]"]
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        best = train(read_config(words), build=build)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any({f"dice_dwi/{region}" for region in ("wt", "tc", "et", "dense")} <= set(row) for row in logged)
    run("plot", [str(tmp_path / "run")])
    run(
        "segment",
        ["--checkpoint", str(best), "--in-path", str(tmp_path / "cases/p0"), "--out-path", str(tmp_path / "o")],
    )
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert report["sequences_used"] == ["t1", "t1c", "t2", "flair", "dwi"]
    assert report["label_scheme"] == {"name": "tumour-with-dwi", "wt": 2, "tc": 1, "et": 3, "dense": 4}
    assert list(report["volumes_ml"]) == ["wt", "tc", "et", "dense"]
    wt, tc, et, dense = report["volumes_ml"].values()
    assert wt >= max(tc, dense)
    assert tc >= et
    assert (tmp_path / "o/overlay.png").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not MS.is_dir(), reason="needs the cases of Lesjak et al. 2017 in ../shared/data/open-ms")
def test_lesions_are_learned_from_the_shipped_network(tmp_path: Path) -> None:
    folder = workspace(tmp_path)
    (folder / "data").mkdir()
    (folder / "data/ms").symlink_to(MS)
    page = (ROOT / "docs/tasks.md").read_text()
    (commands,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    cheap = {
        "train.py": "--epochs 12 --num-workers 0 --tracker none --precision no --subsets [all]",
        "segment": "--sequences flair",
        "evaluate": "--subsets all,flair",
    }
    printed = {}
    for command in commands.splitlines():
        words = shlex.split(command)
        called = words[1]
        printed[called] = call([*words, *cheap.get(called, "").split()], folder)
    assert "sequences: t1 3, t2 3, flair 3" in printed["check"]
    assert "label schemes: ms-lesions 3" in printed["check"]
    (start,) = re.findall(r"```\n(ms-lesions starts.*?)```", page, re.DOTALL)
    assert start in printed["train.py"]
    rows = [json.loads(line) for line in (folder / "runs/ms_lesions/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    assert np.mean(losses[-8:]) < 0.75 * np.mean(losses[:8])
    assert "Label scheme: ms-lesions (0 background, 1 lesion)." in printed["segment"]
    report = json.loads((folder / "outputs/ms/report.json").read_text())
    assert (report["sequences_used"], list(report["volumes_ml"])) == (["flair"], ["lesion"])
    assert "| sequences | cases | lesion | mean |" in printed["evaluate"]


def test_the_page_shows_the_task_of_the_example_as_it_is() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/tasks.md").read_text(), re.DOTALL)
    assert shown == (ROOT / "configs/tasks/ms_lesions.yaml").read_text()
    assert read_task(ROOT / "configs/tasks/ms_lesions.yaml").regions == ("lesion",)
