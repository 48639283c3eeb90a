"""From bytes to an opened image file: which format it is, how large, and whether it is safe to decode.

The bytes decide, not a file name or a header. Each format is opened by its own Pillow plugin and no other
sees the bytes, so what is served is exactly what is listed here. Nothing is decoded in this module.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import BadImage, ServiceError, TooLarge, UnsupportedMediaType

# Pillow has no public name for the signature that its plugins share.
_PLUGINS: dict[str, tuple[re.Pattern[bytes], type[ImageFile.ImageFile]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WEBP": (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile),
    "BMP": (re.compile(rb"BM"), BmpImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImageFile),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
}
FORMATS = tuple(_PLUGINS)

# What people send besides, recognised so that the answer can say what is wrong with it.
_NOT_SERVED: dict[str, re.Pattern[bytes]] = {
    "AVIF": re.compile(rb".{4}ftypavi[fs]", re.DOTALL),
    "HEIC": re.compile(rb".{4}ftyp(?:he[iv][cmsx]|mif1|msf1)", re.DOTALL),
    "MPEG-4 video": re.compile(rb".{4}ftyp", re.DOTALL),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "JPEG XL": re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"),
    "PDF": re.compile(rb"\s*%PDF-"),
    "PostScript": re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"),
    "Photoshop": re.compile(rb"8BPS"),
    "icon": re.compile(rb"\0\0[\1\2]\0[^\0]"),
    "OpenEXR": re.compile(rb"\x76\x2f\x31\x01"),
    "QOI": re.compile(rb"qoif"),
    "netpbm": re.compile(rb"P[1-7]\s"),
    "ZIP": re.compile(rb"PK\x03\x04"),
    "gzip": re.compile(rb"\x1f\x8b"),
    "SVG": re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:svg|!DOCTYPE svg|(?:\?xml|!--).*?<svg)\b", re.DOTALL),
    "HTML": re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)\b", re.IGNORECASE),
}
_SNIFFED_BYTES = 1024

# Photographs have some twenty header segments and at most some twenty scans. Pillow needs quadratic time for many EXIF
# segments, and libjpeg goes over the whole image once per scan: a hundred bytes each buy 75 ms with the largest images.
_MAX_JPEG_SEGMENTS = 2000
_MAX_JPEG_SCANS = 40
# Every marker that libjpeg follows by its length, and the end of the image.
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xdd\xe0-\xef\xfe]")
_EOI, _SOS, _BASELINE = b"\xff\xd9", b"\xff\xda", b"\xff\xc0"
_JPEG_FRAMES = {b"\xff" + bytes([code]) for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC)}

# The largest photographs have some thousands, of 8 KiB each. A chunk takes 12 bytes besides its data, and 6 us.
_MAX_PNG_CHUNKS = 50_000
_PNG_SIGNATURE_BYTES, _PNG_CHUNK_BYTES = 8, 12

# What is decoded in 30 to 100 ms on one CPU, some thirty times as long as a small photograph: pixels of what is decoded
# as a whole, bytes of a JPEG, which is decoded at the scale that is needed. Where that has several scans (a progressive
# one has ten, and may have forty) each goes over all pixels.
_COSTLY_PIXELS = 2_000_000
_COSTLY_JPEG_BYTES = 2_000_000
_COSTLY_PIXELS_IN_SCANS = 250_000

_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def open_image(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open an encoded image by its header, without decoding it.

    Raises UnsupportedMediaType for a format that is known but not served, TooLarge for more than
    `max_pixels` pixels, and BadImage for anything else that is no readable image.
    """
    _silence_pillow()
    image_format = _recognise(data)
    with refusing_bad_images(image_format):
        if image_format == "WEBP":
            # Opening a WebP file allocates its pixels, so its size has to be known earlier.
            _check_pixels(*_webp_size(data), max_pixels)
        if image_format == "JPEG":
            _check_jpeg_effort(data)
        if image_format == "PNG":
            _check_png_effort(data)
        image = _PLUGINS[image_format][1](io.BytesIO(data))
        _check_pixels(*image.size, max_pixels)
        return image


