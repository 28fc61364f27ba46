"""Pages of results: complete in one file, true to the report and to the voxels, and silent about nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lora_moe_hgd.api import example_case
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.inference import page as page_module
from lora_moe_hgd.inference.cohort_page import write_cohort_index
from lora_moe_hgd.inference.page import PAGES, write_case_page
from lora_moe_hgd.inference.results import CaseSegmenter, ResultOptions
from lora_moe_hgd.model.task import BRAIN_TUMOUR
from lora_moe_hgd_cli import run

pytestmark = pytest.mark.usefixtures("small_shipped")

SHAPE = (30, 26, 22)
# Stored from front to back, bottom to top, right to left (towards P, S, L), tilted by 8 degrees, with its own spacing.
TILT = np.deg2rad(8)
AFFINE = np.eye(4)
AFFINE[:3, 0] = np.array([0, -np.cos(TILT), -np.sin(TILT)]) * 1.0
AFFINE[:3, 1] = np.array([0, -np.sin(TILT), np.cos(TILT)]) * 2.0
AFFINE[:3, 2] = np.array([-1, 0, 0]) * 1.5
AFFINE[:3, 3] = (17, 40, -12)
REPORT: dict[str, Any] = {
    "case_id": "case <script>alert(1)</script> & co",
    "tumour_found": True,
    "volumes_ml": {"wt": 12.34, "tc": 5.6, "et": 0.0},
    "confidence": {"wt": 0.91, "tc": 0.52, "et": None},
    "sequences_used": ["t1c", "flair"],
    "sequences_not_used": ["t1", "t2"],
    "interpolated": ["flair"],
    "warnings": ["T1c.nii.gz: must </div> have <b>a brain</b>, got 0.1"],
    "shape": list(SHAPE),
    "spacing_mm": [1.0, 2.0, 1.5],
    "checkpoint": "tiny",
    "versions": {"torch": "2"},
    "notice": "Research use, not a medical device.",
}


def made_up() -> tuple[dict[str, nib.Nifti1Image], np.ndarray]:
    """Two sequences on an oblique grid, and regions that differ from slice to slice."""
    across, along, up = np.meshgrid(*(np.linspace(0, 6, edge) for edge in SHAPE), indexing="ij")
    waves = {"t1c": np.sin(across) + np.cos(along), "flair": np.cos(across) * np.sin(up) + along / 6}
    brain = np.zeros(SHAPE, dtype=bool)
    brain[6:27, 3:22, 6:20] = True
    images = {
        name: nib.Nifti1Image(np.where(brain, 100 + 30 * wave, 0).astype(np.float32), AFFINE)
        for name, wave in waves.items()
    }
    regions = np.zeros((3, *SHAPE), dtype=bool)
    for region, edge in zip(regions, (10, 7, 4), strict=True):
        region[8 : 8 + edge, 8 : 8 + edge, 8 : 8 + edge] = True
    return images, regions


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_case_page(path, *made_up(), REPORT)
    return path


def embedded(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="case">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(case: dict[str, Any], volume: dict[str, Any]) -> nib.Nifti1Image:
    """The volume as the NIfTI file that the page's script builds, with the differences undone voxel by voxel."""
    values = np.frombuffer(gzip.decompress(base64.b64decode(volume["data"])), np.uint8)
    padded = np.zeros([edge + 1 for edge in case["shape"]], int)
    for (x, y, z), difference in np.ndenumerate(values.reshape(case["shape"], order="F")):
        before = padded[x, y + 1, z + 1] + padded[x + 1, y, z + 1] + padded[x + 1, y + 1, z]
        padded[x + 1, y + 1, z + 1] = (int(difference) + before // 3) % 256
    voxels = padded[1:, 1:, 1:].astype(np.uint8)
    return nib.Nifti1Image.from_bytes(base64.b64decode(volume["header"]) + voxels.tobytes("F"))


def at_same_places(image: nib.Nifti1Image, values: np.ndarray) -> np.ndarray:
    """Voxels of an array on the made-up case's grid at the places, in millimetres, of the voxels of `image`."""
    index = np.indices(image.shape).reshape(3, -1)
    millimetres = nib.affines.apply_affine(image.affine, index.T)
    own = nib.affines.apply_affine(np.linalg.inv(AFFINE), millimetres)
    np.testing.assert_allclose(own, own.round(), atol=1e-3)
    own = own.round().astype(int)
    # The page has a margin beyond the images, which is empty.
    within = ((own >= 0) & (own < values.shape)).all(axis=1)
    own = np.where(within[:, None], own, 0)
    return np.where(within, values[tuple(own.T)], 0).reshape(image.shape)


def test_the_page_loads_nothing_and_runs_only_its_own_scripts(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(
        r"https?:|[\"'(]//|\bfetch\(|XMLHttpRequest|@import|<link|\bimport\(|\beval\(|\son\w+=", text
    )
    assert set(re.findall(r'(?:src|href)="([^"]*)', text)) == set()
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[0]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    niivue = gzip.decompress(base64.b64decode(re.findall(r'id="niivue">([^<]*)<', text)[0]))
    hashes = [hashlib.sha256(content).digest() for content in (script[0].encode(), niivue)]
    assert rules["script-src"].split() == [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes]
    assert len(script) == 1


def test_the_viewer_is_the_pinned_one_and_comes_with_its_licences(page: Path) -> None:
    bundle = (PAGES / "niivue/niivue.umd.js").read_bytes()
    assert hashlib.sha256(bundle).hexdigest() == json.loads((PAGES / "niivue/version.json").read_text())["sha256"]
    niivue = gzip.decompress(base64.b64decode(re.findall(r'id="niivue">([^<]*)<', page.read_text())[0]))
    assert niivue.endswith(bundle)
    assert b"BSD 2-Clause License" in niivue
    assert b"gl-matrix" in niivue


def test_text_of_a_report_is_shown_and_never_run(page: Path) -> None:
    text = page.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in text
    assert "must &lt;/div&gt; have &lt;b&gt;a brain&lt;/b&gt;" in text
    assert "<b>" not in text


def test_numbers_are_those_of_the_report(page: Path) -> None:
    text = re.sub("<[^>]*>", " ", page.read_text())
    for words in ("WT 12.3 0.91", "TC 5.6 0.52", "ET 0.0 not found", "t1c, flair", "t1, t2", "tiny"):
        assert words in " ".join(text.split())
    assert REPORT["notice"] in text


def test_a_result_with_warnings_never_looks_calm(tmp_path: Path) -> None:
    images, regions = made_up()
    pages = {}
    for name, change in {
        "doubt": {},
        "core": {"warnings": [BRAIN_TUMOUR.without["t1c"]]},
        "calm": {"warnings": []},
    }.items():
        write_case_page(tmp_path / name, images, regions, REPORT | change)
        pages[name] = re.split("</?main>", (tmp_path / name).read_text())[1]
    assert '<div class="doubt" role="alert"><h2>This result is doubtful</h2>' in pages["doubt"]
    assert '<div class="doubt" role="alert"><h2>TC and ET are doubtful</h2>' in pages["core"]
    assert 'class="calm"' not in pages["doubt"] + pages["core"]
    assert 'class="calm"' in pages["calm"]
    assert '<div class="doubt"' not in pages["calm"]


def test_regions_of_the_page_are_exact_and_where_they_were(page: Path) -> None:
    _, regions = made_up()
    case = embedded(page)
    labels = unpacked(case, case["labels"]["segmentation"])
    expected = np.packbits(regions, axis=0, bitorder="little")[0]
    np.testing.assert_array_equal(np.asarray(labels.dataobj), at_same_places(labels, expected))
    assert {1, 3, 7} < {*np.unique(np.asarray(labels.dataobj)).tolist()}
    assert nib.aff2axcodes(labels.affine) == ("R", "A", "S")
    # Readers of a voxel's number find the voxel in their own array.
    np.testing.assert_allclose(AFFINE @ case["own"], case["affine"], atol=1e-4)
    start = (np.array(case["own"]) @ [*case["start"], 1])[:3].astype(int)
    assert regions[(1, *start)]


def test_all_planes_have_a_margin_for_the_letters_which_the_crosshair_cannot_enter(page: Path) -> None:
    images, _ = made_up()
    case = embedded(page)
    shown = unpacked(case, case["sequences"]["t1c"])
    brain = np.asarray(shown.dataobj) > 0
    spacing = nib.affines.voxel_sizes(np.array(case["affine"]))
    for axis in range(3):
        filled = np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))
        margins = np.array([filled[0], brain.shape[axis] - 1 - filled[-1]]) * spacing[axis]
        assert margins.min() >= page_module.MARGIN_MM
    # The first and last voxel for the crosshair belong to the images, and the next ones do not.
    for step, within in ((0, True), (1, False)):
        low, high = (np.array([ends[end] for ends in case["inside"]]) for end in (0, 1))
        for corner in (low - step, high + step):
            own = (np.array(case["own"]) @ [*corner, 1])[:3]
            assert (((own >= 0) & (own < images["t1c"].shape)) == within).all()


