"""The JSON of the Open Inference Protocol (KServe v2), and of those of Triton's extensions that this service has.

Names, types and which fields may be missing are the specifications':
https://github.com/kserve/open-inference-protocol/tree/main/specification/protocol and
https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, Json, field_validator, model_validator

Parameter = str | bool | int | float

_Count = Annotated[int, Field(ge=0, le=2**63 - 1)]

# Far more than any request needs: what is wrong with each of a million would take gigabytes to say.
_MOST_TENSORS = 16
_MOST_DIMENSIONS = 8
_MOST_PARAMETERS = 64


class _In(BaseModel):
    """What comes in. Fields that have no meaning here are ignored: the specification's own examples have some."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _ParametersIn(_In):
    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Parameter] = Field(init=False)

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, parameters: object) -> object:
        if isinstance(parameters, dict) and len(parameters) > _MOST_PARAMETERS:
            raise ValueError(f"there are more than {_MOST_PARAMETERS} parameters")
        return parameters


class _TensorParametersIn(_ParametersIn):
    shared_memory_region: str | None = None

    @field_validator("shared_memory_region")
    @classmethod
    def _no_shared_memory(cls, region: str | None) -> None:
        if region is not None:
            raise ValueError("shared memory is not supported")


class RequestParameters(_ParametersIn):
    """Parameters of a whole request. Others than these are accepted and mean nothing."""

    binary_data_output: bool = Field(False, description="All outputs in binary, unless they say otherwise.")
    timeout: _Count = Field(0, description="The caller's deadline, in microseconds from now; 0: none.")
    priority: _Count = Field(0, description="Accepted; all requests have the same.")
    content_type: str | None = Field(None, description="`base64`, for inputs that do not say it themselves.")
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False

    @field_validator("sequence_id", "sequence_start", "sequence_end")
    @classmethod
    def _no_sequence(cls, value: int | str | bool) -> int | str | bool:
        if value:
            raise ValueError("sequences are not supported: the model keeps nothing from one request to the next")
        return value


class InputParameters(_TensorParametersIn):
    """Parameters of one input."""

    binary_data_size: _Count | None = Field(None, description="Bytes of the tensor, which come after the JSON.")
    content_type: str | None = Field(None, description="`base64`: what the strings of a BYTES input in JSON are.")


class OutputParameters(_TensorParametersIn):
    """Parameters of one requested output."""

    binary_data: bool | None = Field(None, description="In binary; by default as the request says.")
    classification: int = 0

    @field_validator("classification")
    @classmethod
    def _no_classification(cls, count: int) -> int:
        if count:
            raise ValueError("classification is not supported")
        return count


class RequestInput(_In):
    """An input tensor: `data` row by row, flat or nested as `shape` says, unless it comes in binary."""

    name: str
    shape: list[_Count] = Field(max_length=_MOST_DIMENSIONS)
    datatype: str
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class RequestOutput(_In):
    """An output tensor that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(_In):
    """The body, or its JSON part, of `POST …/infer`."""

    id: str | None = Field(None, description="Comes back in the answer.")
    parameters: RequestParameters = RequestParameters()
    inputs: list[RequestInput] = Field(max_length=_MOST_TENSORS)
    outputs: list[RequestOutput] = Field([], max_length=_MOST_TENSORS, description="None: all there are.")


class BinaryData(BaseModel):
    """Parameters of an output in binary: its bytes, which come after the JSON, in the order of the outputs."""

    binary_data_size: int


class ResponseOutput(BaseModel):
    """An output tensor, with either `data`, flat and row by row, or `parameters`."""

    name: str
    datatype: str
    shape: list[int]
    parameters: BinaryData | None = Field(None, exclude_if=lambda parameters: parameters is None)
    data: list[Any] | None = Field(None, exclude_if=lambda data: data is None)


class InferResponse(BaseModel):
    """The answer, or its JSON part, of `POST …/infer`."""

    model_name: str
    model_version: str
    id: str | None = Field(None, exclude_if=lambda request_id: request_id is None)
    outputs: list[ResponseOutput]


class ErrorResponse(BaseModel):
    """What every failure under `/v2` answers with."""

    error: str


class ServerMetadata(BaseModel):
    """The service. `provider`, what the model runs on, is our addition; left out until the model is ready."""

    name: str
    version: str
    extensions: list[str]
    provider: str | None = Field(None, exclude_if=lambda provider: provider is None)


class ServerLive(BaseModel):
    live: bool


class ServerReady(ServerLive):
    """The specification's text names the field `live`, its readers expect `ready`."""

    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives; -1 is the size of the batch."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class DurationStat(BaseModel):
    """How often something happened, and how many nanoseconds it took altogether."""

    model_config = ConfigDict(from_attributes=True)

    count: int
    ns: int


