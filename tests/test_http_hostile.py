"""Hostile bytes: whatever comes in, the answer is one of the contract's, and soon."""

import base64
import json

import httpx
import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import encode, problem_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_PIXELS = np.random.default_rng(7).integers(0, 256, (24, 32, 3), dtype=np.uint8)
IMAGES = [encode(Image.fromarray(_PIXELS), name) for name in FORMATS]

# A 400 is right for a body that is no JSON or multipart; a 500 never is.
ALLOWED = {(400, "bad_request"), (413, "too_large"), (415, "unsupported_media_type")}
ALLOWED |= {(422, "bad_image"), (422, "bad_region")}
CONTENT_TYPES = ["image/png", "text/plain", "application/json", "multipart/form-data; boundary=cut", "", "x" * 200]

few = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(response: httpx.Response) -> None:
    if response.status_code == 200:
        for prediction in response.json()["predictions"]:
            assert (prediction["number"] is None) == (prediction["error"] is not None)
            if prediction["error"]:
                assert prediction["error"]["code"] in {code for _, code in ALLOWED}
    else:
        assert problem_of(response) in ALLOWED


@few
@given(data=st.binary(max_size=400), content_type=st.sampled_from(CONTENT_TYPES))
def test_any_bytes_of_any_type(client: httpx.Client, data: bytes, content_type: str) -> None:
    check(client.post("/predict", content=data, headers={"Content-Type": content_type} if content_type else {}))


@few
@given(image=st.sampled_from(IMAGES), keep=st.floats(0, 1))
def test_truncated_images(client: httpx.Client, image: bytes, keep: float) -> None:
    check(client.post("/predict", content=image[: int(keep * len(image))]))


@settings(few, max_examples=200)
@given(image=st.sampled_from(IMAGES), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=6))
def test_flipped_bits(client: httpx.Client, image: bytes, flips: list[tuple[float, int]]) -> None:
    data = bytearray(image)
    for position, bit in flips:
        # Most of what there is to break stands in the first bytes.
        data[int(position**3 * (len(data) - 1))] ^= 1 << bit
    check(client.post("/predict", content=bytes(data)))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8) | st.sampled_from(["", "QUJD"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["images", "data", "id", "regions", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@few
@given(value=json_values)
@example(value={"images": [{"data": "\ud800", "id": "\ud800"}]})
@example(value={"images": [{"data": "QUJD", "\ud800": 1}]})
@example(value={"images": [{"data": "QUJD", "regions": [[10**400, 0, 1, 1]]}]})
def test_any_json(client: httpx.Client, value: object) -> None:
    body = json.dumps(value)
    check(client.post("/predict", content=body, headers={"Content-Type": "application/json"}))
    check(client.post("/predict", content=body[:-1], headers={"Content-Type": "application/json"}))


@few
@given(
    images=st.lists(
        st.fixed_dictionaries(
            {"data": st.sampled_from(IMAGES).map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=9)},
            optional={
                "id": st.text(max_size=5),
                "regions": st.lists(st.lists(st.floats(), min_size=4, max_size=4), max_size=3),
            },
        ),
        min_size=1,
        max_size=3,
    )
)
def test_well_formed_json_with_any_numbers_and_texts(client: httpx.Client, images: list[object]) -> None:
    body = json.dumps({"images": images})
    check(client.post("/predict", content=body, headers={"Content-Type": "application/json"}))


MULTIPART_PIECES = [b"--cut", b"--", b"\r\n", b"\n", b": ", b"Content-Disposition", b'form-data; name="image"']
MULTIPART_PIECES += [b'; filename="a"', b"\0", IMAGES[0]]


@few
@given(pieces=st.lists(st.sampled_from(MULTIPART_PIECES), max_size=14))
def test_any_multipart(client: httpx.Client, pieces: list[bytes]) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    check(client.post("/predict", content=b"".join(pieces), headers=headers))


@few
@given(region=st.text(st.sampled_from("0123456789.,-+enaif_ "), max_size=20) | st.text(max_size=10))
def test_any_region(client: httpx.Client, region: str) -> None:
    check(client.post("/predict", params={"region": region}, content=IMAGES[0]))
