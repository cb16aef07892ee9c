"""From a DataConfig to images that are ready to stream: index, check, divide."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlearn.config import Check, DataConfig
from tlearn.data.check import CheckReport, Keep, Progress, check_images
from tlearn.data.source import ImageSource
from tlearn.data.sources import SOURCES
from tlearn.data.split import divide, limit_per_class
from tlearn.data.table import ImageTable, Split
from tlearn.errors import DataError, Problem


@dataclass(frozen=True, eq=False)
class Data:
    """Labelled images, divided.

    Attributes:
        source: reads the images; its own table does not know the division.
        table: one row per image, with the splits of this run.
        train, val, test: int64 row numbers, ascending; val and test may be empty.
        report: what the check found.
    """

    source: ImageSource
    table: ImageTable
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    report: CheckReport

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the model's outputs."""
        return self.table.classes

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.table.multi_label

    def labels(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Labels of rows: int32 (m,), or uint8 (m, k) for several labels per image."""
        labels: NDArray[Any] = self.table.labels[rows]
        return labels

    def warnings(self) -> list[str]:
        """What a person should know before trusting the scores, one line each."""
        return [*getattr(self.source, "notes", ()), *self.report.warnings(self.table)]


def load_data(config: DataConfig, *, image_size: int, seed: int, progress: Progress | None = None) -> Data:
    """Index the images, divide them, look at them: ``index_data``, then ``check_data``."""
    return check_data(index_data(config, image_size=image_size, seed=seed), config, progress=progress)


def index_data(config: DataConfig, *, image_size: int, seed: int) -> Data:
    """Index the images and divide them. Quick: no image is opened.

    Args:
        config: where they are and how to divide them.
        image_size: side of the model's input, pixels; ``glyphs`` are drawn at this size.
        seed: of sources that draw their images. The division has a seed of its own, ``config.split_seed``.

    Raises:
        ConfigError: unknown source, or an option that it needs is missing.
        DataError: whatever is wrong with the folder or the table.
    """
    source = SOURCES[config.name](config, image_size=image_size, seed=seed)
    if not len(source.table):
        raise DataError(Problem("data", f"there are no images in {source.where}"))
    table = _divided(source.table, np.arange(len(source.table)), config)
    return _data(source, table, CheckReport(Check.none, 0))


def check_data(
    data: Data,
    config: DataConfig,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    keep: Keep | None = None,
) -> Data:
    """Look at the images as closely as ``config.check`` says; where some are left out, divide the others anew.

    Args:
        data: of ``index_data``, with the same config.
        config: as there.
        progress: called with (images checked, images in all).
        should_stop, keep: see ``check_images``.

    Raises:
        DataError: images that cannot be read, with ``on_error=stop``; too few that can.
    """
    rows = np.arange(len(data.table))
    report = check_images(
        data.source,
        rows,
        mode=config.check,
        on_error=config.on_error,
        progress=progress,
        should_stop=should_stop,
        keep=keep,
        max_pixels=config.max_pixels,
    )
    return _without(data, config, [entry.row for entry in report.unreadable], report)


@contextlib.contextmanager
def checked_meanwhile(data: Data, config: DataConfig, keep: Keep | None = None) -> Iterator[Callable[[], Data]]:
    """``check_data`` in threads, while the caller does what needs no images.

    Yields:
        What waits for the result, or raises what the check has raised. Whoever leaves without asking gives it up.
    """
    left = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(check_data, data, config, should_stop=left.is_set, keep=keep)
        try:
            yield checked.result
        finally:
            left.set()


def leave_out(data: Data, config: DataConfig, names: Collection[str]) -> Data:
    """Divide anew without some images: as it was divided when they were found to be unreadable.

    Args:
        data: of ``index_data``, with the same config.
        config: as there.
        names: of the images, see ``named_rows``.
    """
    rows = [row for rows in named_rows(data.source, names).values() for row in rows]
    return _without(data, config, rows, data.report)


def named_rows(source: ImageSource, names: Collection[str]) -> dict[str, list[int]]:
    """Rows of images by what the manifest of a run calls them: their keys, wherever the data lies.

    Older manifests have paths, as they were typed or found then. They end in the key; where more than one key fits, it
    is that of the file with this path, else the longest.
    """
    if not names:
        return {}
    last_parts = {os.path.basename(name) for name in names}
    rows: dict[str, list[int]] = {}
    for row in range(len(source.table)):
        key = source.table.key(row)
        if os.path.basename(key) in last_parts:
            rows.setdefault(key, []).append(row)
    found = {name: [key for key in _endings(name) if key in rows] for name in names}
    return {
        name: rows[min(keys, key=lambda key: str(source.file(rows[key][0])) != name)]
        for name, keys in found.items()
        if keys
    }


_LONGEST_PATH = 4096  # that Linux takes; what is longer, in a manifest from a stranger, is not taken apart


def _endings(path: str) -> list[str]:
    """A path, then what is left of it behind each separator."""
    if len(path) > _LONGEST_PATH:
        return [path]
    return [path[start:] for start in (0, *(at + 1 for at, letter in enumerate(path) if letter == os.sep))]


def _without(data: Data, config: DataConfig, unreadable: list[int], report: CheckReport) -> Data:
    if not unreadable:
        return _data(data.source, data.table, report)
    rows = np.setdiff1d(np.arange(len(data.table)), unreadable)
    return _data(data.source, _divided(data.source.table, rows, config), report)


def _data(source: ImageSource, table: ImageTable, report: CheckReport) -> Data:
    rows = {split: table.rows(split) for split in (Split.train, Split.val, Split.test)}
    return Data(source, table, rows[Split.train], rows[Split.val], rows[Split.test], report)


def _divided(table: ImageTable, rows: NDArray[np.int64], config: DataConfig) -> ImageTable:
    """The table with every usable row in a split and all others unused. Raises DataError when it cannot be learned."""
    splits = np.full(len(table), Split.unused, np.int8)
    splits[rows] = divide(
        table.labels[rows],
        table.splits[rows],
        table.classes,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )
    divided = dataclasses.replace(table, splits=splits)
    _require_learnable(divided)
    if config.per_class is None:
        return divided
    splits = limit_per_class(table.labels, splits, config.per_class, config.split_seed)
    limited = dataclasses.replace(table, splits=splits)
    _require_learnable(limited)
    return limited


def _require_learnable(table: ImageTable) -> None:
    """Two classes or more (one label is a task where images may have none), each with training images."""
    if not table.multi_label and len(table.classes) < 2:
        what = f"there is one class only, {', '.join(map(repr, table.classes))}"
        raise DataError(Problem("data", what, "a classifier needs two"))
    train = table.counts(Split.train)
    if not train.sum():
        raise DataError(Problem("data", "there are no training images"))
    for split in (Split.val, Split.test):
        lacking = np.flatnonzero((table.counts(split) > 0) & (train == 0))
        if len(lacking):
            what = f"{split.name} has classes that train lacks: {_named(table, lacking)}"
            raise DataError(Problem("data", what, "add training images of them, or remove them"))
    absent = np.flatnonzero(train == 0)
    if len(absent):
        what = f"no training image of {_named(table, absent)}"
        raise DataError(Problem("data", what, "add some, or remove the class"))


def _named(table: ImageTable, classes: NDArray[np.int64]) -> str:
    shown = ", ".join(repr(table.classes[index]) for index in classes[:20])
    return shown if len(classes) <= 20 else f"{shown}, ... ({len(classes)} classes)"
