"""Lesion-wise scores against the official program of BraTS 2026 and against panoptica: `nox -s official_metrics`.

The official program is under AGPL-3.0. It is installed only for this file, and the package never imports it.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from lora_moe_hgd.evaluation.lesions import LESION_RULES, lesion_scores
from lora_moe_hgd.evaluation.metrics import surface_distances_mm
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.label_schemes import label_scheme

brats_evaluation = pytest.importorskip("brats_evaluation", reason="needs brats-evaluation: nox -s official_metrics")
panoptica = pytest.importorskip("panoptica", reason="needs panoptica: nox -s official_metrics")

BRATS_AFRICA = Path(__file__).parents[2] / "shared/data/brats-africa"
SHAPE = (26, 22, 18)
NUM_RANDOM = 120
REGIONS = ("wt", "tc", "et")
# Configurations of the official program, the rules here that should equal them, and the scheme of their labels.
CHALLENGES = {
    "gli": ("gli2026", "brats2023"),
    "GoAT": ("goat2026", "brats2023"),
    "ped": ("ped2026", "ped2024"),
    "MenPre": ("men2026", "brats2023"),
    "mets": ("met2026", "brats2023"),
}

Pair = tuple[np.ndarray, np.ndarray]
"""Predicted and true label map with the labels of BraTS 2023."""


def box(*corner: int, edge: int | tuple[int, int, int] = 4, label: int = 3) -> np.ndarray:
    labels = np.zeros((40, 40, 40), dtype=np.uint8)
    edges = (edge,) * 3 if isinstance(edge, int) else edge
    labels[tuple(slice(at, at + length) for at, length in zip(corner, edges, strict=True))] = label
    return labels


def edge_cases() -> dict[str, Pair]:
    empty, one, far = box(0, 0, 0, edge=0), box(3, 3, 3), box(25, 25, 25)
    both = np.maximum(one, far)
    small = np.maximum(one, box(20, 20, 20, edge=2))
    return {
        "both empty": (empty, empty),
        "missed": (empty, one),
        "invented": (one, empty),
        "perfect": (one, one),
        "apart": (far, one),
        "one of two found": (one, both),
        "one of two is false": (both, one),
        "one voxel": (box(3, 3, 3, edge=1), box(3, 3, 3, edge=1)),
        "one voxel missed": (empty, box(3, 3, 3, edge=1)),
        "one false voxel": (np.maximum(one, box(20, 20, 20, edge=1)), one),
        "touching at a corner": (np.maximum(one, box(7, 7, 7)), np.maximum(one, box(7, 7, 7))),
        "touching at an edge": (one, np.maximum(one, box(7, 7, 3))),
        "many to one": (np.maximum(box(3, 3, 3, edge=2), box(6, 6, 6, edge=2)), box(3, 3, 3, edge=5)),
        "one to many": (box(3, 3, 3, edge=10), np.maximum(box(3, 3, 3), box(9, 9, 9))),
        # The best match of the first lesion would leave none for the second.
        "chain": (
            np.maximum(box(0, 3, 3, edge=(5, 4, 4)), box(6, 3, 3, edge=(8, 4, 4))),
            np.maximum(box(2, 3, 3, edge=(8, 4, 4)), box(11, 3, 3, edge=(8, 4, 4))),
        ),
        # Volumes around the threshold of the metastases challenge.
        "26 voxels": (box(3, 3, 3, edge=(13, 2, 1)),) * 2,
        "27 voxels": (box(3, 3, 3, edge=3),) * 2,
        "28 voxels": (box(3, 3, 3, edge=(7, 2, 2)),) * 2,
        "small found": (small, small),
        "small missed": (one, small),
        "only small, and a false one": (small, box(20, 20, 20, edge=2)),
        # Dice of 1/5, 3/16 and 1/4.
        "Dice at the threshold": (box(3, 3, 3, edge=(5, 4, 4)), box(7, 3, 3, edge=(5, 4, 4))),
        "Dice below the threshold": (box(3, 3, 3, edge=(16, 2, 2)), box(16, 3, 3, edge=(16, 2, 2))),
        "Dice above the threshold": (box(6, 3, 3), one),
        "parts": (
            np.maximum(box(3, 3, 3, edge=9, label=2), box(5, 5, 5, edge=3)),
            np.maximum(box(4, 3, 3, edge=9, label=2), box(5, 5, 5, edge=(5, 4, 4))),
        ),
    }


def random_pair(seed: int, shape: tuple[int, int, int] = SHAPE) -> Pair:
    """Boxes of random labels. The prediction shares some of them, moved by up to two voxels."""
    rng = np.random.default_rng(seed)
    prediction, truth = np.zeros((2, *shape), dtype=np.uint8)
    for _ in range(int(rng.integers(1, 9))):
        corner = np.array([rng.integers(0, edge - 2) for edge in shape])
        edges, label = rng.integers(1, 7, size=3), rng.integers(1, 4)
        fate = rng.random()
        if fate > 0.15:
            truth[tuple(slice(at, at + length) for at, length in zip(corner, edges, strict=True))] = label
        if fate < 0.85:
            moved = np.maximum(corner + rng.integers(-2, 3, size=3), 0)
            prediction[tuple(slice(at, at + length) for at, length in zip(moved, edges, strict=True))] = label
    return prediction, truth


def real_pairs() -> dict[str, Pair]:
    """Expert segmentations of BraTS-Africa against copies that are changed in one of seven ways."""
    rng = np.random.default_rng(0)
    paths = sorted(BRATS_AFRICA.glob("*/*-seg.nii.gz"))[:21]
    ways = itertools.cycle(("shift", "erode", "merge", "drop", "add", "smooth", "crop"))
    pairs = {}
    for path, way in zip(paths, ways, strict=False):
        labels = np.asarray(nib.load(path).dataobj).astype(np.uint8)
        where = ndimage.find_objects(labels > 0)[0]
        labels = np.pad(labels[where], 12)
        pairs[f"{path.parent.name} {way}"] = changed(labels, way, rng), labels
    return pairs


def changed(labels: np.ndarray, way: str, rng: np.random.Generator) -> np.ndarray:
    found = labels.copy()
    if way == "shift":
        return np.roll(found, (3, -2, 1), axis=(0, 1, 2))
    if way == "erode":
        found[~ndimage.binary_erosion(labels > 0, iterations=2)] = 0
    elif way == "merge":
        found[ndimage.binary_dilation(labels > 0, iterations=4) & (labels == 0)] = 2
        found[ndimage.binary_closing(labels == 3, iterations=4)] = 3
    elif way == "drop":
        components, count = ndimage.label(labels == 3)
        found[np.isin(components, np.arange(1, count + 1, 2))] = 2
    elif way == "add":
        for _ in range(6):
            corner = [int(rng.integers(0, edge - 5)) for edge in labels.shape]
            found[tuple(slice(at, at + int(rng.integers(1, 5))) for at in corner)] = rng.integers(1, 4)
    elif way == "smooth":
        smooth = [ndimage.gaussian_filter((labels == label).astype(np.float32), 2) for label in range(4)]
        found = np.argmax(smooth, axis=0).astype(np.uint8)
    elif way == "crop":
        found[: labels.shape[0] // 2] = 0
    return found


def in_scheme(labels: np.ndarray, scheme: str) -> np.ndarray:
    return label_scheme(scheme).encode(label_scheme("brats2023").decode(labels))


def official(pairs: dict[str, Pair], config: str, folder: Path, affine: np.ndarray) -> pd.DataFrame:
    """Rows of the official program by the name of the pair, for example with `lesionwise_dsc_mean_et`."""
    names = {}
    for number, (name, pair) in enumerate(pairs.items()):
        names[f"BraTS-GLI-{number:05d}-000.nii.gz"] = name
        for place, labels in zip(("predicted", "true"), pair, strict=True):
            (folder / place).mkdir(exist_ok=True)
            image = nib.Nifti1Image(in_scheme(labels, CHALLENGES[config][1]), affine)
            nib.save(image, folder / place / f"BraTS-GLI-{number:05d}-000.nii.gz")
    scripts = Path(sys.executable).parent
    places = ["--ref_path", folder / "true", "--pred_path", folder / "predicted"]
    command = [scripts / "brats-evaluate", "--config", config, *places, "--summary_json", folder / "all.json"]
    subprocess.run(command, check=True, capture_output=True)
    assert not json.loads((folder / "all.json").read_text())["missings"]
    # The thresholds for metastases are those of the organisers.
    kind = ["mets", "--vol_threshold", "27", "--overlap_threshold", "0.2"] if config == "mets" else ["seg"]
    files = ["--json_path", folder / "all.json", "--output_csv_path", folder / "all.csv"]
    subprocess.run([scripts / "brats-parse-metrics", *kind, *files], check=True, capture_output=True)
    rows = pd.read_csv(folder / "all.csv", index_col="subject_id")
    return rows.loc[list(names)].rename(index=names)


def random_pairs() -> dict[str, Pair]:
    return {f"random {seed}": random_pair(seed) for seed in range(NUM_RANDOM)}


def compare(pairs: dict[str, Pair], config: str, rows: pd.DataFrame) -> None:
    """Assert that our scores of all pairs and regions equal those of the official program."""
    rules, _ = CHALLENGES[config]
    counts = "large" if config == "mets" else "all"
    for name, (prediction, truth) in pairs.items():
        masks = zip(*(label_scheme("brats2023").decode(labels) for labels in (prediction, truth)), strict=True)
        for region, (found, true) in zip(REGIONS, masks, strict=True):
            ours = lesion_scores(found, true, spacing_mm=(1, 1, 1), region=region, rules=LESION_RULES[rules])
            theirs = rows.loc[name].filter(regex=f"_{region}$")
            theirs.index = theirs.index.str.removesuffix(f"_{region}")
            expected = {
                "lesion_dice": theirs["lesionwise_dsc_mean"],
                "lesion_hd95_mm": theirs["lesionwise_hd95_mean"],
                "lesion_nsd": theirs["lesionwise_nsd_mean"],
            }
            if config != "mets" or ours["lesions"]:
                expected |= {
                    "lesions": theirs[f"{counts}_instance_tp"] + theirs[f"{counts}_instance_fn"],
                    "lesions_missed": theirs[f"{counts}_instance_fn"],
                    "lesions_false": theirs[f"{counts}_instance_fp"],
                }
            same = {key: ours[key] for key in expected}
            assert same == pytest.approx(expected, rel=1e-9, nan_ok=True), f"{name}, {region}"
            if found.any() or true.any():
                assert dice(found, true) == pytest.approx(theirs["global_dsc"]), f"{name}, {region}"


@pytest.mark.parametrize("config", list(CHALLENGES))
def test_scores_equal_those_of_the_official_program(config: str, tmp_path: Path) -> None:
    # The other configurations differ only in their labels.
    pairs = edge_cases() | (random_pairs() if config in ("gli", "mets") else {})
    compare(pairs, config, official(pairs, config, tmp_path, np.eye(4)))


@pytest.mark.skipif(not BRATS_AFRICA.is_dir(), reason="needs the cases of BraTS-Africa in ../shared/data/brats-africa")
@pytest.mark.parametrize("config", ["GoAT", "mets"])
def test_scores_of_real_segmentations_equal_those_of_the_official_program(config: str, tmp_path: Path) -> None:
    pairs = real_pairs()
    assert len(pairs) >= 20
    compare(pairs, config, official(pairs, config, tmp_path, np.eye(4)))


def test_the_official_scores_of_whole_regions_are_in_voxels(tmp_path: Path) -> None:
    """docs/evaluate.md says so, and that a region without overlap has 373."""
    pairs = edge_cases() | {f"random {seed}": random_pair(seed) for seed in range(20)}
    rows = official(pairs, "GoAT", tmp_path, np.diag([2.0, 2.0, 2.0, 1.0]))
    for name, pair in pairs.items():
        found, true = (label_scheme("brats2023").decode(labels)[0] for labels in pair)
        if (found & true).any():
            distances = surface_distances_mm(found, true, (1, 1, 1))
            close = [np.mean(part <= 0.5) for part in distances]
            expected = np.percentile(np.concatenate(distances), 95), np.mean(close)
        else:
            expected = (373, 0) if found.any() or true.any() else (math.nan, math.nan)
        values = tuple(rows.loc[name, ["global_hd95_wt", "global_nsd_wt"]])
        assert values == pytest.approx(expected, nan_ok=True), name


def test_the_official_program_takes_voxel_sizes_in_reverse_order(tmp_path: Path) -> None:
    """docs/evaluate.md says so. Cubic voxels hide it."""
    moved = {"first": (box(4, 3, 3), box(3, 3, 3)), "last": (box(3, 3, 4), box(3, 3, 3))}
    rows = official(moved, "GoAT", tmp_path, np.diag([1.0, 1.0, 3.0, 1.0]))
    assert rows["lesionwise_hd95_mean_et"].to_dict() == {"first": 3, "last": 1}
    ours = {
        name: lesion_scores(
            *(labels > 0 for labels in pair), spacing_mm=(1, 1, 3), region="et", rules=LESION_RULES["goat2026"]
        )["lesion_hd95_mm"]
        for name, pair in moved.items()
    }
    assert ours == {"first": 1, "last": 3}


@pytest.mark.parametrize("rules", ["panoptica", "goat2026"])
def test_scores_equal_those_of_panoptica_on_voxels_that_are_not_cubic(rules: str) -> None:
    configs = {
        "panoptica": Path(panoptica.__file__).parent / "configs/panoptica_evaluator_BRATS.yaml",
        "goat2026": brats_evaluation.config_path("GoAT"),
    }
    columns = {"lesion_dice": "sq_dsc"}
    if rules == "goat2026":
        columns |= {"lesion_hd95_mm": "sq_hd95", "lesion_nsd": "sq_nsd"}
    evaluator, spacing = panoptica.Panoptica_Evaluator.load_from_config(str(configs[rules])), (1.0, 0.7, 2.5)
    for name, pair in (edge_cases() | random_pairs()).items():
        found, true = (labels > 0 for labels in pair)
        ours = lesion_scores(found, true, spacing_mm=spacing, region="wt", rules=LESION_RULES[rules])
        # Without groups of labels, each label is a region of its own.
        masks = [mask.astype(np.uint8) for mask in (found, true)]
        results = evaluator.evaluate(*masks, voxelspacing=spacing)
        values = (results["wt"] if "wt" in results else results["ungrouped"]).to_dict()
        expected = {
            **{column: values[theirs] for column, theirs in columns.items()},
            "lesions": values["tp"] + values["fn"],
            "lesions_missed": values["fn"],
            "lesions_false": values["fp"],
        }
        assert {key: ours[key] for key in expected} == pytest.approx(expected, rel=1e-9, nan_ok=True), name
