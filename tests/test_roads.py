"""One case by every road: the same segmentation, the same label numbers, the same warnings."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import nibabel as nib
import numpy as np
import pytest
from transformers import pipeline

from lora_moe_hgd import Segmentation, load_checkpoint, segment
from lora_moe_hgd.inference.segment import find_regions
from lora_moe_hgd.model.confidence import confidence_warnings
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd_cli import run

pytestmark = pytest.mark.usefixtures("small_shipped")

FILES = {"t1c": "T1c.nii.gz", "t2": "T2.nii.gz", "flair": "FLAIR.nii.gz"}
Found = tuple[np.ndarray, list[str]]


@pytest.fixture(scope="module")
def case(dummy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom without T1, whose FLAIR lies on another grid and whose T2 holds NaN and a filled corner."""
    folder = tmp_path_factory.mktemp("roads") / "case"
    folder.mkdir()
    for name in FILES.values():
        image = nib.load(dummy_root / "case_000" / name)
        array, affine = np.asarray(image.dataobj).copy(), image.affine.copy()
        if name == "FLAIR.nii.gz":
            affine[:3, 3] += 3
        if name == "T2.nii.gz":
            array[20, 20, 20] = np.nan
            array[:3] = -1000
        nib.save(nib.Nifti1Image(array, affine), folder / name)
    return folder


def of_command(out: Path) -> Found:
    report = json.loads((out / "report.json").read_text())
    return np.asarray(nib.load(out / "seg.nii.gz").dataobj), report["warnings"]


def of_segmentation(found: Segmentation) -> Found:
    return np.asarray(found.label_map.dataobj), found.warnings


@pytest.fixture(scope="module")
def by_folder(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    out = tmp_path_factory.mktemp("by_folder")
    run("segment", ["--in-path", str(case), "--out-path", str(out)])
    labels, found = of_command(out)
    assert labels.any()
    # What is odd about the case comes first, then which regions are doubtful.
    of_the_case, of_the_result = found[:4], found[4:]
    odd = (
        "t2: 1 voxel is not finite",
        "t2: The background has the value -1000",
        "flair: The grid differs",
        "The brains in t2 and flair",
    )
    assert all(warning.startswith(start) for warning, start in zip(of_the_case, odd, strict=True))
    assert of_the_result
    assert all("The expected Dice is" in warning for warning in of_the_result)
    return labels, found


def same(found: Found, expected: Found) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_named_files_give_what_the_folder_gives(case: Path, by_folder: Found, tmp_path: Path) -> None:
    files = [word for name, file in FILES.items() for word in (f"--{name}", str(case / file))]
    run("segment", [*files, "--out-path", str(tmp_path / "out")])
    same(of_command(tmp_path / "out"), by_folder)


@pytest.fixture(scope="module")
def sources(case: Path) -> dict[str, dict[str, Any]]:
    row = {name: {"path": str(case / file), "bytes": None} for name, file in FILES.items()}
    return {
        "paths": {name: case / file for name, file in FILES.items()},
        "images": {name: nib.load(case / file) for name, file in FILES.items()},
        "a row of a dataset": {name: datasets.Nifti().decode_example(value) for name, value in row.items()},
    }


@pytest.mark.parametrize("kind", ["paths", "images", "a row of a dataset"])
def test_a_dict_gives_what_the_folder_gives(sources, kind: str, by_folder: Found) -> None:
    same(of_segmentation(segment(sources[kind])), by_folder)


@pytest.mark.parametrize("kind", ["paths", "images", "a row of a dataset"])
def test_the_processor_gives_what_the_folder_gives_and_warns(sources, kind: str, by_folder: Found) -> None:
    network, processor = load_checkpoint()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inputs = processor(sources[kind])
    regions, probabilities = find_regions(network, processor, inputs)
    (geometry,), (present,) = inputs["geometry"], inputs["modality_mask"].tolist()
    assert [str(warning.message) for warning in caught if warning.category is UserWarning] == [*geometry.warnings]
    confidence = processor.confidence(probabilities, regions, voxel_ml=geometry.voxel_ml, present=present)
    doubts = [str(finding) for finding in confidence_warnings(confidence)]
    same((LABEL_SCHEMES["brats2023"].encode(regions), [*geometry.warnings, *doubts]), by_folder)


@pytest.mark.parametrize("kind", ["paths", "folder"])
def test_the_pipeline_gives_what_the_folder_gives(sources, case: Path, kind: str, by_folder: Found) -> None:
    network, processor = load_checkpoint()
    segmenter = pipeline("brain-tumor-segmentation", model=network, image_processor=processor, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = segmenter(str(case) if kind == "folder" else sources["paths"])
    same((found["segmentation"], found["warnings"]), by_folder)