def looks_costly(data: bytes) -> bool:
    """Whether decoding takes far longer than of most images, as their first bytes have it: a guess, in microseconds.

    A TIFF, which has its size anywhere, and a GIF, whose frame may be larger than it says at first, are taken for
    costly.
    """
    name = _format_of(data)
    match name:
        case "JPEG":
            return len(data) > _COSTLY_JPEG_BYTES or _has_costly_scans(data)
        case "PNG":
            width, height = data[16:20], data[20:24]
        case "BMP":
            width, height = data[21:17:-1], data[25:21:-1]
        case "WEBP":
            return math.prod(_webp_size(data)) > _COSTLY_PIXELS
        case _:
            return name in ("GIF", "TIFF")
    return int.from_bytes(width) * int.from_bytes(height) > _COSTLY_PIXELS


@contextmanager
def refusing_bad_images(image_format: str) -> Iterator[None]:
    """Turn whatever Pillow raises about a file of this format into BadImage (or TooLarge).

    Its decoders meet corrupt files with almost any exception there is (OSError, SyntaxError, struct.error,
    KeyError, zlib.error, ...), so this is the one place where all of them are caught.
    """
    try:
        yield
    except ServiceError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the {image_format} image has too many pixels") from error
    except Exception as error:
        raise BadImage(f"the {image_format} image does not decode: {error}") from error


def _format_of(data: bytes) -> str | None:
    """The name of the served format that it begins as."""
    return next((name for name, (magic, _) in _PLUGINS.items() if magic.match(data)), None)


def _recognise(data: bytes) -> str:
    if name := _format_of(data):
        return name
    start = data[:_SNIFFED_BYTES]
    for name, magic in _NOT_SERVED.items():
        if magic.match(start):
            raise UnsupportedMediaType(f"{name} is not served; send one of {', '.join(FORMATS)}")
    raise BadImage("these bytes are no image" if data else "the image is empty: there are no bytes")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(f"the image has {width} x {height} pixels; at most {max_pixels} are served")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _has_costly_scans(data: bytes) -> bool:
    """Whether a JPEG has several scans, and many pixels; also of one that does not begin as they all do."""
    at, pixels, components = 2, 0, b""
    for _ in range(_MAX_JPEG_SEGMENTS):
        marker = data[at : at + 2]
        if marker in _JPEG_FRAMES:
            pixels = int.from_bytes(data[at + 5 : at + 7]) * int.from_bytes(data[at + 7 : at + 9])
            components = data[at + 9 : at + 10] if marker == _BASELINE else b""
        elif marker == _SOS:
            return data[at + 4 : at + 5] != components and pixels > _COSTLY_PIXELS_IN_SCANS
        elif marker[:1] != b"\xff":
            break
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return True


def _check_jpeg_effort(data: bytes) -> None:
    """Refuse a JPEG that would take hours: the pixel limit alone does not bound its decoding."""
    segments = scans = 0
    at = 2
    while (marker := _JPEG_MARKER.search(data, at)) and marker[0] != _EOI:
        segments += 1
        scans += marker[0] == _SOS
        if scans > _MAX_JPEG_SCANS or segments > _MAX_JPEG_SEGMENTS:
            raise BadImage("the JPEG image has far more segments or scans than a photograph")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


def _check_png_effort(data: bytes) -> None:
    """Refuse a PNG with a million chunks, each of which Pillow handles in Python."""
    at = _PNG_SIGNATURE_BYTES
    for _ in range(_MAX_PNG_CHUNKS):
        if at >= len(data):
            return
        at += _PNG_CHUNK_BYTES + int.from_bytes(data[at : at + 4], "big")
    raise BadImage("the PNG image has far more chunks than a photograph")


def _silence_pillow() -> None:
    """Keep Pillow's warnings (large image, corrupt EXIF) out of logs, and under -W error out of requests.

    The service judges all of that itself. `warnings.catch_warnings` is not for threads, so the filter stays;
    it is put in front again where somebody has put another one before it.
    """
    if tuple(warnings.filters[:1]) != (_IGNORE_PILLOW,):
        warnings.filterwarnings("ignore", module=r"PIL\.")
