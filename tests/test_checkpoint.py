"""Weights on disk: what is written is read again, and whatever else is refused in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models.checkpoint import SPEC_KEY, CheckpointError, load_reader, save_reader, weights_sha256
from models.readers import ReaderSpec, build_reader

SPEC = ReaderSpec("compact", 64, 96, {"recipe": "compact", "seed": 3, "mean": 0.5, "data": ["a", "b"], "note": "ü"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "new" / "compact.safetensors"
    save_reader(path, build_reader(SPEC), SPEC)
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_reader(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_round_trip(tmp_path: Path) -> None:
    reader = build_reader(SPEC).train()
    # Statistics of the batch normalisations belong to the weights.
    reader(torch.rand(4, 3, 64, 96))
    path = tmp_path / "a.safetensors"
    save_reader(path, reader, SPEC)
    loaded, spec = load_reader(path)
    assert spec == SPEC
    assert not loaded.training
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(loaded(images).logits, reader.eval()(images).logits)
    assert all(torch.equal(value, reader.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_the_same_weights_are_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    reader, spec = load_reader(saved)
    save_reader(tmp_path / "again.safetensors", reader, spec)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_only_the_finished_file_is_left(saved: Path) -> None:
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_replaces_what_was_there(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"earlier")
    reader, spec = load_reader(saved)
    save_reader(path, reader, spec)
    assert load_reader(path)[1] == spec


def test_any_reader_of_safetensors_can_read_the_weights(saved: Path) -> None:
    tensors = load_file(saved)
    assert set(tensors) == set(build_reader(SPEC).state_dict())
    assert {tensor.dtype for tensor in tensors.values()} <= {torch.float32, torch.int64}


def test_digest(saved: Path) -> None:
    assert weights_sha256(saved) == hashlib.sha256(saved.read_bytes()).hexdigest()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        load_reader(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"not weights", b"\xff" * 100, b"\x89PNG\r\n\x1a\n" * 50])
def test_a_file_of_something_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    refused(path)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_file_that_breaks_off(saved: Path, tmp_path: Path, share: float) -> None:
    content = saved.read_bytes()
    path = tmp_path / "a.safetensors"
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


def test_weights_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert "no reader's spec" in refused(path)
    save_file({"weight": torch.zeros(2)}, path, {"format": "pt"})
    assert "no reader's spec" in refused(path)


GOOD = {"reader": "compact", "input_height": 64, "input_width": 96, "training": {}}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "null",
        "[]",
        json.dumps({**GOOD, "reader": "vgg"}),
        json.dumps({**GOOD, "reader": ["compact"]}),
        json.dumps({**GOOD, "colour": "red"}),
        json.dumps({"reader": "compact"}),
        json.dumps({**GOOD, "reader": "cnn"}),
        json.dumps({**GOOD, "input_height": "64"}),
        json.dumps({**GOOD, "input_height": None}),
        json.dumps({**GOOD, "input_height": 64.5}),
        json.dumps({**GOOD, "input_height": -64}),
        json.dumps({**GOOD, "input_height": 0}),
        json.dumps({**GOOD, "input_height": 640}),
    ],
)
def test_a_spec_that_makes_no_sense(text: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(load_file(saved), path, {SPEC_KEY: text})
    refused(path)


@pytest.mark.parametrize("change", ["missing", "left over", "other shape"])
def test_weights_that_do_not_fit(change: str, saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved)
    name = "transformer.to_theta.weight"
    if change == "missing":
        del tensors[name]
    elif change == "left over":
        tensors["extra"] = torch.zeros(1)
        name = "extra"
    else:
        tensors[name] = torch.zeros(7, 7)
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {SPEC_KEY: json.dumps(GOOD)})
    assert name in refused(path)
