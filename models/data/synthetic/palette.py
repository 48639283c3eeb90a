"""Colours of digits, ground and wall, and their contrast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
# Weights of red, green and blue in brightness.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Levels of luma between the ink and what it stands on, at the least.
LEAST_CONTRAST = 20.0

# Typical pairs of ground and ink as (ground, ink) in RGB, with the shares in which they are drawn.
_PAIRS: tuple[tuple[float, tuple[int, int, int], tuple[int, int, int]], ...] = (
    (0.18, (35, 55, 125), (225, 230, 240)),  # enamel: blue with white digits
    (0.12, (225, 225, 225), (35, 40, 75)),  # white with dark blue or black digits
    (0.05, (215, 220, 230), (50, 80, 160)),  # white with blue digits
    (0.10, (25, 25, 30), (225, 225, 220)),  # black or slate with white digits
    (0.08, (150, 145, 135), (40, 40, 45)),  # render with dark digits
    (0.05, (165, 140, 105), (60, 40, 25)),  # sand with brown
    (0.05, (135, 75, 60), (35, 30, 30)),  # brick with black
    (0.05, (130, 70, 55), (225, 215, 200)),  # brick with white
    (0.04, (75, 50, 40), (190, 160, 95)),  # wood with brass
    (0.04, (205, 190, 150), (90, 75, 50)),  # stone with bronze
    (0.03, (25, 95, 65), (225, 225, 215)),  # green with white
    (0.03, (125, 30, 35), (225, 210, 180)),  # red with cream
    (0.03, (170, 175, 180), (75, 80, 90)),  # brushed steel
    (0.15, (0, 0, 0), (0, 0, 0)),  # any two colours, see draw_palette
)


@dataclass(frozen=True)
class Palette:
    """Colours as float32 [3] in RGB, 0 to 255.

    ground: right behind the digits; ink: the digits; wall: around a plate; plated: whether there is a plate.
    """

    ground: Image
    ink: Image
    wall: Image
    plated: bool


def draw_palette(rng: np.random.Generator) -> Palette:
    """Ground, ink and wall; both polarities; the contrast from hardly visible to full."""
    shares = np.array([share for share, _, _ in _PAIRS])
    choice = int(rng.choice(len(_PAIRS), p=shares / shares.sum()))
    ground, ink = (np.array(colour, np.float32) for colour in _PAIRS[choice][1:])
    if choice == len(_PAIRS) - 1:
        ground, ink = (muted(rng) for _ in range(2))
        if abs(float((ground - ink) @ LUMA)) < 40:
            ink = np.full(3, 235 if float(ground @ LUMA) < 120 else 25, np.float32)
    elif rng.random() < 0.12:
        ground, ink = ink, ground
    ground = ground + rng.normal(0, 10, 3).astype(np.float32) + np.float32(rng.normal(0, 18))
    ink = ink + rng.normal(0, 10, 3).astype(np.float32) + np.float32(rng.normal(0, 18))
    # Weathering, haze and exposure bring the two together, down to LEAST_CONTRAST.
    fade = float(rng.choice([1.0, rng.uniform(0.45, 1.0), rng.uniform(0.12, 0.45)], p=[0.45, 0.33, 0.22]))
    difference = (ink - ground) * fade
    luma = float(difference @ LUMA)
    if abs(luma) < LEAST_CONTRAST:
        difference = difference + np.float32(np.copysign(LEAST_CONTRAST - abs(luma), luma))
    ground = np.clip(ground, 3, 252)
    wall = muted(rng)
    if abs(float((wall - ground) @ LUMA)) < 30:
        # Most plates differ from their walls.
        wall = muted(rng)
    if not 0 <= float((ground + difference) @ LUMA) <= 255:
        # Past black or white the ink would lose what sets it off: the other polarity has room.
        difference = -difference
    return Palette(
        ground=ground.astype(np.float32),
        ink=np.clip(ground + difference, 0, 255).astype(np.float32),
        wall=wall,
        plated=bool(rng.random() < 0.6),
    )


def muted(rng: np.random.Generator) -> Image:
    """A colour as walls have it: any brightness, little saturation, warmer rather than colder."""
    grey = rng.uniform(20, 235)
    tint = rng.normal(0, 1, 3) * rng.choice([5.0, 12.0, 32.0], p=[0.6, 0.34, 0.06]) + np.array([5.0, 0.0, -6.0])
    return np.asarray(np.clip(grey + tint, 5, 250), np.float32)