class InferenceStats(BaseModel):
    """Per request. There is no cache, but clients read its fields without asking."""

    model_config = ConfigDict(from_attributes=True)

    success: DurationStat
    fail: DurationStat
    queue: DurationStat
    compute_input: DurationStat
    compute_infer: DurationStat
    compute_output: DurationStat
    cache_hit: DurationStat
    cache_miss: DurationStat


class BatchStats(BaseModel):
    """Per batch of one size."""

    batch_size: int
    compute_input: DurationStat
    compute_infer: DurationStat
    compute_output: DurationStat


class ModelStats(BaseModel):
    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since 1970; 0 before the first.")
    inference_count: int = Field(description="Images inferred.")
    execution_count: int = Field(description="Batches they came in.")
    inference_stats: InferenceStats
    batch_stats: list[BatchStats]


class StatsResponse(BaseModel):
    model_stats: list[ModelStats]


class IndexRequest(_In):
    """The body, which may be empty, of `POST /v2/repository/index`."""

    ready: bool = Field(False, description="Only the version that is served.")


class RepositoryVersion(BaseModel):
    """A version of a model; `reason` says why it is not served."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class LatestVersions(_In):
    """The newest versions."""

    num_versions: int = Field(1, validation_alias=AliasChoices("num_versions", "numVersions"))


class SpecificVersions(_In):
    """These versions. Protocol buffers write numbers of 64 bits in JSON as strings."""

    versions: list[Annotated[int, Field(strict=False, ge=1, le=2**63 - 1)]]


class VersionPolicy(_In):
    """Triton's `ModelVersionPolicy`; there is one version at a time, the newest or a specific one."""

    latest: LatestVersions | None = None
    specific: SpecificVersions | None = None
    all: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_version(self) -> Self:
        if self.all is not None or (self.latest is not None and self.specific is not None):
            raise ValueError("one version is served at a time: say `latest` or `specific`")
        if self.latest is not None and self.latest.num_versions != 1:
            raise ValueError("one version is served at a time: latest.num_versions is 1")
        if self.specific is not None and len(self.specific.versions) != 1:
            raise ValueError("one version is served at a time: specific.versions has one element")
        return self


class LoadConfig(_In):
    """Triton's `ModelConfig`, of which only the version policy means something when a model is loaded."""

    version_policy: VersionPolicy = Field(
        VersionPolicy(), validation_alias=AliasChoices("version_policy", "versionPolicy")
    )

    @property
    def version(self) -> str | None:
        """The version asked for; None is the newest."""
        specific = self.version_policy.specific
        return None if specific is None else str(specific.versions[0])


class LoadParameters(_ParametersIn):
    """Parameters of a load: one, as Triton has it. Another one, such as a version that stands where it is not looked
    for, is refused: without it the newest version would be loaded. Files are copied into the repository."""

    config: Json[LoadConfig] = Field(
        default_factory=LoadConfig, description="Triton's model configuration, as a string of JSON."
    )

    @model_validator(mode="after")
    def _no_others(self) -> Self:
        for name in self.__pydantic_extra__:
            if name.startswith("file:"):
                raise ValueError("files are not taken; copy them into the repository")
            raise ValueError(
                f"{name[:80]!r} is not known; a version is asked for with `config`,"
                ' "{\\"version_policy\\": {\\"specific\\": {\\"versions\\": [1]}}}"'
            )
        return self


class LoadRequest(_In):
    """The body, which may be empty, of `POST /v2/repository/models/{name}/load`."""

    parameters: LoadParameters = Field(default_factory=lambda: LoadParameters())
