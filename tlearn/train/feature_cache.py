"""Features on disk: what the frozen part of a model makes of each image, written once and mapped into memory.

    <folder>/<key>/             an entry; its key is a hash of everything that its content depends on
        0.bin, 1.bin, ...       one array (rows, ...) for each tensor
        meta.json               the layout, and a CRC-32 of each array
        lock                    held by whoever uses the entry
    <folder>/<key>.partial/     the same while it is written

Three rules keep any number of processes out of each other's way, whenever one of them is killed:

1. An entry gets its name by a rename once it is complete, so a half-written one is never read. The checksums are
   compared on opening, so a damaged one is not either.
2. Who writes holds ``lock`` alone, who reads shares it. It is a lock of the kernel (``flock``), which ends with the
   process: what nobody holds may be deleted.
3. Nobody waits inside a lock call: a lock is had at once or asked for again later. So there are no deadlocks, and who
   waits can be stopped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tlearn.config import CacheConfig
from tlearn.errors import visible
from tlearn.train.feature_arrays import (
    META,
    NOT_KNOWN,
    Contents,
    Damaged,
    Features,
    Layout,
    Writer,
    forget_verdicts,
    layout_of,
    open_arrays,
    read_meta,
)
from tlearn.words import counted, size_text

_LOCK = "lock"
_PARTIAL = ".partial"
_OURS = re.compile(r"[0-9a-f]{32}(\.partial|\.deleted-\d+)?")  # nothing else in the folder is ever touched
_POLL_SECONDS = 0.2
_OPENING_SECONDS = 5.0  # whoever holds a complete entry alone renames or deletes it right now


def cache_folder(config: CacheConfig) -> Path:
    """Where features are kept; a relative ``cache.dir`` starts from the working directory."""
    if config.dir is not None:
        return Path(config.dir).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tlearn" / "features"


@dataclass(frozen=True)
class Entry:
    """An entry as it is listed.

    Attributes:
        key: its name.
        about: what it holds, for people.
        where: where the images come from, for people; empty: an older version wrote it.
        rows: number of images (times views).
        bytes: of the arrays.
        used: when it was opened last, seconds since 1970.
    """

    key: str
    about: str
    where: str
    rows: int
    bytes: int
    used: float


class FeatureCache:
    """A folder of entries.

    Args:
        folder: made when needed.
        max_bytes: size that all entries together may have; those used longest ago make room.
        say: told, in one line each, of damaged entries that are dropped, and of those that had to make room.
    """

    def __init__(
        self, folder: Path, max_bytes: float = math.inf, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._say = say

    def obstacle(self) -> str:
        """Why nothing can be kept in the folder, as far as a glance tells; empty where nothing speaks against it."""
        nearest = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not nearest.is_dir():
            return f"{nearest} is no folder"
        return "" if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} may not be written to"

    def has(self, key: str) -> bool:
        """Whether there is a complete entry; only opening it tells whether it is sound."""
        return (self.folder / key / META).is_file() and (self.folder / key / _LOCK).is_file()

    def seems_to_hold(self, key: str, layout: Layout) -> bool:
        """Whether there is a complete entry, as far as names and sizes tell: no lock is held, no array read."""
        folder, sizes = self.folder / key, layout.array_bytes
        try:
            meta = read_meta(folder) if self.has(key) else None
            return (
                meta is not None
                and layout_of(meta) == layout
                and all((folder / f"{index}.bin").stat().st_size == size for index, size in enumerate(sizes))
            )
        except OSError:
            return False

    def has_features_of(self, images: str) -> bool:
        """Whether some entry was written for images of this hash."""
        metas = (read_meta(path) for path in self._folders(partial=False)) if images else ()
        return any(meta is not None and meta.get("images") == images for meta in metas)

    def open(self, key: str, layout: Layout, contents: Contents = NOT_KNOWN) -> Features | None:
        """The entry, verified; None when there is none. A damaged one is deleted: those who read it keep their files.

        It works in a folder that cannot be written to.

        Args:
            key, layout: of the entry.
            contents: of the images. An entry made of others is deleted too, where both are known.
        """
        path, give_up = self.folder / key, time.monotonic() + _OPENING_SECONDS
        while (lock := _lock(path, fcntl.LOCK_SH)) is None:
            if not self.has(key) or time.monotonic() > give_up:
                return None
            time.sleep(_POLL_SECONDS)
        try:
            features = Features(layout, open_arrays(path, layout, contents), lock)
        except Damaged as damage:
            lock.close()
            is_gone = _discard(path) or not path.exists()
            self._say(f"features in {path}: {damage}; {'made anew' if is_gone else 'not used'}")
            return None
        with contextlib.suppress(OSError):
            os.utime(path / META)  # used now: last to make room
        return features

    @contextlib.contextmanager
    def writing(
        self,
        key: str,
        layout: Layout,
        about: str = "",
        while_waiting: Callable[[], None] = lambda: None,
        *,
        images: str = "",
        where: str = "",
        contents: Contents = NOT_KNOWN,
    ) -> Iterator[Writer | None]:
        """Write an entry; it is published when the block ends without an exception.

        Args:
            key: name of the entry, 32 hexadecimal digits.
            layout: what will be written.
            about: what it is, for people.
            while_waiting: called again and again while another process writes the same entry.
            images: hash of the images, for ``has_features_of``.
            where: where they come from, for people.
            contents: of them, for ``open``.

        Yields:
            The writer; None when another process has written the entry in the meantime.

        Raises:
            OSError: no space, or no right to write.
        """
        partial = self.folder / f"{key}{_PARTIAL}"
        lock = self._lock_partial(key, partial, while_waiting)
        if lock is None:
            yield None
            return
        try:
            for left in partial.glob("*.bin"):  # by a killed process: it would count as being written
                left.unlink()
            self._make_room(layout.bytes)
            with contextlib.closing(Writer(partial, layout)) as writer:
                writer.reserve()
                yield writer
                writer.finish(partial, about=about, images=images, where=where, contents=dict(contents))
            if _discard(self.folder / key):  # what is there has no description or no lock: it is no entry
                self._say(f"incomplete features in {self.folder / key}: made anew")
            partial.rename(self.folder / key)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            lock.close()

    def _lock_partial(self, key: str, partial: Path, while_waiting: Callable[[], None]) -> IO[bytes] | None:
        """Make the folder of an entry to be written and hold its lock; None once the entry is there."""
        while not self.has(key):
            partial.mkdir(parents=True, exist_ok=True)
            lock = _lock(partial, fcntl.LOCK_EX, create=True)
            if lock is None:
                while_waiting()
                time.sleep(_POLL_SECONDS)
            elif not self.has(key):
                return lock
            else:  # published between the two looks
                shutil.rmtree(partial, ignore_errors=True)
                lock.close()
        return None

    def _make_room(self, needed: int) -> None:
        """Delete what nobody uses, what was used longest ago first, until ``needed`` more bytes are allowed.

        Raises:
            OSError: it is too much, or all that is left is in use.
        """
        if needed > self.max_bytes:  # whatever else is deleted
            raise OSError(errno.EDQUOT, f"{needed / 1e9:.1f} GB would exceed cache.max_gb")
        self.sweep()
        taken = self.unfinished_bytes()
        entries = sorted(self.entries(), key=lambda entry: entry.used)
        taken += sum(entry.bytes for entry in entries)
        removed = []
        for entry in entries:
            if taken + needed > self.max_bytes and self.delete(entry.key):
                taken -= entry.bytes
                removed.append(entry)
        if removed:
            self._say(f"made room in {self.folder} for cache.max_gb={self.max_bytes / 1e9:g}: {_removed(removed)}")
        if taken + needed > self.max_bytes:
            sizes = f"{needed / 1e9:.1f} GB more than the {taken / 1e9:.1f} GB that are in use"
            raise OSError(errno.EDQUOT, f"{sizes} would exceed cache.max_gb")

    # --- looking after -----------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """The complete entries, in the order of their keys."""
        found = []
        for path in self._folders(partial=False):
            meta = read_meta(path)
            with contextlib.suppress(OSError):  # somebody deletes it
                if meta is not None:
                    layout, used = layout_of(meta), (path / META).stat().st_mtime
                    about, where = str(meta.get("about", "")), str(meta.get("where", ""))
                    found.append(Entry(path.name, about, where, layout.rows, layout.bytes, used))
        return found

    def undescribed(self) -> list[str]:
        """Keys of folders whose description is gone or makes no sense: what they hold is of no use to anyone."""
        return [path.name for path in self._folders(partial=False) if _is_undescribed(path)]

    def damage(self, key: str) -> str:
        """What of an entry is not as it was written, read anew; empty: all is. Nothing is changed."""
        path = self.folder / key
        meta = read_meta(path)
        if meta is None:
            return f"{META} does not describe it"
        try:
            forget_verdicts()
            open_arrays(path, layout_of(meta))
        except Damaged as error:
            return str(error)
        return ""

    def delete(self, key: str) -> bool:
        """Delete an entry. False when it is in use, or cannot be deleted."""
        lock = _lock(self.folder / key, fcntl.LOCK_EX)
        if lock is None:
            return False
        with lock:
            return _discard(self.folder / key)

    def sweep(self) -> int:
        """Delete what killed processes have left half-written, and what nothing describes. Returns how many."""
        swept = sum(map(self.delete, self.undescribed()))
        for path in self._folders(partial=True):
            if path.name.endswith(_PARTIAL):
                swept += self.delete(path.name)
            else:
                swept += _discard(path)  # killed while deleting
        return swept

    def unfinished_bytes(self) -> int:
        """Of what is no entry: it is being written, or a killed process left it, or nothing describes it."""
        total = 0
        for path in [*self._folders(partial=True), *(self.folder / key for key in self.undescribed())]:
            with contextlib.suppress(OSError):
                total += sum(file.stat().st_size for file in path.glob("*.bin"))
        return total

    def _folders(self, *, partial: bool) -> list[Path]:
        try:
            paths = sorted(self.folder.iterdir())
        except OSError:
            return []
        matches = [(path, _OURS.fullmatch(path.name)) for path in paths]
        return [path for path, match in matches if match and bool(match[1]) is partial]


def _is_undescribed(folder: Path) -> bool:
    """Whether there are arrays that no description is of. A file that only cannot be read now says nothing."""
    try:
        (folder / META).read_bytes()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return read_meta(folder) is None and any(folder.glob("*.bin"))


def _removed(entries: Sequence[Entry]) -> str:
    """``removed 34.1 MB, used longest ago: vgg16 64 px, digits train: head_pool 512, and 2 others``."""
    first, others = entries[0].about or entries[0].key, len(entries) - 1
    size = size_text(sum(entry.bytes for entry in entries))
    more = f", and {counted(others, 'other')}" if others else ""
    return f"removed {size}, used longest ago: {visible(first)}{more}"


# --- locks -----------------------------------------------------------------------------------------------------------


def _lock(folder: Path, mode: int, *, create: bool = False) -> IO[bytes] | None:
    """Hold the lock of an entry. None when another holds it, or the entry is gone."""
    path = folder / _LOCK
    try:
        file = _open_lock(path, create)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file  # else the entry was renamed or deleted between the two calls
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _open_lock(path: Path, create: bool) -> IO[bytes]:
    """Open for writing where that is allowed: network file systems lock nothing else exclusively."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666), "r+b")
    except OSError as error:
        if create or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return open(path, "rb")


def _discard(folder: Path) -> bool:
    """Take a folder's name away, then delete it: nobody sees it half deleted. False where that is not allowed."""
    doomed = folder.with_name(f"{folder.name[:32]}.deleted-{time.monotonic_ns()}")
    try:
        folder.rename(doomed)
    except OSError:
        return False
    shutil.rmtree(doomed, ignore_errors=True)
    return True
