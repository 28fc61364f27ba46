"""A cohort is looked through before it is used: every case is read, everything odd is said, and nothing stops it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bad_input import AFFINE, PATIENT, SHAPE, array_of, good_case, no_tumour, save, twice

from lora_moe_hgd import segment
from lora_moe_hgd.cases.check import CheckedCase, CheckedCohort, check_cohort
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.evaluation import scoring
from lora_moe_hgd.evaluation.scoring import score_case
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.sources import build_data
from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]
NAMING = "t1 *_t1.nii.gz, t1c *_t1ce.nii.gz, t2 *_t2.nii.gz, flair *_flair.nii.gz, seg *_seg.nii.gz"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_case(tmp_path_factory.mktemp("good") / "case")


@pytest.fixture
def cohort(good: Path, tmp_path: Path) -> Path:
    """Five cases: two good ones, one of them without T2, one odd, one damaged, one whose files cannot be told."""
    for name in ("a", "b", "odd", "damaged", "mixed"):
        shutil.copytree(good, tmp_path / "cohort" / name)
    (tmp_path / "cohort/b/x_t2.nii.gz").unlink()
    no_tumour(tmp_path / "cohort/odd")
    flair = tmp_path / "cohort/damaged/x_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:1000])
    twice(tmp_path / "cohort/mixed")
    return tmp_path / "cohort"


def check(capsys, *words: str) -> tuple[int, str]:
    code = 0
    try:
        run("check", words)
    except SystemExit as stopped:
        code = int(str(stopped.code))
    return code, capsys.readouterr().out


def test_every_case_is_read_and_errors_come_first(cohort: Path, capsys) -> None:
    code, text = check(capsys, str(cohort))
    assert code == 1
    first, second, third, *numbers = text.splitlines()
    end = "The compressed file ends too early. Copy or download the file again."
    assert first == f"error    damaged/x_flair.nii.gz: {end}"
    assert second.startswith("error    mixed: Several files may be t2: x_t2.nii.gz, y_t2.nii.gz.")
    assert third == "warning  odd/x_seg.nii.gz: The label map contains no tumour."
    assert numbers == [
        "4 cases, 2 errors, 1 warning",
        "sequences: t1 4, t1c 4, t2 3, flair 4",
        "  t1+t1c+t2+flair: 3 cases: a, damaged, odd",
        "  t1+t1c+flair: 1 case: b",
        "layouts: BraTS 2017 to 2021 4",
        "label schemes: brats2018 4",
        f"files of 3 cases: {NAMING}",
        f"files of 1 case: {NAMING.replace('t2 *_t2.nii.gz, ', '')}",
    ]
    assert PATIENT not in text


def test_of_many_cases_with_the_same_sequences_only_some_are_named(good: Path, tmp_path: Path) -> None:
    case = find_case(good)
    checked = [CheckedCase(replace(case, case_id=f"case_{n}"), None, ()) for n in range(7)]
    lines = CheckedCohort(tmp_path, tuple(checked), ()).table().splitlines()
    assert "  t1+t1c+t2+flair: 7 cases: case_0, case_1, case_2, case_3, case_4 and 2 more" in lines


def test_hints_name_only_options_of_the_command(good: Path, tmp_path: Path, capsys) -> None:
    """`--t1` and so on are options of `segment` alone, and a dict is for Python."""
    shutil.copytree(good, tmp_path / "cohort/mixed")
    twice(tmp_path / "cohort/mixed")
    reason = "Several files may be t2: x_t2.nii.gz, y_t2.nii.gz. Keep one of these files, or put each patient and "
    reason += "each session into a separate folder."
    code, text = check(capsys, str(tmp_path / "cohort"))
    assert code == 1
    assert text.splitlines()[0] == f"error    mixed: {reason}"
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(tmp_path / "cohort/mixed"), "--out-path", str(tmp_path / "out")])
    options = "--t1 FILE --t1c FILE --t2 FILE --flair FILE"
    remedy = f"{reason} Or name the files of the case with {options} instead of --in-path.\n"
    assert capsys.readouterr().err.endswith(remedy)
    remedy = (
        f"{reason} Or give `segment` a dict with the path of each sequence: "
        "{'t1': FILE, 't1c': FILE, 't2': FILE, 'flair': FILE}."
    )
    with pytest.raises(BadInputError) as refused:
        segment(tmp_path / "cohort/mixed")
    assert str(refused.value).endswith(remedy)


@pytest.mark.slow
def test_several_processes_find_the_same(cohort: Path) -> None:
    assert check_cohort(cohort, num_workers=2).to_dict() == check_cohort(cohort).to_dict()


def test_warnings_alone_are_no_failure(cohort: Path, capsys) -> None:
    code, text = check(capsys, str(cohort / "odd"))
    assert code == 0
    assert "1 case, 0 errors, 1 warning" in text


def test_json_holds_what_the_table_shows(cohort: Path, capsys) -> None:
    code, text = check(capsys, str(cohort), "--json")
    found = json.loads(text)
    assert code == 1
    assert found["counts"]["sequences"] == {"t1": 4, "t1c": 4, "t2": 3, "flair": 4}
    assert [finding["level"] for finding in found["findings"]] == ["error", "error", "warning"]
    assert "The compressed file ends too early" in found["findings"][0]["message"]
    assert found["cases"][1] == {
        "case": "b",
        "layout": "BraTS 2017 to 2021",
        "sequences": ["t1", "t1c", "flair"],
        "files": {"t1": "x_t1.nii.gz", "t1c": "x_t1ce.nii.gz", "flair": "x_flair.nii.gz"},
        "left_out": [],
        "label_scheme": "brats2018",
    }


def test_labels_can_be_left_out_or_named(cohort: Path, capsys) -> None:
    (cohort / "a/x_seg.nii.gz").unlink()
    remedies = "or leave the case out. Or add --no-labels if you only segment."
    for words in ([], ["--json"]):
        (said,) = (line for line in check(capsys, str(cohort / "a"), *words)[1].splitlines() if "no ground" in line)
        assert remedies in said
    assert check(capsys, str(cohort / "a"), "--no-labels")[0] == 0
    code, text = check(capsys, str(cohort / "b"), "--label-scheme", "msd")
    assert code == 1
    assert "is not among the labels of msd" in text


def test_a_root_without_cases_is_a_wrong_command_not_a_finding(tmp_path: Path, capsys) -> None:
    assert check(capsys, str(tmp_path / "nowhere"))[0] == 2


def test_training_refuses_bad_cases_with_all_their_names_and_nan_among_them(cohort: Path, tmp_path: Path) -> None:
    path = cohort / "a/x_t1.nii.gz"
    array = np.asarray(nib.load(path).dataobj).copy()
    array[20, 20, 20] = np.nan
    nib.save(nib.Nifti1Image(array, nib.load(path).affine), path)
    (cohort / "b/x_seg.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"cannot be used \(errors: 4\)") as refused:
        training_data(cohort, tmp_path)
    for words in (
        "mixed: Several files may be t2",
        "a/x_t1.nii.gz: 1 voxel is not finite",
        "x_flair.nii.gz: The compressed file ends too early",
        "b: This case has no ground truth",
    ):
        assert words in str(refused.value)
    # Training has no such option.
    assert "--no-labels" not in str(refused.value)
    errors = [finding for finding in check_cohort(cohort).findings if finding.level == "error"]
    assert len(errors) == 4
    assert all(str(finding) in str(refused.value) for finding in errors)


def test_training_goes_on_without_bad_cases_if_asked_and_lists_them(cohort: Path, tmp_path: Path, capsys) -> None:
    for _ in range(2):
        data = training_data(cohort, tmp_path, "--skip-bad", "true")
        sources = (data.train, data.validation)
        names = [source[index]["case_id"] for source in sources for index in range(len(source))]
        assert sorted(names) == ["a", "b", "odd"]
        listed = capsys.readouterr().err
        assert "Case left out: " in listed
        assert "damaged/x_flair.nii.gz: The compressed file ends too early" in listed
        assert "mixed: Several files may be t2" in listed


def test_a_scheme_that_is_named_is_the_one_that_is_trained_on(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not among the labels of msd"):
        training_data(cohort, tmp_path, "--skip-bad", "false", "--label-scheme", "msd")


def part_of_a_brain(folder: Path) -> None:
    for path in good_case(folder).iterdir():
        save(path, array_of(path), AFFINE @ np.diag([0.6, 0.6, 0.6, 1]))


def head(folder: Path) -> None:
    """An oval cylinder of 3.7 litres, as the field of view cuts heads."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, edge) for edge in SHAPE), indexing="ij"))
    inside = (grid[:2] ** 2).sum(axis=0) < 0.9
    scalp = np.random.default_rng(9).normal(100, 10, SHAPE)
    for path in good_case(folder).glob("x_[tf]*"):
        array = array_of(path)
        save(path, np.where(inside, np.where(array == 0, scalp, array), 0).astype(np.float32))


