"""`Content-Encoding`, both ways: gzip and deflate, which is zlib's format."""

from __future__ import annotations

import gzip
import zlib

from service.errors import BadRequest, TooLarge, UnsupportedMediaType

# What zlib is told to expect around the compressed bytes.
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Of numbers that are nearly random, the higher levels save little and take several times as long.
_LEVEL = 1


def decompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body that was sent in a Content-Encoding, never inflated beyond `max_bytes` bytes (and one).

    Raises TooLarge where there is more, UnsupportedMediaType for another encoding, and BadRequest for bytes that
    are not in it, end early or go on after its end.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:80]!r} is not served; send one of gzip, deflate")
    inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        inflated = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is not in {encoding}: {error}") from None
    if len(inflated) > max_bytes:
        raise TooLarge(f"the body has more than {max_bytes} bytes when it is decompressed")
    if not inflater.eof:
        raise BadRequest(f"the body ends before the end of its {encoding}")
    if inflater.unused_data:
        raise BadRequest(f"the body goes on after the end of its {encoding}")
    return inflated


def compressed(body: bytes, encoding: str) -> bytes:
    """The body in "gzip" or "deflate"."""
    return gzip.compress(body, _LEVEL, mtime=0) if encoding == "gzip" else zlib.compress(body, _LEVEL)


def accepted_encoding(accept: str) -> str | None:
    """What an Accept-Encoding header prefers of gzip and deflate; None: the body as it is."""
    weights = dict(_weighted(coding) for coding in accept.split(","))
    best = max(("gzip", "deflate", "identity"), key=lambda encoding: weights.get(encoding, 0.0))
    return best if best != "identity" and weights.get(best, 0.0) > 0 else None


def _weighted(coding: str) -> tuple[str, float]:
    name, _, parameter = coding.partition(";")
    key, _, weight = parameter.partition("=")
    try:
        return name.strip().lower(), float(weight) if key.strip().lower() == "q" else 1.0
    except ValueError:
        return name.strip().lower(), 0.0