def test_grey_values_of_the_page_differ_by_less_than_a_level(page: Path) -> None:
    images, _ = made_up()
    case = embedded(page)
    for name, image in images.items():
        volume = case["sequences"][name]
        grey = unpacked(case, volume)
        levels = np.asarray(grey.dataobj).astype(int)
        expected = at_same_places(grey, np.asarray(image.dataobj))
        np.testing.assert_array_equal(levels == 0, expected == 0)
        inside = levels > 0
        values = volume["low"] + (levels[inside] - volume["first"]) * volume["step"]
        highest = volume["low"] + (levels.max() - volume["first"]) * volume["step"]
        assert np.abs(values - expected[inside].clip(volume["low"], highest)).max() <= 0.51 * volume["step"]
        assert np.mean(np.abs(values - expected[inside]) > volume["step"]) < 0.002


def test_maps_and_ground_truth_are_shown_if_there_are_any(page: Path, tmp_path: Path) -> None:
    assert embedded(page)["maps"] == {}
    assert list(embedded(page)["labels"]) == ["segmentation"]
    images, regions = made_up()
    generator = np.random.default_rng(0)
    maps = {"probabilities": regions * np.float32(0.75), "uncertainty": 1.6 * generator.random(SHAPE)}
    truth = np.roll(regions, 2, axis=2)
    write_case_page(tmp_path / "page", images, regions, REPORT, truth=truth, truth_note="seg.nii.gz", **maps)
    case = embedded(tmp_path / "page")
    assert list(case["maps"]) == [
        *("probability of WT", "probability of TC", "probability of ET"),
        "uncertainty, bits",
    ]
    entropy = unpacked(case, case["maps"]["uncertainty, bits"])
    np.testing.assert_allclose(entropy.get_fdata(), at_same_places(entropy, maps["uncertainty"]), atol=1.6 / 500)
    labels = unpacked(case, case["labels"]["ground truth"])
    expected = np.packbits(truth, axis=0, bitorder="little")[0]
    np.testing.assert_array_equal(np.asarray(labels.dataobj), at_same_places(labels, expected))
    # Side by side are the segmentation and the ground truth.
    assert case["second"][1] == "ground truth"
    # The table has the volumes of everything that can be shown, 3 mm3 per voxel.
    text = " ".join(re.sub("<[^>]*>", " ", (tmp_path / "page").read_text()).split())
    volumes = [f"{region.sum() * 0.003:.1f}" for region in truth]
    assert f"region segmentation ground truth expected Dice WT 12.3 {volumes[0]} 0.91 TC 5.6 {volumes[1]} 0.52" in text
    assert len({*volumes, "12.3", "5.6", "0.0"}) == 6
    tiny = REPORT | {"volumes_ml": {"wt": 12.34, "tc": 0.04, "et": 0.0}}
    write_case_page(tmp_path / "tiny", images, regions, tiny)
    assert '</label></td><td class="number">&lt; 0.1</td>' in (tmp_path / "tiny").read_text()


