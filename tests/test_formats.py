"""Recognising, measuring and refusing encoded images: nothing but ServiceErrors comes out, whatever goes in."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import encode

from service.errors import BadImage, ServiceError, TooLarge, UnsupportedMediaType
from service.formats import looks_costly
from service.imaging import FORMATS, Photo

MAX_PIXELS = 40_000


def encoded(image_format: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    noise = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def with_exif(exif: bytes) -> bytes:
    return encoded("JPEG", exif=exif)


SAMPLES = {
    "jpeg": encoded("JPEG"),
    "jpeg, progressive, EXIF": encoded(
        "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "jpeg, CMYK": encoded("JPEG", "CMYK"),
    "png": encoded("PNG", "RGBA"),
    "png, palette": encoded("PNG", "P", transparency=3),
    "webp": encoded("WEBP"),
    "webp, lossless": encoded("WEBP", "RGBA", lossless=True),
    "bmp": encoded("BMP"),
    "bmp, palette": encoded("BMP", "P"),
    "gif": encoded("GIF"),
    "tiff": encoded("TIFF"),
    "tiff, deflate": encoded("TIFF", compression="tiff_deflate"),
    "tiff, lzw": encoded("TIFF", "L", compression="tiff_lzw"),
    "tiff, fax": encoded("TIFF", "1", compression="group4"),
}


def read(data: bytes) -> None:
    """Everything the service does with an upload's bytes."""
    photo = Photo.open(data, max_pixels=MAX_PIXELS)
    assert 0 < photo.width * photo.height <= MAX_PIXELS
    views = photo.views([photo.whole, photo.whole.scaled(0.5, 0.5)], (16, 24))
    assert [view.pixels.shape for view in views] == [(16, 24, 3)] * 2
    assert photo.rgb().size == (photo.width, photo.height)


# --- hostile bytes

hostile = settings(max_examples=300)
samples = st.sampled_from(list(SAMPLES.values()))


