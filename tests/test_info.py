"""What the package tells about itself."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from lora_moe_hgd import info
from lora_moe_hgd.pretrained import shipped_names
from lora_moe_hgd_cli import run


def test_as_json_it_has_versions_checkpoints_sequences_labels_and_the_device(capsys) -> None:
    run("info", ["--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == metadata.version("lora-moe-hgd")
    assert sorted(found["checkpoints"]) == shipped_names()
    assert found["default_checkpoint"] in found["checkpoints"]
    task = found["tasks"][found["checkpoints"]["tiny"]["task"]]
    assert task["sequences"] == ["t1", "t1c", "t2", "flair"]
    assert task["regions"] == ["wt", "tc", "et"]
    assert task["label_schemes"]["brats2015"] == {
        "0": "background",
        "1": "core",
        "2": "oedema",
        "3": "core",
        "4": "enhancing",
    }
    assert found["device"] in ("cpu", "cuda")


def test_for_people_it_names_the_checkpoint_that_is_taken_and_every_label(capsys) -> None:
    run("info", [])
    shown = capsys.readouterr().out
    assert "checkpoint glioma: adapter for brain-tumour (default)" in shown
    assert "labels brats2023: 0 background, 1 core, 2 oedema, 3 enhancing\n" in shown
    assert "labels ped2024: 0 background, 1 enhancing, 2 core, 3 core, 4 oedema\n" in shown
    assert "labels gli2024: 0 background, 1 core, 2 oedema, 3 enhancing, 4 no tumour\n" in shown


def test_an_extra_is_found_if_each_of_its_packages_is_installed_in_a_version_that_will_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = ["numpy>=2", 'nibabel>=1; extra == "here"', 'nibabel>=999; extra == "old"', 'nowhere; extra == "gone"']
    monkeypatch.setattr(info.metadata, "requires", lambda name: needed)
    about = metadata.metadata("lora-moe-hgd")
    del about["Provides-Extra"]
    for extra in ("here", "old", "gone", "dev", "docs"):
        about["Provides-Extra"] = extra
    monkeypatch.setattr(info.metadata, "metadata", lambda name: about)
    assert info.extras_found() == {"gone": False, "here": True, "old": False}
