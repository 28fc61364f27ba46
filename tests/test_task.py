"""Tasks: their rules, and what follows from the sets of labels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.task import BRAIN_TUMOUR, RESERVED, Task, make_task, shown
from lora_moe_hgd.task_files import read_task

LESIONS = """
name: ms-lesions
target: lesion
sequences:
  t1:
  t2: [t2w, T2]
  flair: [t2f, flair]
regions:
  lesion: [1]
label_map: [lesions, seg]
other_labels: [7]
without:
  flair: Lesions show on FLAIR alone.
"""


def task_of(regions: dict[str, list[int]], **others) -> Task:
    content = {"name": "made-up", "target": "thing", "sequences": {"t1": None, "dwi": ["dwi"]}, "regions": regions}
    return make_task({**content, **others}, where="test")


def written(folder: Path, text: str) -> Path:
    path = folder / "task.yaml"
    path.write_text(text)
    return path


def test_a_task_file_is_read_in_its_order(tmp_path: Path) -> None:
    task = read_task(written(tmp_path, LESIONS))
    assert (task.name, task.target, task.modalities, task.regions) == (
        *("ms-lesions", "lesion"),
        *(("t1", "t2", "flair"), ("lesion",)),
    )
    assert dict(task.sequences) == {"t1": (), "t2": ("t2w", "t2"), "flair": ("t2f", "flair")}
    assert task.label_map == ("lesions", "seg")
    assert task.schemes["ms-lesions"].labels == {0, 1, 7}
    assert str(task.schemes["ms-lesions"]) == "ms-lesions (0 background, 1 lesion, 7 no lesion)"


def test_a_task_survives_a_file_that_sorts_its_keys() -> None:
    task = task_of({"whole": [3, 1], "core": [1]}, without={"t1": "Blind."}, label_map=["mask"])
    assert Task.from_dict(json.loads(json.dumps(task.to_dict(), sort_keys=True))) == task


@pytest.mark.parametrize("content", [3, {"sequences": 3}, {"regions": ["lesion"]}, {"sequences": [["t1", "t2", 3]]}])
def test_a_damaged_task_of_a_checkpoint_is_refused(content) -> None:
    with pytest.raises(BadInputError, match="task of the checkpoint: Sequences and regions are not lists of pairs"):
        Task.from_dict(content)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("regions:", "region:", "`region`: This key is unknown. The most similar key is `regions`"),
        ("target: lesion", "", "`target`: This key is missing"),
        ("name: ms-lesions", "name: MS lesions", "`name`: Use only small letters"),
        ("name: ms-lesions", "name: brats2018", "`name`: `brats2018` is already the name"),
        ("target: lesion", "target: white matter", "`target`: Give one word"),
        ("  t1:", "  adc:", r"`sequences.adc`: Give the words .* such as \[adc\]"),
        ("  t1:", "  device: [a]", "`sequences`: `device` is already an option"),
        ("  t1:", "  T1: [a]", "Got: 'T1'"),
        ("[t2w, T2]", "t2w", r"`sequences.t2`: Give a list of words"),
        ("[t2w, T2]", "[t2-w]", r"`sequences.t2`: A word contains only letters and digits. Got: 't2-w'"),
        ("[t2w, T2]", "[t2w, seg]", "`label_map`: The word `seg` is also in `sequences.t2`"),
        ("lesion: [1]", "lesion: []", r"`regions.lesion`: Give the labels"),
        ("lesion: [1]", "lesion: [0]", r"integers from 1 to 255, and 0 is the background. Got: 0"),
        ("lesion: [1]", "lesion: [1, 1]", "A label occurs twice: 1, 1"),
        ("lesion: [1]", "lesion: [1, 7]", "`other_labels`: The label 7 also belongs to the region `lesion`"),
        ("lesion: [1]", "lesion: [1]\n  all_of_it: [1, 2]", "`regions.lesion`: All .* Put a region before"),
        ("  flair: Lesions", "  dwi: Lesions", "`without.dwi`: This is not a sequence"),
        ("  flair: Lesions show on FLAIR alone.", "  flair: 3", "`without`: Give the warning"),
        ("  lesion: [1]", "  lesion: [1]\n  lesion: [2]", "the key `lesion` occurs twice"),
        ("name:", "name: [", "not valid YAML"),
    ],
)
def test_a_broken_rule_is_named_with_file_key_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in LESIONS
    path = written(tmp_path, LESIONS.replace(old, new, 1))
    with pytest.raises(BadInputError, match=message) as caught:
        read_task(path)
    assert str(path) in str(caught.value)


def test_what_is_no_task_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="task file does not exist"):
        read_task(tmp_path / "none.yaml")
    with pytest.raises(BadInputError, match="more than 65536 bytes"):
        read_task(written(tmp_path, "#" * 100_000))
    with pytest.raises(BadInputError, match="keys and values"):
        read_task(written(tmp_path, "- a"))


@pytest.mark.parametrize(
    ("regions", "around"),
    [
        ({"wt": [2, 1, 3], "tc": [1, 3], "et": [3]}, ((), (0,), (0, 1))),
        ({"edema": [2], "core": [1]}, ((), ())),
        ({"a": [1, 2], "b": [2, 3], "c": [2]}, ((), (), (0, 1))),
        ({"whole": [1, 2, 3], "left": [1], "right": [2]}, ((), (0,), (0,))),
    ],
)
def test_nesting_follows_from_the_labels(regions: dict[str, list[int]], around: tuple[tuple[int, ...], ...]) -> None:
    assert task_of(regions).around == around


@pytest.mark.parametrize(
    "regions",
    [
        {"wt": [2, 1, 3], "tc": [1, 3], "et": [3]},
        {"edema": [2], "core": [1]},
        {"a": [1, 2], "b": [2, 3]},
        {"a": [1, 2, 5], "b": [2, 3], "c": [2, 4]},
        {"whole": [9, 1, 2, 3], "left": [1], "right": [2], "dots": [4]},
    ],
)
def test_writing_a_label_map_loses_no_region(regions: dict[str, list[int]]) -> None:
    (scheme,) = task_of(regions).schemes.values()
    labels = np.random.default_rng(0).choice(sorted(scheme.labels), size=(6, 7, 8)).astype(np.uint8)
    masks = scheme.decode(labels)
    np.testing.assert_array_equal(masks, [np.isin(labels, members) for members in regions.values()])
    np.testing.assert_array_equal(scheme.decode(scheme.encode(masks)), masks)


def test_where_no_label_fits_the_later_region_is_painted() -> None:
    (scheme,) = task_of({"edema": [2], "core": [1]}).schemes.values()
    assert scheme.encode(np.array([[1, 1, 0, 0], [1, 0, 1, 0]])).tolist() == [1, 2, 1, 0]


def test_overlaps_have_a_name_of_their_own() -> None:
    (scheme,) = task_of({"a": [1, 2], "b": [2, 3]}).schemes.values()
    assert str(scheme) == "made-up (0 background, 1 a, 2 a and b, 3 b)"


def test_probabilities_of_the_tumour_are_nested_as_before_bit_for_bit() -> None:
    probabilities = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(BRAIN_TUMOUR.nested(probabilities), probabilities.cummin(dim=0).values)


def test_only_regions_that_contain_another_limit_it() -> None:
    task = task_of({"whole": [1, 2, 3], "left": [1], "right": [2]})
    found = task.nested(torch.tensor([0.5, 0.9, 0.2])[:, None, None, None]).flatten()
    assert found.tolist() == pytest.approx([0.5, 0.5, 0.2])


def test_an_unknown_label_is_refused_with_the_remedy() -> None:
    (scheme,) = task_of({"lesion": [1]}).schemes.values()
    with pytest.raises(ValueError, match=re.escape("among the labels of made-up (0 background, 1 lesion). Add the")):
        scheme.decode(np.array([0, 1, 5]))


def test_short_names_of_regions_are_abbreviations() -> None:
    assert [shown(region) for region in (*BRAIN_TUMOUR.regions, "lesion")] == ["WT", "TC", "ET", "lesion"]
    assert "t1" not in RESERVED
