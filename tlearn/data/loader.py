"""Rows in, a batch of pixels and labels out: read, resize, augment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlearn.data.augment import Augmenter, Crop
from tlearn.data.decode import Pixels
from tlearn.data.reading import Reading
from tlearn.data.source import FileSource, ImageSource
from tlearn.errors import DataError, Problem

Rows = NDArray[np.integer[Any]]


class PixelCache:
    """Decoded, resized images in memory, filled as they are first read. Thread-safe.

    One cache serves every stream over the same table at the same size and resizing: training and validation, stage
    after stage.

    Args:
        rows: rows of the whole table; the system gives memory only for those that are read.
        image_size: side of the images, pixels.

    Raises:
        DataError: all images together exceed the memory of the machine.
    """

    def __init__(self, rows: int, image_size: int) -> None:
        needed, present = rows * image_size * image_size * 3, _memory()
        if present is not None and needed > present:
            size = f"{rows:,} images of {image_size} x {image_size} pixels take {needed / 1e9:.1f} GB"
            what = f"{size}, and this machine has {present / 1e9:.1f} GB"
            raise DataError(Problem("data.cache", what, "use data.cache=none"))
        self._pixels = np.empty((rows, image_size, image_size, 3), np.uint8)
        self._filled = np.zeros(rows, np.bool_)

    def get(self, row: int) -> Pixels | None:
        """The image, uint8 (S, S, 3), or None when it has not been put yet."""
        return self._pixels[row] if self._filled[row] else None

    def put(self, row: int, image: Pixels) -> None:
        """Keep an image. Two threads may put the same one: they write the same bytes."""
        self._pixels[row] = image
        self._filled[row] = True  # last, so that no thread takes a half-written image


class FirstSquares:
    """Squares of images that the check has decoded, up to a bound, for whoever reads them first. Thread-safe.

    Each is given once and then forgotten: once all have been read, nothing of them is held.

    Args:
        reading: how an image becomes a square.
        rows: whose images will be read, those that matter most first.
        most_bytes: of all that are kept.
    """

    def __init__(self, reading: Reading, rows: Rows, most_bytes: int = 2**28) -> None:
        self._reading = reading
        self._wanted = np.zeros(int(rows.max(initial=-1)) + 1, np.bool_)
        self._wanted[rows[: most_bytes // (reading.image_size**2 * 3)]] = True
        self._squares: dict[int, Pixels] = {}
        self.excess = reading.excess

    def wants(self, row: int) -> bool:
        """Whether the image of a row is one of those that are kept."""
        return row < len(self._wanted) and bool(self._wanted[row])

    def take(self, row: int, image: Image.Image) -> None:
        """Keep the square of an image."""
        self._squares[row] = self._reading.square(image)

    def get(self, row: int) -> Pixels | None:
        """The square, uint8 (S, S, 3); None where it is not there, or not any more."""
        return self._squares.pop(row, None)

    def put(self, row: int, image: Pixels) -> None:
        """Nothing: what was read later is not kept."""


class Loader:
    """Loads batches, from any number of threads.

    Args:
        source: where images are read from.
        reading: how an image becomes a square.
        augmenter: random changes; None for evaluation.
        cache: images kept in memory, before their random changes. A random resized crop needs whole images, and goes
            past it.
    """

    def __init__(
        self,
        source: ImageSource,
        reading: Reading,
        *,
        augmenter: Augmenter | None = None,
        cache: PixelCache | FirstSquares | None = None,
    ) -> None:
        self._source = source
        self._reading = reading
        self._augmenter = augmenter
        self._cache = None if augmenter and augmenter.crops else cache

    def batch(self, rows: Rows, epoch: int = 0) -> tuple[Pixels, NDArray[Any]]:
        """Images uint8 (b, S, S, 3) and labels, int32 (b,) or float32 (b, k), of some rows. Raises UnreadableImage."""
        side = self._reading.image_size
        images = np.empty((len(rows), side, side, 3), np.uint8)
        for image, loaded in zip(images, self._images(rows.tolist(), epoch), strict=True):
            image[:] = loaded
        table = self._source.table
        return images, table.labels[rows].astype(np.float32 if table.multi_label else np.int32)

    def _images(self, rows: list[int], epoch: int) -> Iterable[Pixels]:
        """First all are read, then all are changed.

        Decoding an image drives everything else out of the processor's caches: changes that are made in turns with it
        take up to twice as long.
        """
        augmenter = self._augmenter
        if augmenter is None:
            return map(self._square, rows)
        if augmenter.crops:
            squares = list(map(self._cropped, rows, augmenter.random_crops(rows, epoch=epoch)))
        else:
            squares = [self._square(row) for row in rows]
        return (augmenter(square, epoch=epoch, row=row) for row, square in zip(rows, squares, strict=True))

    def _cropped(self, row: int, crop: Crop) -> Pixels:
        whole = np.asarray(self._opened(row))
        cropped = crop(whole)
        return self._reading.square(whole) if cropped is None else cropped

    def _square(self, row: int) -> Pixels:
        kept = self._cache.get(row) if self._cache else None
        if kept is not None:
            return kept
        image = self._reading.square(self._opened(row))
        if self._cache:
            self._cache.put(row, image)
        return image

    def _opened(self, row: int) -> Pixels | Image.Image:
        source = self._source
        return source.open(row, self._excess) if isinstance(source, FileSource) else source.read(row)

    def _excess(self, width: int, height: int) -> float:
        """Decoded alike in all epochs, a picture must do for every random crop that it may get."""
        excess = self._reading.excess(width, height)
        if self._augmenter is None or not self._augmenter.crops:
            return excess
        return min(excess, self._augmenter.excess(width, height))


def _memory() -> int | None:
    """Bytes of memory in this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
