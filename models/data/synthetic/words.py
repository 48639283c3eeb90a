"""Words as they stand on and around house signs: never to be read, and never to be taken for digits."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.synthetic.fonts import GLYPH_HEIGHT, Face, glyph

_VOCABULARY = """
house street road lane court close avenue terrace place mews square gardens villa cottage lodge manor grange
farm mill view park green hill grove drive way crescent building science engineering physics library office
reception entrance private welcome please ring bell knock post parking only open closed north south east west
rue place allee avenue jardin maison chemin strasse gasse weg platz haus hof via piazza casa calle plaza villa
ulica gatan vej straat laan school chapel station market bakery garden cafe hotel bar studio deliveries
"""
_WORDS = tuple(_VOCABULARY.split())
# Names are made of two of these.
_PARTS = """
ba den ford ham ley lin mar nor pel quin ros sel ton tre val wen wick wor hurst mere stan field
"""
_SYLLABLES = tuple(_PARTS.split())
# Every so many-th face sets words: their letters are many, and the cache of glyphs is to hold them all.
_FACES_APART = 8


def draw_word_face(faces: Sequence[Face], rng: np.random.Generator) -> Face:
    """One of the faces that words are set in."""
    chosen = faces[::_FACES_APART]
    return chosen[int(rng.integers(len(chosen)))]


def draw_words(rng: np.random.Generator, most: int = 3) -> str:
    """One to `most` words of at least three letters, in capitals, lower case or title case."""
    words = []
    for _ in range(int(rng.integers(1, most + 1))):
        if rng.random() < 0.6:
            words.append(_WORDS[int(rng.integers(len(_WORDS)))])
        else:
            words.append("".join(rng.choice(_SYLLABLES, 2)))
    text = " ".join(words)
    return (text.upper(), text.title(), text)[int(rng.choice(3, p=[0.45, 0.45, 0.1]))]


def text_mask(text: str, height: float, face: Face) -> NDArray[np.uint8] | None:
    """A line of text whose capitals are about `height` pixels high: uint8 [h, w], cropped to the ink.

    None where the face has none of the letters.
    """
    scale = height / GLYPH_HEIGHT
    placed: list[tuple[NDArray[np.uint8], int, int]] = []
    pen = 0.0
    for character in text:
        if character == " ":
            pen += 0.4 * height
            continue
        try:
            ink = glyph(face, character)
        except (OSError, ValueError):
            continue
        size = (max(1, round(ink.mask.shape[1] * scale)), max(1, round(ink.mask.shape[0] * scale)))
        small = np.asarray(cv2.resize(ink.mask, size, interpolation=cv2.INTER_AREA), np.uint8)
        placed.append((small, round(pen), round(ink.top * scale)))
        pen += size[0] + max(1.0, 0.14 * height)
    if not placed:
        return None
    top = min(row for _, _, row in placed)
    line = np.zeros(
        (max(row + mask.shape[0] for mask, _, row in placed) - top, max(x + mask.shape[1] for mask, x, _ in placed)),
        np.uint8,
    )
    for mask, x, row in placed:
        window = line[row - top : row - top + mask.shape[0], x : x + mask.shape[1]]
        np.maximum(window, mask, out=window)
    return line
