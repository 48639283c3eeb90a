"""Photographs to views: colours, orientation, regions, resizing and reduced decoding, each against numpy."""

import io
import math
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from service.errors import BadImage, BadRegion
from service.geometry import Region
from service.imaging import Photo, view

Pixels = NDArray[np.uint8]

GREY = np.random.default_rng(1).integers(0, 256, (12, 17), dtype=np.uint8)
RGB = np.random.default_rng(2).integers(0, 256, (12, 17, 3), dtype=np.uint8)
RGBA = np.random.default_rng(3).integers(0, 256, (12, 17, 4), dtype=np.uint8)


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Photo:
    return Photo.open(data, max_pixels=100_000_000)


def rgb_of(data: bytes) -> NDArray[np.int16]:
    return np.asarray(opened(data).rgb()).astype(np.int16)


def png(samples: NDArray[np.uint8 | np.uint16], colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written without Pillow: samples [H, W(, C)] of 8 or 16 bits, `chunks` before the pixels."""
    height, width = samples.shape[:2]
    bits = samples.dtype.itemsize * 8
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(height, -1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    written = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")):
        written += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return written


# --- colours: what each mode has to look like, in plain arithmetic


def grey_as_rgb(grey: NDArray[np.integer]) -> NDArray[np.int16]:
    return np.stack([grey] * 3, -1).astype(np.int16)


def over_white(rgba: Pixels) -> NDArray[np.float64]:
    colour, alpha = rgba[..., :3].astype(np.float64), rgba[..., 3:] / 255
    return colour * alpha + 255 * (1 - alpha)


BITS = (GREY > 127).astype(np.uint8) * 255
GREY16 = np.random.default_rng(4).integers(0, 65536, (12, 17), dtype=np.uint16)
RGB16 = np.random.default_rng(5).integers(0, 65536, (12, 17, 3), dtype=np.uint16)
RGBA16 = np.random.default_rng(6).integers(0, 65536, (12, 17, 4), dtype=np.uint16)
GREY_ALPHA = RGBA[..., 2:]
GREY_ALPHA_AS_RGBA = np.concatenate([GREY_ALPHA[..., :1]] * 3 + [GREY_ALPHA[..., 1:]], -1)

INDEX = np.random.default_rng(7).integers(0, 4, (12, 17), dtype=np.uint8)
PALETTE = np.array([[255, 0, 0], [0, 200, 0], [10, 20, 30], [90, 80, 70]], np.uint8)
PALETTE_ALPHA = np.array([255, 0, 128, 255], np.uint8)
PALETTE_RGBA = np.concatenate([PALETTE, PALETTE_ALPHA[:, None]], 1)


def palette_image() -> Image.Image:
    image = Image.fromarray(INDEX)
    image.putpalette(PALETTE.tobytes())
    return image


def gif_with_a_hole() -> tuple[bytes, NDArray[np.float64]]:
    expected = PALETTE[INDEX].astype(np.float64)
    expected[INDEX == 1] = 255
    return encode(palette_image(), "GIF", transparency=1), expected


def animation(image_format: str, **options: object) -> bytes:
    others = [Image.new("RGB", (17, 12), colour) for colour in ("red", "blue")]
    first = Image.fromarray(RGB)
    return encode(first, image_format, save_all=True, append_images=others, duration=50, **options)


LOSSLESS: dict[str, tuple[bytes, NDArray[np.floating | np.integer]]] = {
    **{f"{f} RGB": (encode(Image.fromarray(RGB), f), RGB) for f in ("PNG", "BMP", "TIFF")},
    "WEBP RGB": (encode(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
    **{f"{f} grey": (encode(Image.fromarray(GREY), f), grey_as_rgb(GREY)) for f in ("PNG", "BMP", "TIFF", "GIF")},
    **{
        f"{f} 1 bit": (encode(Image.fromarray(BITS).convert("1"), f), grey_as_rgb(BITS)) for f in ("PNG", "BMP", "TIFF")
    },
    **{f"{f} palette": (encode(palette_image(), f), PALETTE[INDEX]) for f in ("PNG", "BMP", "TIFF", "GIF")},
    **{f"{f} RGBA": (encode(Image.fromarray(RGBA), f), over_white(RGBA)) for f in ("PNG", "TIFF")},
    "WEBP RGBA": (encode(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True), over_white(RGBA)),
    **{
        f"{f} grey and alpha": (encode(Image.fromarray(GREY_ALPHA, "LA"), f), over_white(GREY_ALPHA_AS_RGBA))
        for f in ("PNG", "TIFF")
    },
    "PNG palette with alpha": (
        encode(palette_image(), "PNG", transparency=PALETTE_ALPHA.tobytes()),
        over_white(PALETTE_RGBA[INDEX]),
    ),
    "GIF with a transparent colour": gif_with_a_hole(),
    "PNG grey with a transparent grey": (
        png(INDEX, 0, (b"tRNS", b"\0\x02")),
        grey_as_rgb(np.where(INDEX == 2, 255, INDEX)),
    ),
    "PNG RGB with a transparent colour": (
        png(PALETTE[INDEX], 2, (b"tRNS", struct.pack(">HHH", 10, 20, 30))),
        np.where((INDEX == 2)[..., None], 255, PALETTE[INDEX]),
    ),
    "PNG 16 bit grey": (png(GREY16, 0), grey_as_rgb(GREY16 >> 8)),
    "PNG 16 bit RGB": (png(RGB16, 2), RGB16 >> 8),
    "PNG 16 bit RGBA": (png(RGBA16, 6), over_white((RGBA16 >> 8).astype(np.uint8))),
    "TIFF 16 bit grey": (encode(Image.fromarray(GREY16), "TIFF"), grey_as_rgb(GREY16 >> 8)),
    "TIFF 16 bit grey, big-endian": (
        encode(Image.fromarray(GREY16.astype(">u2")), "TIFF"),
        grey_as_rgb(GREY16 >> 8),
    ),
    "TIFF CMYK": (
        encode(Image.fromarray(RGBA, "CMYK"), "TIFF"),
        (255.0 - RGBA[..., :3]) * (255.0 - RGBA[..., 3:]) / 255,
    ),
    "TIFF float": (
        encode(Image.fromarray((GREY.astype(np.float32) - 50) / 1000), "TIFF"),
        grey_as_rgb(np.rint((GREY - GREY.min()) * (255.0 / np.ptp(GREY))).astype(int)),
    ),
    "TIFF 32 bit integer": (
        encode(Image.fromarray(GREY.astype(np.int32) * 1_000_000 - 7), "TIFF"),
        grey_as_rgb(np.rint((GREY - GREY.min()) * (255.0 / np.ptp(GREY))).astype(int)),
    ),
    "TIFF float of one value": (
        encode(Image.fromarray(np.full((12, 17), np.inf, np.float32)), "TIFF"),
        np.zeros((12, 17, 3), int),
    ),
    "WEBP, first frame": (animation("WEBP", lossless=True), RGB),
    "PNG, first frame": (animation("PNG"), RGB),
    "TIFF, first page": (animation("TIFF"), RGB),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_colours_of_lossless_files(name: str) -> None:
    data, expected = LOSSLESS[name]
    assert rgb_of(data).shape == (12, 17, 3)
    assert np.abs(rgb_of(data) - expected).max() <= 1


def test_a_gif_shows_its_first_frame() -> None:
    frames = [Image.new("P", (17, 12), index) for index in (2, 1)]
    for frame in frames:
        frame.putpalette(PALETTE.tobytes())
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert Image.open(io.BytesIO(data)).is_animated  # type: ignore[attr-defined]
    assert (rgb_of(data) == [10, 20, 30]).all()


@pytest.mark.parametrize("colour", [(200, 30, 90), (0, 0, 0), (255, 255, 255), (17, 180, 40)])
def test_colours_of_jpegs(colour: tuple[int, int, int]) -> None:
    flat = Image.new("RGB", (40, 30), colour)
    grey = flat.convert("L")
    assert np.abs(rgb_of(encode(flat, "JPEG", quality=95)) - colour).max() <= 3
    assert np.abs(rgb_of(encode(grey, "JPEG", quality=95)) - np.asarray(grey)[..., None]).max() <= 2


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 120, 200, 30), (10, 20, 30, 255)])
def test_colours_of_cmyk_jpegs(ink: tuple[int, int, int, int]) -> None:
    data = encode(Image.new("CMYK", (40, 30), ink), "JPEG", quality=95)
    assert b"Adobe" in data  # and so stored inverted, as Photoshop does
    *cmy, black = ink
    expected = [(255 - c) * (255 - black) / 255 for c in cmy]
    assert np.abs(rgb_of(data) - expected).max() <= 3


# --- orientation

# How the stored pixels have to be rearranged, from the EXIF standard: what row 0 and column 0 of the stored
# image are in the upright one.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,  # row 0 top, column 0 left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda a: a.swapaxes(0, 1)[::-1],  # left, bottom
}


def exif(orientation: int) -> bytes:
    """EXIF data with nothing but the orientation."""
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "TIFF, compressed"])
def test_orientation_of_lossless_files(image_format: str, orientation: int) -> None:
    options: dict[str, object] = {"lossless": True} if image_format == "WEBP" else {}
    if image_format == "TIFF, compressed":
        options = {"compression": "tiff_lzw"}
    tags = Image.Exif()
    tags[0x0112] = orientation
    photo = opened(encode(Image.fromarray(RGB), image_format.split(",")[0], exif=tags, **options))
    expected = UPRIGHT[orientation](RGB)
    assert (photo.height, photo.width) == expected.shape[:2]
    assert np.array_equal(np.asarray(photo.rgb()), expected)
    whole = photo.views([photo.whole], expected.shape[:2])[0].pixels
    assert np.array_equal(whole, expected)


def test_orientation_behind_the_pixels_of_a_png() -> None:
    data = png(RGB, 2, (b"eXIf", exif(6)[6:]))
    start, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    for written in (data, late):
        photo = opened(written)
        assert (photo.width, photo.height) == (12, 17)
        assert np.array_equal(np.asarray(photo.rgb()), UPRIGHT[6](RGB))


@pytest.mark.parametrize("nonsense", [0, 9, 60000])
def test_an_orientation_that_does_not_exist_is_upright(nonsense: int) -> None:
    photo = opened(encode(Image.fromarray(RGB), "JPEG", exif=exif(nonsense)))
    assert (photo.width, photo.height, photo.orientation) == (17, 12, 1)


@pytest.mark.parametrize(
    "damage", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(6)[:-9], b"Exif\0\0XX*\0\0"]
)
def test_corrupt_exif_data_do_not_spoil_a_photo(damage: bytes) -> None:
    data = encode(Image.fromarray(RGB), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(damage)) + damage
    photo = opened(data[:2] + segment + data[2:])
    assert (photo.width, photo.height) == (17, 12)
    assert photo.rgb().size == (17, 12)


# --- the resize


def triangle_weights(low: float, high: float, count: int, pixels: int) -> NDArray[np.float64]:
    """[count, pixels]: `count` samples spread over [low, high], each a triangle as wide as it has to be so
    as not to alias, over the pixels there are."""
    step = (high - low) / count
    reach = max(step, 1.0)
    weights = np.zeros((count, pixels))
    for i in range(count):
        centre = low + (i + 0.5) * step
        for j in range(pixels):
            weights[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / reach)
        weights[i] /= weights[i].sum()
    return weights


def reference_view(rgb: Pixels, region: Region, size: tuple[int, int]) -> NDArray[np.float64]:
    rows = triangle_weights(region.y, region.y + region.height, size[0], rgb.shape[0])
    columns = triangle_weights(region.x, region.x + region.width, size[1], rgb.shape[1])
    resized: NDArray[np.float64] = np.einsum("iy,jx,yxc->ijc", rows, columns, rgb.astype(np.float64))
    return resized


shares = st.floats(0, 1)


@given(shares, shares, shares, shares, st.integers(1, 24), st.integers(1, 24))
def test_view_is_the_antialiased_triangle_kernel(
    x: float, y: float, width: float, height: float, out_height: int, out_width: int
) -> None:
    left, top = x * 16, y * 11
    region = Region(left, top, max(0.5, width * (17 - left)), max(0.5, height * (12 - top)))
    shown = view(RGB, region, (out_height, out_width))
    assert shown.dtype == np.uint8
    assert shown.shape == (out_height, out_width, 3)
    assert np.abs(shown - reference_view(RGB, region, (out_height, out_width))).max() <= 2  # rounded twice


def test_view_takes_arrays_and_images_alike_and_can_be_written_to() -> None:
    region = Region(1.5, 2.25, 9, 7)
    shown = view(RGB, region, (8, 9))
    assert np.array_equal(shown, view(Image.fromarray(RGB), region, (8, 9)))
    assert shown.flags.writeable


def test_view_of_a_region_that_rounding_has_put_outside() -> None:
    for n in range(1, 200):
        whole = Region.whole(17, 12).scaled(n / 7, n / 7).scaled(7 / n, 7 / n)
        assert view(RGB, whole, (4, 4)).shape == (4, 4, 3)


def test_view_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing of an image of 17 x 12"):
        view(RGB, Region(17, 0, 3, 3), (4, 4))


def test_views_are_those_of_the_upright_photograph_in_order() -> None:
    photo = opened(encode(Image.fromarray(RGB), "PNG"))
    regions = [Region(8, 2, 5, 9), photo.whole, Region(0, 0, 1.5, 1.5)]
    views = photo.views(regions, (6, 5))
    assert [v.region for v in views] == regions
    for shown in views:
        assert np.array_equal(shown.pixels, view(RGB, shown.region, (6, 5)))
    assert photo.views([], (6, 5)) == []


# --- regions


@pytest.fixture(scope="module")
def photo() -> Photo:
    return opened(encode(Image.fromarray(RGB), "PNG"))


def test_regions_within_a_pixel_of_the_image_are_clipped(photo: Photo) -> None:
    assert photo.region(2, 3, 4, 5) == Region(2, 3, 4, 5)
    assert photo.region(-1, -0.5, 19, 13) == Region(0, 0, 17, 12)
    assert photo.region(16.5, 11, 1.5, 2) == Region(16.5, 11, 0.5, 1)
    assert photo.whole == Region(0, 0, 17, 12)


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 0, 0, 5), (0, 0, 5, 0), (3, 3, -1, 5), (3, 3, 5, -1),  # empty
        (17, 0, 1, 5), (0, 12, 5, 1), (-1, 0, 1, 5), (16.999999999999996, 0, 1e-30, 5),  # nothing within the image
        (-1.01, 0, 5, 5), (0, -2, 5, 5), (0, 0, 18.1, 5), (0, 0, 5, 13.5), (1000, 1000, 5, 5),  # outside
        (math.nan, 0, 5, 5), (0, math.inf, 5, 5), (0, 0, math.inf, 5), (0, 0, 5, -math.inf), (1e308, 0, 1e308, 5),
    ],
)  # fmt: skip
def test_regions_that_are_not_part_of_the_image(photo: Photo, numbers: tuple[float, float, float, float]) -> None:
    with pytest.raises(BadRegion, match="the image is 17 x 12 pixels"):
        photo.region(*numbers)
    with pytest.raises(BadRegion):
        photo.views([photo.whole, Region(*numbers)], (4, 4))


@given(*[st.floats()] * 4)
@example(5e-324, 0, 5e-324, 1)
@example(3, 3, 1e-9, 1e-9)
def test_any_four_numbers_are_a_region_or_refused(x: float, y: float, width: float, height: float) -> None:
    photo = opened(LOSSLESS["PNG RGB"][0])
    try:
        region = photo.region(x, y, width, height)
    except BadRegion:
        return
    assert 0 <= region.x <= region.right <= 17 + 1e-9
    assert 0 <= region.y <= region.bottom <= 12 + 1e-9
    (shown,) = photo.views([region], (3, 3))
    assert shown.pixels.shape == (3, 3, 3)


# --- decoding a JPEG at a reduced scale


@pytest.fixture
def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes at which JPEGs have been decoded, each once."""
    sizes: list[tuple[int, int]] = []
    finish = JpegImageFile.load_end

    def note(image: JpegImageFile) -> None:
        sizes.append(image.size)
        finish(image)

    monkeypatch.setattr(JpegImageFile, "load_end", note)
    return sizes


def waves(width: int, height: int) -> Image.Image:
    """Waves 50 pixels long in x and in y: a shift by five pixels changes them by half their height."""
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    red = 127 + 100 * np.sin(x * (2 * np.pi / 50)) + 0 * y
    green = 127 + 100 * np.sin(y * (2 * np.pi / 50)) + 0 * x
    return Image.fromarray(np.stack([red, green, (red + green) / 2], -1).astype(np.uint8))


BIG = waves(1043, 779)  # of odd size: the last blocks are not full at any scale


def assert_same_but_for_edges(reduced: Pixels, full: Pixels) -> None:
    difference = np.abs(reduced.astype(int) - full)
    assert difference.mean() < 1.5
    assert difference[1:-1, 1:-1].max() <= 6
    # Along two edges, the last reduced pixel stands for fewer pixels than it weighs.
    assert difference.max() <= 14


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("out", [(32, 40), (60, 64), (120, 150)])
def test_reduced_decoding_shows_the_same(
    out: tuple[int, int], orientation: int, decoded_sizes: list[tuple[int, int]]
) -> None:
    data = encode(BIG, "JPEG", quality=95, exif=exif(orientation))
    photo = opened(data)
    full = np.asarray(photo.rgb())
    upright = UPRIGHT[orientation](np.asarray(BIG))
    assert full.shape == upright.shape
    assert np.abs(full.astype(int) - upright).mean() < 2

    regions = [photo.whole, Region(0.1 * photo.width, 0.15 * photo.height, 0.85 * photo.width, 0.8 * photo.height)]
    shown = photo.views(regions, out)
    assert decoded_sizes[0] == (1043, 779)
    assert len(decoded_sizes) == 2
    assert decoded_sizes[1] < (1043, 779)
    for reduced in shown:
        assert_same_but_for_edges(reduced.pixels, view(full, reduced.region, out))


@pytest.mark.parametrize(
    ("region", "out", "decoded"),
    [
        ((0, 0, 1600, 1200), (64, 64), (200, 150)),
        ((0, 0, 1024, 1024), (64, 64), (200, 150)),  # exactly twice the view in both
        ((0, 0, 1023, 1024), (64, 64), (400, 300)),
        ((0, 0, 1600, 1200), (128, 128), (400, 300)),
        ((5, 5, 600, 600), (64, 64), (400, 300)),
        ((5, 5, 300, 300), (64, 64), (800, 600)),
        ((5, 5, 255, 300), (64, 64), (1600, 1200)),
        ((0, 0, 1600, 200), (64, 64), (1600, 1200)),  # the tighter side counts
        ((0, 0, 1600, 200), (16, 64), (400, 300)),
    ],
)
def test_reduction_leaves_twice_the_resolution_of_the_view(
    region: tuple[float, float, float, float],
    out: tuple[int, int],
    decoded: tuple[int, int],
    decoded_sizes: list[tuple[int, int]],
) -> None:
    photo = opened(encode(Image.new("RGB", (1600, 1200)), "JPEG"))
    photo.views([Region(*region)], out)
    assert decoded_sizes == [decoded]


def test_the_smallest_region_decides_and_decoding_happens_once(decoded_sizes: list[tuple[int, int]]) -> None:
    photo = opened(encode(BIG, "JPEG", quality=95))
    small = Region(500, 300, 60, 60)
    views = photo.views([photo.whole, small, photo.whole], (64, 64))
    assert decoded_sizes == [(1043, 779)]
    assert np.array_equal(views[1].pixels, view(photo.rgb(), small, (64, 64)))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_decoding_of_other_modes(mode: str, decoded_sizes: list[tuple[int, int]]) -> None:
    photo = opened(encode(BIG.convert(mode), "JPEG", quality=95))
    full = photo.rgb()
    (shown,) = photo.views([photo.whole], (32, 40))
    assert decoded_sizes == [(1043, 779), (131, 98)]
    assert_same_but_for_edges(shown.pixels, view(full, photo.whole, (32, 40)))


# --- and the rest


@pytest.mark.parametrize("size", [(1043, 779), (200, 150)])
def test_a_truncated_photo_is_refused_at_any_scale(size: tuple[int, int]) -> None:
    data = encode(BIG.resize(size), "JPEG")
    photo = opened(data[: len(data) * 2 // 3])
    assert (photo.width, photo.height) == size
    with pytest.raises(BadImage, match="JPEG image does not decode: image file is truncated"):
        photo.views([photo.whole], (32, 32))
    with pytest.raises(BadImage):
        photo.rgb()


def test_threads_may_share_a_photo() -> None:
    photos = [opened(encode(BIG, "JPEG", exif=exif(o))) for o in (1, 6)]
    alone = [p.views([p.whole], (48, 48))[0].pixels for p in photos]

    def decode(index: int) -> bool:
        photo = photos[index % 2]
        return np.array_equal(photo.views([photo.whole], (48, 48))[0].pixels, alone[index % 2])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(decode, range(32)))


def test_a_photo_prints_without_its_bytes() -> None:
    assert len(repr(opened(encode(BIG, "JPEG")))) < 200


def test_a_photo_is_found_among_others_without_its_bytes_being_hashed() -> None:
    class Megabytes(bytes):
        def __hash__(self) -> int:
            raise AssertionError("all of them would be read")

    images = (BIG, BIG, BIG.transpose(Image.Transpose.ROTATE_180))
    first, same, other = (opened(Megabytes(encode(image, "PNG"))) for image in images)
    assert len({first, same, other}) == 2
