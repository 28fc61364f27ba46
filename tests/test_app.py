"""The app: what its visitors see, what it refuses, what it keeps apart, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import nibabel as nib
import numpy as np
import pytest
from huggingface_hub import SpaceCard
from small_scans import SPACINGS, head, write_study

import lora_moe_hgd as lmh
from lora_moe_hgd.app import found as app_found
from lora_moe_hgd.app import sessions as app_sessions
from lora_moe_hgd.app.found import LEFT_OUT, MAX_ROWS, find, scan_options, sequences_chosen
from lora_moe_hgd.app.results import result_html
from lora_moe_hgd.app.sessions import SESSION_SECONDS, Sessions
from lora_moe_hgd.app.worker import ALL_FILES, End, Job, folders_of, own_names, segment_job
from lora_moe_hgd.model.task import BRAIN_TUMOUR
from lora_moe_hgd.scans import archives
from lora_moe_hgd_cli import main

pytest.importorskip("gradio")
from app_server import MAX_MB, Server
from fastapi import HTTPException
from gradio.blocks import Block
from gradio_client import Client, handle_file

from lora_moe_hgd.app.page import PARTIAL, AppOptions
from lora_moe_hgd.app.server import Guard, create_app

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server(small_weights: Path) -> Iterator[Server]:
    called: set[Any] = set()
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        called.add(address[0] if isinstance(address, tuple) else "a file")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        running = Server(small_weights / "tiny")
        yield running
        running.close()
    # Nothing is left, and nothing but this computer was called, neither for statistics nor for news.
    assert not running.sessions.root.exists()
    assert called == {"127.0.0.1"}


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    made = Sessions()
    yield made
    made.close()


def roles_of(listing: tuple[Any, ...]) -> list[str]:
    """Value of each row, from the answer of an event that lists the files."""
    return [row["value"] for row in listing[-MAX_ROWS:]]


def upload(visitor: Client, paths: list[Path]) -> tuple[Any, ...]:
    return visitor.predict([handle_file(path) for path in paths], api_name="/add")


def segment(
    visitor: Client, server: Server, listing: tuple[Any, ...], roles: list[str] | None = None, *images: str
) -> str:
    """What the visitor sees at last; `listing` is the answer of the last event that lists the files."""
    roles = roles_of(listing) if roles is None else roles
    return visitor.predict(listing[-MAX_ROWS - 3], None, server.checkpoint, list(images), *roles, api_name="/segment")


def ask(server: Server, event: str, *data: Any) -> dict[str, Any]:
    """What the server answers to an event of a visitor whose program sends what it likes."""
    config = httpx.get(f"{server.url}/config").json()
    (number,) = [part["id"] for part in config["dependencies"] if part["api_name"] == event]
    body = {"data": data, "fn_index": number, "session_hash": "stranger"}
    httpx.post(f"{server.url}/gradio_api/queue/join", json=body).raise_for_status()
    with httpx.stream("GET", f"{server.url}/gradio_api/queue/data?session_hash=stranger", timeout=60) as answer:
        for line in answer.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("The server did not answer.")


def zipped(sessions: Sessions, content: dict[str, bytes]) -> Path:
    """An uploaded zip file with these members."""
    path = sessions.new_upload()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def job(sessions: Sessions, weights: Path, images: dict[str, Path]) -> Job:
    session = sessions.of("job")
    names = {"out": session.folder / f"out{time.monotonic_ns()}", "scratch": session.folder / "scratch"}
    return Job(weights.name, weights, None, "cpu", False, images, None, {}, "case", **names)


def test_a_case_is_segmented_as_the_package_does_it(
    server: Server, dummy_root: Path, small_weights: Path, tmp_path: Path
) -> None:
    case = tmp_path / "Muster"
    case.mkdir()
    for name in ("T1c", "FLAIR", "T2"):
        shutil.copyfile(dummy_root / f"case_000/{name}.nii.gz", case / f"Muster_{name}.nii.gz")
    (case / "Muster_notes.txt").write_text("no image")
    visitor = server.visitor()
    listing = upload(visitor, sorted(case.iterdir()))
    assert "3 NIfTI files" in listing[1]
    assert "Deleted, because" in listing[1]
    labels = {row["label"]: row for row in listing[-MAX_ROWS:] if row["visible"]}
    assert {name: row["value"] for name, row in labels.items()} == {
        "Muster_FLAIR.nii.gz": "flair",
        "Muster_T1c.nii.gz": "t1c",
        "Muster_T2.nii.gz": "t2",
    }
    # File names of visitors may contain the names of patients.
    stored = [name for _, folders, names in os.walk(server.sessions.root) for name in (*folders, *names)]
    assert stored
    assert not [name for name in stored if "Muster" in name]
    # The visitor corrects it: this T2 is not used.
    roles = [LEFT_OUT if role == "t2" else role for role in roles_of(listing)]
    shown = segment(visitor, server, listing, roles)
    # The introduction of the page says it, and nothing is said twice.
    assert "Research use only" not in shown
    expected = lmh.segment(dummy_root / "case_000", small_weights / "tiny", sequences=["t1c", "flair"])
    for name, volume in expected.volumes_ml.items():
        assert f"<th>{name.upper()}</th><td>{volume:.1f} mL</td>" in shown
    for warning in expected.warnings:
        assert warning.replace("'", "&#x27;").replace("<", "&lt;") in shown
    links = dict(re.findall(r'href="([^"]*/([^"/]*))" download', shown))
    assert sorted(links.values()) == sorted([ALL_FILES, "seg.nii.gz", "report.json", "overlay.png", "report.html"])
    for link, name in links.items():
        answer = httpx.get(f"{server.url}/{link}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        (tmp_path / name).write_bytes(answer.content)
    assert b"Muster" not in (tmp_path / "report.json").read_bytes()
    assert json.loads((tmp_path / "report.json").read_text())["checkpoint"] == "tiny"
    with zipfile.ZipFile(tmp_path / ALL_FILES) as archive:
        assert sorted(archive.namelist()) == sorted(set(links.values()) - {ALL_FILES})
    label_map = nib.load(tmp_path / "seg.nii.gz")
    assert np.array_equal(label_map.dataobj, expected.label_map.dataobj)
    assert np.array_equal(label_map.affine, expected.label_map.affine)
    assert re.search(r'<iframe [^>]*sandbox="allow-scripts"[^>]*src="results/[^"]*/report.html#inside"', shown)


def test_uploads_beyond_the_cap_are_refused_and_not_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = httpx.post(f"{server.url}/gradio_api/upload", files={"files": ("a.nii", bytes((MAX_MB + 2) * 10**6))})
    assert (large.status_code, large.text) == (413, f"A case may have {MAX_MB} MB at most.")
    endless = httpx.post(f"{server.url}/gradio_api/upload", content=iter([b"x"]))
    assert endless.status_code == 411
    visitor = server.visitor()
    part = tmp_path / "t1.nii"
    part.write_bytes(bytes(2 * 10**6))
    assert "1 NIfTI file" in upload(visitor, [part])[1]
    assert f"A case may have {MAX_MB} MB in" in upload(visitor, [part])[1]
    monkeypatch.setattr(app_sessions, "MAX_FILES", 2)
    part.write_bytes(b"x")
    assert "in 2 files at most" in upload(visitor, [part, part])[1]
    assert not list(server.sessions.incoming.iterdir())


def test_the_example_case_has_its_name_source_and_licence(
    server: Server, dummy_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []
    monkeypatch.setattr(server.worker, "run", lambda job, stop: iter([jobs.append(job), End("done")]))
    visitor = server.visitor()
    source = "BraTS-SSA-00041-000 is from BraTS-Africa (doi 10.7937/v8h6-8x67), CC BY 4.0"
    listing = visitor.predict(api_name="/example")
    assert source in listing[0]
    segment(visitor, server, listing)
    assert [job.case_id for job in jobs] == ["BraTS-SSA-00041-000"]
    visitor.predict(api_name="/clear")
    assert source not in upload(visitor, [dummy_root / "case_000/T1c.nii.gz"])[1]


def test_visitors_do_not_see_each_others_cases(server: Server, dummy_root: Path) -> None:
    one, other = server.visitor(), server.visitor()
    listing = upload(one, [dummy_root / "case_000/T1c.nii.gz"])
    assert "There are no images yet" in segment(other, server, listing)
    for path in server.sessions.of(one.session_hash).folder.rglob("*.nii.gz"):
        assert httpx.get(f"{server.url}/gradio_api/file={path}").status_code in (403, 404)
        stolen = ask(server, "add", [{"path": str(path), "meta": {"_type": "gradio.FileData"}}])
        assert "The uploaded file no longer exists" in stolen["output"]["data"][1]
    # The server reads no file of its own, and fetches no address, for a visitor.
    given = {"path": __file__, "meta": {"_type": "gradio.FileData"}}
    assert not ask(server, "segment", "", given, server.checkpoint, [], *roles_of(listing))["success"]
    assert not list((server.sessions.root / "gradio").glob("*"))
    assert httpx.get(f"{server.url}/gradio_api/file=https://elsewhere.example/").status_code == 404
    assert httpx.get(f"{server.url}/results/guess/report.json").status_code == 404
    first = server.sessions.of(one.session_hash)
    token, folder = server.sessions.new_result(first)
    folder.mkdir()
    (folder / "seg.nii.gz").write_bytes(b"x")
    assert httpx.get(f"{server.url}/results/{token}/seg.nii.gz").status_code == 200
    assert httpx.get(f"{server.url}/results/{token}/..%2F..%2Fseg.nii.gz").status_code == 404
    server.sessions.end(one.session_hash)
    assert not first.folder.exists()
    assert httpx.get(f"{server.url}/results/{token}/seg.nii.gz").status_code == 404


def test_one_job_computes_at_a_time_and_a_stopped_one_leaves_the_queue(
    server: Server, dummy_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, at_once, most = threading.Event(), [0], [0]

    def run(job: Job, stop: threading.Event) -> Iterator[End | None]:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        while not gate.is_set() and not stop.is_set():
            gate.wait(0.05)
            yield None
        at_once[0] -= 1
        yield End("The gate is open.")

    monkeypatch.setattr(server.worker, "run", run)
    visitors = [server.visitor() for _ in range(3)]
    jobs = []
    for visitor in visitors:
        listing = upload(visitor, [dummy_root / "case_000/T1c.nii.gz"])
        given = (listing[2], None, server.checkpoint, [], *roles_of(listing))
        jobs.append(visitor.submit(*given, api_name="/segment"))
    waiting = [jobs[number] for number in range(3) if jobs[number].status().rank is not None]
    deadline = time.monotonic() + 60
    while len(waiting) < 2 and time.monotonic() < deadline:
        waiting = [work for work in jobs if work.status().rank is not None]
    assert sorted(work.status().rank for work in waiting) == [0, 1]
    waiting[0].cancel()
    gate.set()
    done = [work for work in jobs if work is not waiting[0]]
    assert all("The gate is open." in work.result(timeout=60) for work in done)
    assert most == [1]


def test_errors_are_the_packages_own_and_the_app_goes_on(server: Server, dummy_root: Path, tmp_path: Path) -> None:
    visitor = server.visitor()
    damaged = tmp_path / "x_flair.nii.gz"
    damaged.write_bytes(b"no image")
    first = upload(visitor, [damaged])
    shown = segment(visitor, server, first)
    assert "FLAIR.nii.gz: " in shown
    assert str(server.sessions.root) not in shown
    second = upload(visitor, [damaged])
    twice = segment(visitor, server, second)
    assert "FLAIR is chosen more than once: x_flair.nii.gz, x_flair.nii.gz. Choose only one." in twice
    assert "No sequence is chosen" in segment(visitor, server, second, [LEFT_OUT] * MAX_ROWS)
    # What was chosen for these files says nothing about others that came while the job waited.
    assert "The images have changed in the meantime" in segment(visitor, server, first)
    visitor.predict(api_name="/clear")
    third = upload(visitor, [dummy_root / "case_000/T1c.nii.gz"])
    assert "<th>WT</th>" in segment(visitor, server, third, None, PARTIAL)


def test_a_crash_ends_one_job_and_a_stopped_job_stops(
    server: Server, sessions: Sessions, small_weights: Path, dummy_root: Path, tmp_path: Path
) -> None:
    worker = server.worker
    good = job(sessions, small_weights / "tiny", {"t1c": dummy_root / "case_000/T1c.nii.gz"})
    broken = shutil.copytree(small_weights / "tiny", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    *_, end = worker.run(replace(good, checkpoint=broken), threading.Event())
    assert end is not None
    assert "unexpected error (SafetensorError" in end.problem
    stop = threading.Event()
    running = worker.run(good, stop)
    next(running)
    process = worker._process
    assert process is not None
    stop.set()
    assert not [message for message in running if isinstance(message, End)]
    assert not process.is_alive()
    assert not good.scratch.exists()
    running = worker.run(good, threading.Event())
    next(running)
    assert worker._process is not None
    worker._process.kill()
    *_, end = running
    assert isinstance(end, End)
    assert end.problem.startswith("The computation ended unexpectedly")
    *_, end = worker.run(good, threading.Event())
    assert end == End()
    assert (good.out / "seg.nii.gz").is_file()


def test_files_are_deleted_after_an_hour(sessions: Sessions, tmp_path: Path) -> None:
    idle, busy = sessions.of("idle"), sessions.of("busy")
    busy.busy = True
    left = sessions.new_upload()
    left.write_bytes(b"x")
    now = time.monotonic()
    sessions.sweep(now + SESSION_SECONDS - 10)
    assert idle.folder.is_dir()
    assert left.exists()
    sessions.sweep(now + SESSION_SECONDS + 10)
    assert not idle.folder.exists()
    assert not left.exists()
    assert busy.folder.is_dir()


def test_an_upload_that_is_taken_meanwhile_does_not_end_the_sweeper(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # What `iterdir` lists and `stat` no longer finds.
    (sessions.incoming / "taken").symlink_to("nothing")
    left = sessions.new_upload()
    left.write_bytes(b"x")
    sessions.sweep(time.monotonic() + SESSION_SECONDS + 10)
    assert not left.exists()
    calls = []

    def fail(now: float) -> None:
        calls.append(now)
        if len(calls) == 2:
            sessions._closed.set()
        raise RuntimeError

    monkeypatch.setattr(app_sessions, "SWEEP_SECONDS", 0.001)
    monkeypatch.setattr(sessions, "sweep", fail)
    sessions._sweep_now_and_then()
    assert len(calls) == 2
    assert "The deletion of old files of the app failed with RuntimeError" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["end", "close"])
def test_nothing_stays_if_the_page_is_closed_while_a_zip_file_is_unpacked(
    method: str, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, packed = sessions.of("a"), zipped(sessions, {"a": b"one"})
    begun, go_on = threading.Event(), threading.Event()

    def unpack(*args: Any, **limits: int) -> int:
        begun.set()
        assert go_on.wait(30)
        # As if files were deleted while they are written.
        session.folder.mkdir(exist_ok=True)
        args[1].mkdir(parents=True, exist_ok=True)
        return archives.unpack(args[0], args[1] / "more", **limits)

    monkeypatch.setattr(app_sessions, "unpack", unpack)
    adding = threading.Thread(target=session.add, args=([(packed, "a.zip")],), kwargs={"max_bytes": 10**6})
    adding.start()
    assert begun.wait(30)
    threading.Timer(0.2, go_on.set).start()
    if method == "end":
        sessions.end("a")
    else:
        sessions.close()
        assert not sessions.root.exists()
    adding.join(30)
    assert not session.folder.exists()
    assert not packed.exists()
    with pytest.raises(ValueError, match="The page was closed"):
        session.clear()


def test_nothing_of_an_upload_is_kept_if_one_of_its_zip_files_is_bad(sessions: Sessions) -> None:
    session, image, bad = sessions.of("a"), sessions.new_upload(), sessions.new_upload()
    image.write_bytes(b"x")
    bad.write_bytes(b"PK\x03\x04 and no more")
    uploads = [(image, "t1.nii"), (zipped(sessions, {"a": b"one"}), "good.zip"), (bad, "bad.zip")]
    with pytest.raises(ValueError, match=r"bad\.zip: The zip file is damaged .* The uploaded files were deleted\."):
        session.add(uploads, max_bytes=10**6)
    assert not session.images
    assert not list(session.folder.rglob("*"))
    assert not list(sessions.incoming.iterdir())
    assert (session.size, session.unpacked, session.count) == (0, 0, 0)


def test_what_zip_files_hold_counts_for_the_whole_session(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    session = sessions.of("a")

    def add(content: dict[str, bytes]) -> None:
        session.add([(zipped(sessions, content), "a.zip")], max_bytes=10_000)

    add({"a": bytes(30_000), "b": b""})
    assert (session.unpacked, session.count) == (30_000, 2)
    with pytest.raises(ValueError, match="The zip file unpacks to"):
        add({"c": bytes(15_000)})
    monkeypatch.setattr(app_sessions, "MAX_FILES", 4)
    add({"d": b"", "e": b""})
    with pytest.raises(ValueError, match="The zip file contains 1 files, but at most 0 are allowed"):
        add({"f": b""})
    session.clear()
    add({"f": bytes(30_000)})


def test_messages_name_no_folder_of_the_server(sessions: Sessions, tmp_path: Path) -> None:
    given = job(sessions, tmp_path, {})
    full = OSError(28, "No space left on device", str(given.out / "seg.nii.gz"))
    assert own_names(str(full), *folders_of(given)) == "[Errno 28] No space left on device: 'seg.nii.gz'"
    for folder in (given.out, given.scratch, given.out.parent):
        assert str(sessions.root) not in own_names(f"'{folder}' is full", *folders_of(given))


def test_series_of_a_study_are_listed_and_corrected(sessions: Sessions, tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    packed = sessions.new_upload()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in filter(Path.is_file, (tmp_path / "study").rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    session = sessions.of("a")
    assert session.add([(packed, "Muster Erika.zip")], max_bytes=10**9) == ""
    found = find(session, BRAIN_TUMOUR)
    assert [(row.key, row.role) for row in found.rows] == [("1", "t1c"), ("2", "flair"), ("3", LEFT_OUT)]
    assert found.is_study
    chosen = sequences_chosen(found.rows, ["t1c", "flair", LEFT_OUT], BRAIN_TUMOUR)
    assert scan_options(found, chosen) == {"series": {}, "sequences": ("t1c", "flair")}
    chosen = sequences_chosen(found.rows, [LEFT_OUT, "t2", LEFT_OUT], BRAIN_TUMOUR)
    assert scan_options(found, chosen) == {"series": {"t2": "2"}, "sequences": ("t2",)}
    bomb = sessions.new_upload()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10 * session.size))
    with pytest.raises(ValueError, match=r"big\.zip: The zip file unpacks to"):
        session.add([(bomb, "big.zip")], max_bytes=2 * session.size)
    assert not bomb.exists()
    assert app_found.find(session, BRAIN_TUMOUR) == found


def test_a_study_and_whole_heads_are_prepared_first(
    sessions: Sessions, small_weights: Path, dicom: Path, quickened: None, tmp_path: Path
) -> None:
    scan = {"series": {"t2": "2"}, "sequences": ("t1c", "t2"), "study": None}
    given = replace(job(sessions, small_weights / "tiny", {}), images=None, raw=dicom, scan=scan)
    segment_job(given, lambda step: None)
    written = {path.name for path in given.out.iterdir()}
    assert {"seg.nii.gz", "seg_on_t1c.nii.gz", "seg_on_t2.nii.gz", "seg.dcm", "report.html", ALL_FILES} <= written
    assert json.loads((given.out / "report.json").read_text())["sequences_used"] == ["t1c", "t2"]
    (tmp_path / "heads").mkdir()
    nib.save(head(SPACINGS["flair"]), tmp_path / "heads/FLAIR.nii.gz")
    given = replace(given, raw=tmp_path / "heads", scan={"case_id": "case"}, out=tmp_path / "out")
    segment_job(given, lambda step: None)
    assert json.loads((given.out / "report.json").read_text())["case_id"] == "case"


def test_a_doubtful_result_never_looks_calm(tmp_path: Path) -> None:
    report: dict[str, Any] = {
        "case_id": "case",
        "warnings": [],
        "tumour_found": True,
        "volumes_ml": {"wt": 12.34, "tc": 0.04, "et": 0.0},
        "confidence": {"wt": 0.91, "tc": 0.52, "et": None},
        "sequences_used": ["t1c"],
        "label_scheme": {"name": "brats2023", "core": 1},
        "checkpoint": str(tmp_path),
        "seconds": 3.0,
    }
    calm = result_html(report, ["seg.nii.gz"], "results/x", BRAIN_TUMOUR)
    assert "is doubtful" not in calm
    assert "The result can still be wrong" in calm
    assert "0.52, low" in calm
    assert "<td>12.3 mL</td>" in calm
    assert "<td>&lt; 0.1 mL</td>" in calm
    assert "<td>0.0 mL</td>" in calm
    assert "CC BY" not in calm
    example = result_html(report | {"case_id": "BraTS-SSA-00041-000"}, ["seg.nii.gz"], "results/x", BRAIN_TUMOUR)
    assert "Images: BraTS-Africa (doi 10.7937/v8h6-8x67), CC BY 4.0" in example
    # Visitors learn no folders of the server.
    assert str(tmp_path.parent) not in calm
    doubtful = result_html(report | {"warnings": ["a <b>skull</b>"]}, ["seg.nii.gz"], "results/x", BRAIN_TUMOUR)
    assert 'role="alert"' in doubtful
    assert "a &lt;b&gt;skull&lt;/b&gt;" in doubtful
    assert "<strong>This result is doubtful. A warning:</strong>" in doubtful
    without_t1c = report | {"warnings": [BRAIN_TUMOUR.without["t1c"]]}
    headline = "<strong>TC and ET are doubtful. A warning:</strong>"
    assert headline in result_html(without_t1c, ["seg.nii.gz"], "results/x", BRAIN_TUMOUR)


def test_the_page_fetches_nothing_and_other_pages_cannot_use_it(server: Server) -> None:
    answer = httpx.get(server.url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert not re.search(r"https?:", policy)
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:)?//[^"]*"', answer.text)
    config = httpx.get(f"{server.url}/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")
    # Nor can they show it in an invisible frame, in which a visitor would press buttons unknowingly.
    assert "frame-ancestors 'self'" in policy
    assert httpx.get(server.url, headers={"host": "elsewhere.example"}).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "{url}"}, 200),
        ({"origin": "https://elsewhere.example"}, 403),
        # Another program on this computer.
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_requests_of_other_web_pages_are_refused(server: Server, headers: dict[str, str], status: int) -> None:
    headers = {name: value.format(url=server.url) for name, value in headers.items()}
    answer = httpx.post(f"{server.url}/gradio_api/upload", files={"files": b"x"}, headers=headers)
    assert answer.status_code == status
    for path in server.sessions.incoming.iterdir():
        path.unlink()


def test_a_request_longer_than_it_says_is_refused(server: Server) -> None:
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        lines = ["POST /gradio_api/upload HTTP/1.1", f"Host: {place.netloc}", "Content-Length: 5"]
        connection.sendall("\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 411 ")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(10**6), "more_body": True}

    async def read_all(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"5")]}
    with pytest.raises(HTTPException, match="A case may have 3 MB at most"):
        asyncio.run(Guard(read_all, 3 * 10**6)(scope, receive, None))


def test_with_an_unknown_gradio_the_app_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Block, "async_move_resource_to_block_cache")
    with pytest.raises(ValueError, match="the app cannot prevent visitors from reading files"):
        create_app(AppOptions("tiny"))


def test_without_the_extra_the_command_names_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["lora-moe-hgd", "app"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        'error: The app needs the package gradio. Install it: pip install "lora-moe-hgd[app]"\n'
    )


def test_the_card_of_the_space_names_what_is_tested() -> None:
    card = SpaceCard.load(ROOT / "spaces/README.md")
    data = card.data.to_dict()
    assert (data["sdk"], data["license"]) == ("gradio", "mit")
    assert f"gradio=={data['sdk_version']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert (ROOT / "spaces" / data["app_file"]).is_file()
    # What the Hub allows: https://huggingface.co/docs/hub/spaces-config-reference
    assert len(data["short_description"]) <= 60
    assert {data["colorFrom"], data["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }
    assert "Research use only. This is not a medical device." in card.text
