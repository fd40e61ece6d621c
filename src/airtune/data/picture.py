"""From an encoded picture to the pixels that a viewer shows: one opener for every source."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airtune.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

PICTURES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff",
    ".avif", ".heic", ".heif",
)  # fmt: skip
"""What a picture's name ends in; one that Pillow cannot read is refused, and none is passed over."""
LARGEST_PIXELS = 64 * 2**20
"""Pixels of one picture; a file that claims more is refused before it is decoded."""
_WIDE = 257
"""65535 over 255: what a level of 8 bits is in 16."""


def decode_picture(data: bytes, where: str) -> Pixels:
    """Return an encoded picture as uint8 of (height, width, 3), the first frame of several.

    Args:
        data: the file's bytes.
        where: named in errors.

    Raises:
        DataError: if it is no picture, is cut short, or claims too many pixels.
        MissingExtraError: if Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError(
            "reading pictures needs Pillow; pip install 'airtune[vision]'"
        ) from error
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > LARGEST_PIXELS:
                raise DataError(
                    f"{where} claims {picture.width} x {picture.height} pixels, at most "
                    f"{LARGEST_PIXELS} are read"
                )
            return upright_pixels(picture, where)
    except UnidentifiedImageError as error:
        raise DataError(f"{where} is no picture that can be read; repair or remove it") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} is no picture that can be read: {error}") from error


def upright_pixels(picture: Image, where: str) -> Pixels:
    """Return a picture that Pillow opened as uint8 of (height, width, 3), turned as its EXIF says.

    Grey of 16 bits is scaled to 8, which Pillow would clip. Transparency is dropped.

    Raises:
        DataError: if its numbers are floating-point, whose scale is not known.
    """
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(picture)
    if turned.mode == "F":
        raise DataError(
            f"{where} is a picture of floating-point numbers, which does not say what is black and what "
            "white; save it with 8 or 16 bits a channel"
        )
    if turned.mode.startswith("I"):
        levels = np.asarray(turned).astype(np.int64)
        wide = turned.mode != "I" or levels.max(initial=0) > 255
        grey = np.clip((levels + _WIDE // 2) // _WIDE if wide else levels, 0, 255)
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if turned.mode == "P":  # its transparency may be a table, which only this mode can hold
        turned = turned.convert("RGBA")
    return np.asarray(turned.convert("RGB"), np.uint8)
