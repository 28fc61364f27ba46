"""The confidence: the Dice to expect of each region, calibrated by weights that travel with the checkpoint."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.special import expit, logit

from lora_moe_hgd import LoraMoeHgdImageProcessor, load_checkpoint
from lora_moe_hgd.app.results import result_html
from lora_moe_hgd.inference.cohort_page import write_cohort_index
from lora_moe_hgd.inference.page import write_case_page
from lora_moe_hgd.model.confidence import LOW_CONFIDENCE, confidence_warnings, dice_text, rounded_down
from lora_moe_hgd.model.task import BRAIN_TUMOUR

WEIGHTS = [[0.1, 0.9, 0.2, -0.3, 0.5, 0.0, 0.3, 0.0, -0.1]] * 3
PRESENT = [False, True, False, True]


@pytest.fixture
def probabilities() -> np.ndarray:
    """WT and TC somewhere, ET nowhere."""
    values = np.random.default_rng(0).random((3, 8, 8, 8)).astype(np.float32)
    values[2] *= 0.4
    return np.minimum.accumulate(values)


def test_the_confidence_is_the_logistic_regression_of_its_weights(probabilities: np.ndarray) -> None:
    processor = LoraMoeHgdImageProcessor(confidence_weights=WEIGHTS)
    regions = probabilities > 0.5
    found = processor.confidence(probabilities, regions, voxel_ml=0.1, present=PRESENT)
    volumes = np.log10(regions.sum((1, 2, 3)) * 0.1 + 0.1)
    for name, soft, region in zip(("wt", "tc"), probabilities, regions, strict=False):
        implied = 2 * soft[region].sum(dtype=float) / (soft.sum(dtype=float) + region.sum())
        features = [1, logit(implied), *volumes, *PRESENT]
        assert found[name] == pytest.approx(expit(np.dot(WEIGHTS[0], features)))


def test_a_region_that_was_not_found_has_no_confidence_and_no_warning(probabilities: np.ndarray) -> None:
    found = load_checkpoint("tiny")[1].confidence(probabilities, probabilities > 0.5, voxel_ml=1.0, present=PRESENT)
    assert found["et"] is None
    assert not [finding for finding in confidence_warnings(found) if finding.where == "ET"]


def test_a_region_with_a_low_confidence_gets_a_warning_that_names_it() -> None:
    (finding,) = confidence_warnings({"wt": LOW_CONFIDENCE, "tc": LOW_CONFIDENCE - 0.01, "et": None})
    assert finding.where == "TC"
    assert "0.59" in finding.message


@pytest.mark.parametrize(
    ("dice", "text"),
    [(0.6, "0.60"), (0.5999999999, "0.59"), (0.6 - 2**-53, "0.59"), (0.29, "0.29"), (1.0, "1.00"), (1e-12, "0.00")],
)
def test_an_expected_dice_is_rounded_down_exactly(dice: float, text: str) -> None:
    assert dice_text(dice) == text
    assert rounded_down(dice) == float(text)


def test_a_low_confidence_is_never_shown_as_the_limit_itself(tmp_path: Path) -> None:
    """0.598 is below 0.6, so no text shows it as 0.60."""
    almost = LOW_CONFIDENCE - 0.002
    (finding,) = confidence_warnings({"wt": 0.9, "tc": almost, "et": None})
    assert "The expected Dice is only 0.59." in finding.message
    report = {
        "case_id": "case",
        "warnings": [],
        "volumes_ml": {"wt": 2.0, "tc": 1.0, "et": 0.0},
        "confidence": {"wt": 0.9, "tc": almost, "et": None},
        "sequences_used": ["t1c"],
        "sequences_not_used": ["t1", "t2", "flair"],
        "interpolated": [],
        "shape": [8, 9, 10],
        "spacing_mm": [1.0, 1.0, 1.0],
        "label_scheme": {"name": "brats2023", "core": 1},
        "checkpoint": "tiny",
        "versions": {"torch": "2"},
        "seconds": 3.0,
        "notice": "Research use.",
    }
    images = {"t1c": nib.Nifti1Image(np.ones((8, 9, 10), dtype=np.float32), np.eye(4))}
    write_case_page(tmp_path / "report.html", images, np.ones((3, 8, 9, 10), dtype=bool), report)
    row = {"case": "case", "status": "done", "sequences": "t1c", "warnings": [], "confidence": almost}
    row |= {f"{name}_ml": 1.0 for name in BRAIN_TUMOUR.regions}
    write_cohort_index(tmp_path / "index.html", [row])
    texts = {
        "app": result_html(report, [], "results/x", BRAIN_TUMOUR),
        "page": (tmp_path / "report.html").read_text(),
        "index": (tmp_path / "index.html").read_text(),
    }
    for place, text in texts.items():
        assert ">0.59" in text, place
        assert ">0.60" not in text, place


def test_a_result_without_any_region_has_a_warning() -> None:
    (finding,) = confidence_warnings(dict.fromkeys(("wt", "tc", "et")))
    assert str(finding) == "No tumour was found. Look at the images: the program can miss a tumour."


def test_without_weights_the_confidence_is_what_the_probabilities_imply() -> None:
    probabilities = np.array([[[[1.0, 0.0]]], [[[0.75, 0.25]]], [[[0.75, 0.25]]]], dtype=np.float32)
    found = LoraMoeHgdImageProcessor().confidence(probabilities, probabilities > 0.5, voxel_ml=1.0, present=PRESENT)
    assert list(found.values()) == [1.0, 0.75, 0.75]


def test_weights_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"9 numbers for each region \(wt, tc, et\), but has \[6, 6, 6\]"):
        LoraMoeHgdImageProcessor(confidence_weights=[[0.0] * 6] * 3)
