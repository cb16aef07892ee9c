"""Images with their true classes: a split of the data a run was trained on, or any other folder or table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlearn.config import DataConfig
from tlearn.data import Data, FileSource, ImageSource, Reading, Split, index_data, leave_out
from tlearn.data.decode import Excess
from tlearn.data.folder import index_folder
from tlearn.data.source import stamp_of
from tlearn.data.tabular import index_table
from tlearn.errors import DataError, Problem, UserError, did_you_mean
from tlearn.images import Columns, in_options, is_table
from tlearn.train.run import Run
from tlearn.words import counted

SPLITS = ("train", "val", "test")
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images of a source with their true classes; they are ``tlearn.images.Images``.

    Attributes:
        source: reads them.
        rows: int64 (n,), their rows in it.
        labels: of these rows: int32 (n,), or uint8 (n, c) where an image may have several.
        classes: names that the labels stand for.
        split: ``train``, ``val``, ``test`` or ``all``.
        notices: what a person should know about them.
    """

    source: ImageSource
    rows: NDArray[np.int64]
    labels: NDArray[Any]
    classes: tuple[str, ...]
    split: str
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim == 2

    def name(self, row: int) -> str:
        """The path of an image, or its name in the source."""
        file = self.file(row)
        return self.source.table.key(int(self.rows[row])) if file is None else str(file)

    def file(self, row: int) -> Path | None:
        """The image's file; None where images are not files."""
        return self.source.file(int(self.rows[row]))

    def load(self, row: int, reading: Reading) -> NDArray[np.uint8]:
        """uint8 (S, S, 3). Raises UnreadableImage."""
        return reading.square(self._open(row, reading.excess))

    def picture(self, row: int, reading: Reading) -> NDArray[np.uint8] | Image.Image:
        """The whole image. Raises UnreadableImage."""
        return self._open(row, None)

    def _open(self, row: int, excess: Excess | None) -> NDArray[np.uint8] | Image.Image:
        at = int(self.rows[row])
        return self.source.open(at, excess) if isinstance(self.source, FileSource) else self.source.read(at)

    def stamps(self) -> Iterator[tuple[int, int]]:
        """(size, modification time in nanoseconds) of each file; (-1, -1) where images are not files."""
        return (stamp_of(self.name(row)) for row in range(len(self)))

    def only(self, keep: NDArray[Any]) -> Labelled:
        """Some of the images: their numbers, or a mask (n,)."""
        return replace(self, rows=self.rows[keep], labels=self.labels[keep])


# --- a run's own data ------------------------------------------------------------------------------------------------


def run_split(run: Run, split: str, image_size: int, max_pixels: int, *, hint: Problem | None = None) -> Labelled:
    """A split of the data that a run was trained on, divided as it was then.

    Raises:
        UserError: the data is gone, which ends in the hint, or has no such split.
    """
    data, notices = run_data(run, image_size, max_pixels, hint=hint)
    if not len(getattr(data, split)):
        there = [name for name in SPLITS if len(getattr(data, name))]
        raise UserError(Problem("--split", f"the run's data has no {split} images", f"one of: {', '.join(there)}"))
    return split_of(data, split, notices)


def split_of(data: Data, split: str, notices: tuple[str, ...] = ()) -> Labelled:
    """A split, which may be empty."""
    rows: NDArray[np.int64] = getattr(data, split)
    return Labelled(data.source, rows, data.labels(rows), data.classes, split, notices)


def run_data(
    run: Run, image_size: int, max_pixels: int, *, hint: Problem | None = None
) -> tuple[Data, tuple[str, ...]]:
    """The data that a run was trained on, divided as it was then, and what has changed about it since.

    Raises:
        DataError: it is gone; the hint says what can be named instead.
    """
    config, manifest = replace(run.config.data, max_pixels=max_pixels), run.manifest
    try:
        data = index_data(config, image_size=image_size, seed=run.config.seed)
        data = leave_out(data, config, [name for name, _ in run.left_out])
    except DataError as error:
        problems = [Problem(f"data of {run.path.name}", each.what) for each in error.problems]
        raise DataError([*problems, *([hint] if hint else [])]) from None
    if data.table.manifest_hash() == manifest.get("hash"):
        return data, ()
    changed = "the data has changed since the run was trained: it may be divided differently now"
    return data, (changed,)


# --- any other data --------------------------------------------------------------------------------------------------


def other_data(path: str, split: str | None, columns: Columns, max_pixels: int, several: bool = False) -> Labelled:
    """Images of a folder of class folders, or of a table.

    Args:
        path: the folder, or a ``.csv``, ``.tsv`` or ``.parquet`` file.
        split: take only this one of the data's own splits; None: all images.
        columns: of a table.
        max_pixels: larger images are refused.
        several: whether an image may have several labels.

    Raises:
        DataError: as ``index_folder`` and ``index_table`` do; or there is no such split.
    """
    try:
        source = _source(path, columns, max_pixels, several)
    except DataError as error:
        raise in_options(error) from None
    table = source.table
    wanted = np.arange(len(table)) if split is None else table.rows(Split[split])
    if not len(wanted):
        fix = "leave --split out for all images, or name split folders or a --split-column"
        raise DataError(Problem("--split", f"{path} has no {split} images of its own", fix))
    return Labelled(source, wanted, table.labels[wanted], table.classes, split or "all")


