"""The tensors of the protocol: which ones a model takes and gives, and how they travel.

In JSON a tensor is a list, row by row. In binary it is its elements in little-endian order, and an element of BYTES
is preceded by its length, an unsigned integer of four bytes.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.artifact import INPUT_NAME, OUTPUT_NAMES, ArtifactMetadata
from service.errors import BadRequest
from service.open_inference.schemas import BinaryData, ResponseOutput, TensorMetadata

ENCODED, PIXELS = "image", INPUT_NAME

_LENGTH_BYTES = 4
_DTYPES = {"FP32": np.dtype("<f4"), "BOOL": np.dtype("?")}


def input_tensors(model: ArtifactMetadata) -> list[TensorMetadata]:
    """The two inputs, of which a request has either: encoded images, or what the artifact itself takes."""
    return [
        TensorMetadata(name=ENCODED, datatype="BYTES", shape=[-1]),
        TensorMetadata(name=PIXELS, datatype="UINT8", shape=[-1, *model.shapes[PIXELS]]),
    ]


def output_tensors(model: ArtifactMetadata) -> list[TensorMetadata]:
    """The readings, then the artifact's own outputs; `boxes` are normalised to the view, as the artifact gives them."""
    return [
        TensorMetadata(name="number", datatype="BYTES", shape=[-1]),
        TensorMetadata(name="confidence", datatype="FP32", shape=[-1]),
        TensorMetadata(name="accepted", datatype="BOOL", shape=[-1]),
        *(TensorMetadata(name=name, datatype="FP32", shape=[-1, *model.shapes[name]]) for name in OUTPUT_NAMES),
    ]


def elements(raw: memoryview, count: int) -> list[bytes]:
    """The `count` elements of a BYTES tensor in binary; raises BadRequest where there are not just as many."""
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) < count:
        start = at + _LENGTH_BYTES
        stop = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or stop > len(raw):
            raise BadRequest(f"element {len(found)} reaches beyond the tensor's {len(raw)} bytes")
        found.append(bytes(raw[start:stop]))
        at = stop
    if len(found) != count or at != len(raw):
        raise BadRequest(f"the tensor's {len(raw)} bytes are not just {count} elements, each preceded by its length")
    return found


def pixels(data: memoryview | list[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A UINT8 tensor in binary or in JSON; raises BadRequest where it does not have this shape."""
    raw = data if isinstance(data, memoryview) else _bytes(data, shape)
    count = int(np.prod(shape))
    if len(raw) != count:
        raise BadRequest(f"{len(raw)} elements do not fill the shape {list(shape)}, which has {count}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _bytes(data: list[Any], shape: tuple[int, ...]) -> bytes:
    if data and isinstance(data[0], list):
        rows = [data]
        for size in shape:
            if any(not isinstance(row, list) or len(row) != size for row in rows):
                raise BadRequest(f"the nested lists do not have the shape {list(shape)}")
            data = list(chain.from_iterable(rows))
            rows = data
    try:
        return bytes(data)
    except (TypeError, ValueError):
        raise BadRequest("UINT8 data are whole numbers from 0 to 255, nested as the shape says or not at all") from None


def response_output(
    tensor: TensorMetadata, values: NDArray[Any] | list[str], *, binary: bool
) -> tuple[ResponseOutput, bytes]:
    """An output for the JSON part of an answer, and its bytes for the binary part; `values` are strings for BYTES."""
    described = {"name": tensor.name, "datatype": tensor.datatype, "shape": [len(values), *tensor.shape[1:]]}
    if not binary:
        data = values if isinstance(values, list) else values.ravel().tolist()
        return ResponseOutput(**described, data=data), b""
    if isinstance(values, list):
        encoded = [value.encode() for value in values]
        raw = b"".join(len(value).to_bytes(_LENGTH_BYTES, "little") + value for value in encoded)
    else:
        raw = values.astype(_DTYPES[tensor.datatype]).tobytes()
    return ResponseOutput(**described, parameters=BinaryData(binary_data_size=len(raw))), raw
