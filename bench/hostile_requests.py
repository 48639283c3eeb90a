"""Requests that nobody should send, each made from a seed and its index alone: any of them can be sent again."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from bench.images import encode, multipart, photograph

Then = Literal["waits", "stops", "leaves"]
"""What the sender does next: it waits for an answer, closes its half of the connection, or is gone at once."""


@dataclass(frozen=True)
class Hostile:
    """The bytes of one connection. `is_head`: the answer to it has no body."""

    kind: str
    sent: bytes
    then: Then = "waits"
    is_head: bool = False


def hostile(seed: int, index: int, model: str) -> Hostile:
    """The request with this index; `model` is the name of the one that is served."""
    chance = random.Random(f"{seed}/{index}")
    return chance.choice(_KINDS)(chance, model)


def good() -> bytes:
    """A request with which nothing is wrong."""
    return _post("/predict", _IMAGES[0], {})


def _images() -> list[bytes]:
    """One photograph in all formats that are served, and in the ways that have code of their own in the decoders."""
    image = photograph(0).resize((64, 48))
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    with_orientation = Image.Exif()
    with_orientation[0x0112] = 6
    return [
        encode(image, "JPEG", exif=with_orientation),
        encode(image, "JPEG", progressive=True),
        encode(image.convert("CMYK"), "JPEG"),
        encode(image, "PNG", exif=with_orientation),
        encode(image.convert("P"), "PNG", transparency=0),
        encode(image.convert("I;16"), "PNG"),
        encode(image, "WEBP"),
        encode(image.convert("RGBA"), "WEBP", lossless=True),
        encode(image, "WEBP", **frames),
        encode(image, "BMP"),
        encode(image.convert("1"), "BMP"),
        encode(image, "GIF", **frames),
        encode(image, "TIFF"),
        *(encode(image, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
    ]


_IMAGES = _images()
_EXTREMES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0", b"\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 4, b"\0" * 8]
_JSON_BITS = [b"[", b"]", b"{", b"}", b'"', b",", b":", b"null", b"1e999", b"-0", b"\\ud800", b"NaN", b"[" * 500]
_PATHS = """
    /predict /predict?region=0,0,9,9 /predict?region=1,2 /predict?region=nan,0,1,1 /predict?boxes=maybe
    /predict?min_confidence=2 //predict / * /docs /metrics /%00 /%ff%fe /../../etc/passwd http://a/predict
    /v2/models/{model}/infer /v2/models/{model}/versions/1/infer /v2/models/x/infer /v2/models/{model}/config
    /v2/models/stats /v2/repository/index /v2/repository/models/{model}/load /v2/repository/models/..%2f../load
""".split()  # noqa: SIM905 - a list of them would fill the page
_TYPES = """
    image/jpeg image/png application/octet-stream application/json application/json; text/plain é/ü
    multipart/form-data multipart/form-data;boundary= multipart/form-data;boundary=cut
