"""Look at every image before training: a run that dies on image 9,731 in its second hour helps nobody.

Also found here: the same picture twice. Under two labels, one of them is wrong; in two splits, the validation score
is too good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlearn.config import Check, DataConfig, OnError
from tlearn.data.decode import UnreadableImage, decode, open_rgb, read_size, regular_size
from tlearn.data.source import FileSource, ImageSource
from tlearn.data.table import ImageTable
from tlearn.errors import DataError, Problem, visible
from tlearn.words import counted

Rows = NDArray[np.integer[Any]]
Progress = Callable[[int, int], None]

AUTO_DECODES = 20_000
"""``data.check=auto`` decodes up to this many images, and reads only the headers of more."""

_SHOWN = 20
_CHUNK = 128  # images a thread takes at once


class CheckGivenUp(Exception):
    """Nobody wants to know any more."""


class Keep(Protocol):
    """Takes decoded images while they are at hand. Called from several threads."""

    def wants(self, row: int) -> bool:
        """Whether the image of a row is to be decoded for it."""

    def excess(self, width: int, height: int) -> float:
        """How it is to be decoded, see ``tlearn.data.decode.decode``."""

    def take(self, row: int, image: Image.Image) -> None:
        """The image of a row."""


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be used.

    Attributes:
        row: its row in the table.
        path: its file.
        reason: what is wrong with it.
    """

    row: int
    path: str
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What was looked at and what was found.

    Attributes:
        mode: how closely: decode, header or none.
        checked: number of images looked at.
        unreadable: in the order of the rows.
        duplicates: rows that hold the same file, or the same pixels, byte for byte; two or more in each group.
        contents: uint64 (rows of the table, 2), a hash of each file's bytes, zeros where they were not read; None where
            that is so for all.
    """

    mode: Check
    checked: int
    unreadable: tuple[Unreadable, ...] = ()
    duplicates: tuple[tuple[int, ...], ...] = ()
    contents: NDArray[np.uint64] | None = field(default=None, compare=False, repr=False)

    def under_two_labels(self, table: ImageTable) -> list[tuple[int, ...]]:
        """Duplicates whose labels differ."""
        return [rows for rows in self.duplicates if len(np.unique(table.labels[list(rows)], axis=0)) > 1]

    def in_two_splits(self, table: ImageTable) -> list[tuple[int, ...]]:
        """Duplicates that stand in more than one of train, val and test."""
        return [rows for rows in self.duplicates if len({s for s in table.splits[list(rows)].tolist() if s >= 0}) > 1]

    def contents_hash(self, rows: Rows) -> str:
        """Hash of the bytes of some rows' files, in their order; empty where one of them was not read as a whole."""
        if self.contents is None or not self.contents[rows].any(axis=1).all():
            return ""
        return blake2b(self.contents[rows].tobytes(), digest_size=16).hexdigest()

    def warnings(self, table: ImageTable) -> list[str]:
        """Each finding in one line, with the first few names; empty when all is well."""
        lines = [f"left out, unreadable: {entry.path} {entry.reason}" for entry in self.unreadable[:_SHOWN]]
        if len(self.unreadable) > _SHOWN:
            lines.append(f"... {len(self.unreadable)} images left out in all")
        kinds = {
            "under different labels": self.under_two_labels(table),
            "in different splits": self.in_two_splits(table),
        }
        for kind, groups in kinds.items():
            for rows in groups[:_SHOWN]:
                lines.append(f"the same picture {kind}: " + ", ".join(table.key(row) for row in rows[:4]))
            if len(groups) > _SHOWN:
                lines.append(f"... {len(groups)} pictures {kind} in all")
        if self.duplicates:
            more = sum(len(rows) - 1 for rows in self.duplicates)
            lines.append(f"{counted(more, 'image is a copy', 'images are copies')} of others")
        return [visible(line) for line in lines]


def check_images(
    source: ImageSource,
    rows: Rows,
    *,
    mode: Check = Check.auto,
    on_error: OnError = OnError.stop,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    keep: Keep | None = None,
    max_pixels: int = DataConfig().max_pixels,
    workers: int = 4,
) -> CheckReport:
    """Look for unreadable images and duplicates.

    Missing files are found in every mode. ``header`` reads each file's header, and the whole of files that are equal
    in size; ``decode`` decodes each image. Needs 16 bytes of memory an image.

    Args:
        source: where images are read from.
        rows: rows to look at, ascending.
        mode: how closely; ``auto`` is ``decode`` up to 20,000 files, ``header`` for more, ``none`` without files.
        on_error: ``stop`` raises when an image is unreadable; ``skip`` lists it in the report.
        progress: called now and then with (images done, images in all), from the calling thread.
        should_stop: asked before each image; True gives the check up.
        keep: takes what is decoded, for as long as it wants to.
        max_pixels: larger images are refused, in files of sources that have no limit of their own.
        workers: threads.

    Raises:
        CheckGivenUp: ``should_stop`` said so.
        DataError: with the first 20 unreadable images and their number.
    """
    mode = _resolved(mode, source, rows, on_error)
    unreadable = _missing(source, rows)
    present = np.setdiff1d(rows, [entry.row for entry in unreadable]) if unreadable else rows
    digests = np.zeros((len(present), 2), np.uint64)
    if mode is not Check.none:
        look = _Look(source, mode, present, should_stop, keep, max_pixels)
        with ThreadPoolExecutor(workers) as pool, look.given_up_on_error(pool):
            for start, found, bad in pool.map(look.chunk, range(0, len(present), _CHUNK)):
                digests[start : start + len(found)] = found
                unreadable += bad
                if progress:
                    progress(start + len(found), len(present))
    if should_stop():
        raise CheckGivenUp
    unreadable.sort(key=lambda entry: entry.row)
    if unreadable and on_error is OnError.stop:
        raise _unreadable_error(unreadable, len(rows))
    checked = 0 if mode is Check.none else len(present)
    contents = None
    if mode is Check.decode and source.table.stamps is not None:
        contents = np.zeros((len(source.table), 2), np.uint64)
        contents[present] = digests
    return CheckReport(mode, checked, tuple(unreadable), _equal_rows(present, digests), contents)


