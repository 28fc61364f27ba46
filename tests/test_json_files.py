"""JSON files that users bring: a file that is too large or damaged gets a message that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_moe_hgd.cases.case_files import recorded_name
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.evaluation.score_files import read_table
from lora_moe_hgd.files import MAX_JSON_BYTES, MAX_LONG_JSON_BYTES
from lora_moe_hgd.loading import base_digest, checkpoint_task
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.splits import read_split

READERS: dict[str, Callable[[Path], object]] = {
    "preprocessor_config.json": lambda path: checkpoint_task(path.parent),
    "adapter_config.json": lambda path: base_digest(path.parent),
    "dataset.json": lambda path: find_case(path.parent),
    "splits_final.json": lambda path: read_split(path, 0),
    "table.json": read_table,
}
# These files grow with the number of cases.
LONG = {"dataset.json", "splits_final.json", "table.json"}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", ["too much", "[", 5000 * "["], ids=["large", "cut off", "deep"])
def test_a_file_that_is_too_large_or_damaged_is_named_with_the_remedy(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "x_0000.nii.gz").touch()
    path = tmp_path / name
    path.write_text(content)
    if content == "too much":
        with open(path, "ab") as file:
            # The file is sparse, so it takes no space on the disk.
            file.truncate(1 + (MAX_LONG_JSON_BYTES if name in LONG else MAX_JSON_BYTES))
    with pytest.raises(BadInputError, match=r"which is too much\. \w|is not valid JSON .*\. \w") as refused:
        READERS[name](path)
    assert refused.value.finding.where == path


def test_a_dataset_and_a_split_of_a_hundred_thousand_cases_are_read(tmp_path: Path) -> None:
    names = [f"BRATS_{number:06d}" for number in range(100_000)]
    (tmp_path / "x_0000.nii.gz").touch()
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR"}, "training": training}))
    assert list(find_case(tmp_path).images) == ["flair"]
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": names[1:], "val": names[:1]}]))
    assert read_split(tmp_path / "splits_final.json", 0).validation == names[:1]


def test_settings_of_a_checkpoint_are_an_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(BadInputError, match=r"is not a JSON object\. This file belongs to a checkpoint\."):
        checkpoint_task(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "[" * 5000, '{"case_id": 1}', '{"case_id": ""}', "\N{NO-BREAK SPACE}"])
def test_a_report_that_is_no_report_names_no_case(content: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content)
    assert recorded_name(tmp_path / "report.json") is None
