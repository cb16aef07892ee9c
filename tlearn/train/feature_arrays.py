"""One entry of the feature cache: an array for each tensor, and what describes them.

The cache (feature_cache.py) decides when an entry is there and who may delete it; here are its files.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from tlearn.train.checkpoint import write_atomic

META = "meta.json"
_CHUNK = 1 << 20  # bytes read at once to verify a file


@dataclass(frozen=True)
class Layout:
    """Shape of an entry.

    Attributes:
        rows: number of images (times views).
        shapes: of each tensor, for one image.
        dtype: ``float32`` or ``float16``.
    """

    rows: int
    shapes: tuple[tuple[int, ...], ...]
    dtype: str

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one image."""
        return sum(math.prod(shape) for shape in self.shapes) * np.dtype(self.dtype).itemsize

    @property
    def array_bytes(self) -> tuple[int, ...]:
        """Bytes of each array."""
        return tuple(self.rows * math.prod(shape) * np.dtype(self.dtype).itemsize for shape in self.shapes)

    @property
    def bytes(self) -> int:
        """Bytes of the entry."""
        return self.rows * self.bytes_per_row


# --- reading ---------------------------------------------------------------------------------------------------------


class Features:
    """A complete entry: one array (rows, ...) per tensor, mapped into memory. Nobody deletes it until ``close``."""

    def __init__(self, layout: Layout, arrays: list[np.ndarray], lock: IO[bytes]) -> None:
        self.layout = layout
        self._arrays = arrays
        self._lock = lock

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Features of some rows, int (...), as float32 (..., *shape) per tensor."""
        return [_taken(array, rows) for array in self._arrays]

    def close(self) -> None:
        """Let others delete the entry."""
        self._lock.close()


def _taken(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of an array, as float32."""
    taken = _own_memory((*rows.shape, *array.shape[1:]))
    if array.dtype == taken.dtype:
        np.take(array, rows, axis=0, out=taken, mode="clip")  # all rows are there; other modes would copy twice
    else:
        taken[...] = array[rows]
    return taken


def _own_memory(shape: tuple[int, ...]) -> np.ndarray:
    """An array, float32, in pages that the system has back as soon as nobody needs it.

    They are aligned, so a stream of TensorFlow takes it without a copy. In the heap, where chunk after chunk comes and
    goes in several threads, each of them would keep room for some.
    """
    size = math.prod(shape) * 4
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.float32, size // 4).reshape(shape)


Contents = Mapping[str, str]
"""Hashes of the bytes of images' files, by what was read of them; those that are known twice must be equal."""

NOT_KNOWN: Contents = {}


class Damaged(Exception):
    """An entry is not what was written, or was made of other images; which of its files, and why."""


def open_arrays(folder: Path, layout: Layout, contents: Contents = NOT_KNOWN) -> list[np.ndarray]:
    """Map the arrays of an entry. Raises Damaged, also where it is known to be of other ``contents``."""
    meta = read_meta(folder)
    if meta is None or layout_of(meta) != layout or len(meta["crc32"]) != len(layout.shapes):
        raise Damaged(f"{META} does not describe them")
    written = meta.get("contents")
    if isinstance(written, dict) and any(written.get(kind, value) != value for kind, value in contents.items()):
        raise Damaged("they are of files with other bytes")
    arrays: list[np.ndarray] = []
    for index, (shape, size, crc) in enumerate(zip(layout.shapes, layout.array_bytes, meta["crc32"], strict=True)):
        try:
            with open(folder / f"{index}.bin", "rb") as file:
                _verify(file, size, crc)
                arrays.append(np.memmap(file, mode="r", dtype=layout.dtype, shape=(layout.rows, *shape)))
        except OSError as error:
            raise Damaged(f"{index}.bin: {error.strerror or error}") from error
        except ValueError as error:  # it was cut off between the two calls
            raise Damaged(f"{index}.bin: {error}") from error
    return arrays


_VERIFIED: set[tuple[int, ...]] = set()


def _verify(file: IO[bytes], size: int, expected: int) -> None:
    """Compare size and checksum of a file, once in this process for each state of it. Raises Damaged."""
    status, name = os.fstat(file.fileno()), os.path.basename(file.name)
    if status.st_size != size:
        raise Damaged(f"{name} has {status.st_size:,} instead of {size:,} bytes")
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, expected)
    if state in _VERIFIED:
        return
    checksum = 0
    while chunk := file.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    if checksum != expected:
        raise Damaged(f"{name} has another checksum than when it was written")
    _VERIFIED.add(state)


def forget_verdicts() -> None:
    """Verify all files anew."""
    _VERIFIED.clear()


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The description of an entry; None where there is none that makes sense."""
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        layout_of(meta)
        list(map(int, meta["crc32"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta


def layout_of(meta: dict[str, Any]) -> Layout:
    """The layout that a description tells. Raises ValueError, KeyError or TypeError: it tells none."""
    return Layout(int(meta["rows"]), tuple(tuple(map(int, shape)) for shape in meta["shapes"]), str(meta["dtype"]))


# --- writing ---------------------------------------------------------------------------------------------------------


class Writer:
    """Appends rows to an entry that has no name yet."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._layout = layout
        self._rows = 0
        self._checksums = [0] * len(layout.shapes)
        self._files = [(folder / f"{index}.bin").open("wb") for index in range(len(layout.shapes))]

    def reserve(self) -> None:
        """Take the space of all rows. Raises OSError: there is none."""
        for file, size in zip(self._files, self._layout.array_bytes, strict=True):
            _reserve(file, size)

    def append(self, tensors: Sequence[np.ndarray]) -> None:
        """Write the next rows: one array (n, ...) per tensor. Raises OSError: no space, or too large for float16."""
        for index, (file, tensor) in enumerate(zip(self._files, tensors, strict=True)):
            data = _converted(tensor, self._layout.dtype)
            self._checksums[index] = zlib.crc32(data, self._checksums[index])
            file.write(data)
        self._rows += len(tensors[0])

    def finish(self, folder: Path, **about: Any) -> None:
        """Make the files durable and describe them, also in words. Raises RuntimeError when rows are missing."""
        if self._rows != self._layout.rows:
            raise RuntimeError(f"{self._rows} of {self._layout.rows} rows were written")
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        meta = {**about, **asdict(self._layout), "crc32": self._checksums}
        write_atomic(folder / META, json.dumps(meta).encode())

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the space of a file now: a full disk shows before the work, not half-way through it."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        file.truncate(size)  # this file system cannot; it shows while writing then


def _converted(tensor: np.ndarray, dtype: str) -> memoryview:
    """A tensor in the dtype of the entry. Raises OSError when that cannot hold it."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(tensor, dtype)
    if dtype == "float16" and np.isinf(array).sum() > np.isinf(tensor.astype(np.float32)).sum():
        raise OSError(errno.ERANGE, "features are larger than float16 can hold: take cache.dtype=float32")
    return array.data
