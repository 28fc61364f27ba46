"""Every kind of bad input gets one line: where, what is wrong, what to do. `docs/bad_input.md` shows them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from bad_input import ATTEMPTS, PATIENT, good_case, judge, messages
from situations import SITUATIONS, said_by

from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.cases.nifti import read_image
from lora_moe_hgd.files import install_command
from lora_moe_hgd.model import findings
from lora_moe_hgd.model.findings import BadInputError

DOCUMENT = Path(__file__).parents[1] / "docs/bad_input.md"
HEAD = """# Bad input

Made by `.venv/bin/python tests/test_bad_input.py`; a test compares.

The message for each kind of bad input, with the file or folder that it is about. Errors end a command with exit code
2 before any long work; warnings are printed and go into the report of `segment`, whose `--strict` makes them errors.
`lora-moe-hgd check` shows both for a whole cohort.
"""
SITUATIONS_HEAD = """## Situations that users reported

Each is made anew and run as written.
"""
LIMITS = """
## Limits

Heads with their skull are told from brains by size, shape and gaps of bone and air. A small head or a thin slab of one
passes as a brain, at best with the warning that the field of view cuts it off. Measured on the six raw scans of two
adults of open-ms:

| input | refused as heads |
|---|---|
| as scanned, or cut to a height of 150, 130 or 110 mm | all |
| cut to a height of 100 mm | 12 of 18 |
| cut to a height of 90 mm | 2 of 18 |
| cut to a height of 80 mm | none |
| scaled to 95 %, as small heads are | 4 of 6 |
| scaled to 90 % | 1 of 6 |
| scaled to 85 %, as those of small children are | none |

No brain of BraTS-Africa, open-ms or the phantoms holds enough gaps to be taken for a head that is cut at 110 mm.
"""
EVERY = [(part, title, attempt) for part, attempts in ATTEMPTS.items() for title, attempt in attempts]


def document() -> str:
    lines = [HEAD]
    for part, attempts in ATTEMPTS.items():
        lines += [f"## {part}", "", "| input | | message |", "|---|---|---|"]
        for title, attempt in attempts:
            for level, message in messages((title, attempt)):
                cell = message.replace("|", "\\|").replace("*", "\\*")
                lines.append(f"| {title} | {level} | {cell} |")
                title = ""
        lines.append("")
    lines += [SITUATIONS_HEAD, "| situation | what is run | what is said |", "|---|---|---|"]
    for title, command, attempt in SITUATIONS:
        with tempfile.TemporaryDirectory() as scratch:
            said = attempt(Path(scratch)).replace(f"{scratch}/", "").replace("|", "\\|").replace("*", "\\*")
        lines.append(f"| {title} | `{command}` | {said} |")
    return "\n".join([*lines, LIMITS])


def test_a_good_case_has_no_finding(tmp_path: Path) -> None:
    assert judge(good_case(tmp_path / "case")) == []


@pytest.mark.parametrize("part_title_attempt", EVERY, ids=lambda value: value[1])
def test_bad_input_gets_one_line_that_names_the_file_and_no_patient(part_title_attempt) -> None:
    found = messages(part_title_attempt[1:])
    assert found
    for _, message in found:
        assert message.startswith("case")
        assert message.endswith(".")
        assert "\n" not in message
        assert PATIENT not in message


@pytest.mark.parametrize("modules", [(), ("not_installed",)], ids=["installed", "missing"])
def test_who_is_sent_to_prepare_learns_what_it_needs(tmp_path: Path, monkeypatch, modules: tuple[str, ...]) -> None:
    monkeypatch.setattr(findings, "SCAN_MODULES", modules)
    case = good_case(tmp_path / "case")
    (tmp_path / "nrrd").mkdir()
    (tmp_path / "nrrd/t1.nrrd").write_bytes(b"NRRD0004")
    head = next(change for _, title, change in EVERY if title == "a head with its skull")
    said = [str(finding) for finding in head(good_case(tmp_path / "head"))]
    for refused in (lambda: find_case(tmp_path / "nrrd"), lambda: read_image(tmp_path / "nrrd/t1.nrrd")):
        with pytest.raises(BadInputError) as error:
            refused()
        said.append(str(error.value))
    said.append(said_by("segment", "--in-path", str(case), "--out-path", str(tmp_path / "out"), "--study", "1"))
    for message in said:
        assert "lora-moe-hgd prepare FOLDER OUT" in message
        assert (install_command("scans") in message) == bool(modules)


def test_the_document_shows_what_is_said_now() -> None:
    assert DOCUMENT.read_text() == document(), "Run .venv/bin/python tests/test_bad_input.py"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
