"""Triton's model repository extension as Triton's own client speaks it."""

import asyncio
import json
import re
from ast import literal_eval
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from serving import listening, plain, wait_until
from tiny_reader import REVERSED, write_version
from tritonclient.utils import InferenceServerException

from service.app import create_app
from service.engine import OnnxEngine
from service.settings import Settings

ADMIN = {"Authorization": "Bearer boss"}
FIRST = json.dumps({"version_policy": {"specific": {"versions": [1]}}})
NEWEST = json.dumps({"version_policy": {"latest": {"num_versions": 1}}})


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a service on a repository with two versions: what 1 reads as 12, 2 reads as 87."""
    write_version(tmp_path, 1)
    write_version(tmp_path, 2, alphabet=REVERSED)
    app = create_app(
        Settings(model_repository=tmp_path, admin_keys="boss"),
        lambda path: OnnxEngine(path, "cpu", intra_op_threads=1),
    )
    with listening(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield f"127.0.0.1:{client.base_url.port}"


def image(module: Any) -> Any:
    return module.InferInput("image", [1], "BYTES").set_data_from_numpy(np.array([plain("12")], dtype=np.object_))


def states(index: list[dict[str, str]]) -> dict[str, str]:
    assert all(set(entry) == {"name", "version", "state", "reason"} for entry in index)
    assert {entry["name"] for entry in index} == {"tiny"}
    return {entry["version"]: entry["state"] for entry in index}


def check(result: triton.InferResult, version: str, number: bytes) -> None:
    assert result.get_response()["model_version"] == version
    assert result.as_numpy("number").tolist() == [number]


def test_load_index_and_unload(address: str) -> None:
    with triton.InferenceServerClient(address) as server:
        assert "model_repository" in server.get_server_metadata()["extensions"]
        assert states(server.get_model_repository_index(headers=ADMIN)) == {"1": "UNAVAILABLE", "2": "READY"}
        check(server.infer("tiny", [image(triton)]), "2", b"87")
        server.load_model("tiny", headers=ADMIN, config=FIRST)
        assert states(server.get_model_repository_index(headers=ADMIN)) == {"1": "READY", "2": "UNAVAILABLE"}
        assert server.is_model_ready("tiny", "1")
        assert not server.is_model_ready("tiny", "2")
        check(server.infer("tiny", [image(triton)], model_version="1"), "1", b"12")
        # What the service says of its model has the model stay as it is.
        server.load_model("tiny", headers=ADMIN, config=json.dumps(server.get_model_config("tiny")))
        check(server.infer("tiny", [image(triton)]), "1", b"12")
        server.load_model("tiny", headers=ADMIN)
        check(server.infer("tiny", [image(triton)]), "2", b"87")
        server.load_model("tiny", headers=ADMIN, config=json.dumps(server.get_model_config("tiny")))
        check(server.infer("tiny", [image(triton)]), "2", b"87")
        asked: list[tuple[Callable[[], object], str, str]] = [
            (lambda: server.unload_model("tiny", headers=ADMIN), "400", "one model must serve"),
            (lambda: server.load_model("small", headers=ADMIN), "404", "serves tiny"),
            (lambda: server.load_model("tiny"), "401", "an admin key"),
            (lambda: server.get_model_repository_index(), "401", "an admin key"),
            (lambda: server.infer("tiny", [image(triton)], model_version="1"), "404", "there is tiny version 2"),
        ]
        for ask, status, mention in asked:
            with pytest.raises(InferenceServerException, match=mention) as caught:
                ask()
            assert caught.value.status() == status
        check(server.infer("tiny", [image(triton)]), "2", b"87")


def test_the_documentations_example_runs(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    documentation = (Path(__file__).parent.parent / "docs/api.md").read_text(encoding="utf-8")
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", documentation, re.DOTALL) if "load_model" in part)
    for placeholder, real in (("localhost:8000", address), ("house-number", "tiny"), ("KEY", "boss")):
        assert placeholder in code
        code = code.replace(placeholder, real)
    exec(code, {})
    assert states(literal_eval(capsys.readouterr().out)) == {"1": "READY", "2": "UNAVAILABLE"}


def test_the_asyncio_client(address: str) -> None:
    async def session() -> None:
        async with triton_aio.InferenceServerClient(address) as server:

            async def infer() -> triton.InferResult:
                return await server.infer("tiny", [image(triton_aio)])

            await server.load_model("tiny", headers=ADMIN, config=FIRST)
            assert states(await server.get_model_repository_index(headers=ADMIN)) == {"1": "READY", "2": "UNAVAILABLE"}
            check(await infer(), "1", b"12")
            asked = [server.load_model("tiny", headers=ADMIN, config=config) for config in (FIRST, NEWEST) * 3]
            results = await asyncio.gather(*asked, *(infer() for _ in range(20)))
            for result in results[len(asked) :]:
                check(result, *{"1": ("1", b"12"), "2": ("2", b"87")}[result.get_response()["model_version"]])
            await server.load_model("tiny", headers=ADMIN)
            check(await infer(), "2", b"87")
            with pytest.raises(InferenceServerException, match="one model must serve"):
                await server.unload_model("tiny", headers=ADMIN)
            with pytest.raises(InferenceServerException, match="an admin key"):
                await server.load_model("tiny")

    asyncio.run(session())
