"""What is written first: a FastAPI endpoint that runs the session for each request, in FastAPI's threads.

It decodes as the service does and answers with number and confidence. No batches across requests, no limits, no
deadline, no queue that can be full, no metrics. `python -m bench.plain --port 8001 --workers 2`
"""

from __future__ import annotations

import os
from pathlib import Path

import click
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from service.cpus import usable_cpus
from service.engine import OnnxEngine
from service.imaging import Photo
from service.reader import Reader
from service.settings import DEFAULT_MODEL

_MAX_PIXELS = 10**8
_MODEL, _THREADS = "BENCH_PLAIN_MODEL", "BENCH_PLAIN_THREADS"


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--workers", type=click.IntRange(min=1), default=1)
@click.option("--model", type=click.Path(exists=True), default=DEFAULT_MODEL)
def main(port: int, workers: int, model: Path) -> None:
    """Serve it; the workers share the CPUs."""
    os.environ[_MODEL], os.environ[_THREADS] = str(model), str(usable_cpus(workers))
    uvicorn.run("bench.plain:create_app", factory=True, port=port, workers=workers, access_log=False)


def create_app() -> FastAPI:
    """The app of one worker."""
    engine = OnnxEngine(Path(os.environ[_MODEL]), "cpu", intra_op_threads=int(os.environ[_THREADS]))
    reader = Reader(engine)
    reader.warm()
    app = FastAPI()

    def read(images: list[bytes]) -> dict[str, list[dict[str, object]]]:
        photos = [Photo.open(image, max_pixels=_MAX_PIXELS) for image in images]
        views = [photo.views([photo.whole], reader.metadata.input_size)[0] for photo in photos]
        readings = reader.read(views)
        return {"predictions": [{"number": reading.number, "confidence": reading.confidence} for reading in readings]}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, list[dict[str, object]]]:
        if request.headers["content-type"].startswith("multipart/"):
            parts = (await request.form()).getlist("image")
            images = [await part.read() for part in parts if not isinstance(part, str)]
        else:
            images = [await request.body()]
        return await run_in_threadpool(read, images)

    @app.get("/readyz")
    async def readyz() -> str:
        return "ok"

    return app


if __name__ == "__main__":
    main()
