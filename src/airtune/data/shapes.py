"""Small coloured shapes and textures, made on the fly for image classification.

A figure is a function of the plane: below 0 inside, above 0 outside, in pixels from its edge. Each
image is one figure of its class, turned, scaled, shifted and coloured at random, over a background
with a gradient, strokes that mean nothing, and noise. Nothing is downloaded; the same seed gives the
same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from airtune.plan import Floats, Ints

SIZE = 24
"""Height and width in pixels."""
_TURNS: Mapping[str, float] = {"stripes": np.pi, "plus": np.pi / 5, "square": np.pi / 5}
"""Largest angle by which a figure is turned; the others turn freely."""

Figure: TypeAlias = Callable[[Floats, Floats], Floats]
"""(u, v) in units of the figure's radius -> below 0 inside."""


def _polygon(sides: int) -> Figure:
    def figure(u: Floats, v: Floats) -> Floats:
        angles = 2 * np.pi * np.arange(sides) / sides
        reach = np.cos(np.pi / sides)
        return np.asarray(np.max([u * np.cos(a) + v * np.sin(a) for a in angles], axis=0) - reach)

    return figure


def _star(u: Floats, v: Floats) -> Floats:
    angle = np.arctan2(v, u)
    return np.asarray(np.hypot(u, v) - (0.62 + 0.4 * np.cos(5 * angle)))


def _disc(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.hypot(u, v) - 0.9)


def _bars(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.28))


def _plus(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.minimum(_bars(u, v), _bars(v, u)))


def _tee(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.minimum(_bars(u, v + 0.7), np.maximum(np.abs(u) - 0.28, np.abs(v) - 0.95)))


def _ell(u: Floats, v: Floats) -> Floats:
    foot = _bars(u, v - 0.7)
    return np.asarray(np.minimum(foot, np.maximum(np.abs(u + 0.7) - 0.28, np.abs(v) - 0.95)))


def _outside(inner: Figure, scale: float, outer: Figure, shift: float = 0.0) -> Figure:
    """Return `outer` without a smaller `inner`."""
    return lambda u, v: np.maximum(outer(u, v), -inner((u - shift) / scale, v / scale) * scale)


def _ripple(kind: Callable[[Floats, Floats], Floats]) -> Figure:
    """Return a texture within a soft square."""
    return lambda u, v: np.maximum(kind(u, v), np.maximum(np.abs(u), np.abs(v)) - 1.1)


FIGURES: Mapping[str, Figure] = {
    "checker": _ripple(lambda u, v: np.sin(5.5 * u) * np.sin(5.5 * v)),
    "crescent": _outside(_disc, 0.85, _disc, shift=0.45),
    "disc": _disc,
    "hexagon ring": _outside(_polygon(6), 0.55, _polygon(6)),
    "plus": _plus,
    "ring": _outside(_disc, 0.6, _disc),
    "square": _polygon(4),
    "star": _star,
    "stripes": _ripple(lambda u, v: np.sin(6.5 * u)),
    "triangle": _polygon(3),
}
"""The classes of `embedded:shapes`."""

OTHER_FIGURES: Mapping[str, Figure] = {
    "bar": _bars,
    "dots": _ripple(lambda u, v: np.hypot(np.sin(4.0 * u), np.sin(4.0 * v)) - 0.5),
    "ell": _ell,
    "frame": _outside(_polygon(4), 0.6, _polygon(4)),
    "half-disc": lambda u, v: np.maximum(_disc(u, v), v),
    "kite": lambda u, v: np.abs(u) * 1.9 + np.abs(v) - 1.0,
    "lens": lambda u, v: np.maximum(np.hypot(u - 0.5, v), np.hypot(u + 0.5, v)) - 1.0,
    "pentagon": _polygon(5),
    "pin": lambda u, v: np.minimum(np.hypot(u, v + 0.5) - 0.45, _bars(v, u) + 0.12),
    "tee": _tee,
    "waves": _ripple(lambda u, v: np.sin(5.0 * u + 1.5 * np.sin(4.0 * v))),
    "wedge": lambda u, v: np.maximum(np.hypot(u, v) - 1.0, np.abs(v) - 0.5 * u),
}
"""What the shipped vision model was trained on: none of the classes above."""


def draw(
    count: int, random: np.random.Generator, figures: Mapping[str, Figure] = FIGURES
) -> tuple[NDArray[np.uint8], Ints]:
    """Return images (count, 3, size, size) and the class of each, (count,).

    >>> pixels, classes = draw(3, np.random.default_rng(0))
    >>> pixels.shape, len(classes)
    ((3, 3, 24, 24), 3)
    """
    names = tuple(figures)
    classes = random.integers(0, len(names), count)
    images = [_image(names[index], figures[names[index]], random) for index in classes.tolist()]
    pixels = np.stack(images) if images else np.zeros((0, 3, SIZE, SIZE), np.uint8)
    return pixels, classes


def _image(name: str, figure: Figure, random: np.random.Generator) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:SIZE, 0:SIZE] - (SIZE - 1) / 2
    image = _background(x, y, random)
    for _ in range(int(random.integers(0, 3))):
        image = _paint(image, _stroke(x, y, random), random.random(3))
    radius, turn = random.uniform(5.5, 9.5), random.uniform(0.0, _TURNS.get(name, 2 * np.pi))
    shift = random.uniform(-3.0, 3.0, 2)
    u = ((x - shift[0]) * np.cos(turn) + (y - shift[1]) * np.sin(turn)) / radius
    v = ((y - shift[1]) * np.cos(turn) - (x - shift[0]) * np.sin(turn)) / radius
    # a soft edge about a pixel wide
    cover = 1.0 / (1.0 + np.exp(np.clip(3.0 * radius * figure(u, v), -40.0, 40.0)))
    image = _paint(image, cover, _contrast(image, random))
    image = image + random.normal(0.0, 0.06, image.shape)
    return np.asarray(np.clip(image * 255.0, 0.0, 255.0).round(), np.uint8)


def _background(x: Floats, y: Floats, random: np.random.Generator) -> Floats:
    """Return a colour that changes along one direction, (3, size, size)."""
    first, second = random.random((2, 3))
    angle = random.uniform(0.0, 2 * np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / SIZE + 0.5
    return np.asarray(
        first[:, None, None] * 0.7 + (second - first)[:, None, None] * 0.5 * along + 0.1
    )


def _stroke(x: Floats, y: Floats, random: np.random.Generator) -> Floats:
    """Return the cover of a thin line across the image."""
    angle, offset = random.uniform(0.0, np.pi), random.uniform(-9.0, 9.0)
    return np.asarray(np.exp(-((x * np.cos(angle) + y * np.sin(angle) - offset) ** 2)) * 0.8)


def _contrast(image: Floats, random: np.random.Generator) -> Floats:
    """Return a colour that stands out from the background."""
    mean = image.mean((1, 2))
    colour = random.random(3)
    away = colour - mean
    short = max(0.45 - float(np.linalg.norm(away)), 0.0)
    return np.asarray(
        np.clip(colour + np.where(away >= 0, 1.0, -1.0) * short / np.sqrt(3), 0.0, 1.0)
    )


def _paint(image: Floats, cover: Floats, colour: Floats) -> Floats:
    return np.asarray(image * (1.0 - cover) + colour[:, None, None] * cover)
