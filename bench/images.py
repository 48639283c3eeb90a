"""Images to measure with: photographs of the size in which house numbers are sent, made from nothing but a seed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = (320, 240)
"""Width and height, in pixels, where no other are asked for."""


def photograph(seed: int, size: tuple[int, int] = SIZE, *, share: float = 0.5) -> Image.Image:
    """A wall with some unevenness and noise, and a number on it, in letters of this share of the height; `size`: width
    and height, in pixels."""
    random = np.random.default_rng(seed)
    width, height = size
    uneven = Image.fromarray(random.integers(60, 200, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = random.normal(0, 6, (height, width, 3))
    image = Image.fromarray((np.asarray(uneven) + noise).clip(0, 255).astype(np.uint8))
    number = str(random.integers(1, 1000))
    font = ImageFont.load_default(height * share)
    ImageDraw.Draw(image).text((width / 2, height / 2), number, fill="white", font=font, anchor="mm")
    return image


def encode(image: Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002 - Pillow's name
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpegs(count: int, size: tuple[int, int] = SIZE, *, share: float = 0.5) -> list[bytes]:
    """Photographs as a telephone would send them, each another."""
    return [encode(photograph(seed, size, share=share), "JPEG", quality=90) for seed in range(count)]


def multipart(images: list[bytes], boundary: str) -> bytes:
    """The body of a multipart request with these images."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    return b"".join(head + image + b"\r\n" for image in images) + f"--{boundary}--\r\n".encode()
