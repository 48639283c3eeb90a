"""Presets of the batching settings: what they set, that a setting wins, and what is said about it."""

import pytest
from pydantic import ValidationError

from service.settings import _BATCHING, Settings


def values(settings: Settings) -> dict[str, float]:
    return {name: getattr(settings, name) for name in _BATCHING["latency"]}


def test_the_defaults_are_those_of_latency() -> None:
    assert values(Settings()) == values(Settings(preset="latency")) == _BATCHING["latency"]
    defaults = {name: Settings.model_fields[name].default for name in _BATCHING["latency"]}
    assert defaults == _BATCHING["latency"]


def test_the_help_names_the_values_of_throughput() -> None:
    assert values(Settings(preset="throughput")) == _BATCHING["throughput"]
    for name, value in _BATCHING["throughput"].items():
        description = Settings.model_fields[name].description
        assert description is not None
        assert description.endswith(f"throughput: {value}.")


def test_what_is_set_wins_wherever_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSENUMBER_PRESET", "throughput")
    monkeypatch.setenv("HOUSENUMBER_MAX_QUEUE_IMAGES", "2000")
    settings = Settings(max_batch_size=16)
    assert values(settings) == {"max_batch_size": 16, "max_batch_delay_ms": 5.0, "max_queue_images": 2000}
    assert settings.batching == (
        "preset throughput: max_batch_size 16 (set), max_batch_delay_ms 5 (preset), max_queue_images 2000 (set)"
    )
    assert Settings(preset="latency").max_batch_size == _BATCHING["latency"]["max_batch_size"]


@pytest.mark.parametrize("preset", ["speed", "", 3])
def test_there_are_no_other_presets(preset: object) -> None:
    with pytest.raises(ValidationError, match="preset"):
        Settings(preset=preset)
