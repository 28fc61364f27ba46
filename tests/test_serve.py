"""The service of examples/serve.py: what it answers, what it refuses, and what it leaves behind."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve import create_app

import lora_moe_hgd as lmh
from lora_moe_hgd.inference.results import CaseSegmenter


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, so that a test sees what is left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def client(small_shipped: None, scratch: Path) -> Iterator[TestClient]:
    with TestClient(create_app("tiny", max_megabytes=5)) as running:
        yield running


def uploads(stack: ExitStack, case: Path) -> dict:
    files = {"t1c": "T1c.nii.gz", "flair": "FLAIR.nii.gz"}
    return {name: ("patient_name", stack.enter_context(open(case / file, "rb"))) for name, file in files.items()}


def test_a_case_is_answered_as_the_package_segments_it(client: TestClient, dummy_root: Path, scratch: Path) -> None:
    case = dummy_root / "case_000"
    expected = lmh.segment(case, "tiny", sequences=["t1c", "flair"])
    with ExitStack() as stack:
        answer = client.post("/segment", files=uploads(stack, case))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["volumes_ml"] == expected.volumes_ml
    assert found["confidence"] == expected.confidence
    assert found["warnings"] == list(expected.warnings)
    label_map = nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(base64.b64decode(found["label_map"]))))
    assert np.array_equal(label_map.dataobj, expected.label_map.dataobj)
    assert np.array_equal(label_map.affine, expected.label_map.affine)
    assert not list(scratch.iterdir())


def test_the_label_map_alone_is_a_nifti_file(client: TestClient, dummy_root: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        answer = client.post("/segment.nii.gz", files=uploads(stack, dummy_root / "case_000"))
    (tmp_path / "seg.nii.gz").write_bytes(answer.content)
    assert nib.load(tmp_path / "seg.nii.gz").shape == nib.load(dummy_root / "case_000/T1c.nii.gz").shape


def test_bad_uploads_are_refused_with_the_reason_and_leave_nothing(client: TestClient, scratch: Path) -> None:
    none = client.post("/segment", files={"t3": b"x"})
    assert (none.status_code, none.json()["detail"]) == (422, "Upload at least one of t1, t1c, t2, flair.")
    damaged = client.post("/segment", files={"t1": b"no image"})
    assert damaged.status_code == 422
    assert damaged.json()["detail"].startswith("t1.nii: ")
    assert str(scratch) not in damaged.text
    large = client.post("/segment", files={"t1": bytes(6 * 10**6)})
    assert (large.status_code, large.json()["detail"]) == (413, "A case may have 5 MB at most.")
    endless = client.post("/segment", content=iter([b"x"]))
    assert endless.status_code == 411
    assert client.get("/health").json() == {"in_work": 0}
    assert not list(scratch.iterdir())


def test_cases_beyond_the_queue_are_turned_away(
    small_shipped: None, dummy_root: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, at_once, most = threading.Event(), [0], [0]

    def segment(self: CaseSegmenter, case: object) -> lmh.Segmentation:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        assert gate.wait(60)
        at_once[0] -= 1
        raise ValueError("The gate is open.")

    monkeypatch.setattr(CaseSegmenter, "segment", segment)

    async def send() -> list[int]:
        transport = httpx.ASGITransport(create_app("tiny", max_waiting=1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            tasks = [asyncio.create_task(client.post("/segment", files={"t1": b"x"})) for _ in range(4)]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 2:
                more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            gate.set()
            return sorted(task.result().status_code for task in done) + [
                answer.status_code for answer in await asyncio.gather(*waiting)
            ]

    assert asyncio.run(send()) == [503, 503, 422, 422]
    assert most == [1]
