"""Every setting of the service, with its unit and default: one class, read from the environment.

A field `max_pixels` is the variable `HOUSENUMBER_MAX_PIXELS` and the flag `--max-pixels` of `housenumber serve`,
which wins. What stands in `description` is the flag's help.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.engine import Provider, Spinning
from service.logs import LogFormat

ENV_PREFIX = "HOUSENUMBER_"

# Beside service/ both in a checkout and in site-packages.
DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "models/artifacts/house-number/3/model.onnx"

_MIB = 2**20

_BATCHING: dict[str, dict[str, float]] = {
    "latency": {"max_batch_size": 32, "max_batch_delay_ms": 0, "max_queue_images": 256},
    "throughput": {"max_batch_size": 64, "max_batch_delay_ms": 5, "max_queue_images": 1024},
}
"""What each preset sets; docs/operations.md says why."""


class Settings(BaseSettings):
    """Settings of the service. Raises pydantic's ValidationError, which names the field that is wrong."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every network of the machine.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    workers: int = Field(
        1,
        ge=1,
        description="Processes that answer on the one port, each with the model and its share of the CPUs; from 2 on"
        " one more process watches over them.",
    )
    worker_timeout_s: float = Field(
        30.0,
        ge=2.0,
        description="Seconds without a sign of life after which one of several workers is killed and replaced.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level to log.")
    log_format: LogFormat = Field(
        "auto", description="How to log: json, one object per line, or text; auto is text on a terminal, else json."
    )
    tracing: bool = Field(
        False,
        description="Whether requests are traced with OpenTelemetry, whose own variables (OTEL_...) say where to; needs"
        " the extra `tracing`.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys that callers must have, KEY or name:KEY, separated by commas; none: everybody may call."
    )
    api_keys_file: Path | None = Field(
        None, description="File of further keys, one per line, read again on SIGHUP; by default none."
    )
    rate_limit_per_minute: int | None = Field(
        None,
        ge=1,
        description="Most images per minute of one caller: of one API key's name or, where there are no keys, of one"
        " address; by default there is no limit.",
    )

    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Keys, written as the others, of those who may also load models; none: nobody may.",
    )
    admin_keys_file: Path | None = Field(
        None, description="File of further admin keys, one per line, read again on SIGHUP; by default none."
    )

    model: Path = Field(DEFAULT_MODEL, description="Artifact to serve, an .onnx file.")
    model_repository: Path | None = Field(
        None,
        description="Folder with NAME/VERSION/model.onnx for every version of a model, instead of one file; versions"
        " can then be changed while the service runs.",
    )
    model_name: str | None = Field(
        None, min_length=1, description="Model of the repository to serve; by default the only one there."
    )
    model_version: int | None = Field(
        None, ge=1, description="Version of it to begin with, and to stay with; by default the highest."
    )
    provider: Provider = Field(
        "auto",
        description="What runs the model: cuda (refuses to start unless every node runs there), cpu,"
        " or auto (cuda where it works, else cpu).",
    )
    intra_op_threads: int = Field(
        1,
        ge=1,
        description="CPU threads for each batch; as many batches are computed at a time as there are CPUs for, so 1"
        " reads most, and all the CPUs read a lone image soonest.",
    )
    spinning: Spinning = Field(
        "auto",
        description="Whether those threads stay busy between two pieces of work: on, off, or auto (off).",
    )
    gpu_memory_mib: int = Field(4096, ge=64, description="Most GPU memory the model's arena may take, in MiB.")

    second_look: bool = Field(
        True,
        description="Whether an image whose number stands crooked, and is not surely read, is shown to the model once"
        " more, turned level; both answers count.",
    )

    search: bool = Field(
        True,
        description="Whether a photograph that is larger than what the model is shown, and is not surely read, is"
        " searched for its number, part by part.",
    )

    max_body_bytes: int = Field(20 * _MIB, ge=1, description="Largest request body, in bytes.")
    body_timeout_s: float = Field(
        20.0, gt=0.0, description="Seconds in which nothing more of a body has come, after which it is given up."
    )
    max_pixels: int = Field(
        64_000_000, ge=1, description="Most pixels (width x height) an image may have, read from its header."
    )
    max_images: int = Field(64, ge=1, description="Most images per request; each region counts as one.")
    decode_threads: int | None = Field(
        None,
        ge=1,
        description="Threads that decode; by default the CPUs this process may use. On the CPU, with as many batches at"
        " a time, the batches decode their images themselves, and these threads JSON bodies alone.",
    )
    preset: Literal["latency", "throughput"] = Field(
        "latency",
        description="What the next three are unless they are set: latency (answer at once) or throughput (large batches"
        " and long queues).",
    )
    max_batch_size: int = Field(32, ge=1, description="Most images the model is given at once; throughput: 64.")
    max_batch_delay_ms: float = Field(
        0.0,
        ge=0.0,
        description="Longest an image waits for others to fill its batch while the model is free, in milliseconds;"
        " throughput: 5.",
    )
    max_queue_images: int = Field(
        256, ge=1, description="Most images that may wait, for decoding or for the model; throughput: 1024."
    )

    request_timeout_ms: int = Field(
        30_000, ge=1, description="Longest a request may take, in milliseconds; a caller may ask for less."
    )
    load_timeout_s: float = Field(
        300.0,
        gt=0.0,
        description="Seconds in which a model must be loaded and warm: after them a process without one ends, and one"
        " that has another goes on with that.",
    )
    stall_timeout_s: float = Field(
        120.0,
        gt=0.0,
        description="Seconds for which the engine fails on whatever it is asked, or does not come back from a batch,"
        " after which the process ends, so that another one takes its place.",
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0.0,
        description="Seconds between the signal to stop and the end of listening, in which requests are served, but"
        " `/readyz` says `draining` so that a load balancer sends no more.",
    )
    drain_timeout_s: float = Field(
        30.0,
        gt=0.0,
        description="Seconds after that in which what was accepted must be answered; the rest is cut off.",
    )

    @property
    def batching(self) -> str:
        """The settings that a preset sets, in one line: what they are, and whether the preset or the user said so."""
        chosen = [
            f"{name} {getattr(self, name):g} ({'preset' if getattr(self, name) == value else 'set'})"
            for name, value in _BATCHING[self.preset].items()
        ]
        return f"preset {self.preset}: {', '.join(chosen)}"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**_BATCHING.get(str(given.get("preset")), {}), **given}

    @field_validator("api_keys", "admin_keys", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(key for part in value.split(",") if (key := part.strip()))
        return value

    @field_validator("tracing")
    @classmethod
    def _tracing_is_installed(cls, value: bool) -> bool:
        if value:
            try:
                import_module("service.tracing")
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"{error.name} is not installed; in a checkout, pip install -e '.[tracing]'"
                ) from error
        return value

    @model_validator(mode="after")
    def _one_source_of_models(self) -> Self:
        if self.model_repository is not None and "model" in self.model_fields_set:
            raise ValueError("model and model_repository exclude each other: one file, or a folder of versions")
        if self.model_repository is None and (self.model_name, self.model_version) != (None, None):
            raise ValueError("model_name and model_version choose from a model_repository, which is not set")
        return self

    @model_validator(mode="after")
    def _the_largest_request_fits(self) -> Self:
        if self.max_queue_images < self.max_images:
            raise ValueError(
                f"max_queue_images ({self.max_queue_images}) must be at least max_images ({self.max_images}):"
                " a request that fills the queue alone could never be answered"
            )
        return self
