"""The shipped checkpoints, and adapters over them on other computers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import lora_moe_hgd as lmh
from lora_moe_hgd.cases.case_files import CaseFiles
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.evaluation.trained_on import trained_among
from lora_moe_hgd.hub.push import stage
from lora_moe_hgd.pretrained import DEFAULT_CHECKPOINT, pretrained_path
from lora_moe_hgd.training.data.datasets import CaseDataset


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy of the default checkpoint, as a run on another computer would leave it."""
    folder = tmp_path / "adapter"
    shutil.copytree(pretrained_path(DEFAULT_CHECKPOINT), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/elsewhere/lora_moe_hgd/pretrained/tiny"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_over_a_shipped_base_loads_on_another_computer(adapter: Path) -> None:
    network, _ = lmh.load_checkpoint(adapter)
    shipped, _ = lmh.load_checkpoint()
    assert all(value.equal(network.state_dict()[name]) for name, value in shipped.state_dict().items())


def test_an_adapter_brings_its_own_image_processor(adapter: Path) -> None:
    _, processor = lmh.load_checkpoint("tiny")
    processor.target_spacing_mm = [3.0, 3.0, 3.0]
    processor.to_json_file(adapter / "preprocessor_config.json")
    assert lmh.load_checkpoint(adapter)[1].target_spacing_mm == [3.0, 3.0, 3.0]


def test_a_merged_adapter_can_be_trained() -> None:
    assert all(parameter.requires_grad for parameter in lmh.load_checkpoint()[0].parameters())


def test_the_default_checkpoint_says_which_cases_trained_it(tmp_path: Path) -> None:
    cases = [
        CaseFiles(name, tmp_path, "plain", (), {}, None) for name in ("BraTS-SSA-00002-000", "BraTS-SSA-00041-000")
    ]
    assert trained_among(cases, pretrained_path(DEFAULT_CHECKPOINT)) == ["BraTS-SSA-00002-000"]


def test_the_default_checkpoint_is_pushed_over_a_base_that_others_can_load(tmp_path: Path) -> None:
    about = {"license": "cc-by-4.0", "training_data": "Real cases.", "training_cost": None, "evaluation": None}
    about["max_shard_size"] = "1GB"
    folder = pretrained_path(DEFAULT_CHECKPOINT)
    with pytest.raises(ValueError, match="name its repository with --base"):
        stage(folder, tmp_path, repo="me/glioma", base=None, **about)
    card = stage(folder, tmp_path, repo="me/glioma", base="me/tiny", **about)
    assert card.data.base_model == "me/tiny"
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/tiny"


def test_saving_never_deletes_the_ground_truth_of_another_case(tmp_path: Path) -> None:
    shutil.copytree(lmh.example_case(), tmp_path / "case")
    (tmp_path / "case/seg.nii.gz").write_bytes(b"truth")
    empty = np.zeros((3, 2, 2, 2))
    found = lmh.Segmentation(None, None, empty, empty, None, {}, {}, [], {}, {}, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="folder of a case, whose label map would be overwritten"):
        found.save(tmp_path / "case")
    assert (tmp_path / "case/seg.nii.gz").read_bytes() == b"truth"


def test_what_is_allowed_changes_where_a_case_is_kept_and_not_what_a_run_depends_on(tmp_path: Path) -> None:
    case = find_case(lmh.example_case())
    _, processor = lmh.load_checkpoint("tiny")
    plain, allowing = (
        CaseDataset([case], processor=processor, cache_dir=tmp_path, allow_skull=allowed) for allowed in (False, True)
    )
    assert plain.content() == allowing.content()
    assert plain._kept_at(0) != allowing._kept_at(0)