def refused_or_read(data: bytes) -> None:
    try:
        read(data)
    except ServiceError as error:
        assert error.detail  # noqa: PT017  (both ways out are right; what is wrong is any other exception)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_read(name: str) -> None:
    read(SAMPLES[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_truncated_anywhere(name: str) -> None:
    whole = SAMPLES[name]
    for end in {*range(0, 64), *range(64, len(whole), 41)}:
        refused_or_read(whole[:end])


@pytest.mark.parametrize("name", SAMPLES)
def test_half_a_file_is_a_bad_image(name: str) -> None:
    with pytest.raises(BadImage):
        read(SAMPLES[name][: len(SAMPLES[name]) // 2])


@hostile
@given(samples, st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bits(data: bytes, flips: list[tuple[float, int]]) -> None:
    corrupt = bytearray(data)
    for share, mask in flips:
        # Squared: headers are where it hurts.
        corrupt[int(share**2 * len(corrupt))] ^= mask
    refused_or_read(bytes(corrupt))


@hostile
@given(samples, samples, st.floats(0, 1), st.floats(0, 1))
def test_spliced_files(head: bytes, tail: bytes, end: float, start: float) -> None:
    refused_or_read(head[: int(end * len(head))] + tail[int(start * len(tail)) :])


@hostile
@given(samples, st.integers(2, 32), st.binary(max_size=200))
@example(b"", 0, b"<?xml")
def test_noise_behind_a_good_start(data: bytes, kept: int, noise: bytes) -> None:
    refused_or_read(data[:kept] + noise)


# --- which format


def test_formats_served() -> None:
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"}


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_bytes_decide(image_format: str) -> None:
    assert Photo.open(encoded(image_format), max_pixels=MAX_PIXELS).format == image_format


def test_a_file_of_several_pictures_is_a_jpeg() -> None:
    # Phones write MPO: a JPEG with further pictures behind it.
    data = encoded("MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    read(data)
    assert Photo.open(data, max_pixels=MAX_PIXELS).format == "JPEG"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("PDF", b"%PDF-1.7\n%\xe2\xe3"),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("SVG", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>"),
        ("HTML", b"<!DOCTYPE html><html></html>"),
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("AVIF", b"\0\0\0\x20ftypavif\0\0\0\0avifmif1"),
        ("MPEG-4 video", b"\0\0\0\x20ftypisom\0\0\2\0"),
        ("Photoshop", b"8BPS\0\x01"),
        ("icon", b"\0\0\1\0\1\0\x10\x10"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("JPEG XL", b"\xff\x0a\xfa"),
        ("netpbm", b"P6\n1 1\n255\nabc"),
        ("ZIP", b"PK\x03\x04"),
    ],
)  # fmt: skip
def test_known_formats_that_are_not_served(name: str, data: bytes) -> None:
    with pytest.raises(UnsupportedMediaType, match=f"^{name} is not served; send one of JPEG, PNG"):
        read(data)


@pytest.mark.parametrize("image_format", ["AVIF", "ICO", "PDF", "PPM", "JPEG2000"])
def test_real_files_that_are_not_served(image_format: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        read(encoded(image_format))


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"{}", b"\xff\xd8", b"RIFF\0\0\0\0WAVE", bytes(5000)])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(BadImage):
        read(data)


# --- the pixel limit, which is judged before anything is decoded: these files are headers and nothing else


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"\0")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, idat)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def gif_header(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
        + b"\x02"
    )


def gif_frame_beyond_its_screen(width: int, height: int) -> bytes:
    return gif_header(1, 1)[:13] + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02"


def jpeg_header(width: int, height: int) -> bytes:
    sof = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
    return b"\xff\xd8" + sof + b"\xff\xda" + struct.pack(">HB", 12, 3) + bytes([1, 0, 2, 0, 3, 0, 0, 63, 0])


def tiff_header(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height % 2**32}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def riff(chunk: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def webp_extended_header(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return riff(b"VP8X" + struct.pack("<I", 10) + bytes(4) + size)


def webp_lossless_header(width: int, height: int) -> bytes:
    return riff(b"VP8L" + struct.pack("<IBI", 5, 0x2F, (width - 1) | (height - 1) << 14) + b"\0")


def webp_lossy_header(width: int, height: int) -> bytes:
    return riff(b"VP8 " + struct.pack("<I", 10) + b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height))


HEADERS = [
    (png_header, 100_000),
    (bmp_header, 100_000),
    (tiff_header, 100_000),
    (jpeg_header, 65_500),
    (gif_header, 65_535),
    (gif_frame_beyond_its_screen, 65_535),
    (webp_extended_header, 1 << 24),
    (webp_lossless_header, 1 << 14),
    (webp_lossy_header, (1 << 14) - 1),
]  # fmt: skip


@pytest.mark.parametrize(("header", "most"), HEADERS)
def test_sizes_over_the_limit(header: Callable[[int, int], bytes], most: int) -> None:
    for width, height in [(most, most), (most, 8), (401, 100)]:
        with pytest.raises(TooLarge, match="pixels"):
            Photo.open(header(width, height), max_pixels=MAX_PIXELS)
    with pytest.raises(BadImage):
        read(header(400, 100))  # within the limit it is read, and there is nothing in it


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_limit_itself_is_allowed(image_format: str) -> None:
    data = encoded(image_format, size=(40, 30))
    assert Photo.open(data, max_pixels=1200).width == 40
    with pytest.raises(TooLarge, match="40 x 30 pixels; at most 1199"):
        Photo.open(data, max_pixels=1199)


def test_a_limit_above_pillows_own_counts() -> None:
    data = png_header(20_000, 20_000)
    assert Photo.open(data, max_pixels=400_000_000).width == 20_000


# --- files whose effort is out of proportion


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    data = encoded("JPEG", progressive=True)
    before, last_scan = data[:-2].rsplit(b"\xff\xda", 1)
    scan = b"\xff\xda" + last_scan
    read(before + scan * 30 + b"\xff\xd9")
    with pytest.raises(BadImage, match="scans"):
        Photo.open(before + scan * 1000 + b"\xff\xd9", max_pixels=MAX_PIXELS)
    # A marker that libjpeg ignores cannot hide them, and what follows the end of the image does not count.
    with pytest.raises(BadImage, match="scans"):
        Photo.open(before + (b"\xff\x02\xff\xff" + scan) * 1000 + b"\xff\xd9", max_pixels=MAX_PIXELS)
    read(data + scan * 1000)


def test_a_jpeg_of_very_many_segments_is_refused() -> None:
    data = encoded("JPEG")
    exif = b"\xff\xe1\0\x09Exif\0\0x"
    with pytest.raises(BadImage, match="segments"):
        Photo.open(data[:2] + exif * 5000 + data[2:], max_pixels=MAX_PIXELS)


# --- nothing is printed or warned about

CORRUPT_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\xff\xff\0\0\xff\xff"


def test_pillow_warns_of_such_files() -> None:
    with pytest.warns(UserWarning, match=r"tag 274|Corrupt EXIF"):
        Image.open(io.BytesIO(with_exif(CORRUPT_EXIF)))
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(png_header(10_000, 10_000)))


@pytest.mark.parametrize("action", ["always", "error"])
def test_no_warning_leaves_the_service(action: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("error" if action == "error" else "always")
        read(with_exif(CORRUPT_EXIF))
        for header in (png_header, gif_header, tiff_header):
            Photo.open(header(10_000, 10_000), max_pixels=200_000_000)
    assert caught == []


def test_decoders_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    # libtiff is the exception: it names its error on stderr, and Pillow gives no way to stop that.
    for data in (data for name, data in SAMPLES.items() if "tiff" not in name):
        for damage in range(len(data) // 4, len(data), 97):
            refused_or_read(data[:damage] + bytes([data[damage] ^ 0x5A]) + data[damage + 1 :])
            refused_or_read(data[:damage])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["PNG", "BMP", "WEBP"])
@pytest.mark.parametrize(("size", "costly"), [((2000, 999), False), ((2000, 1001), True), ((40, 30), False)])
def test_what_is_slow_to_decode_is_seen_from_its_first_bytes(name: str, size: tuple[int, int], costly: bool) -> None:
    data = encode(Image.new("RGB", size), name)
    assert looks_costly(data) == costly
    assert looks_costly(data[:64]) == costly


def test_of_a_jpeg_its_bytes_are_what_is_slow() -> None:
    flat = encode(Image.new("RGB", (4000, 3000)), "JPEG")
    assert not looks_costly(flat)
    assert looks_costly(flat + bytes(2_000_000))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_of_a_jpeg_in_several_scans_so_are_its_pixels(mode: str) -> None:
    """A few hundred kilobytes can take seconds."""
    large, small = Image.new(mode, (600, 500)), Image.new(mode, (490, 500))
    assert looks_costly(encode(large, "JPEG", progressive=True))
    assert not looks_costly(encode(small, "JPEG", progressive=True))
    exif = b"\xff\xe1\0\x0a\xff\xc0\xff\xda\0\0\0\0"  # what belongs to a segment is none
    for image, costly in ((encode(large, "JPEG", progressive=True), True), (encode(large, "JPEG"), False)):
        assert looks_costly(image[:2] + exif + image[2:]) == costly


@pytest.mark.parametrize("name", ["GIF", "TIFF"])
def test_what_has_its_size_anywhere_may_be_slow(name: str) -> None:
    assert looks_costly(encode(Image.new("RGB", (4, 4)), name))


@given(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"BM",
            b"RIFF....WEBPVP8X",
            b"II*\0",
            b"\xff\xd8\xff\xc2",
            b"\xff\xd8\xff\xda",
            b"",
        ]
    ),
)
def test_any_first_bytes_are_looked_at(rest: bytes, start: bytes) -> None:
    looks_costly(start + rest)