def test_the_page_of_the_example_case_names_its_source_and_licence(tmp_path: Path) -> None:
    for case_id, named in ((example_case().name, True), ("BraTS-SSA-00041-001", False)):
        write_case_page(tmp_path / "page", *made_up(), REPORT | {"case_id": case_id})
        text = (tmp_path / "page").read_text()
        assert ("BraTS-Africa (doi 10.7937/v8h6-8x67), CC BY 4.0" in text) == named


def test_a_page_that_would_be_too_large_gets_fewer_grey_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    for name, most in (("fine", 10**9), ("coarse", 10**3)):
        monkeypatch.setattr(page_module, "MOST_BYTES", most)
        write_case_page(tmp_path / name, *made_up(), REPORT)
        sizes[name] = embedded(tmp_path / name)["levels"]
    assert sizes == {"fine": 254, "coarse": 62}


@pytest.mark.slow
def test_a_noisy_case_of_usual_size_has_a_page_of_less_than_8_megabytes(tmp_path: Path) -> None:
    shape = (240, 240, 155)
    middle = np.stack(np.meshgrid(*(np.linspace(-1, 1, edge) for edge in shape), indexing="ij"))
    brain = (middle**2 / np.array([0.6, 0.72, 0.92])[:, None, None, None] ** 2).sum(axis=0) < 1
    assert 1.5 < brain.sum() / 1e6 < 2  # litres
    generator = np.random.default_rng(0)
    # Two tissues and 4 % of noise, in each voxel by itself, which no method can compress.
    signal = 100 + 50 * (np.sin(12 * middle).prod(axis=0) > 0)
    images = {
        name: nib.Nifti1Image(np.where(brain, signal + generator.normal(0, 4, shape), 0).astype(np.float32), np.eye(4))
        for name in ("t1", "t1c", "t2", "flair")
    }
    write_case_page(tmp_path / "page.html", images, np.stack([middle[0] > 0.5] * 3) & brain, REPORT)
    assert (tmp_path / "page.html").stat().st_size < 8_000_000


