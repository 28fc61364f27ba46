"""JSON files that users bring are read within bounds, and a bad one gets a message that names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import lora_moe_hgd
from lora_moe_hgd.cases.case_files import recorded_name
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.evaluation.score_files import read_table
from lora_moe_hgd.files import MAX_JSON_BYTES, MAX_LONG_JSON_BYTES
from lora_moe_hgd.loading import base_digest, checkpoint_task
from lora_moe_hgd.model.findings import BadInputError

PACKAGE = Path(lora_moe_hgd.__file__).parent
# Files of the package itself, and the program of an export, which runs without the package.
OWN = {"hub/companions.py", "inference/page.py", "export/run.py"}
READERS: dict[str, Callable[[Path], object]] = {
    "preprocessor_config.json": lambda path: checkpoint_task(path.parent),
    "adapter_config.json": lambda path: base_digest(path.parent),
    "dataset.json": lambda path: find_case(path.parent),
    "table.json": read_table,
}


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
            file.truncate(1 + (MAX_LONG_JSON_BYTES if name == "table.json" else MAX_JSON_BYTES))
    with pytest.raises(BadInputError, match=r"which is too much\. \w|is not valid JSON .*\. \w") as refused:
        READERS[name](path)
    assert refused.value.finding.where == path


def test_settings_of_a_checkpoint_are_an_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(BadInputError, match=r"is not a JSON object\. It contains settings of a checkpoint\."):
        checkpoint_task(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "[" * 5000, '{"case_id": 1}', '{"case_id": ""}', "\N{NO-BREAK SPACE}"])
def test_a_report_that_is_no_report_names_no_case(content: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content)
    assert recorded_name(tmp_path / "report.json") is None


def test_no_other_function_reads_a_json_file() -> None:
    reading = re.compile(r"json\.loads?\([^\n]*(?:read_text|open)\(")
    found = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if reading.search(path.read_text())
    }
    assert found == {"files.py", *OWN}
