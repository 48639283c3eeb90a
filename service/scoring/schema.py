"""The table that scoring writes: one row per image, or per region where regions are given.

Names and values are those of `POST /predict`; docs/scoring.md describes each column. `SCHEMA_VERSION` stands in the
metadata of every file and grows when a column changes its meaning or goes; new columns alone do not change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from service.schemas import ModelInfo, Prediction
from service.scoring.inputs import InputError
from service.scoring.records import Record

SCHEMA_VERSION = 1
# The key of the files' metadata under which this project's JSON stands.
METADATA_KEY = b"housenumber"

_NUMBERS = pa.list_(pa.float64())
_DIGIT = pa.struct([("digit", pa.string()), ("confidence", pa.float64())])
_BOX = pa.struct([("transformer", pa.int32()), ("corners", pa.list_(_NUMBERS)), ("theta", pa.list_(_NUMBERS))])

OWN_COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("region", _NUMBERS),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("number", pa.string()),
        pa.field("confidence", pa.float64()),
        pa.field("accepted", pa.bool_(), nullable=False),
        pa.field("digits", pa.list_(_DIGIT)),
        pa.field("boxes", pa.list_(_BOX)),
        pa.field("error_code", pa.string()),
        pa.field("error_detail", pa.string()),
        pa.field("model_name", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("model_sha256", pa.string(), nullable=False),
    ]
)


def joined_columns(of_files: Iterable[Mapping[str, pa.DataType]]) -> dict[str, pa.DataType]:
    """The columns that are passed through, of all files together; raises InputError where two disagree on a type."""
    joined: dict[str, pa.DataType] = {}
    for columns in of_files:
        for name, type_ in columns.items():
            if joined.setdefault(name, type_) != type_:
                raise InputError(f"the column {name!r} is {joined[name]} in one input and {type_} in another")
    return joined


def output_schema(passed: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema with the columns that are passed through; raises InputError where two would have one name."""
    fields = [pa.field(output_name(name), type_) for name, type_ in passed.items()]
    names = [*OWN_COLUMNS.names, *(field.name for field in fields)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two columns would be called {twice.pop()!r}; rename one in the manifest")
    return pa.schema([*OWN_COLUMNS, *fields])


def output_name(name: str) -> str:
    """What a column that is passed through is called: a name of our own is kept for our own."""
    return f"input_{name}" if name in OWN_COLUMNS.names else name


def rows(
    answered: Sequence[tuple[Record, Prediction]], model: ModelInfo, passed: Iterable[str], schema: pa.Schema
) -> pa.RecordBatch:
    """The rows of predictions, each with its record; `schema` is the `output_schema` of the columns `passed`."""
    predictions = [prediction for _, prediction in answered]
    count = len(answered)
    columns: dict[str, list[object]] = {
        "id": [prediction.id for prediction in predictions],
        "source": [record.source for record, _ in answered],
        "region": [prediction.region for prediction in predictions],
        "width": [prediction.image.width for prediction in predictions],
        "height": [prediction.image.height for prediction in predictions],
        "number": [prediction.number for prediction in predictions],
        "confidence": [prediction.confidence for prediction in predictions],
        "accepted": [prediction.accepted for prediction in predictions],
        "digits": [[vars(digit) for digit in prediction.digits] for prediction in predictions],
        "boxes": [
            None if prediction.boxes is None else [vars(box) for box in prediction.boxes] for prediction in predictions
        ],
        "error_code": [prediction.error and prediction.error.code for prediction in predictions],
        "error_detail": [prediction.error and prediction.error.detail for prediction in predictions],
        "model_name": [model.name] * count,
        "model_version": [model.version] * count,
        "model_sha256": [model.sha256] * count,
    }
    for name in passed:
        columns[output_name(name)] = [(record.passed or {}).get(name) for record, _ in answered]
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
