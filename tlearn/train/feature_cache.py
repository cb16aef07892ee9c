"""Features on disk: what the frozen part of a model makes of each image, written once and mapped into memory.

An entry is a folder named after a hash of everything its content depends on. It is written beside its final name and
renamed when it is complete, so a half-written one is never read; a CRC-32 of every file is compared on opening, so a
damaged one is not either. Locks are those of the kernel (``flock``): they end with the process that holds them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tlearn.train.checkpoint import write_atomic

_META = "meta.json"
_CHUNK = 1 << 24  # bytes read at once to verify a file


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
    def bytes(self) -> int:
        """Bytes of the entry."""
        return self.rows * self.bytes_per_row


class Features:
    """A complete entry: one array (rows, ...) per tensor, mapped into memory."""

    def __init__(self, folder: Path, layout: Layout, lock: IO[str]) -> None:
        self._lock = lock  # shared, so that nobody deletes what is in use
        self.folder = folder
        self.layout = layout
        self._arrays = [
            np.memmap(folder / f"{index}.bin", mode="r", dtype=layout.dtype, shape=(layout.rows, *shape))
            for index, shape in enumerate(layout.shapes)
        ]

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Features of some rows, float32 (len(rows), ...) per tensor."""
        return [np.asarray(array[rows], np.float32) for array in self._arrays]


class Writer:
    """Appends rows to an entry that is not published yet."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._layout = layout
        self._rows = 0
        self._checksums = [0] * len(layout.shapes)
        self._files = [(folder / f"{index}.bin").open("wb") for index in range(len(layout.shapes))]
        for file, shape in zip(self._files, layout.shapes, strict=True):
            size = layout.rows * math.prod(shape) * np.dtype(layout.dtype).itemsize
            os.posix_fallocate(file.fileno(), 0, max(size, 1))  # a full disk shows now, not half-way
            file.truncate(size)

    def append(self, tensors: Sequence[np.ndarray]) -> None:
        """Write the next rows: one array (n, ...) per tensor."""
        for index, (file, tensor) in enumerate(zip(self._files, tensors, strict=True)):
            data = np.ascontiguousarray(tensor, self._layout.dtype).tobytes()
            self._checksums[index] = zlib.crc32(data, self._checksums[index])
            file.write(data)
        self._rows += len(tensors[0])

    def finish(self, folder: Path) -> None:
        """Make the files durable and describe them. Raises RuntimeError when rows are missing."""
        if self._rows != self._layout.rows:
            raise RuntimeError(f"{self._rows} of {self._layout.rows} rows were written")
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        meta = asdict(self._layout) | {"crc32": self._checksums, "created": time.time()}
        write_atomic(folder / _META, json.dumps(meta).encode())

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


class FeatureCache:
    """A folder of entries.

    Args:
        folder: made when needed.
        max_bytes: size that all entries together may have; those used longest ago make room.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    # --- reading -----------------------------------------------------------------------------------------------------

    def open(self, key: str, layout: Layout) -> Features | None:
        """The entry, verified; None when there is none. A damaged or foreign one is deleted."""
        if not (self.folder / key / _META).is_file():
            return None
        lock = self._lock_file(key)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if self._is_sound(key, layout):
            os.utime(self.folder / key / _META)  # used now: last to make room
            return Features(self.folder / key, layout, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)  # others may have looked, deleted and written anew while we waited
        if not self._is_sound(key, layout):
            shutil.rmtree(self.folder / key, ignore_errors=True)
        lock.close()
        return None

    def _is_sound(self, key: str, layout: Layout) -> bool:
        try:
            meta = json.loads((self.folder / key / _META).read_text())
            known = Layout(meta["rows"], tuple(map(tuple, meta["shapes"])), meta["dtype"])
            return known == layout and all(
                _crc32(self.folder / key / f"{index}.bin") == crc for index, crc in enumerate(meta["crc32"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False

    # --- writing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, key: str, layout: Layout, on_wait: Callable[[], None] = lambda: None) -> Iterator[Writer | None]:
        """Write an entry; it is published when the block ends without an exception.

        Args:
            key: name of the entry.
            layout: what will be written.
            on_wait: called when another process is writing the same entry.

        Yields:
            The writer; None when another process has written the entry in the meantime.

        Raises:
            OSError: no space, or no right to write.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock_file(key) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (self.folder / key / _META).is_file():
                yield None
                return
            self._make_room(layout.bytes)
            partial = self.folder / f"{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: its lock is gone, ours is held
            partial.mkdir()
            try:
                with contextlib.closing(Writer(partial, layout)) as writer:
                    yield writer
                    writer.finish(partial)
                partial.rename(self.folder / key)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def fits(self, layout: Layout) -> bool:
        """Whether an entry may be kept at all."""
        return layout.bytes <= self.max_bytes

    def _make_room(self, needed: int) -> None:
        """Delete entries that nobody uses, those used longest ago first, until ``needed`` more bytes are allowed."""
        for entry in sorted(self.entries(), key=lambda entry: entry.used):
            if needed + sum(other.bytes for other in self.entries()) <= self.max_bytes:
                return
            self.delete(entry.key)

    # --- looking after -----------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """What is in the folder, in no order."""
        found = []
        for path in self.folder.glob(f"*/{_META}"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                meta = json.loads(path.read_text())
                layout = Layout(meta["rows"], tuple(map(tuple, meta["shapes"])), meta["dtype"])
                found.append(Entry(path.parent.name, layout.rows, layout.bytes, path.stat().st_mtime, layout))
        return found

    def verify(self, key: str) -> bool:
        """Whether the files of an entry are those that were written."""
        return any(entry.key == key and self._is_sound(key, entry.layout) for entry in self.entries())

    def delete(self, key: str) -> bool:
        """Delete an entry. False when it is in use."""
        with self._lock_file(key) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            shutil.rmtree(self.folder / key, ignore_errors=True)
            return True

    def _lock_file(self, key: str) -> IO[str]:
        return (self.folder / f"{key}.lock").open("a")


@dataclass(frozen=True)
class Entry:
    """An entry as it is listed: ``used`` is in seconds since the epoch."""

    key: str
    rows: int
    bytes: int
    used: float
    layout: Layout


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
