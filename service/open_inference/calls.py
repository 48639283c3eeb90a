"""`POST …/infer`: from a request's body to what is to be read, and from what was read to the answer's body."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.artifact import ArtifactMetadata
from service.errors import BadRequest, TooLarge
from service.open_inference.compression import decompressed
from service.open_inference.schemas import InferRequest, InferResponse, RequestInput, TensorMetadata
from service.open_inference.tensors import ENCODED, elements, input_tensors, output_tensors, pixels, response_output
from service.pictures import Picture
from service.predictor import Inferred
from service.requests import from_base64
from service.schemas import ModelInfo
from service.validation import first_mistake

_LONGEST_QUOTE = 80
_OTHER_ELEMENTS = 10_000
_MOST_LISTS = 150_000


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has been understood.

    `images` are encoded images, or the artifact's own input, uint8 [N, H, W, 3]. `outputs` are those asked for, and
    whether in binary. `timeout_ms` is the deadline in its parameters, None where it has none.
    """

    id: str | None
    images: Sequence[Picture] | NDArray[np.uint8]
    outputs: tuple[tuple[TensorMetadata, bool], ...]
    timeout_ms: float | None


def read_call(
    body: bytes,
    *,
    encoding: str,
    json_bytes: int | None,
    model: ArtifactMetadata,
    max_body_bytes: int,
    max_images: int,
) -> Call:
    """Understands a body that was sent in the Content-Encoding `encoding`.

    Of the decompressed body the first `json_bytes` bytes are JSON, all of it where that is None, and the rest are
    the tensors in binary, in the order of the inputs. Raises BadRequest, TooLarge for more bytes or images than
    allowed, and UnsupportedMediaType.
    """
    body = decompressed(body, encoding, max_body_bytes)
    if json_bytes is None:
        json_bytes = len(body)
    if json_bytes > len(body):
        raise BadRequest(f"Inference-Header-Content-Length is {json_bytes}; the body has only {len(body)} bytes")
    text = body[:json_bytes]
    _check_elements(text, max_images * math.prod((*model.input_size, 3)))
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as error:
        raise BadRequest(first_mistake(error.errors(include_url=False, include_input=False))) from None
    outputs = _outputs(request, model)
    raw = _binary(request.inputs, memoryview(body)[json_bytes:])
    timeout_ms = request.parameters.timeout / 1000 or None
    tensor, given = _only_input(request, model)
    try:
        images = _images(given, tensor, raw[given.name], request.parameters.content_type, max_images)
    except BadRequest as error:
        raise BadRequest(f"{tensor.name}: {error.detail}") from None
    return Call(request.id, images, outputs, timeout_ms)


def write_answer(call: Call, inferred: Inferred, model: ModelInfo) -> tuple[bytes, int | None]:
    """The body of the answer, and how much of it is JSON: None where all of it is."""
    values: dict[str, NDArray[np.generic] | list[str]] = {
        "number": [reading.number for reading in inferred.readings],
        "confidence": np.array([reading.confidence for reading in inferred.readings]),
        "accepted": np.array([reading.accepted for reading in inferred.readings]),
        "probabilities": inferred.outputs.probabilities,
        "theta": inferred.outputs.theta,
        "boxes": inferred.outputs.boxes,
    }
    parts = [response_output(tensor, values[tensor.name], binary=binary) for tensor, binary in call.outputs]
    answer = InferResponse(
        model_name=model.name, model_version=model.version, id=call.id, outputs=[output for output, _ in parts]
    )
    head = answer.model_dump_json().encode()
    any_binary = any(binary for _, binary in call.outputs)
    return b"".join([head, *(raw for _, raw in parts)]), len(head) if any_binary else None


def _check_elements(text: bytes, most: int) -> None:
    """Refuses JSON that takes long to parse, since nothing else is done in Python meanwhile: of far more elements than
    are ever needed, or of so many lists (and objects), of which each takes as long as some ten numbers."""
    brackets = text.count(b"[")
    # Nested in rows of three, a tensor has a comma for each element and a bracket for every third.
    if text.count(b",") + brackets > 3 * most // 2 + _OTHER_ELEMENTS:
        raise TooLarge(f"the JSON has far more elements than the {most} that the images of one request may have")
    if brackets + text.count(b"{") > _MOST_LISTS:
        raise TooLarge(
            f"the JSON has more than {_MOST_LISTS} lists; send large tensors flat, as one list, or in binary"
        )


