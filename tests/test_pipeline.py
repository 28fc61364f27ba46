"""`pipeline("brain-tumor-segmentation")`, with the package and without it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from transformers import pipeline

from lora_moe_hgd import BrainTumorSegmentationPipeline, load_checkpoint, pretrained_path, segment
from lora_moe_hgd.cases.layouts import find_case

pytestmark = pytest.mark.usefixtures("small_shipped")

TASK = "brain-tumor-segmentation"


def default_pipeline(**options: bool) -> BrainTumorSegmentationPipeline:
    network, processor = load_checkpoint()
    return pipeline(TASK, model=network, image_processor=processor, device="cpu", **options)


@pytest.fixture(scope="module")
def segmenter() -> BrainTumorSegmentationPipeline:
    return default_pipeline()


@pytest.fixture(scope="module")
def files(dummy_root: Path) -> dict[str, Path]:
    images = find_case(dummy_root / "case_000").images
    return {name: images[name] for name in ("t1c", "flair")}


def test_it_gives_what_segmenting_the_case_gives(segmenter, files: dict[str, Path]) -> None:
    found = segmenter({**files, "t2": None})
    expected = segment({name: nib.load(path) for name, path in files.items()})
    assert np.array_equal(found["probabilities"], expected.probabilities)
    assert np.array_equal(found["segmentation"], np.asarray(expected.label_map.dataobj))
    assert (found["volumes_ml"], found["confidence"]) == (expected.volumes_ml, expected.confidence)
    assert np.array_equal(found["affine"], nib.load(files["t1c"]).affine)


@pytest.mark.parametrize("option", ["mirror", "bf16"])
def test_an_option_of_the_network_holds_if_given_when_the_pipeline_is_made_or_called(
    segmenter, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr("lora_moe_hgd.loading.is_fast_in_bf16", lambda device: True)
    images = {name: nib.load(path) for name, path in files.items()}
    expected = segment(images, device="cpu", **{option: True}).probabilities
    assert not np.array_equal(segmenter(files)["probabilities"], expected)
    assert np.array_equal(segmenter(files, **{option: True})["probabilities"], expected)
    made_so = default_pipeline(**{option: True})
    assert np.array_equal(made_so(files)["probabilities"], expected)


def test_a_folder_is_the_dict_of_its_files_and_a_list_is_cases_one_by_one(segmenter, dummy_root: Path) -> None:
    folders = [dummy_root / "case_000", dummy_root / "case_001"]
    found = segmenter([str(folders[0]), find_case(folders[1]).images])
    for folder, result in zip(folders, found, strict=True):
        assert np.array_equal(result["probabilities"], segmenter(str(folder))["probabilities"])


def test_arrays_have_the_spacing_and_the_result_the_scheme_that_is_asked_for(segmenter, files) -> None:
    image = nib.load(files["flair"])
    spacing = float(image.header.get_zooms()[0])
    found = segmenter({"flair": np.asarray(image.dataobj)}, spacing_mm=spacing, label_scheme="brats2018")
    assert set(np.unique(found["segmentation"])) <= {0, 1, 2, 4}
    assert np.diag(found["affine"])[0] == spacing
    assert found["segmentation"].shape == image.shape


def test_sequences_on_other_grids_are_taken_as_the_package_takes_them(segmenter, files: dict[str, Path]) -> None:
    image = nib.load(files["flair"])
    # Twice the voxel size.
    flair = nib.Nifti1Image(np.asarray(image.dataobj)[::2, ::2, ::2], image.affine @ np.diag([2, 2, 2, 1]))
    case = {"t1c": nib.load(files["t1c"]), "flair": flair}
    found, expected = segmenter(case), segment(case)
    assert np.array_equal(found["probabilities"], expected.probabilities)
    assert found["segmentation"].shape == image.shape
    assert found["warnings"] == expected.warnings
    assert any("flair" in warning.lower() for warning in found["warnings"])
    assert found["confidence"] == pytest.approx(expected.confidence)


def test_a_bad_case_in_a_list_is_one_failed_item(segmenter, files: dict[str, Path], monkeypatch) -> None:
    cases = [files, {"t1c": "nowhere.nii.gz"}, {"t9": files["t1c"]}, "nowhere", None, files]
    found = segmenter(cases, on_error="return")
    reasons = ["nowhere.nii.gz: There is no such file", "Unknown sequence t9", "nowhere", "None"]
    for item, reason in zip(found[1:5], reasons, strict=True):
        assert list(item) == ["error"]
        assert reason in item["error"]
    for item in (found[0], found[5]):
        assert np.array_equal(item["segmentation"], segmenter(files)["segmentation"])
    with pytest.raises(ValueError, match="There is no such file"):
        segmenter(cases)
    with pytest.raises(ValueError, match="`on_error` must be 'raise' or 'return', got 'skip'"):
        segmenter(cases, on_error="skip")

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    for part, method in ((segmenter.model, "segment_volume"), (segmenter.image_processor, "post_process_regions")):
        with monkeypatch.context() as patched:
            patched.setattr(part, method, fail)
            assert segmenter(files, on_error="return") == {"error": "MemoryError"}


def test_a_shipped_adapter_is_the_model_of_a_pipeline(files: dict[str, Path]) -> None:
    found = pipeline(TASK, model=str(pretrained_path("glioma")), device="cpu")(files)
    assert found["probabilities"] == pytest.approx(default_pipeline()(files)["probabilities"], abs=1e-5)


def test_cases_are_not_stacked(segmenter, files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"`batch_size` must be 1.*got 2"):
        segmenter([files, files], batch_size=2)
