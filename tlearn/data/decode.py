"""From the bytes of an image file to a square of pixels, with Pillow.

Whatever the file holds, the result is 8-bit RGB, upright. Every way a file can be wrong ends in ``UnreadableImage``.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tlearn.config import Interpolation, Resize
from tlearn.errors import DataError, Problem

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
"""The only formats Pillow may open, whatever a file is called. Its other decoders are never reached."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp"})
"""File names that are taken for images when a folder is listed (compared in lower case)."""

DRAFTS = (8, 4, 2)
"""Parts of its size that a JPEG can be decoded at, most first."""

LARGEST_FILE = 2**29
"""Bytes: files with more are refused unread. A sparse file of terabytes takes no room in an archive."""

# Transparent pixels show what they are usually laid over. Most pictures with alpha are drawings made for a white
# page; on black their dark lines would vanish.
BACKGROUND = (255, 255, 255)

# What Pillow finds odd and reads all the same, such as a broken EXIF block, harms no pixel; what is too large we judge
# ourselves. Once for the process: images are read by many threads, which share the filters.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")

Pixels = NDArray[np.uint8]
ImageFile = str | os.PathLike[str] | bytes | IO[bytes]

Excess = Callable[[int, int], float]
"""How many times more pixels along its sides than are needed a picture of (width, height) has."""


