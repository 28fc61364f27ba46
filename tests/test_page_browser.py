"""The pages of results in headless Chromium: what is drawn where, and what mouse, keys and switches do."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lora_moe_hgd.inference.cohort_page import write_cohort_index
from lora_moe_hgd.inference.page import write_case_page
from lora_moe_hgd.pictures import PALETTE, save_overlay

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs Chromium and its driver"),
]

SOFTWARE = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
# In LPS order with voxels of 1 x 1 x 2 mm, so that the page must turn the arrays.
SHAPE = (60, 70, 40)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
AFFINE[:3, 3] = (30, 35, -40)
# A bright cube at the patient's left, front and top: the first array axis runs to the left, the second to the back.
MARKER = (slice(44, 52), slice(12, 20), slice(28, 32))
TEXT = "<script>document.body.dataset.hacked=1</script><img src=x onerror='document.body.dataset.hacked=1'>"
REPORT: dict[str, Any] = {
    "case_id": f"case {TEXT}",
    "tumour_found": True,
    "volumes_ml": {"wt": 12.3, "tc": 5.6, "et": 1.0},
    "confidence": {"wt": 0.9, "tc": 0.5, "et": 0.4},
    "sequences_used": ["t1c", "flair"],
    "sequences_not_used": [TEXT],
    "interpolated": [],
    "warnings": [TEXT],
    "shape": list(SHAPE),
    "spacing_mm": [1.0, 1.0, 2.0],
    "checkpoint": TEXT,
    "versions": {"torch": TEXT},
    "notice": "Research use, not a medical device.",
}


def opened(*words: str, phone: bool = False) -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in ("--headless=new", "--no-sandbox", "--window-size=1300,1000", "--force-color-profile=srgb", *words):
        options.add_argument(word)
    if phone:
        metrics = {"width": 390, "height": 844, "pixelRatio": 2.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey brain with a bright marker in T1c, a dark one in FLAIR, a region on the marker, and a ground truth."""
    folder = tmp_path_factory.mktemp("page")
    middle = np.stack(np.meshgrid(*(np.linspace(-1, 1, edge) for edge in SHAPE), indexing="ij"))
    brain = (middle**4).sum(axis=0) < 0.9
    assert brain[MARKER].all()
    images = {}
    for name, bright in (("t1c", 200.0), ("flair", 10.0)):
        values = np.where(brain, 100 + 10 * np.sin(9 * middle).sum(axis=0), 0)
        values[MARKER] = bright
        images[name] = nib.Nifti1Image(values.astype(np.float32), AFFINE)
    regions = np.zeros((3, *SHAPE), dtype=bool)
    regions[:, *MARKER] = True
    save_overlay(folder / "overlay.png", images, {"found": regions}, title="case")
    write_case_page(
        folder / "report.html",
        images,
        regions,
        REPORT,
        truth=np.roll(regions, -5, axis=1),
        truth_note="seg.nii.gz",
        uncertainty=regions[0] * 1.5,
        picture=folder / "overlay.png",
    )
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    driver = opened(*SOFTWARE)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any, page: Path) -> Any:
    """The page, freshly loaded and ready."""
    return ready(chromium, page)


def ready(driver: Any, page: Path) -> Any:
    driver.get(page.as_uri())
    until(driver, lambda: driver.execute_script("return document.body.dataset.ready"))
    assert driver.execute_script("return document.body.dataset.ready") == "yes"
    return driver


def until(driver: Any, condition: Callable[[], Any]) -> None:
    WebDriverWait(driver, 90).until(lambda _: condition())


def js(driver: Any, script: str) -> Any:
    return driver.execute_script(f"return {script}")


def set_to(driver: Any, element: str, value: object) -> None:
    """Choose a value of a select or a slider, as a user does."""
    driver.execute_script(
        f"const chosen = {element}; chosen.value = arguments[0];"
        "chosen.dispatchEvent(new Event('input', {bubbles: true}));"
        "chosen.dispatchEvent(new Event('change', {bubbles: true}));",
        value,
    )