def _resolved(mode: Check, source: ImageSource, rows: Rows, on_error: OnError) -> Check:
    if mode is not Check.auto:
        return mode
    if not len(rows) or source.file(int(rows[0])) is None:
        return Check.none  # images that are made in memory do not decay on disks
    # An image that is left out must be found now: once training runs, it can only stop.
    return Check.decode if len(rows) <= AUTO_DECODES or on_error is OnError.skip else Check.header


def _missing(source: ImageSource, rows: Rows) -> list[Unreadable]:
    """Rows whose files were not there when the table was made."""
    stamps = source.table.stamps
    if stamps is None:
        return []
    return [
        Unreadable(row, str(source.file(row)), "there is no such file") for row in rows[stamps[rows, 0] < 0].tolist()
    ]


class _Look:
    """Looks at images in chunks, from several threads."""

    def __init__(
        self,
        source: ImageSource,
        mode: Check,
        rows: Rows,
        should_stop: Callable[[], bool],
        keep: Keep | None,
        max_pixels: int,
    ) -> None:
        self._source = source
        self._mode = mode
        self._should_stop = should_stop
        self._keep = keep
        self._limit = source.max_pixels if isinstance(source, FileSource) else max_pixels
        self._rows = rows
        stamps = source.table.stamps
        self._twins = None if stamps is None else _repeated(stamps[rows, 0])
        self._given_up = False

    @contextmanager
    def given_up_on_error(self, pool: ThreadPoolExecutor) -> Iterator[None]:
        """Whoever leaves the block by Ctrl-C, or by an error, does not wait for the images that are left."""
        try:
            yield
        except BaseException:
            self._given_up = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    def chunk(self, start: int) -> tuple[int, NDArray[np.uint64], list[Unreadable]]:
        """(start, digests uint64 (m, 2) with zeros for "unique", what is unreadable) of the images start..start+m-1."""
        rows = self._rows[start : start + _CHUNK].tolist()
        digests = np.zeros((len(rows), 2), np.uint64)
        unreadable = []
        for index, row in enumerate(rows):
            if self._given_up or self._should_stop():
                break
            # A file whose size no other file has is no duplicate: it is read as a whole to be decoded only.
            compare = self._mode is Check.decode or self._twins is None or bool(self._twins[start + index])
            try:
                content = self._content(row, compare)
            except UnreadableImage as error:
                unreadable.append(Unreadable(row, error.path, error.reason))
                continue
            if compare and content is not None:
                digests[index] = np.frombuffer(blake2b(content, digest_size=16).digest(), np.uint64)
        return start, digests, unreadable

    def _content(self, row: int, compare: bool) -> Any:
        """Make sure the image can be read; return what tells it from others (bytes or an array)."""
        path = self._source.file(row)
        if path is None:
            return np.ascontiguousarray(self._source.read(row)) if self._mode is Check.decode else None
        if self._mode is Check.decode:
            content = _bytes(path)
            if self._keep is not None and self._keep.wants(row):
                self._keep.take(
                    row, open_rgb(content, max_pixels=self._limit, name=str(path), excess=self._keep.excess)
                )
            else:
                # the pixels are not looked at: an eighth of a JPEG's sides is what its codec gives at the least cost
                decode(content, max_pixels=self._limit, name=str(path), excess=lambda width, height: 8.0)
            return content
        read_size(path, max_pixels=self._limit)
        return _bytes(path) if compare else None


def _bytes(path: Path) -> bytes:
    regular_size(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(str(path), f"cannot be read ({error.strerror})") from error


def _repeated(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values occur more than once."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    equal = ranked[1:] == ranked[:-1]
    repeated = np.zeros(len(values), np.bool_)
    repeated[order[1:][equal]] = True
    repeated[order[:-1][equal]] = True
    return repeated


def _equal_rows(rows: Rows, digests: NDArray[np.uint64]) -> tuple[tuple[int, ...], ...]:
    """Groups of rows with equal digests, in the order of their first rows."""
    alike = _repeated(digests[:, 0]) & digests.any(axis=1)  # few, as a rule: what follows takes more memory a row
    rows, digests = rows[alike], digests[alike]
    order = np.lexsort((rows, digests[:, 1], digests[:, 0]))
    ranked = digests[order]
    edges = np.flatnonzero((ranked[1:] != ranked[:-1]).any(axis=1)) + 1
    groups = (rows[group].tolist() for group in np.split(order, edges) if len(group) > 1)
    return tuple(sorted(tuple(group) for group in groups))


def _unreadable_error(unreadable: list[Unreadable], looked_at: int) -> DataError:
    problems = [Problem(entry.path, entry.reason) for entry in unreadable[:_SHOWN]]
    fix = "mend or remove these files, or leave them out: data.on_error=skip"
    count = f"{len(unreadable)} of {looked_at} images cannot be used"
    more = f" (the first {_SHOWN} are listed)" if len(unreadable) > _SHOWN else ""
    return DataError([*problems, Problem("data", count + more, fix)])
