"""Typefaces for the digits: which Debian packages to install, which installed faces are fit, and their glyphs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Debian packages, all free; the shipped reader was trained with the faces they hold.
_PACKAGES = """
fonts-adf-accanthis fonts-adf-baskervald fonts-adf-berenis fonts-adf-gillius fonts-adf-ikarius
fonts-adf-irianis fonts-adf-libris fonts-adf-mekanus fonts-adf-oldania fonts-adf-romande fonts-adf-solothurn
fonts-adf-switzera fonts-adf-tribun fonts-adf-universalis fonts-adf-verana fonts-agave fonts-allerta
fonts-apropal fonts-arapey fonts-averia-gwf fonts-averia-sans-gwf fonts-averia-serif-gwf fonts-b612
fonts-bajaderka fonts-bebas-neue fonts-beteckna fonts-blankenburg fonts-breip fonts-cabin fonts-cantarell
fonts-cardo fonts-century-catalogue fonts-cherrybomb fonts-clear-sans fonts-cmu fonts-comfortaa
fonts-comic-neue fonts-compagnon fonts-courier-prime fonts-croscore fonts-crosextra-caladea
fonts-crosextra-carlito fonts-dancingscript fonts-dejavu fonts-dkg-handwriting fonts-dosis fonts-dustin
fonts-ebgaramond fonts-ebgaramond-extra fonts-elstob fonts-engadget fonts-essays1743 fonts-eurofurence
fonts-fantasque-sans fonts-fanwood fonts-femkeklaver fonts-firacode fonts-freefont-ttf fonts-georgewilliams
fonts-gfs-artemisia fonts-gfs-baskerville fonts-gfs-bodoni-classic fonts-gfs-didot fonts-gfs-neohellenic
fonts-go fonts-gotico-antiqua fonts-goudybookletter fonts-hack fonts-havana fonts-hermit fonts-humor-sans
fonts-inconsolata fonts-inter fonts-isabella fonts-jetbrains-mono fonts-johnsmith-induni fonts-joscelyn
fonts-junction fonts-junicode fonts-jura fonts-karla fonts-kaushanscript fonts-klaudia-berenika fonts-kristi
fonts-lato fonts-ldco fonts-le-murmure fonts-league-mono fonts-league-spartan fonts-leckerli-one
fonts-lemonada fonts-levien-museum fonts-levien-typoscript fonts-liberation fonts-libfinal fonts-lindenhill
fonts-linex fonts-linuxlibertine fonts-lmodern fonts-lobster fonts-lobstertwo fonts-manrope fonts-millimetre
fonts-monofur fonts-mononoki fonts-mplus fonts-national-park fonts-noto-core fonts-noto-mono fonts-ocr-b
fonts-oflb-euterpe fonts-okolaks fonts-oldstandard fonts-open-sans fonts-opendin fonts-osifont fonts-oxygen
fonts-paratype fonts-play fonts-prociono fonts-quattrocento fonts-quicksand fonts-radisnoir fonts-roadgeek
fonts-roboto fonts-roboto-slab fonts-routed-gothic fonts-rufscript fonts-sil-andika fonts-sil-charis
fonts-sil-doulos fonts-sil-galatia fonts-sil-gentium fonts-sil-gentiumplus fonts-sjfonts fonts-solide-mirage
fonts-sora fonts-staypuft fonts-stix fonts-summersby fonts-texgyre fonts-tiresias fonts-tlwg-garuda
fonts-tlwg-garuda-ttf fonts-train fonts-tuffy fonts-ubuntu-title fonts-uralic fonts-urw-base35 fonts-vollkorn
fonts-yanone-kaffeesatz fonts-yrsa-rasa
"""
FONT_PACKAGES = tuple(_PACKAGES.split())
FONT_DIRECTORIES = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".local/share/fonts")

# Height of the digit 8 in a cached glyph, in pixels; numbers are never drawn larger than that.
GLYPH_HEIGHT = 96
FACES_PER_FAMILY = 6
# From this many on, images for training are varied enough; the shipped reader saw some 700.
ENOUGH_FACES = 100
# Parts of paths of faces that are not numerals on a house: symbols, broken or dotted outlines, school lines.
_UNFIT = (
    "symbol",
    "dingbat",
    "math",
    "icon",
    "emoji",
    "ornament",
    "initial",
    "braille",
    "music",
    "frames",
    "redacted",
    "notosansm",
    "notosanss",
    "aenigma",
    "f500",
    "dseg",
    "ecolier",
    "penguin",
    "junkyard",
    "strokes",
    "punt",
    "guiada",
)


@dataclass(frozen=True, order=True)
class Face:
    """One face of an installed font file; an empty path is Pillow's built-in font."""

    path: str
    index: int = 0

    @property
    def name(self) -> str:
        return Path(self.path).stem if self.path else "built-in"


BUILT_IN = Face("")


