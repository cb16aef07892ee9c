"""Sources that need no files and no network: scikit-learn's digits, and pictures drawn on the fly."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlearn.data.decode import Pixels
from tlearn.data.source import ArraySource
from tlearn.data.table import ImageTable, key_array, no_splits

DIGITS = tuple("0123456789")
"""The classes of ``digits``."""

GLYPHS = 24_000
"""How many pictures ``glyphs`` draws unless told otherwise."""


def digits() -> ArraySource:
    """1,797 real handwritten digits, 8 x 8, ten classes, inside scikit-learn.

    Part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, CC BY 4.0). Grey levels
    0..16 become 0..255.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    grey = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    return ArraySource(images, loaded.target, DIGITS, name="digits", where="scikit-learn's load_digits")


class Glyphs:
    """Digits and letters drawn when they are read: nothing is stored, any number of them.

    Args:
        count: how many.
        image_size: side of the pictures, pixels.
        seed: of the drawing; picture i is a function of (seed, i).
    """

    def __init__(self, *, count: int, image_size: int, seed: int) -> None:
        from tlearn.data.glyphs import CLASSES

        self.name = "glyphs"
        self.where = f"{count:,} pictures drawn with seed {seed} at {image_size} pixels"
        self._image_size = image_size
        self._seed = seed
        labels = (np.arange(count) % len(CLASSES)).astype(np.int32)  # as draw() gives them out
        keys = key_array(f"glyph-{seed}-{image_size}-{index}" for index in range(count))
        self.table = ImageTable(keys, labels, no_splits(count), CLASSES)

    def read(self, row: int) -> Pixels:
        """uint8 (image_size, image_size, 3)."""
        from tlearn.data.glyphs import draw

        return draw(self._seed, int(row), self._image_size)[0]

    def file(self, row: int) -> Path | None:
        """None: there are no files."""
        return None

    def fingerprint(self, rows: NDArray[Any]) -> str:
        """Of the table, whose names hold seed and size, and of the program that draws."""
        from tlearn.data import glyphs

        program = Path(glyphs.__file__).read_bytes()
        return hashlib.sha256(self.table.rows_hash(rows).encode() + program).hexdigest()
