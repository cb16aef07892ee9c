"""Real images to check an export with, and to measure the ranges of its activations on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlearn.data import Reading, UnreadableImage
from tlearn.data.decode import open_rgb
from tlearn.errors import DataError, Problem
from tlearn.images import FileImages, find_images
from tlearn.labelled import Labelled

_ORIENTATION_TAG = 0x0112  # EXIF 2.32
_AS_THEY_ARE = {
    "JPEG": ("RGB", "L"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P"),
    "BMP": ("RGB",),
    "GIF": ("L", "P"),
}


@dataclass(frozen=True, eq=False)
class Samples:
    """A few images.

    Attributes:
        where: what they are, for a person.
        pixels: uint8 (n, S, S, 3), as the network takes them.
        files: of each image the bytes of a JPEG, PNG, BMP or GIF.
        reencoded: how many of the files are not the user's own but PNGs of the decoded image, since graphs do not read
            their format, or an orientation outside EXIF.
    """

    where: str
    pixels: NDArray[np.uint8]
    files: tuple[bytes, ...]
    reencoded: int = 0

    def __len__(self) -> int:
        return len(self.files)


def samples_of(images: FileImages | Labelled, rows: Iterable[int], reading: Reading, where: str) -> Samples:
    """Images by number; those that cannot be read are left out. Raises DataError when none can."""
    pixels, files, foreign = [], [], 0
    for row in rows:
        path = images.file(row)
        file = None if path is None else _plain_file(path)
        try:
            square, file_or_png = images.load(row, reading), file or _png(_decoded(images, row, reading))
        except UnreadableImage:
            continue
        pixels.append(square)
        files.append(file_or_png)
        foreign += file is None and path is not None
    if not files:
        raise DataError(Problem(where, "not one image could be read", "name others with --images"))
    return Samples(where, np.stack(pixels), tuple(files), foreign)


def found_samples(paths: Iterable[str], count: int, reading: Reading) -> Samples:
    """Images named one by one or lying in folders, evenly chosen. Raises DataError when none can be read."""
    paths = list(paths)
    images = find_images(paths)
    return samples_of(images, _spread(len(images), count), reading, ", ".join(paths))


def split_samples(images: Labelled, count: int, reading: Reading) -> Samples:
    """Images of a split of a run's data, evenly chosen. Raises DataError when none can be read."""
    names = {"train": "training images", "val": "validation images"}
    return samples_of(images, _spread(len(images), count), reading, names[images.split])


def _spread(present: int, count: int) -> list[int]:
    """At most ``count`` numbers below ``present``, evenly apart: lists are sorted by class."""
    return np.unique(np.linspace(0, present - 1, min(count, present)).round().astype(int)).tolist() if present else []


def _plain_file(path: Path) -> bytes | None:
    """The file as it is, where a graph reads it as ``tlearn.data.decode`` does; else None."""
    try:
        with Image.open(path, formats=tuple(_AS_THEY_ARE)) as image:
            seen = _orientation_is_in_exif(image)
            plain = image.mode in _AS_THEY_ARE[str(image.format)]
            whole = image.format != "GIF" or (
                image.tile[0][1] == (0, 0, *image.size) and "transparency" not in image.info
            )
        file = path.read_bytes()
        return file if seen and plain and whole and not _is_refused(file) else None
    except Exception:  # Pillow raises whatever a format's code happens to raise: it is decoded and encoded anew
        return None


def _is_refused(file: bytes) -> bool:
    """Whether a graph refuses a PNG or BMP for its depth, see ``tlearn.exporting.refusing``."""
    if file.startswith(b"\x89PNG"):
        return file[24] < 8 and file[25] == 0
    header, depth, compression = (int.from_bytes(file[at : at + n], "little") for at, n in ((14, 4), (28, 2), (30, 4)))
    return file.startswith(b"BM") and (header < 40 or depth not in (24, 32) or compression != 0)


def _orientation_is_in_exif(image: Image.Image) -> bool:
    """Whether a graph sees the orientation: Pillow reads it from XMP and from the text of a PNG as well."""
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    block = Image.Exif()
    block.load(image.info.get("exif", b""))
    return bool(orientation == block.get(_ORIENTATION_TAG, 1))


def _decoded(images: FileImages | Labelled, row: int, reading: Reading) -> NDArray[np.uint8] | Image.Image:
    """The image before it is made a square: of a JPEG with as many pixels as a run's reading decodes."""
    path = images.file(row)
    if path is None:
        return images.picture(row, reading)
    return open_rgb(path, max_pixels=reading.max_pixels, excess=reading.excess)


def _png(picture: NDArray[np.uint8] | Image.Image) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, "PNG")
    return buffer.getvalue()


Calibration = Callable[[], Samples]
"""Images of the training split; read when a format asks for them."""