def click(driver: Any, element: str) -> None:
    driver.execute_script(f"document.getElementById('{element}').click()")


def pixels(driver: Any, canvas: int = 0) -> np.ndarray:
    """RGB of a canvas, `(rows, columns, 3)`."""
    driver.execute_script("for (const {viewer} of views) viewer.drawScene();")
    picture = driver.find_element("id", f"canvas-{canvas}").screenshot_as_png
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def plain(driver: Any, plane: str) -> None:
    """Only one plane, without crosshair, letters and regions."""
    set_to(driver, "element('layout')", plane)
    if js(driver, "element('crosshair').checked"):
        click(driver, "crosshair")
    driver.execute_script("views.forEach(({viewer}) => viewer.setIsOrientationTextVisible(false))")


def place(mask: np.ndarray, around: np.ndarray) -> tuple[float, float]:
    """Mean column and row of `mask`, as fractions of the box of `around` from its left and its top."""
    rows, columns = (np.flatnonzero(around.any(axis=axis)) for axis in (1, 0))
    row, column = (np.mean(found) for found in np.nonzero(mask))
    return (column - columns[0]) / np.ptp(columns), (row - rows[0]) / np.ptp(rows)


# From the image's left and top: the marker is left, in front and on top of the patient's middle.
RIGHT_UP, LEFT_UP = (0.7, 1.0, 0.0, 0.4), (0.0, 0.4, 0.0, 0.4)


@pytest.mark.parametrize(
    ("plane", "side"),
    [("axial", RIGHT_UP), ("coronal", RIGHT_UP), ("sagittal", LEFT_UP)],
    ids=lambda value: str(value),
)
def test_left_front_and_top_are_where_radiologists_expect_them(
    browser: Any, plane: str, side: tuple[float, float, float, float]
) -> None:
    plain(browser, plane)
    set_to(browser, "views[0].sequence", "t1c")
    set_to(browser, "views[0].regions", "")
    until(browser, lambda: js(browser, "views[0].viewer.volumes[0].name") == "t1c.nii")
    seen = pixels(browser)
    brain, marker = seen.min(axis=-1) > 30, seen.min(axis=-1) > 240
    column, row = place(marker, brain)
    assert side[0] <= column <= side[1]
    assert side[2] <= row <= side[3]
    # The region lies on the marker that it was drawn around.
    set_to(browser, "views[0].regions", "segmentation")
    until(browser, lambda: js(browser, "views[0].viewer.drawBitmap !== null"))
    click(browser, "fill")
    set_to(browser, "element('opacity')", 100)
    filled = np.abs(pixels(browser) - rgb(2)).max(axis=-1) < 4
    # Greys between voxels are interpolated, so the marker is smaller by up to half a voxel on each side.
    assert 1 < filled.sum() / marker.sum() < 1.6
    assert place(filled, brain) == pytest.approx((column, row), abs=0.01)


