"""What an exported reader says about itself: the metadata that travels in the `.onnx` file.

The artifact is the only thing that `service/` knows of a reader. Its graph has one input, `images`, and
three outputs, `probabilities`, `theta` and `boxes` (shapes in `service.engine`); everything else the service
must know is one JSON object in the file's `metadata_props`, under `METADATA_KEY`. Reading it here and writing
it in `export/` go through the same class, so the two cannot drift apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from service.validation import first_mistake

FORMAT_VERSION = 1
METADATA_KEY = "housenumber"

INPUT_NAME = "images"
OUTPUT_NAMES = ("probabilities", "theta", "boxes")

_Text = Annotated[str, Field(min_length=1)]
_Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class ArtifactError(Exception):
    """The file is not an artifact this program can serve; the message is one line and says why."""


class ArtifactMetadata(BaseModel):
    """The self-description of an artifact.

    `threshold` is the confidence from which a reading counts as accepted, `temperature` the calibration that
    is already applied inside the graph, `parameters` the number of trained scalars, `weights_sha256` the
    digest of the safetensors file the graph was exported from. `training` and `evaluation` are figures for
    people to read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    name: _Text
    version: _Text
    reader: _Text
    input_height: int = Field(gt=0)
    input_width: int = Field(gt=0)
    alphabet: _Text = "0123456789"
    slots: int = Field(default=5, gt=0)
    transformers: int = Field(ge=0)
    threshold: _Share
    temperature: float = Field(gt=0.0, allow_inf_nan=False)
    parameters: int = Field(ge=0)
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    training: dict[str, JsonValue]
    evaluation: dict[str, JsonValue]
    versions: dict[str, str]

    @field_validator("alphabet")
    @classmethod
    def _no_character_twice(cls, alphabet: str) -> str:
        if len(set(alphabet)) != len(alphabet):
            raise ValueError("a character stands in the alphabet twice")
        return alphabet

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the pixels the reader is shown."""
        return self.input_height, self.input_width

    @property
    def classes(self) -> int:
        """What a slot is one of: the alphabet and, last, the blank."""
        return len(self.alphabet) + 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The graph's interface, its input first: of each tensor all dimensions but the first, which is the batch."""
        return {
            INPUT_NAME: (*self.input_size, 3),
            "probabilities": (self.slots, self.classes),
            "theta": (self.transformers, 2, 3),
            "boxes": (self.transformers, 4, 2),
        }

    def to_metadata_map(self) -> dict[str, str]:
        """The `metadata_props` entry to write: the inverse of `parse_metadata`, the same bytes every time."""
        return {METADATA_KEY: json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)}


def parse_metadata(custom_metadata_map: Mapping[str, str]) -> ArtifactMetadata:
    """Reads the metadata of an ONNX file, as `session.get_modelmeta().custom_metadata_map` gives it.

    Raises ArtifactError when the entry is missing, of another format version, or not valid.
    """
    text = custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ArtifactError(
            f"not an artifact of this project: its metadata has no entry {METADATA_KEY!r}"
            " (artifacts are written by `housenumber export`)"
        )
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArtifactError(f"the artifact's metadata is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ArtifactError("the artifact's metadata is not a JSON object")
    # Asked first: a file of another format would otherwise be reported as a list of wrong fields.
    version = fields.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"the artifact has format version {version!r}; this program understands version {FORMAT_VERSION}"
        )
    try:
        return ArtifactMetadata.model_validate(fields)
    except ValidationError as error:
        raise ArtifactError(f"the artifact's metadata is not valid: {first_mistake(error.errors())}") from error