@dataclass(frozen=True)
class Glyph:
    """mask: uint8 [h, w], cropped to the ink; top: its first row, counted down from the top of the digit 8.
    Both in pixels of a face whose 8 is GLYPH_HEIGHT high."""

    mask: NDArray[np.uint8]
    top: int


@lru_cache(maxsize=1024)
def _load(face: Face) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, int]:
    """The face scaled so that its 8 is GLYPH_HEIGHT high, and the row of that 8's top. OSError if it cannot be."""

    def at(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        if face.path:
            return ImageFont.truetype(face.path, size, face.index, layout_engine=ImageFont.Layout.BASIC)
        return ImageFont.load_default(size)

    box = at(100).getbbox("8")
    height = box[3] - box[1]
    if height < 20:
        raise OSError(f"{face.name} has no usable digit 8")
    font = at(100 * GLYPH_HEIGHT / height)
    return font, int(font.getbbox("8")[1])


@lru_cache(maxsize=16384)
def glyph(face: Face, character: str) -> Glyph:
    """The ink of one character. Raises ValueError when there is none, OSError when the face cannot be read."""
    font, origin = _load(face)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    image = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(image).text((4 - left, 4 - top), character, fill=255, font=font)
    ink = np.asarray(image)
    rows, columns = np.flatnonzero(ink.max(axis=1) > 63), np.flatnonzero(ink.max(axis=0) > 63)
    if not rows.size:
        raise ValueError(f"{face.name} has no ink for {character!r}")
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Glyph(np.ascontiguousarray(cropped), top - 4 + int(rows[0]) - origin)


def _patterns(face: Face) -> NDArray[np.float32]:
    """The ten digits as normalised 12 x 12 patterns, [10, 144]."""
    patterns = []
    for digit in "0123456789":
        mask = glyph(face, digit).mask
        # Padded to a common shape, so that a 1 stays narrow.
        side = max(mask.shape[1], int(0.6 * mask.shape[0]))
        padded = np.zeros((mask.shape[0], side), np.uint8)
        offset = (side - mask.shape[1]) // 2
        padded[:, offset : offset + mask.shape[1]] = mask
        small = cv2.resize(padded, (12, 12), interpolation=cv2.INTER_AREA).astype(np.float32)
        pattern = np.asarray(cv2.GaussianBlur(small, (0, 0), 1), np.float32).ravel()
        pattern = pattern - pattern.mean()
        patterns.append(pattern / max(float(np.linalg.norm(pattern)), 1e-6))
    return np.stack(patterns)


def has_digits(face: Face) -> bool:
    """Whether a face draws ten digits that can be told for what they are, by likeness to the built-in font's."""
    try:
        aspects = [glyph(face, d).mask.shape[1] / glyph(face, d).mask.shape[0] for d in "023456789"]
        likeness = _patterns(face) @ _patterns(BUILT_IN).T
    except (OSError, ValueError):
        return False
    alike = int((likeness.argmax(axis=1) == np.arange(10)).sum())
    return alike >= 7 and min(aspects) > 0.2 and max(aspects) < 1.5


def discover(directories: Sequence[Path] = FONT_DIRECTORIES) -> tuple[Face, ...]:
    """Installed faces with real digits, in the order of their paths; the built-in font where there are none."""
    files = sorted(
        file
        for directory in directories
        for pattern in ("*.ttf", "*.otf", "*.ttc")
        for file in directory.rglob(pattern)
        if not any(part in str(file).lower() for part in _UNFIT) and _plain_noto(file.stem)
    )
    families: dict[str, int] = {}
    stems: set[str] = set()
    fit: list[Face] = []
    for file in files:
        family = file.stem.split("-")[0][:10].lower()
        if file.stem.lower() in stems or families.get(family, 0) >= FACES_PER_FAMILY:
            continue
        face = Face(str(file))
        if has_digits(face):
            fit.append(face)
            stems.add(file.stem.lower())
            families[family] = families.get(family, 0) + 1
    return tuple(fit) or (BUILT_IN,)


def _plain_noto(stem: str) -> bool:
    """Noto has a family per script; only its Latin ones add digits."""
    family = stem.split("-")[0]
    return not family.startswith("Noto") or family in {"NotoSans", "NotoSerif", "NotoSansDisplay", "NotoSansMono"}


@lru_cache(maxsize=1)
def installed_faces() -> tuple[Face, ...]:
    """`discover()` on this machine, once per process (it reads every font file)."""
    return discover()


def advice_on_few_faces() -> str | None:
    """What to tell somebody who is about to make images for training with too few faces; None if there are enough."""
    faces = installed_faces()
    if len(faces) >= ENOUGH_FACES:
        return None
    return (
        f"only {len(faces)} typefaces are installed: a reader learns little from so few; see `housenumber data fonts`"
    )


def digest(faces: Sequence[Face]) -> str:
    """A short name for a list of faces: data generated under equal digests are equal."""
    names = "\n".join(f"{face.name}#{face.index}" for face in faces)
    return hashlib.sha256(names.encode()).hexdigest()[:16]
