"""The parts of the Open Inference Protocol that need no server: tensors in JSON and binary, and compression."""

import gzip
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from tiny_reader import SIZE, metadata
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from service.errors import BadRequest, ServiceError, TooLarge, UnsupportedMediaType
from service.open_inference.calls import read_call
from service.open_inference.compression import accepted_encoding, compressed, decompressed
from service.open_inference.tensors import elements, output_tensors, pixels, response_output

SHAPE = (2, 3, 4, 3)
uint8 = arrays(np.uint8, st.tuples(*[st.integers(1, 4)] * 4))


@given(parts=st.lists(st.binary(max_size=20), min_size=1, max_size=6))
def test_elements_are_what_the_client_wrote(parts: list[bytes]) -> None:
    raw = serialize_byte_tensor(np.array(parts, dtype=np.object_)).item()
    assert elements(memoryview(raw), len(parts)) == parts


@given(raw=st.binary(max_size=40) | st.lists(st.sampled_from([b"\1\0\0\0", b"\0\0\0\0", b"a"])).map(b"".join))
def test_elements_are_just_as_many_or_refused(raw: bytes) -> None:
    try:
        found = elements(memoryview(raw), 3)
    except BadRequest:
        return
    assert b"".join(struct.pack("<I", len(element)) + element for element in found) == raw
    assert len(found) == 3


@given(array=uint8)
def test_pixels_are_read_in_binary_flat_and_nested(array: NDArray[np.uint8]) -> None:
    for data in (memoryview(array.tobytes()), array.ravel().tolist(), array.tolist()):
        np.testing.assert_array_equal(pixels(data, array.shape), array)


@pytest.mark.parametrize(
    "data",
    [
        [],
        [0] * 71,
        [0] * 73,
        [256] * 72,
        [-1] * 72,
        [10**400] * 72,
        [1.0] * 72,
        ["1"] * 72,
        ["1" * 1_000_000] + [1] * 71,
        [None] * 72,
        [{}] * 72,
        [[0] * 72],
        [[]],
        [[[[0, 0, 0]] * 4] * 3],
        [[[[0, 0, 0]] * 4] * 3] * 3,
        [[[[0, 0]] * 4] * 3] * 2,
        [[[[0, 0, 0]] * 4] * 3, [[[0, 0, 0]] * 4] * 2],
        [[[[0, 0, 0]] * 4] * 3, 5],
        [[[[0, 0, 0]] * 4] * 3, "abc"],
        [0, [[[0, 0, 0]] * 4] * 3],
        [[[[[0], 0, 0]] * 4] * 3] * 2,
        memoryview(bytes(71)),
        memoryview(bytes(73)),
        memoryview(b""),
    ],
    ids=range(24),
)
def test_pixels_that_do_not_fill_the_shape_are_refused(data: Any) -> None:
    with pytest.raises(BadRequest):
        pixels(data, SHAPE)


@given(
    numbers=st.lists(st.text("0123456789", max_size=5), min_size=1, max_size=4),
    theta=arrays(np.float32, (2, 2, 2, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    accepted=arrays(np.bool_, (3,)),
)
def test_outputs_survive_both_ways_of_writing(
    numbers: list[str], theta: NDArray[np.float32], accepted: NDArray[np.bool_]
) -> None:
    tensors = {tensor.name: tensor for tensor in output_tensors(metadata())}
    for name, values in (("number", numbers), ("theta", theta), ("accepted", accepted)):
        in_json, nothing = response_output(tensors[name], values, binary=False)
        assert nothing == b""
        assert in_json.parameters is None
        assert in_json.shape == list(np.shape(values))
        described, raw = response_output(tensors[name], values, binary=True)
        assert described.parameters is not None
        assert described.parameters.binary_data_size == len(raw)
        assert described.data is None
        if isinstance(values, list):
            assert in_json.data == values
            assert [element.decode() for element in deserialize_bytes_tensor(raw)] == values
        else:
            np.testing.assert_array_equal(np.array(in_json.data, values.dtype).reshape(in_json.shape), values)
            np.testing.assert_array_equal(np.frombuffer(raw, values.dtype).reshape(described.shape), values)


def test_a_reader_without_transformers_has_empty_boxes() -> None:
    (*_, theta, boxes) = output_tensors(metadata(transformers=0))
    assert (theta.shape, boxes.shape) == ([-1, 0, 2, 3], [-1, 0, 4, 2])
    described, raw = response_output(theta, np.zeros((3, 0, 2, 3), np.float32), binary=True)
    assert (described.shape, raw) == ([3, 0, 2, 3], b"")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@given(body=st.binary(max_size=300))
def test_compression_there_and_back(encoding: str, body: bytes) -> None:
    assert decompressed(compressed(body, encoding), f" {encoding.upper()}", len(body)) == body
    if body:
        with pytest.raises(TooLarge):
            decompressed(compressed(body, encoding), encoding, len(body) - 1)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_body_that_is_not_whole_is_refused(encoding: str, compress: Any) -> None:
    body = compress(b"some bytes " * 20)
    for broken in (b"", b"junk", body[:-1], body[: len(body) // 2], body + b"x", body + body, b"x" + body):
        with pytest.raises(BadRequest, match=encoding):
            decompressed(broken, encoding, 10_000)
    for other in ("br", "zstd", "gzip, gzip", "x" * 500):
        with pytest.raises(UnsupportedMediaType):
            decompressed(body, other, 10_000)


def test_a_decompression_bomb_is_not_inflated() -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="decompressed"):
            decompressed(bomb, "deflate", 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br", None),
        ("*", None),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("GZIP ; Q=1.0", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=high", None),
        ("gzip;q=0.5, identity", None),
        ("identity;q=0.5, gzip", "gzip"),
        (",;,=;q", None),
    ],
)
def test_what_the_caller_accepts(accept: str, encoding: str | None) -> None:
    assert accepted_encoding(accept) == encoding


@given(body=st.binary(max_size=100), json_bytes=st.none() | st.integers(0, 120))
def test_any_bytes_are_refused_as_the_contract_says(body: bytes, json_bytes: int | None) -> None:
    with pytest.raises(ServiceError) as caught:
        call(body, json_bytes)
    assert caught.value.status in (400, 413)


def call(body: bytes, json_bytes: int | None) -> Any:
    return read_call(body, encoding="", json_bytes=json_bytes, model=metadata(), max_body_bytes=10_000, max_images=4)


def test_pixels_in_binary_are_not_copied() -> None:
    head = b'{"inputs":[{"name":"images","datatype":"UINT8","shape":[1,8,8,3],"parameters":{"binary_data_size":192}}]}'
    body = head + bytes(range(192))
    images = call(body, len(head)).images
    assert images.shape == (1, SIZE, SIZE, 3)
    assert not images.flags.owndata
    assert images.ravel().tolist() == list(range(192))