def _outputs(request: InferRequest, model: ArtifactMetadata) -> tuple[tuple[TensorMetadata, bool], ...]:
    tensors = {tensor.name: tensor for tensor in output_tensors(model)}
    in_binary = request.parameters.binary_data_output
    if not request.outputs:
        return tuple((tensor, in_binary) for tensor in tensors.values())
    asked: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in tensors:
            raise BadRequest(f"{_quoted(output.name)} is no output; there are {', '.join(tensors)}")
        if output.name in asked:
            raise BadRequest(f"the output {output.name!r} is asked for twice")
        own = output.parameters.binary_data
        asked[output.name] = in_binary if own is None else own
    return tuple((tensors[name], binary) for name, binary in asked.items())


def _binary(inputs: Sequence[RequestInput], rest: memoryview) -> dict[str, memoryview | None]:
    """By input, the bytes that came after the JSON; None where the input has none."""
    raw: dict[str, memoryview | None] = {}
    at = 0
    for given in inputs:
        size = given.parameters.binary_data_size
        raw[given.name] = None if size is None else rest[at : at + size]
        at += size or 0
    if at != len(rest):
        raise BadRequest(
            f"the inputs' binary_data_size add up to {at} bytes; after the JSON there are {len(rest)}"
            " (the header Inference-Header-Content-Length says where it ends)"
        )
    return raw


def _only_input(request: InferRequest, model: ArtifactMetadata) -> tuple[TensorMetadata, RequestInput]:
    tensors = {tensor.name: tensor for tensor in input_tensors(model)}
    for given in request.inputs:
        if given.name not in tensors:
            raise BadRequest(f"{_quoted(given.name)} is no input; there are {', '.join(tensors)}")
    if len(request.inputs) != 1:
        raise BadRequest(f"inputs: give one of {', '.join(tensors)}, once; there are {len(request.inputs)}")
    return tensors[request.inputs[0].name], request.inputs[0]


def _images(
    given: RequestInput, tensor: TensorMetadata, raw: memoryview | None, content_type: str | None, max_images: int
) -> Sequence[Picture] | NDArray[np.uint8]:
    if given.datatype != tensor.datatype:
        raise BadRequest(f"the datatype is {tensor.datatype}, not {_quoted(given.datatype)}")
    count, *rest = given.shape or [0]
    if len(given.shape) != len(tensor.shape) or rest != tensor.shape[1:]:
        expected = ", ".join(["N", *map(str, tensor.shape[1:])])
        raise BadRequest(f"the shape is [{expected}], not {_quoted(given.shape)}")
    if count < 1:
        raise BadRequest("the request has no image: N is less than 1")
    if count > max_images:
        raise TooLarge(f"more than {max_images} images in one request")
    data = given.data if raw is None else raw
    if data is None or (raw is not None and given.data is not None):
        raise BadRequest("an input has either data or the parameter binary_data_size")
    if tensor.name != ENCODED:
        return pixels(data, (count, *rest))
    if isinstance(data, memoryview):
        return [Picture(element, index, str(index)) for index, element in enumerate(elements(data, count))]
    return _from_text(data, count, given.parameters.content_type or content_type)


def _from_text(data: list[object], count: int, content_type: str | None) -> list[Picture]:
    if content_type != "base64":
        raise BadRequest("in JSON an image is a string in base64, and the input's parameters say content_type: base64")
    if len(data) != count:
        raise BadRequest(f"{len(data)} elements do not fill the shape [{count}]")
    pictures = []
    for index, element in enumerate(data):
        if not isinstance(element, str):
            raise BadRequest(f"element {index} is no string")
        content, media_type = from_base64(element)
        pictures.append(Picture(content, index, str(index), media_type=media_type))
    return pictures


def _quoted(given: object) -> str:
    return repr(given)[:_LONGEST_QUOTE]