KINDS = [
    (part_of_a_brain, "--allow-partial", "too little for a brain"),
    (head, "--allow-skull", "a head with its skull"),
]


@pytest.fixture(params=KINDS, ids=["part", "head"])
def odd_cohort(request, tmp_path: Path) -> tuple[str, str, str]:
    """Two cases, the option that accepts them, and what is said of them."""
    make, option, said = request.param
    for name in ("a", "b"):
        make(tmp_path / "cohort" / name)
    return str(tmp_path / "cohort"), option, said


def code_of(command: str, *words: str) -> int:
    try:
        run(command, words)
    except SystemExit as stopped:
        return int(str(stopped.code))
    return 0


def test_heads_and_parts_are_errors_of_check_and_convert_unless_allowed(odd_cohort, tmp_path: Path, capsys) -> None:
    root, option, said = odd_cohort
    convert = ["convert", root, str(tmp_path / "converted"), "--layout", "brats2023"]
    for words in (["check", root], convert):
        assert code_of(*words) == 1
        captured = capsys.readouterr()
        assert said in captured.out + captured.err
        assert code_of(*words, option) == 0
        # As a warning.
        captured = capsys.readouterr()
        assert said in captured.out + captured.err


def test_heads_and_parts_are_not_scored_unless_allowed(odd_cohort, tmp_path: Path, monkeypatch, capsys) -> None:
    root, option, said = odd_cohort
    # Reading and judging alone, which is what the option is about.
    monkeypatch.setattr(scoring, "score_case", lambda *args: score_case(*args[:3], [], args[4]))
    words = ["evaluate", "--data", root, "--out", str(tmp_path / "out"), "--subsets", "t1"]
    assert code_of(*words) == 1
    assert f"failed: a: {root}/a/x_t1.nii.gz: " in (text := capsys.readouterr().err)
    assert said in text
    assert code_of(*words, option) == 0
    assert f"warning: a: {root}/a/x_t1.nii.gz: " in capsys.readouterr().err
    # What was scored because it was allowed is not taken for what needs no allowance.
    assert code_of(*words) == 1


def test_heads_and_parts_train_only_if_allowed_and_also_where_they_are_prepared(odd_cohort, tmp_path: Path) -> None:
    root, option, said = odd_cohort
    allowed = training_data(Path(root), tmp_path, option, "true")
    assert sorted([*allowed.split.train, *allowed.split.validation]) == ["a", "b"]
    with pytest.raises(ValueError, match=said):
        training_data(Path(root), tmp_path)


def training_data(root: Path, tmp_path: Path, *options: str):
    config = read_config(
        [
            *("--config", str(ROOT / "configs/brats2018.yaml"), "--data", str(root), "--num-workers", "0"),
            *("--cache-dir", str(tmp_path / "cache"), *options),
        ]
    )
    return build_data(config, LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0)), show=True)
