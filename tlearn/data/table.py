"""The table of images: one row per image, in flat arrays, so that ten million rows fit in a few hundred megabytes.

Rows never move: a row's number is its identity for the random generators, the caches and the messages. What is left
out of a run (an unreadable file, an image beyond ``data.per_class``) is marked ``Split.unused``, not removed.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Split(IntEnum):
    """What a row is used for; the values are those of ``ImageTable.splits``."""

    unused = -1
    train = 0
    val = 1
    test = 2


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Every image of a data set: what it is called, its label, its split.

    Attributes:
        keys: (n,) bytes; paths relative to the root, or names. Bytes, because a file name need not be text.
        labels: int32 (n,), index into ``classes``; with ``multi_label`` uint8 (n, k) of zeros and ones.
        splits: int8 (n,), values of ``Split``. All ``unused`` where the data has no split of its own yet.
        classes: names, in the order of the model's outputs.
        multi_label: whether an image may have any number of labels.
        stamps: int64 (n, 2), size in bytes and modification time in nanoseconds of each file, size -1 where there
            is no such file; None where the images are not files.
    """

    keys: pa.LargeBinaryArray
    labels: NDArray[Any]
    splits: NDArray[np.int8]
    classes: tuple[str, ...]
    multi_label: bool = False
    stamps: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """The path or name of a row; bytes that are not UTF-8 come as surrogates, as ``os.fsdecode`` gives them."""
        return os.fsdecode(self.keys[int(row)].as_py())

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Row numbers of a split, int64, ascending."""
        return np.flatnonzero(self.splits == split)

    def counts(self, split: Split) -> NDArray[np.int64]:
        """Images of each class in a split, int64 (k,)."""
        labels = self.labels[self.splits == split]
        if self.multi_label:
            summed: NDArray[np.int64] = labels.sum(axis=0, dtype=np.int64)
            return summed
        return np.bincount(labels, minlength=len(self.classes)).astype(np.int64)

    def manifest_hash(self) -> str:
        """SHA-256 (hex) over names, labels, splits, classes, and size and modification time of files.

        Files count as changed when their size or time does; reading every byte of a large data set before each run
        would cost more than the run. It tells whether data changed under a run.
        """
        digest = self._digest(range(len(self)))
        digest.update(np.ascontiguousarray(self.splits).data)
        return digest.hexdigest()

    def rows_hash(self, rows: NDArray[Any]) -> str:
        """SHA-256 (hex) over what the table says about some rows, in their order, splits aside."""
        return self._digest(rows).hexdigest()

    def _digest(self, rows: Rows) -> hashlib._Hash:
        """Part by part: a copy of all those rows would take as much memory again as the table does."""
        digest = hashlib.sha256(f"{len(rows)} {self.multi_label} {self.classes!r}".encode())
        for many in _parts(rows, _NAMES_AT_ONCE):
            # Names are told apart by their lengths, which no name can imitate.
            for part in _parts(many, _COPIED_AT_ONCE):
                digest.update(np.diff(_offsets(self._names(part))).data)
            for part in _parts(many, _COPIED_AT_ONCE):
                digest.update(_characters(self._names(part)))
        for column in (self.labels, self.stamps):
            if column is not None:
                for part in _parts(rows, _COPIED_AT_ONCE):
                    digest.update(np.ascontiguousarray(column[_index(part)]).data)
        return digest

    def _names(self, rows: Rows) -> pa.LargeBinaryArray:
        return self.keys[_index(rows)] if isinstance(rows, range) else self.keys.take(pa.array(rows))


Rows = NDArray[Any] | range
"""Row numbers; a range is looked at where it lies, not copied."""

_NAMES_AT_ONCE = 1_000_000  # what is hashed depends on it: lengths of so many names, then their characters
_COPIED_AT_ONCE = 1 << 12


def _parts(rows: Rows, size: int) -> Iterator[Rows]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _index(rows: Rows) -> NDArray[Any] | slice:
    return slice(rows.start, rows.stop) if isinstance(rows, range) else rows


class KeyBuilder:
    """Gathers names for ``ImageTable.keys``, in 8 bytes a row and their characters, from the first one on.

    ``pyarrow.array`` would make a list of all names first, and keep twice what it needs of its own memory afterwards.
    """

    def __init__(self) -> None:
        self._characters = bytearray()
        self._offsets = array("q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, key: str | bytes) -> None:
        """Add a name."""
        self._characters += os.fsencode(key)
        self._offsets.append(len(self._characters))

    def build(self) -> pa.LargeBinaryArray:
        """The names, in the memory they are in: none can be added afterwards."""
        buffers = [None, pa.py_buffer(self._offsets), pa.py_buffer(self._characters)]
        return pa.Array.from_buffers(pa.large_binary(), len(self), buffers)


def key_array(keys: Iterable[str | bytes]) -> pa.LargeBinaryArray:
    """Names as the compact array that ``ImageTable.keys`` holds."""
    builder = KeyBuilder()
    for key in keys:
        builder.append(key)
    return builder.build()


def no_splits(count: int) -> NDArray[np.int8]:
    """Splits of data that has none of its own."""
    return np.full(count, Split.unused, np.int8)


def look_alikes(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that a person cannot tell apart: their accents are written with other characters (Unicode, NFC, NFD).

    File systems and archives of some systems take accents apart, so that one class may come under two names.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normalize("NFC", name), name)
        if other != name:
            return other, name
    return None


def shown_alike(alike: tuple[str, str]) -> str:
    """``look_alikes`` told apart by their characters."""
    first, second = alike
    return f"{first!r}, as {first!a} and {second!a}"


def _offsets(keys: pa.LargeBinaryArray) -> NDArray[np.int64]:
    offsets = np.frombuffer(keys.buffers()[1], np.int64)
    return offsets[keys.offset : keys.offset + len(keys) + 1]


def _characters(keys: pa.LargeBinaryArray) -> memoryview:
    offsets = _offsets(keys)
    buffer = keys.buffers()[2]
    return memoryview(buffer or b"")[offsets[0] : offsets[-1]]