def test_a_cohort_is_sorted_by_what_needs_a_look(tmp_path: Path) -> None:
    done = {"status": "done", "sequences": "t1c+flair", "wt_ml": 2.0, "tc_ml": 1.0, "et_ml": 0.04}
    rows = [
        done | {"case": "calm", "warnings": [], "confidence": 0.9},
        done | {"case": "unsure #1?", "warnings": [], "confidence": 0.2},
        done | {"case": "odd", "warnings": ["a <skull>"], "confidence": 0.95},
        done | {"case": "nothing", "warnings": ["No tumour was found."], "confidence": None},
        {"case": "cut<script>", "status": "failed", "message": "T2.nii.gz: must be <whole>"},
    ]
    write_cohort_index(tmp_path / "index.html", rows)
    text = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="([^"]*)"', text) == [
        f"{name}/report.html" for name in ("nothing", "odd", "unsure%20%231%3F", "calm")
    ]
    assert "a &lt;skull&gt;" in text
    assert "cut&lt;script&gt;" in text
    assert text.index("failed: T2.nii.gz: must be &lt;whole&gt;") < text.index("nothing")
    assert "5 cases: 1 failed, 2 with warnings, 2 without warnings." in text
    # A case without any region has no confidence, rather than a full one.
    assert "not found" in text
    assert "No tumour was found." in text
    assert "1.00" not in text
    assert text.count('data-value="0.04">&lt; 0.1</td>') == 4


def test_html_is_written_where_it_is_asked_for(dummy_root: Path, tmp_path: Path) -> None:
    run("segment", ["--in-path", str(dummy_root), "--out-path", str(tmp_path / "out"), "--html", "--sequences", "t1c"])
    cases = [path.name for path in dummy_root.iterdir()]
    index = (tmp_path / "out/index.html").read_text()
    for case in cases:
        assert (tmp_path / "out" / case / "report.html").is_file()
        assert f'href="{case}/report.html"' in index
    run("segment", ["--in-path", str(dummy_root), "--out-path", str(tmp_path / "out"), "--sequences", "t1c"])
    # It would lead to pages that are gone.
    assert not (tmp_path / "out/index.html").exists()


def test_the_page_shows_the_ground_truth_of_the_case(dummy_root: Path, tmp_path: Path) -> None:
    run("segment", ["--in-path", str(dummy_root / "case_000"), "--out-path", str(tmp_path), "--html", "--uncertainty"])
    case = embedded(tmp_path / "report.html")
    labels = unpacked(case, case["labels"]["ground truth"])
    truth = read_case(find_case(dummy_root / "case_000"), labels=True).regions
    marked = np.unpackbits(np.asarray(labels.dataobj)[None], axis=0, bitorder="little")[:3]
    np.testing.assert_array_equal(marked.sum(axis=(1, 2, 3)), truth.sum(axis=(1, 2, 3)))
    assert truth[2].any()
    assert list(case["maps"]) == ["uncertainty, bits"]
    assert "data:image/webp;base64," in (tmp_path / "report.html").read_text()


def test_a_bad_ground_truth_costs_neither_the_result_nor_the_page(
    dummy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tmp_path / "case"
    case.mkdir()
    for path in (dummy_root / "case_000").iterdir():
        (case / path.name).write_bytes(path.read_bytes())
    segmenter = CaseSegmenter("tiny", ResultOptions(html=True), device="cpu")
    before = segmenter.fingerprint(find_case(case))
    find_case(case).labelled().write_bytes(b"no label map")
    # The page depends on the ground truth, so a page of another one is not up to date.
    assert segmenter.fingerprint(find_case(case)) != before
    run("segment", ["--in-path", str(case), "--out-path", str(tmp_path / "out"), "--html"])
    assert "The page does not show the ground truth." in capsys.readouterr().err
    assert list(embedded(tmp_path / "out/report.html")["labels"]) == ["segmentation"]
    assert "not shown" in (tmp_path / "out/report.html").read_text()
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["not_written"] == []
    assert not any("ground truth" in warning for warning in report["warnings"])