""".split()  # noqa: SIM905 - a list of them would fill the page
_HEADERS = {
    "X-Request-ID": ["a b", "é", "x" * 5000, ""],
    "X-Request-Timeout-Ms": ["0", "-1", "1", "1e9", "9" * 40, "x", "1"],
    "Inference-Header-Content-Length": ["-1", "0", "1", "9" * 30, "x"],
    "Content-Encoding": ["gzip", "deflate", "br", "gzip, gzip", "identity"],
    "Accept-Encoding": ["gzip;q=x", "*", "deflate", "," * 500],
    "Accept": ["*/*", "", "image/png"],
    "Authorization": ["Bearer", "Bearer é", "Basic !!", "x" * 2000],
    "Content-Type": [*_TYPES, "", "x" * 3000],
    "Expect": ["100-continue", "something else"],
    "Connection": ["close", "upgrade", "keep-alive, close"],
    "Upgrade": ["websocket", "h2c"],
    "traceparent": ["00-" + "0" * 55, "x"],
    "Transfer-Encoding": ["gzip", "identity", "chunked, chunked"],
    "Content-Length": ["0", "1", "-1", "x", "9" * 30, "1_0", "+1", "1, 2"],
    "Host": ["", "a b", "é"],
    "\0": ["x"],
    "a b": ["x"],
    "X" * 4000: ["y" * 4000],
}


def _post(path: str, body: bytes, headers: dict[str, str], method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in {"Host": "a", "Content-Length": str(len(body)), **headers}.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _mutated(chance: random.Random, data: bytes, bits: list[bytes] = _EXTREMES) -> bytes:
    """A few accidents, most of them near the beginning, where most of what there is to break stands."""
    broken = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = int(chance.random() ** 2 * len(broken))
        span = chance.choice((1, 4, 50, len(broken) // 4 + 1))
        match chance.randrange(7):
            case 0 if at < len(broken):
                broken[at] ^= 1 << chance.randrange(8)
            case 1:
                bit = chance.choice(bits)
                broken[at : at + len(bit)] = bit
            case 2:
                broken[at:at] = chance.choice(bits)
            case 3:
                del broken[at : at + span]
            case 4:
                broken[at:at] = broken[at : at + span]
            case 5:
                broken[at : at + span] = chance.randbytes(span)
            case 6:
                del broken[len(broken) - at :]
    return bytes(broken)


def _image(chance: random.Random) -> bytes:
    image = chance.choice(_IMAGES)
    if chance.random() < 0.1:
        return image + chance.choice(_IMAGES)
    return _mutated(chance, image)


def _mutated_image(chance: random.Random, model: str) -> Hostile:
    query = chance.choice(["", "?boxes=false", "?region=0,0,20,20", "?region=1,1,1e9,1&region=0,0,4,4"])
    return Hostile(
        "mutated image", _post(f"/predict{query}", _image(chance), {"Content-Type": chance.choice(_TYPES[:3])})
    )


def _malformed_multipart(chance: random.Random, model: str) -> Hostile:
    body = multipart([_image(chance) for _ in range(chance.randint(0, 4))], "cut")
    if chance.random() < 0.7:
        body = _mutated(chance, body, [*_EXTREMES, b"\r\n", b"--cut", b"--", b'name="', b"\r\n\r\n", b"filename*="])
    media_type = "multipart/form-data; boundary=" + chance.choice(["cut", "cut", "cut", "", '"cut"', "x" * 300, "é"])
    return Hostile("malformed multipart", _post("/predict", body, {"Content-Type": media_type}))


def _value(chance: random.Random, depth: int = 0) -> Any:
    """Any JSON value, with the names that the service knows."""
    if depth < 4 and chance.random() < 0.5:
        values = [_value(chance, depth + 1) for _ in range(chance.randint(0, 4))]
        names = ["images", "data", "id", "regions", "inputs", "outputs", "name", "shape", "datatype", "parameters"]
        return values if chance.random() < 0.5 else {chance.choice(names): value for value in values}
    return chance.choice(
        [None, True, 0, -1, 2**70, 1.5, float("inf"), "", "QUJD", "\ud800", "image", "BYTES", "x" * 99]
    )


def _odd_json(chance: random.Random, model: str) -> Hostile:
    image = {"data": base64.b64encode(_image(chance)).decode(), "id": "a", "regions": [[0, 0, 5, 5]]}
    value: Any = {"images": [image] * chance.randint(1, 3)}
    if chance.random() < 0.3:
        image[chance.choice(list(image))] = _value(chance)
    elif chance.random() < 0.3:
        value = _value(chance)
    return Hostile("odd JSON", _post("/predict", _json(chance, value), {"Content-Type": "application/json"}))


def _json(chance: random.Random, value: Any) -> bytes:
    text = json.dumps(value).encode()
    return _mutated(chance, text, _JSON_BITS) if chance.random() < 0.5 else text


def _protocol(chance: random.Random, model: str) -> Hostile:
    """`/v2`: in JSON or with tensors in binary, none of whose numbers need fit."""
    path = f"/v2/models/{model}/infer"
    images = [_image(chance) for _ in range(chance.randint(1, 3))]
    tensor: dict[str, Any] = {"name": "image", "shape": [len(images)], "datatype": "BYTES"}
    headers: dict[str, str] = {}
    raw = b""
    if chance.random() < 0.5:
        raw = b"".join(len(image).to_bytes(4, "little") + image for image in images)
        tensor["parameters"] = {"binary_data_size": chance.choice([len(raw), len(raw), 0, len(raw) + 1, -1, 2**62])}
        raw = _mutated(chance, raw) if chance.random() < 0.5 else raw
    else:
        tensor["parameters"] = {"content_type": "base64"}
        tensor["data"] = [base64.b64encode(image).decode() for image in images]
    if chance.random() < 0.3:
        tensor[chance.choice(list(tensor))] = _value(chance)
    text = _json(chance, {"inputs": [tensor] if chance.random() < 0.9 else _value(chance)})
    if raw:
        headers["Inference-Header-Content-Length"] = str(len(text) + chance.choice([0, 0, 0, 0, -1, 1, 10**6]))
    body = text + raw
    if chance.random() < 0.2:
        headers["Content-Encoding"] = "deflate"
        body = _mutated(chance, zlib.compress(body)) if chance.random() < 0.7 else zlib.compress(body)
    return Hostile("protocol", _post(path, body, headers))


def _wrong_length(chance: random.Random, model: str) -> Hostile:
    body = _image(chance)
    length = chance.choice([str(len(body) + chance.randint(1, 99)), str(len(body) // 2), *_HEADERS["Content-Length"]])
    then = chance.choices(_THEN, (1, 4, 2))[0]  # whoever waits is waited for, until the time for a body is over
    return Hostile("wrong length", _post("/predict", body, {"Content-Length": length}), then)


def _truncated(chance: random.Random, model: str) -> Hostile:
    whole = _post("/predict", _image(chance), {})
    return Hostile("truncated", whole[: chance.randrange(len(whole))], chance.choice(_THEN[1:]))


def _odd_chunks(chance: random.Random, model: str) -> Hostile:
    image = chance.choice(_IMAGES)
    cut = chance.randrange(len(image))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (image[:cut], image[cut:])) + b"0\r\n\r\n"
    if chance.random() < 0.8:
        chunks = _mutated(chance, chunks, [b"\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b";a=b", b"zz"])
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    return Hostile("odd chunks", head + chunks, chance.choice(_THEN))


def _odd_headers(chance: random.Random, model: str) -> Hostile:
    chosen = chance.sample(list(_HEADERS), chance.randint(1, 4))
    headers = {name: chance.choice(_HEADERS[name]) for name in chosen}
    method = chance.choice(["POST"] * 6 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
    path = chance.choice([*_PATHS, "/predict?" + "a" * 5000]).replace("{model}", model)
    return Hostile("odd headers", _post(path, chance.choice(_IMAGES), headers, method), is_head=method == "HEAD")


def _no_http(chance: random.Random, model: str) -> Hostile:
    beginnings = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET /\r\n", b"\r\n" * 50, b""]
    beginnings += [b"GET / HTTP/9.9\r\n\r\n", b"GET  /  HTTP/1.1\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n" * 9, good()[:40]]
    # Whoever waited within a head would be waited for for longer than there is time to measure.
    return Hostile("no HTTP", _mutated(chance, chance.choice(beginnings) + chance.randbytes(60)), "stops")


_THEN: tuple[Then, ...] = ("waits", "stops", "leaves")
_KINDS: list[Callable[[random.Random, str], Hostile]] = [
    _mutated_image,
    _malformed_multipart,
    _odd_json,
    _protocol,
    _wrong_length,
    _truncated,
    _odd_chunks,
    _odd_headers,
    _no_http,
]