class UnreadableImage(DataError):
    """One image cannot be read.

    Args:
        path: the file, or the name of the row.
        reason: what is wrong with it, in words.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        fix = "mend or remove the file, or leave such images out: data.on_error=skip data.check=decode"
        super().__init__(Problem(path, reason, fix))


def decode(file: ImageFile, *, max_pixels: int, name: str | None = None, excess: Excess | None = None) -> Pixels:
    """Read an image file.

    The first frame of an animation; EXIF orientation applied; greyscale repeated over the channels; palette resolved;
    transparency laid over white; CMYK converted; greyscale of 16 bits scaled to 8 with rounding (of 16-bit colours
    Pillow gives the high bytes).

    Args:
        file: a path, the file's bytes, or an open binary file.
        max_pixels: larger images are refused by their header, before memory is taken for them. Where Pillow's own
            limit (``PIL.Image.MAX_IMAGE_PIXELS``) would refuse what this one lets in, it is raised for the process.
        name: what messages call the image; by default its path.
        excess: lets a JPEG come at 1/2, 1/4 or 1/8 of its size, the least that leaves no less than is needed. Its
            codec then leaves out the high frequencies instead of computing pixels that resizing averages away
            (Pillow's ``Image.draft``). Damage is found all the same: the whole file is read. Other formats are not
            changed. None: all pixels.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        UnreadableImage: not an image in one of ``FORMATS``, truncated, damaged, too large, or not there.
    """
    return np.asarray(open_rgb(file, max_pixels=max_pixels, name=name, excess=excess))


def open_rgb(file: ImageFile, *, max_pixels: int, name: str | None = None, excess: Excess | None = None) -> Image.Image:
    """Like ``decode``, as a Pillow image of mode RGB."""
    name = name or _name(file)
    with _open(file, max_pixels, name) as image:
        try:
            if excess is not None:
                _draft(image, excess(*image.size))
            image.load()
            return _upright(_rgb(image), _orientation(image))
        except Exception as error:  # Pillow's decoders raise whatever their format's code happens to raise
            raise UnreadableImage(name, f"is damaged or truncated ({_words(error)})") from error


def read_size(file: ImageFile, *, max_pixels: int, name: str | None = None) -> tuple[int, int]:
    """(width, height) in the header, before EXIF orientation. Raises UnreadableImage as ``decode`` would for it."""
    with _open(file, max_pixels, name or _name(file)) as image:
        return image.size


def regular_size(path: str | os.PathLike[str], name: str | None = None) -> int:
    """Bytes of a file. Raises UnreadableImage when it is not there, no regular file, or above ``LARGEST_FILE``."""
    name = name or os.fspath(path)
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise UnreadableImage(name, "there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UnreadableImage(name, f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    return _judged(status, name)


def _judged(status: os.stat_result, name: str) -> int:
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device would wait for ever
        raise UnreadableImage(name, "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
    if status.st_size > LARGEST_FILE:
        raise UnreadableImage(name, f"has {status.st_size:,} bytes, more than {LARGEST_FILE:,}")
    return status.st_size


def resize(
    image: Pixels | Image.Image,
    size: int,
    *,
    mode: Resize = Resize.crop,
    crop_fraction: float = 1.0,
    interpolation: Interpolation = Interpolation.bilinear,
) -> Pixels:
    """Make an image a square of ``size`` pixels, antialiased when it shrinks.

    Args:
        image: uint8 (height, width, 3), or a Pillow image of mode RGB.
        size: side of the result, pixels.
        mode: ``crop`` takes the centre square, ``stretch`` the whole image regardless of its shape, ``pad`` the whole
            image in its shape, in the middle of a black square.
        crop_fraction: with ``crop``, side of the centre square as a share of the shorter side.
        interpolation: Pillow's resampling filter.

    Returns:
        uint8 (size, size, 3).
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    filter = Image.Resampling[interpolation.name.upper()]
    width, height = picture.size
    if mode is Resize.pad:
        scale = size / max(width, height)
        fitted = max(1, round(width * scale)), max(1, round(height * scale))
        square = Image.new("RGB", (size, size))
        square.paste(picture.resize(fitted, filter), ((size - fitted[0]) // 2, (size - fitted[1]) // 2))
        return np.asarray(square)
    whole = box = (0.0, 0.0, float(width), float(height))
    if mode is Resize.crop:
        # Fractions of a pixel are resampled, not rounded: the crop is exactly centred for every size.
        side = min(width, height) * crop_fraction
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    if (width, height) == (size, size) and box == whole:
        return np.asarray(picture)
    return np.asarray(picture.resize((size, size), filter, box=box))


# --- the parts of decode ---------------------------------------------------------------------------------------------


@contextmanager
def _open(file: ImageFile, max_pixels: int, name: str) -> Iterator[Image.Image]:
    """The header read; what is no image of ours or too large is refused."""
    if not isinstance(file, str | os.PathLike):
        with _identified(io.BytesIO(file) if isinstance(file, bytes) else file, max_pixels, name, file == b"") as image:
            yield image
        return
    # Pillow, which is told no name, maps no file into memory: one that is cut off meanwhile would end the process.
    descriptor, size = _descriptor(file, name)
    with open(descriptor, "rb") as opened, _identified(opened, max_pixels, name, size == 0) as image:
        yield image


def _descriptor(path: str | os.PathLike[str], name: str) -> tuple[int, int]:
    """Open a regular file, and say how many bytes it has.

    It is judged by its name, so that nothing else is opened, and as what was opened then.
    """
    regular_size(path, name)
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that took the name meanwhile does not block
    except PermissionError as error:
        raise UnreadableImage(name, "may not be read (permission denied)") from error
    except OSError as error:
        raise UnreadableImage(name, f"cannot be opened ({error.strerror})") from error
    try:
        return opened, _judged(os.fstat(opened), name)
    except UnreadableImage:
        os.close(opened)
        raise


def _identified(file: IO[bytes], max_pixels: int, name: str, empty: bool) -> Image.Image:
    """The image in a file of which the header has been read."""
    _raise_pillows_limit(max_pixels)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        reason = "is empty (0 bytes)" if empty else f"is not an image in {', '.join(FORMATS)}"
        raise UnreadableImage(name, reason) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, _too_large(error, max_pixels)) from error
    except Exception as error:
        failed_to_open = isinstance(error, OSError) and error.errno is not None
        what = "cannot be opened" if failed_to_open else "is damaged or truncated"
        raise UnreadableImage(name, f"{what} ({_words(error)})") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise UnreadableImage(name, f"has {width} x {height} pixels, more than data.max_pixels={max_pixels}")
    return image


_raising = threading.Lock()


def _raise_pillows_limit(max_pixels: int) -> None:
    """Pillow refuses more than twice its own limit, one for the process: it may only grow, as other threads read too.

    It is not taken away: it is asked before a WebP's canvas is allocated, and by whoever else uses Pillow here.
    """
    if 2 * (Image.MAX_IMAGE_PIXELS or max_pixels) < max_pixels:  # None: there is no limit
        with _raising:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)


def _too_large(error: Image.DecompressionBombError, max_pixels: int) -> str:
    """In words of our own limit, which is the smaller one: Pillow's only says how many pixels there are."""
    found = re.search(r"(\d+) pixels", str(error))
    if found is None:
        return f"is too large ({_words(error)})"
    return f"has {found[1]} pixels, more than data.max_pixels={max_pixels}"


def _draft(image: Image.Image, excess: float) -> None:
    """Ask the codec for fewer pixels; what is no JPEG does not know the question."""
    factor = next((factor for factor in DRAFTS if factor <= excess), 1)
    if factor > 1:
        width, height = image.size
        image.draft(None, (max(1, width // factor), max(1, height // factor)))  # it gives no less than asked for


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode these formats decode to, as RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it at 255
        wide = np.asarray(image).astype(np.uint32).clip(0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        page = Image.new("RGBA", image.size, BACKGROUND)
        return Image.alpha_composite(page, with_alpha).convert("RGB")
    return image.convert("RGB")


# EXIF 2.32, tag 0x0112: what was done to the picture, and so what undoes it.
_ORIENTATION_TAG = 0x0112
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None when there is none, or the EXIF block is broken, which harms no pixel."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:
        return None
    return value if isinstance(value, int) else None


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    return image.transpose(_UNDO[orientation]) if orientation in _UNDO else image


def _name(file: ImageFile) -> str:
    return os.fspath(file) if isinstance(file, str | os.PathLike) else "image"


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
