"""Settings: where they come from, what they refuse, and that each is documented."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import DEFAULT_MODEL, Settings


def test_the_defaults_hold_together() -> None:
    settings = Settings()
    assert settings.port == 8000
    assert settings.provider == "auto"
    assert settings.api_keys == ()
    assert settings.drain_delay_s == 0
    assert settings.model == DEFAULT_MODEL


def test_the_default_model_lies_beside_the_service() -> None:
    root = Path(__file__).resolve().parent.parent
    assert root / "models/artifacts/house-number/1/model.onnx" == DEFAULT_MODEL


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSENUMBER_PORT", "9000")
    monkeypatch.setenv("HOUSENUMBER_PROVIDER", "cpu")
    monkeypatch.setenv("HOUSENUMBER_MODEL", "/elsewhere/model.onnx")
    settings = Settings(port="9001")
    assert (settings.port, settings.provider, settings.model) == (9001, "cpu", Path("/elsewhere/model.onnx"))
    assert Settings().port == 9000


@pytest.mark.parametrize(("text", "keys"), [("", []), ("one", ["one"]), (" one, two ,,", ["one", "two"])])
def test_api_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, text: str, keys: list[str]) -> None:
    monkeypatch.setenv("HOUSENUMBER_API_KEYS", text)
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == keys
    assert "'one'" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("PROVIDER", "tpu"),
        ("MAX_PIXELS", "0"),
        ("MAX_BODY_BYTES", "-1"),
        ("REQUEST_TIMEOUT_MS", "0"),
        ("DRAIN_DELAY_S", "-1"),
        ("LOG_LEVEL", "loud"),
        ("MAX_QUEUE_IMAGES", "10"),  # fewer than max_images
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HOUSENUMBER_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_every_setting_is_described_with_its_unit() -> None:
    units = {"bytes": "bytes", "ms": "milliseconds", "mib": "MiB", "s": "Seconds", "pixels": "pixels"}
    for name, field in Settings.model_fields.items():
        assert field.description, name
        unit = units.get(name.rsplit("_", 1)[-1])
        assert unit is None or unit in field.description, name
