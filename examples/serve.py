"""Serve segmentations over HTTP: `python examples/serve.py`, then http://127.0.0.1:8000/docs.

`curl -F t1c=@t1c.nii.gz -F flair=@flair.nii.gz http://127.0.0.1:8000/segment` returns JSON; `/segment.nii.gz` returns
the label map alone. One case runs at a time, few may wait, and nothing that was uploaded is kept. There is no
encryption and no login: put it behind a server that has both. Research use, not a medical device.
"""

import argparse
import asyncio
import base64
import gzip
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from lora_moe_hgd import Segmentation
from lora_moe_hgd.cases.case_files import given_case
from lora_moe_hgd.inference.results import CaseSegmenter, ResultOptions


def create_app(checkpoint: str = "glioma", *, max_megabytes: int = 300, max_waiting: int = 4) -> FastAPI:
    """Build the service around one checkpoint, which is loaded with the first case."""
    app = FastAPI(title="lora-moe-hgd", description="Research use, not a medical device.")
    app.state.in_work = 0
    segmenter = CaseSegmenter(checkpoint, ResultOptions())
    worker = ThreadPoolExecutor(max_workers=1)

    @app.middleware("http")
    async def cap(request: Request, call_next: Any) -> Response:
        # By the announced length, before a byte of it is stored.
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not length.isdigit():
            return JSONResponse({"detail": "The request must state its Content-Length."}, 411)
        if request.method == "POST" and int(length) > max_megabytes * 10**6:
            return JSONResponse({"detail": f"A case may have {max_megabytes} MB at most."}, 413)
        return await call_next(request)

    def run(uploads: dict[str, UploadFile], folder: Path) -> Segmentation:
        paths = {}
        for name, upload in uploads.items():
            content = upload.file.read()
            # The name that the client gave may be that of a patient, so it is not used.
            paths[name] = folder / (f"{name}.nii.gz" if content.startswith(b"\x1f\x8b") else f"{name}.nii")
            paths[name].write_bytes(content)
        return segmenter.segment(given_case(paths))

    async def segmented(
        t1: UploadFile | None = None,
        t1c: UploadFile | None = None,
        t2: UploadFile | None = None,
        flair: UploadFile | None = None,
    ) -> Segmentation:
        given = {"t1": t1, "t1c": t1c, "t2": t2, "flair": flair}
        uploads = {name: upload for name, upload in given.items() if upload is not None}
        if not uploads:
            raise HTTPException(422, "Upload at least one of t1, t1c, t2, flair.")
        if app.state.in_work > max_waiting:
            raise HTTPException(503, "Too many cases are waiting.", headers={"Retry-After": "60"})
        app.state.in_work += 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                return await asyncio.get_running_loop().run_in_executor(worker, run, uploads, Path(folder))
            except ValueError as error:
                raise HTTPException(422, str(error).replace(f"{folder}/", "")) from error
            finally:
                app.state.in_work -= 1

    Found = Annotated[Segmentation, Depends(segmented)]

    @app.post("/segment")
    async def as_json(found: Found) -> dict[str, Any]:
        """Volumes in mL, expected Dice, warnings, and the label map as base64 of a NIfTI file."""
        label_map = base64.b64encode(gzip.compress(found.label_map.to_bytes())).decode()
        answer = {"volumes_ml": found.volumes_ml, "confidence": found.confidence, "warnings": found.warnings}
        return {**answer, "labels": str(found.label_scheme), "label_map": label_map}

    @app.post("/segment.nii.gz")
    async def as_nifti(found: Found) -> Response:
        """The label map on the grid of the first sequence."""
        return Response(gzip.compress(found.label_map.to_bytes()), media_type="application/gzip")

    @app.get("/health")
    async def health() -> dict[str, int]:
        return {"in_work": app.state.in_work}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="glioma")
    parser.add_argument("--host", default="127.0.0.1")
    args = parser.parse_args()
    uvicorn.run(create_app(args.checkpoint), host=args.host, port=8000)
