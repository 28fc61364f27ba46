"""Pages of results: whole in themselves, true to the report, and what a browser shows of them."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from lora_moe_hgd.inference.page import _columns, write_case_page, write_cohort_index
from lora_moe_hgd.pictures import COLOURS
from lora_moe_hgd_cli import run

pytestmark = pytest.mark.usefixtures("small_shipped")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHAPE = (40, 48, 36)
REPORT: dict[str, Any] = {
    "case_id": "case <script>alert(1)</script> & co",
    "volumes_ml": {"wt": 12.34, "tc": 5.6, "et": 0.0},
    "confidence": {"wt": 0.91, "tc": 0.52, "et": 0.33},
    "sequences_used": ["t1c", "flair"],
    "sequences_not_used": ["t1", "t2"],
    "interpolated": ["flair"],
    "warnings": ["T1c.nii.gz: must </table> have <b>a brain</b>, got 0.1"],
    "shape": list(SHAPE),
    "spacing_mm": [1.0, 1.0, 2.0],
    "checkpoint": "tiny",
    "versions": {"torch": "2"},
    "notice": "Research use, not a medical device.",
}


def made_up() -> tuple[dict[str, nib.Nifti1Image], np.ndarray]:
    """Two sequences in LPS order, and regions that differ from slice to slice."""
    across, along, up = np.meshgrid(*(np.linspace(0, 6, edge) for edge in SHAPE), indexing="ij")
    waves = {"t1c": np.sin(across) + np.cos(along), "flair": np.cos(across) * np.sin(up) + along / 6}
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    brain = np.zeros(SHAPE, dtype=bool)
    brain[6:34, 6:42, 6:30] = True
    images = {
        name: nib.Nifti1Image(np.where(brain, 100 + 30 * wave, 0).astype(np.float32), affine)
        for name, wave in waves.items()
    }
    regions = np.zeros((3, *SHAPE), dtype=bool)
    for region, edge in zip(regions, (16, 10, 6), strict=True):
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


def volume(case: dict[str, Any], name: str) -> np.ndarray:
    """The embedded volume `(W, H, D)`, taken apart slice by slice."""
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(case["volumes"][name].split(",")[1]))).convert("L"))
    width, height, depth = case["shape"]
    slices = []
    for number in range(depth):
        row, column = divmod(number, case["columns"])
        slices.append(picture[row * height : (row + 1) * height, column * width : (column + 1) * width].T)
    return np.stack(slices, axis=2)


def test_the_page_fetches_nothing(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"https?:|[\"'(]//|\bfetch\(|XMLHttpRequest|@import|<link", text)
    assert set(re.findall(r'(?:src|href)="([^"]*)', text)) == set()


def test_text_of_a_report_is_shown_and_never_run(page: Path) -> None:
    text = page.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in text
    assert "must &lt;/table&gt; have &lt;b&gt;a brain&lt;/b&gt;" in text
    assert "<b>" not in text


def test_numbers_are_those_of_the_report(page: Path) -> None:
    text = page.read_text()
    for words in ("WT 12.3 mL, TC 5.6 mL, ET 0.0 mL", "WT 0.91, TC 0.52, ET 0.33", "t1c, flair", "t1, t2", "tiny"):
        assert words in text
    assert REPORT["notice"] in text


def test_regions_of_the_page_are_exact_and_grey_values_close(page: Path) -> None:
    images, regions = made_up()
    case = embedded(page)
    # The arrays are stored towards left and back: the page is in RAS order.
    turned = np.packbits(regions, axis=0, bitorder="little")[0][::-1, ::-1]
    labels = volume(case, "labels")
    assert {label: (labels == label).sum() for label in (1, 3, 7)} == {
        label: (turned == label).sum() for label in (1, 3, 7)
    }
    corner = [int(np.flatnonzero(labels.any(axis=axes))[0]) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(
        slice(first - at, first - at + edge)
        for first, at, edge in zip(
            [int(np.flatnonzero(turned.any(axis=axes))[0]) for axes in ((1, 2), (0, 2), (0, 1))],
            corner,
            labels.shape,
            strict=True,
        )
    )
    np.testing.assert_array_equal(labels, turned[box])
    # Whoever reads a slice's number finds the slice in the case.
    assert case["first_slice"] == [part.start for part in box]
    grey = np.asarray(images["flair"].dataobj)[::-1, ::-1][box]
    shown = volume(case, "flair").astype(float)
    inside = grey > 0
    assert np.corrcoef(grey[inside], shown[inside])[0, 1] > 0.99


def test_a_cohort_is_sorted_by_what_needs_a_look(tmp_path: Path) -> None:
    done = {"status": "done", "sequences": "t1c+flair", "wt_ml": 2.0, "tc_ml": 1.0, "et_ml": 0.5}
    rows = [
        done | {"case": "calm", "warnings": [], "confidence": 0.9},
        done | {"case": "unsure #1?", "warnings": [], "confidence": 0.2},
        done | {"case": "odd", "warnings": ["a <skull>"], "confidence": 0.95},
        {"case": "cut", "status": "failed", "message": "T2.nii.gz: must be <whole>"},
    ]
    write_cohort_index(tmp_path / "index.html", rows)
    text = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="([^"]*)"', text) == [
        f"{name}/report.html" for name in ("odd", "unsure%20%231%3F", "calm")
    ]
    assert "a &lt;skull&gt;" in text
    assert text.index("failed: T2.nii.gz: must be &lt;whole&gt;") < text.index("odd")


@pytest.mark.parametrize("shape", [(720, 25, 700), (240, 240, 155), (25, 720, 700)])
def test_slices_of_any_case_make_one_picture(shape: tuple[int, int, int]) -> None:
    columns = _columns(shape)
    width, height = columns * shape[0], -(-shape[2] // columns) * shape[1]
    assert max(width, height) <= 16383
    assert columns <= shape[2]


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


def screenshot(page: Path, action: str, path: Path) -> np.ndarray:
    """RGB pixels after `action`, JavaScript that is run once the page is ready."""
    acting = page.with_name(f"{path.stem}.html")
    waiting = "new MutationObserver(act).observe(document.body, {attributes: true});"
    script = f"<script>function act() {{ if (document.body.dataset.ready) {{ {action} }} }} {waiting}</script>"
    # Before the page's own script, so that it is there when that one says it is ready.
    acting.write_text(page.read_text().replace('<script>\n"use strict"', f'{script}<script>\n"use strict"'))
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    words += ["--window-size=1200,1000", "--virtual-time-budget=20000", f"--screenshot={path}", acting.as_uri()]
    subprocess.run(words, capture_output=True, check=True, timeout=120)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def count(pixels: np.ndarray, region: str, *, rows: slice = slice(150, None)) -> int:
    """Pixels of the pure colour of a region below the controls, which show it, too."""
    colour = [int(COLOURS[region][at : at + 2], 16) for at in (1, 3, 5)]
    return int((np.abs(pixels[rows] - colour).max(axis=-1) <= 2).sum())


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_regions_moves_through_slices_and_switches_them_off(page: Path, tmp_path: Path) -> None:
    opaque = "opacity.value = 100; opacity.dispatchEvent(new Event('input'));"
    hide = "shown.ET.checked = false; shown.ET.dispatchEvent(new Event('change'));"
    away = "for (const name of ['axial', 'coronal', 'sagittal']) {"
    away += " const slider = document.getElementById(name + '-slice');"
    away += " slider.value = slider.max; slider.dispatchEvent(new Event('input')); }"
    first = screenshot(page, opaque, tmp_path / "first.png")
    without = screenshot(page, opaque + hide, tmp_path / "without.png")
    moved = screenshot(page, opaque + away, tmp_path / "moved.png")
    assert all(count(first, region) > 200 for region in COLOURS)
    # In the three planes through the middle of nested boxes, edges are as 16, 10 and 6.
    areas = {region: count(first, region) for region in COLOURS}
    assert areas["ET"] / (areas["ET"] + areas["TC"] + areas["WT"]) == pytest.approx(6**2 / 16**2, rel=0.25)
    assert count(without, "ET") == 0
    assert count(without, "TC") > areas["TC"]
    assert all(count(moved, region) == 0 for region in COLOURS)
