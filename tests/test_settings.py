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
    assert root / "models/artifacts/house-number/3/model.onnx" == DEFAULT_MODEL


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSENUMBER_PORT", "9000")
    monkeypatch.setenv("HOUSENUMBER_PROVIDER", "cpu")
    monkeypatch.setenv("HOUSENUMBER_MODEL", "/elsewhere/model.onnx")
    settings = Settings(port="9001")
    assert (settings.port, settings.provider, settings.model) == (9001, "cpu", Path("/elsewhere/model.onnx"))
    assert Settings().port == 9000


@pytest.mark.parametrize("name", ["api_keys", "admin_keys"])
@pytest.mark.parametrize(("text", "keys"), [("", []), ("one", ["one"]), (" one, two ,,", ["one", "two"])])
def test_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, name: str, text: str, keys: list[str]) -> None:
    monkeypatch.setenv(f"HOUSENUMBER_{name.upper()}", text)
    settings = Settings()
    assert [key.get_secret_value() for key in getattr(settings, name)] == keys
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
        ("DRAIN_TIMEOUT_S", "0"),
        ("WORKERS", "0"),
        ("LOG_LEVEL", "loud"),
        ("MAX_QUEUE_IMAGES", "10"),  # fewer than max_images
        ("STALL_TIMEOUT_S", "0"),
        ("WORKER_TIMEOUT_S", "1"),
        ("LOAD_TIMEOUT_S", "0"),
        ("MODEL_NAME", "tiny"),  # of which repository?
        ("MODEL_VERSION", "1"),
        ("MODEL_VERSION", "0"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HOUSENUMBER_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_a_model_comes_from_a_file_or_from_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(model_repository="/models", model_name="tiny", model_version="12")
    assert (settings.model_repository, settings.model_name, settings.model_version) == (Path("/models"), "tiny", 12)
    # Also where it happens to be the default.
    for file in ("/elsewhere/model.onnx", str(DEFAULT_MODEL)):
        monkeypatch.setenv("HOUSENUMBER_MODEL", file)
        with pytest.raises(ValidationError, match="model and model_repository exclude each other"):
            Settings(model_repository="/models")


def test_every_setting_is_described_with_its_unit() -> None:
    units = {"bytes": "bytes", "ms": "milliseconds", "mib": "MiB", "s": "Seconds", "pixels": "pixels"}
    for name, field in Settings.model_fields.items():
        assert field.description, name
        unit = units.get(name.rsplit("_", 1)[-1])
        assert unit is None or unit in field.description, name