def rgb(region: int) -> list[int]:
    return [int(PALETTE[region][at : at + 2], 16) for at in (1, 3, 5)]


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_the_letter_at_the_right_edge_is_l(browser: Any, plane: str) -> None:
    set_to(browser, "element('layout')", plane)
    click(browser, "crosshair")
    white = pixels(browser).min(axis=-1) > 150
    middle = len(white) // 2
    # The rightmost thing at half height.
    parts, _ = ndimage.label(white[middle - 20 : middle + 20])
    letter = parts == parts[:, np.flatnonzero(parts.any(axis=0))[-1]].max()
    found = [np.flatnonzero(letter.any(axis=axis)) for axis in (1, 0)]
    box = letter[found[0][0] : found[0][-1] + 1, found[1][0] : found[1][-1] + 1]
    height, width = box.shape
    # An L has a stem on the left and a foot; an R has a bow at the top right.
    assert box[:, : width // 3].any(axis=1).all()
    assert box[-2:, :].any(axis=0).mean() > 0.8
    assert not box[: height // 2, width // 2 :].any()


def test_keys_click_and_wheel_move_the_crosshair_in_all_planes(browser: Any) -> None:
    canvas = browser.find_element("id", "canvas-0")
    start = js(browser, "position")
    assert js(browser, "element('slice-0').value") == str(start[0])

    def press(key: str) -> list[int]:
        canvas.send_keys(key)
        return (np.array(js(browser, "position")) - start).tolist()

    # To the right of an axial plane is the patient's left.
    assert press(Keys.ARROW_RIGHT) == [-1, 0, 0]
    assert press(Keys.ARROW_UP) == [-1, 1, 0]
    assert press(Keys.PAGE_UP) == [-1, 1, 1]
    press("3")
    assert press(Keys.ARROW_LEFT) == [-1, 2, 1]
    assert press(Keys.ARROW_DOWN) == [-1, 2, 0]
    assert js(browser, "element('slice-1').value") == str(start[1] + 2)
    press("1")
    before = js(browser, "position")
    # The large tile on the left is the axial plane.
    ActionChains(browser).move_to_element_with_offset(canvas, -200, 60).click().perform()
    until(browser, lambda: js(browser, "position") != before)
    clicked = js(browser, "position")
    assert clicked[2] == before[2]
    assert clicked[:2] != before[:2]
    origin = ScrollOrigin.from_element(canvas, -200, 60)
    ActionChains(browser).scroll_from_origin(origin, 0, 100).perform()
    until(browser, lambda: js(browser, "position") != clicked)
    assert js(browser, "position")[:2] == clicked[:2]
    set_to(browser, "element('slice-0')", 27)
    assert js(browser, "position")[0] == 27
    assert js(browser, "views[0].viewer.frac2vox(views[0].viewer.scene.crosshairPos)[0]") == 27
    # The margin around the images is for the letters only.
    set_to(browser, "element('slice-0')", 0)
    lowest = js(browser, "about.inside[0][0]")
    assert js(browser, "position")[0] == lowest > 0
    press(Keys.ARROW_RIGHT)
    assert js(browser, "position")[0] == lowest
    click(browser, "home")
    assert js(browser, "position") == start


def test_the_sliders_run_as_their_labels_say(browser: Any) -> None:
    labels = {"right to left": "RL", "back to front": "PA", "bottom to top": "IS"}
    for axis, (label, ends) in enumerate(labels.items()):
        slider = browser.find_element("id", f"slice-{axis}")
        assert label in slider.find_element("xpath", "..").text
        places = []
        for side in (-1, 1):
            offset = side * (slider.size["width"] // 2 - 2)
            ActionChains(browser).move_to_element_with_offset(slider, offset, 0).click().perform()
            places.append(js(browser, f"about.affine[{axis}][{axis}] * position[{axis}]"))
        # Coordinates grow to the right, to the front and to the top.
        assert np.sign(places[1] - places[0]) == (-1 if ends[0] in "RAS" else 1), label


def test_the_line_below_the_slices_names_voxel_value_and_regions(browser: Any) -> None:
    set_to(browser, "views[0].sequence", "t1c")
    until(browser, lambda: js(browser, "views[0].viewer.volumes[0].name") == "t1c.nii")
    own = np.array([46, 15, 29])
    inverse = np.linalg.inv(np.array(js(browser, "about.own")))
    for axis, value in enumerate((inverse @ [*own, 1])[:3].round().astype(int).tolist()):
        set_to(browser, f"element('slice-{axis}')", value)
    words = js(browser, "element('where').textContent")
    millimetres = AFFINE @ [*own, 1]
    assert millimetres[:3].tolist() == [-16, 20, 18]
    assert "voxel 46, 15, 29 · RAS coordinates -16, 20, 18 mm · t1c 200, in WT, TC, ET" in words


def test_regions_outlines_and_maps_can_be_switched(browser: Any) -> None:
    plain(browser, "axial")

    def area(region: int) -> int:
        return int((np.abs(pixels(browser) - rgb(region)).max(axis=-1) < 4).sum())

    outline = area(2)
    assert outline > 50
    # The three regions have the same border, and all colours are seen.
    assert min(area(0), area(1)) > 0.5 * outline
    click(browser, "fill")
    set_to(browser, "element('opacity')", 100)
    assert area(2) > 2 * outline
    click(browser, "region-2")
    assert area(2) == 0
    # The region around it appears.
    assert area(1) > 2 * outline
    browser.find_element("id", "canvas-0").send_keys(" ")
    assert area(0) == area(1) == 0
    grey = pixels(browser)
    set_to(browser, "views[0].map", "uncertainty, bits")
    until(browser, lambda: js(browser, "views[0].viewer.volumes.length") == 2)
    assert np.ptp(pixels(browser), axis=-1).max() > 50 > np.ptp(grey, axis=-1).max()


def test_the_sequence_that_was_chosen_last_is_shown(browser: Any) -> None:
    # T1c is unpacked now, which takes longer than going back to FLAIR.
    browser.execute_script(
        "const {sequence} = views[0];"
        "for (const name of ['t1c', 'flair']) { sequence.value = name; sequence.dispatchEvent(new Event('change')); }"
    )
    browser.execute_async_script("image('sequences', 't1c').then(() => setTimeout(arguments[0], 0))")
    assert js(browser, "views[0].viewer.volumes[0].name") == "flair.nii"
    assert "flair" in js(browser, "element('where').textContent")


def test_two_views_show_segmentation_and_ground_truth_at_the_same_place(browser: Any) -> None:
    click(browser, "compare")
    until(browser, lambda: js(browser, "document.body.dataset.views") == "2")
    assert js(browser, "views.map((view) => view.regions.value)") == ["segmentation", "ground truth"]
    plain(browser, "axial")
    click(browser, "fill")
    set_to(browser, "element('opacity')", 100)
    first, second = (np.abs(pixels(browser, number) - rgb(2)).max(axis=-1) < 4 for number in (0, 1))
    # The ground truth was moved by five voxels to the patient's right, which is to the left on the screen.
    assert np.mean(np.nonzero(second)[1]) < np.mean(np.nonzero(first)[1]) - 5
    browser.find_element("id", "canvas-1").send_keys(Keys.ARROW_RIGHT)
    places = js(browser, "views.map(({viewer}) => [...viewer.frac2vox(viewer.scene.crosshairPos)])")
    assert places[0] == places[1]
    set_to(browser, "element('zoom')", 3)
    assert js(browser, "views.map(({viewer}) => viewer.scene.pan2Dxyzmm[3])") == [3, 3]
    click(browser, "compare")
    assert js(browser, "views.length") == 1


def test_dragging_and_sliders_change_brightness_and_contrast(browser: Any) -> None:
    plain(browser, "axial")
    window = "[views[0].viewer.volumes[0].cal_min, views[0].viewer.volumes[0].cal_max]"
    first = js(browser, window)
    click(browser, "drag-window")
    canvas = browser.find_element("id", "canvas-0")
    ActionChains(browser).move_to_element(canvas).click_and_hold().move_by_offset(0, -15).release().perform()
    dragged = js(browser, window)
    assert dragged[0] > first[0]
    assert float(js(browser, "element('level').value")) == pytest.approx(sum(dragged) / 2, abs=3)
    dark = pixels(browser).mean()
    click(browser, "reset")
    assert js(browser, window) == first
    assert pixels(browser).mean() > dark
    set_to(browser, "element('width')", 20)
    assert np.ptp(js(browser, window)) == pytest.approx(20, abs=3)


def test_text_never_runs_and_nothing_is_requested_or_logged(chromium: Any, page: Path) -> None:
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    browser = ready(chromium, page)
    set_to(browser, "element('layout')", "all three and 3-D")
    click(browser, "compare")
    until(browser, lambda: js(browser, "document.body.dataset.views") == "2")
    assert js(browser, "document.querySelector('h1').textContent").startswith(f"case {TEXT}")
    assert js(browser, "document.body.dataset.hacked") is None
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    # Scripts that come in by another way are refused.
    hack = "Object.assign(document.createElement('script'), {text: 'document.body.dataset.hacked = 1'})"
    browser.execute_script(f"document.body.append({hack})")
    assert js(browser, "document.body.dataset.hacked") is None


def test_in_the_frame_of_the_app_the_page_leaves_out_what_stands_above(chromium: Any, page: Path) -> None:
    shown = {}
    for address in (page.as_uri(), f"{page.as_uri()}#inside"):
        # A new fragment alone does not load the page again.
        chromium.get("about:blank")
        chromium.get(address)
        until(chromium, lambda: js(chromium, "document.body.dataset.ready"))
        parts = [chromium.find_element("css selector", name) for name in (".notice", "main > .doubt", "#viewer")]
        shown[address[-7:]] = [part.is_displayed() for part in parts]
    assert list(shown.values()) == [[True, True, True], [False, False, True]]


def test_a_phone_shows_everything_without_scrolling_sideways(page: Path) -> None:
    driver = opened(*SOFTWARE, phone=True)
    try:
        ready(driver, page)
        assert js(driver, "document.scrollingElement.scrollWidth") <= 390
        assert js(driver, "views[0].canvas.getBoundingClientRect().height") < 844
    finally:
        driver.quit()


def test_without_webgl2_the_page_says_so_and_shows_the_picture(page: Path) -> None:
    driver = opened("--disable-3d-apis")
    try:
        driver.get(page.as_uri())
        until(driver, lambda: js(driver, "document.body.dataset.ready"))
        assert "no WebGL2" in driver.find_element("id", "failure").text
        picture = driver.find_element("css selector", "#still img")
        assert picture.is_displayed()
        assert js(driver, "document.querySelector('#still img').naturalWidth") > 500
        assert not driver.find_element("id", "viewer").is_displayed()
    finally:
        driver.quit()


def test_the_index_of_a_cohort_sorts_and_filters(chromium: Any, tmp_path: Path) -> None:
    done = {"status": "done", "sequences": "t1c+flair", "tc_ml": 1.0, "et_ml": 0.5}
    rows = [
        done | {"case": "small", "warnings": [], "confidence": 0.9, "wt_ml": 2.0},
        done | {"case": "large", "warnings": [], "confidence": 0.2, "wt_ml": 110.0},
        done | {"case": "middle", "warnings": ["bias field"], "confidence": 0.95, "wt_ml": 20.0},
        {"case": "cut", "status": "failed", "message": TEXT},
    ]
    write_cohort_index(tmp_path / "index.html", rows)
    chromium.get((tmp_path / "index.html").as_uri())

    def seen() -> list[str]:
        return [
            row.text.split()[0] for row in chromium.find_elements("css selector", "tbody tr") if row.is_displayed()
        ]

    assert seen() == ["cut", "middle", "large", "small"]
    header = chromium.find_elements("css selector", "th button")[2]
    assert header.text == "WT, mL"
    header.click()
    assert seen() == ["small", "middle", "large", "cut"]
    header.click()
    assert seen() == ["large", "middle", "small", "cut"]
    set_to(chromium, "kind", "calm")
    assert seen() == ["large", "small"]
    set_to(chromium, "kind", "failed doubtful")
    assert seen() == ["middle", "cut"]
    set_to(chromium, "kind", "")
    set_to(chromium, "most", 0.5)
    assert chromium.find_element("id", "count").text == "1 of 4 cases"
    assert seen() == ["large"]
    set_to(chromium, "most", "")
    set_to(chromium, "text", "BIAS")
    assert seen() == ["middle"]
    assert js(chromium, "document.body.dataset.hacked") is None
