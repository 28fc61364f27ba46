"""The app in a browser: upload, correct, segment, look, download."""

from __future__ import annotations

import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from app_server import Server
from small_scans import write_study

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from lora_moe_hgd.app.worker import Job, Step

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and its driver")]
PATIENCE = 180


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1600"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield started
    started.quit()


def hosts(browser: webdriver.Chrome) -> set[str]:
    """Every host that the page asked for something."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).hostname or "" for url in urls if url.startswith(("http", "ws"))}


def test_a_visitor_uploads_corrects_segments_looks_and_downloads(
    browser: webdriver.Chrome,
    small_weights: Path,
    dummy_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(small_weights / "tiny")
    wait = WebDriverWait(browser, PATIENCE)

    def press(name: str) -> None:
        button = wait.until(lambda page: page.find_element(By.XPATH, f"//button[normalize-space()='{name}']"))
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def wait_for(text: str) -> None:
        wait.until(lambda page: text in page.find_element(By.TAG_NAME, "body").text)

    def picture(name: str) -> None:
        height = browser.execute_script("return document.body.scrollHeight")
        browser.set_window_size(browser.get_window_size()["width"], min(height + 150, 4000))
        assert browser.save_screenshot(str(tmp_path / name))

    try:
        browser.get(server.url)
        wait_for("Research use only. This is not a medical device.")
        files = [str(dummy_root / f"case_000/{name}.nii.gz") for name in ("T1c", "FLAIR")]
        wait.until(lambda page: page.find_element(By.CSS_SELECTOR, "input[type=file]")).send_keys("\n".join(files))
        wait_for("2 NIfTI files. Check that the right sequence is selected for each file.")
        wait_for("FLAIR, according to the file name")
        # The visitor leaves the FLAIR out.
        row = browser.find_element(By.CSS_SELECTOR, "input[aria-label='FLAIR.nii.gz']")
        assert row.get_attribute("value") == "FLAIR"
        row.click()
        option = "//ul[@role='listbox']//li[contains(., 'leave out')]"
        wait.until(lambda page: page.find_element(By.XPATH, option)).click()
        picture("uploaded.png")
        press("Segment")
        wait_for("Segmented from T1c with the checkpoint tiny")
        wait_for("confidence (expected Dice)")
        frame = browser.find_element(By.CSS_SELECTOR, "iframe.lmh-page")
        browser.switch_to.frame(frame)
        wait.until(lambda page: page.find_element(By.TAG_NAME, "body").get_attribute("data-ready"))
        assert "expected Dice" in browser.find_element(By.TAG_NAME, "body").text
        browser.switch_to.default_content()
        picture("result.png")
        browser.set_window_size(390, 844)
        wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0
        picture("phone.png")
        link = browser.find_element(By.CSS_SELECTOR, "a[download='all_files.zip']")
        browser.execute_script("arguments[0].click()", link)
        downloaded = tmp_path / "downloads/all_files.zip"
        wait.until(lambda page: downloaded.is_file())
        with zipfile.ZipFile(downloaded) as archive:
            assert {"seg.nii.gz", "report.json", "report.html", "overlay.png"} <= set(archive.namelist())
        assert hosts(browser) == {"127.0.0.1"}
        refused = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not refused
        press("Delete the files")
        wait_for("No images yet.")
        # Beside other files, a result could be taken for theirs.
        wait_for("No result yet.")
        write_study(tmp_path / "study")
        browser.find_element(By.CSS_SELECTOR, "input[webkitdirectory]").send_keys(str(tmp_path / "study"))
        wait_for("A DICOM study with 3 series.")
        wait_for("Series 2: series of flair")
        picture("study.png")
        stopped = threading.Event()

        def run(job: Job, stop: threading.Event) -> Iterator[Step]:
            try:
                while not stop.wait(0.2):
                    yield Step("A long job")
            finally:
                stopped.set()

        monkeypatch.setattr(server.worker, "run", run)
        press("Segment")
        wait_for("A long job")
        press("Stop")
        wait_for("Stopped.")
        assert stopped.wait(PATIENCE)
        # A closed page is a session that has ended.
        left = list(server.sessions.root.glob("*/study/*"))
        assert left
        browser.get("about:blank")
        wait.until(lambda page: not any(path.exists() for path in left))
    finally:
        server.close()
