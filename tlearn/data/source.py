"""What a data source is: a table of images, and a way to read each of them.

Sources are read from many threads at once and hold no state but their table.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from tlearn.data.decode import Excess, Pixels, open_rgb
from tlearn.data.table import ImageTable, key_array, no_splits


@runtime_checkable
class ImageSource(Protocol):
    """Labelled images. Anything with these members serves; see ``tlearn.data.register_source``."""

    @property
    def name(self) -> str:
        """What the source is called in a config."""

    @property
    def where(self) -> str:
        """Where the images come from, for a person: a folder, a file, a library."""

    @property
    def table(self) -> ImageTable:
        """One row per image."""

    def read(self, row: int) -> Pixels:
        """Image of a row: uint8 (height, width, 3), RGB. Thread-safe. Raises UnreadableImage."""

    def file(self, row: int) -> Path | None:
        """The image's file; None where images are not files."""


def fingerprint(source: ImageSource, rows: NDArray[Any]) -> str | None:
    """A hash that changes when the images or labels of these rows, or their order, do; it keys the feature cache.

    None where the source cannot tell: a plugin's source can, if it has a method ``fingerprint(rows) -> str``.
    """
    method = getattr(source, "fingerprint", None)
    return None if method is None else str(method(rows))


def sample(source: ImageSource, rows: NDArray[Any]) -> str:
    """A hash of some of the bytes of these rows' files, see ``bytes_sample``; empty where images are not files."""
    method = getattr(source, "sample", None)
    return "" if method is None else str(method(rows))


class ArraySource:
    """Images that are in memory already.

    Args:
        images: uint8 (n, height, width, 3), RGB.
        labels: int (n,), index into ``classes``.
        classes: names of the classes.
        name, where: what it is called, and where the images are from.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[Any],
        classes: Sequence[str],
        *,
        name: str = "array",
        where: str = "memory",
    ) -> None:
        self.name = name
        self.where = where
        self._images = images
        count = len(images)
        keys = key_array(f"{name}-{index:06d}" for index in range(count))
        self.table = ImageTable(keys, np.asarray(labels, np.int32), no_splits(count), tuple(classes))

    def read(self, row: int) -> Pixels:
        """uint8 (height, width, 3): a view, not a copy."""
        image: Pixels = self._images[row]
        return image

    def file(self, row: int) -> Path | None:
        """None: there are no files."""
        return None

    def fingerprint(self, rows: NDArray[Any]) -> str:
        """Of the table and the pixels."""
        pixels = hashlib.sha256(self.table.rows_hash(rows).encode())
        for row in rows:
            pixels.update(np.ascontiguousarray(self._images[row]).data)
        return pixels.hexdigest()


class FileSource:
    """Images in files below one folder.

    Args:
        name: ``folder`` or ``table``.
        where: what the user gave.
        root: folder that the table's keys start from.
        table: one row per file.
        max_pixels: larger images are refused.
        notes: what a person should know about the listing, one line each.
    """

    def __init__(
        self, name: str, where: str, root: Path, table: ImageTable, max_pixels: int, notes: Sequence[str] = ()
    ) -> None:
        self.notes = tuple(notes)
        self.name = name
        self.where = where
        self.root = root
        self._top = os.fspath(root)
        self.table = table
        self.max_pixels = max_pixels

    def read(self, row: int) -> Pixels:
        """uint8 (height, width, 3). Raises UnreadableImage with the path."""
        return np.asarray(self.open(row))

    def open(self, row: int, excess: Excess | None = None) -> Image.Image:
        """The same pixels, or fewer, as a Pillow image of mode RGB: resizing that saves two copies of them."""
        return open_rgb(os.path.join(self._top, self.table.key(row)), max_pixels=self.max_pixels, excess=excess)

    def file(self, row: int) -> Path:
        """The row's file."""
        return self.root / self.table.key(row)

    def fingerprint(self, rows: NDArray[Any]) -> str:
        """Of the table, which knows size and modification time of each file; the folder may be moved."""
        return self.table.rows_hash(rows)

    def sample(self, rows: NDArray[Any]) -> str:
        """Of the bytes of some files, see ``bytes_sample``."""
        return bytes_sample(len(rows), lambda index: os.path.join(self._top, self.table.key(int(rows[index]))))


def bytes_sample(count: int, path: Callable[[int], str]) -> str:
    """A hash of the first MiB of up to 64 files, spread over all there are.

    Where copies of a tree are given one time for all files, as archives and build systems do, another tree of the same
    names and sizes cannot be told apart by names, sizes and times.

    Args:
        count: number of files.
        path: of a file, by its number. One that cannot be read counts as empty.
    """
    digest = hashlib.sha256()
    for index in np.unique(np.linspace(0, count - 1, min(count, _SAMPLED)).astype(np.int64)).tolist():
        content = b""
        with contextlib.suppress(OSError, ValueError):  # ValueError: a null byte in the name
            if stamp_of(path(index))[0] > 0:
                with open(path(index), "rb") as file:
                    content = file.read(_SAMPLED_BYTES)
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]


_SAMPLED = 64
_SAMPLED_BYTES = 1 << 20


def place_of(source: ImageSource) -> str:
    """Where images come from, for a person who is in another folder: of files the whole path."""
    return os.path.abspath(source.where) if isinstance(source, FileSource) else source.where


def stamps_of(root: Path, keys: pa.LargeBinaryArray, *, allow_outside: bool = True) -> NDArray[np.int64]:
    """Size and modification time of each file below a root, int64 (n, 2); size -1 where there is no regular file.

    Without ``allow_outside``, the size is ``OUTSIDE`` where a symbolic link leads out of the root.
    """
    top = os.fsencode(root)
    stamp = stamp_of if allow_outside else _Boundary(top).stamp_of
    stamps = np.empty((len(keys), 2), np.int64)
    for start in range(0, len(keys), _STAMPED_AT_ONCE):  # Python strings take ten times the memory of their table
        names = keys.slice(start, _STAMPED_AT_ONCE).to_pylist()
        stamps[start : start + len(names)] = [stamp(os.path.join(top, name)) for name in names]
    return stamps


OUTSIDE = -2
_STAMPED_AT_ONCE = 100_000


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; a link to itself leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def stamp_of(path: str | bytes | os.PathLike[str]) -> tuple[int, int]:
    """(size, modification time in nanoseconds) of a file; (-1, -1) where there is no regular file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return -1, -1
    # Opening a pipe or a device would wait for ever; whatever is no regular file counts as missing.
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)


class _Boundary:
    """Stamps files, and tells those that a link leads out of a folder; one question to the disk for each plain file."""

    def __init__(self, top: bytes) -> None:
        self._top = os.path.realpath(top)
        self._folders: dict[bytes, bool] = {}

    def stamp_of(self, path: bytes) -> tuple[int, int]:
        try:
            status = os.lstat(path)
        except (OSError, ValueError):
            return -1, -1
        if stat.S_ISLNK(status.st_mode):
            return stamp_of(path) if self._holds(os.path.realpath(path)) else (OUTSIDE, -1)
        folder = os.path.dirname(path)
        if folder not in self._folders:
            self._folders[folder] = self._holds(os.path.realpath(folder))
        if not self._folders[folder]:
            return OUTSIDE, -1
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)

    def _holds(self, real: bytes) -> bool:
        return os.path.commonpath((real, self._top)) == self._top