def _source(path: str, columns: Columns, max_pixels: int, several: bool) -> FileSource:
    if is_table(path):
        return index_table(
            path,
            root=columns.root,
            image_column=columns.image or "path",
            label_column=columns.label or "label",
            split_column=columns.split,
            label_separator=columns.separator or ("|" if several else None),
            max_pixels=max_pixels,
        )
    if several:
        fix = "give a table (.csv, .tsv, .parquet) with a column of labels"
        raise DataError(Problem("--data", f"{path} is no table: a folder gives an image one class, not several", fix))
    return index_folder(path, max_pixels=max_pixels, empty_classes=True)  # ``check_every_class`` speaks of them


def divide_other_data(config: DataConfig, image_size: int) -> Data:
    """Other data in its own splits, or divided as a run would; arguments and errors as for ``index_data``."""
    try:
        return index_data(config, image_size=image_size, seed=0)
    except DataError as error:
        raise in_options(error) from None


def table_columns(config: DataConfig, given: Columns) -> Columns:
    """What was given, and where nothing was, what the table of a run has."""
    if config.name != "table":
        return given
    return Columns(
        root=given.root,
        image=given.image or config.image_column,
        label=given.label or config.label_column,
        split=given.split,
        separator=given.separator or config.label_separator,
    )


# --- classes by name -------------------------------------------------------------------------------------------------


def known_only(
    data: Labelled, classes: tuple[str, ...], wordnet: tuple[str, ...] | None, *, skip_unknown: bool
) -> Labelled:
    """The images whose classes a network knows.

    Args:
        data: the images.
        classes: names of the network's classes.
        wordnet: their WordNet ids, which name them as well.
        skip_unknown: leave out images of other classes (or, of several labels, those labels), instead of raising.

    Raises:
        UserError: there are such classes, with the nearest names; or no other.
    """
    unknown = [
        name for name, index in zip(data.classes, _indices(data.classes, classes, wordnet), strict=True) if index < 0
    ]
    if not unknown:
        return data
    if not skip_unknown:
        shown = ", ".join(map(repr, unknown[:_SHOWN])) + (f", ... ({len(unknown)})" if len(unknown) > _SHOWN else "")
        fix = f"{did_you_mean(unknown[0], classes)}\n    --skip-unknown leaves such images out"
        raise UserError(Problem("--data", f"has classes that the network does not know: {shown}", fix))
    lost = np.isin(np.array(data.classes, object), np.array(unknown, object))
    named = ", ".join(map(repr, unknown[:_SHOWN]))
    if data.several:
        kept = replace(data, labels=data.labels[:, ~lost], classes=tuple(np.array(data.classes, object)[~lost]))
        left_out = f"labels that the network does not know were left out: {named}"
    else:
        kept = data.only(~lost[data.labels])
        images = counted(len(data) - len(kept), "image")
        left_out = f"left out {images} of classes that the network does not know: {named}"
    if not len(kept) or not kept.classes:
        raise UserError(Problem("--data", "the network knows none of its classes", did_you_mean(unknown[0], classes)))
    return replace(kept, notices=(*data.notices, left_out))


def check_every_class(
    data: Labelled, classes: tuple[str, ...], wordnet: tuple[str, ...] | None, *, count: int, where: str
) -> None:
    """Raise UserError where there is no image of a class: its scores would be missing, and averages be over the rest.

    Args:
        data: images whose classes the network knows.
        classes, wordnet: of the network.
        count: how many of the classes, from the first on, must have images.
        where: the images, for the message.
    """
    truth = truth_for(data, classes, wordnet)
    images = truth.sum(axis=0) if data.several else np.bincount(truth, minlength=len(classes))
    missing = [repr(name) for name, number in zip(classes[:count], images, strict=False) if not number]
    if not missing:
        return
    shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    what = f"no image of {len(missing):,} of {count:,} classes: {shown}"
    fix = "--allow-missing-classes leaves them out of the averages (allow_missing=True from Python)"
    raise UserError(Problem(where, what, fix))


def truth_for(data: Labelled, classes: tuple[str, ...], wordnet: tuple[str, ...] | None) -> NDArray[np.int64]:
    """The labels as outputs of a network that knows all of them: (n,), or 0 and 1 (n, outputs)."""
    indices = _indices(data.classes, classes, wordnet)
    if not data.several:
        truth: NDArray[np.int64] = indices[data.labels]
        return truth
    held: NDArray[np.int64] = np.zeros((len(data), len(classes)), np.int64)
    held[:, indices] = data.labels
    return held


def _indices(names: tuple[str, ...], classes: tuple[str, ...], wordnet: tuple[str, ...] | None) -> NDArray[np.int64]:
    """Output of each class name; -1: none. A name that stands for two classes stands for none of them."""
    count = Counter(classes)
    known = {name: index for index, name in enumerate(classes) if count[name] == 1}
    known |= {name: index for index, name in enumerate(wordnet or ())}
    composed = {normalize("NFC", name): index for name, index in known.items()}  # file systems may take accents apart

    def output(name: str) -> int:
        return known.get(name, known.get(name.replace("_", " "), composed.get(normalize("NFC", name), -1)))

    found = [output(name) for name in names]
    return np.array(found, np.int64)
