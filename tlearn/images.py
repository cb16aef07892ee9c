"""Images that a network is asked about: found in files and folders or given as arrays, and streamed in batches.

Nothing is held but the names: a folder of a million photographs takes the memory of its listing and of a few batches.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from tlearn.config import DataConfig
from tlearn.data import Reading, Split, UnreadableImage
from tlearn.data.decode import Excess, open_rgb
from tlearn.data.folder import class_folders, walk
from tlearn.data.source import bytes_sample, stamp_of
from tlearn.data.table import key_array
from tlearn.data.tabular import EXTENSIONS as TABLES
from tlearn.data.tabular import index_table, read_paths, table_header
from tlearn.errors import DataError, Problem, UserError

ImageInput = Any
"""Paths of images or folders, one or several; or arrays: one image (h, w, 3), many (n, h, w, 3), or a list of them.
Pillow images of mode RGB are arrays too."""

_AHEAD = 2  # batches read while one is being computed


class Images(Protocol):
    """Images by number."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """The path of an image, or ``image 3`` for an array."""

    def load(self, row: int, reading: Reading) -> NDArray[Any]:
        """The square of an image, (S, S, 3): uint8, or float32 as given. Thread-safe. Raises UnreadableImage."""

    def picture(self, row: int, reading: Reading) -> NDArray[np.uint8] | Image.Image:
        """The whole image: uint8 (h, w, 3), RGB. Raises UnreadableImage."""


@dataclass(frozen=True)
class Batch:
    """A few images in a row.

    Attributes:
        stop: number of images up to here, this batch's included.
        rows: int64 (b,), numbers of those that could be read.
        pixels: (b, S, S, 3), RGB in 0..255, uint8, or float32 as given.
        unreadable: (name, reason) of the others.
    """

    stop: int
    rows: NDArray[np.int64]
    pixels: NDArray[Any]
    unreadable: tuple[tuple[str, str], ...]


def batches(images: Images, reading: Reading, *, batch_size: int = 32, start: int = 0) -> Iterator[Batch]:
    """All images from ``start`` on, in order, read by as many threads as there are cores.

    Args:
        images: what to read.
        reading: how.
        batch_size: images per batch; a batch with unreadable ones is smaller.
        start: number of the first image.
    """
    waiting: deque[tuple[int, list[Future[NDArray[Any] | UnreadableImage]]]] = deque()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for first in range(start, len(images), batch_size):
            rows = range(first, min(first + batch_size, len(images)))
            waiting.append((first, [pool.submit(_load, images, row, reading) for row in rows]))
            if len(waiting) > _AHEAD:
                yield _collect(images, *waiting.popleft(), reading.image_size)
        while waiting:
            yield _collect(images, *waiting.popleft(), reading.image_size)
    finally:
        pool.shutdown(cancel_futures=True)


def _load(images: Images, row: int, reading: Reading) -> NDArray[Any] | UnreadableImage:
    try:
        return images.load(row, reading)
    except UnreadableImage as error:
        return error


def _collect(images: Images, first: int, futures: Sequence[Future[NDArray[Any] | UnreadableImage]], size: int) -> Batch:
    rows, pixels, unreadable = [], [], []
    for row, future in enumerate(futures, start=first):
        square = future.result()
        if isinstance(square, UnreadableImage):
            unreadable.append((images.name(row), square.reason))
        else:
            rows.append(row)
            pixels.append(square)
    stacked = np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8)
    return Batch(first + len(futures), np.array(rows, np.int64), stacked, tuple(unreadable))


# --- files -----------------------------------------------------------------------------------------------------------


class FileImages:
    """Images in files.

    Attributes:
        labels: class of each image, int32 (n,), -1: none; or uint8 (n, k) where an image may have any number.
        classes: names of the classes, sorted; empty when there are none.
    """

    def __init__(
        self,
        paths: pa.LargeBinaryArray,
        labels: NDArray[Any] | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        self._paths = paths
        self.labels = np.full(len(paths), -1, np.int32) if labels is None else labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, row: int) -> str:
        """The path; bytes that are not UTF-8 come as surrogates."""
        return os.fsdecode(self._paths[int(row)].as_py())

    def file(self, row: int) -> Path:
        """The image's file."""
        return Path(self.name(row))

    def load(self, row: int, reading: Reading) -> NDArray[np.uint8]:
        """uint8 (S, S, 3). Raises UnreadableImage."""
        return reading.square(self._open(row, reading, reading.excess))

    def picture(self, row: int, reading: Reading) -> Image.Image:
        """The whole image, upright, mode RGB. Raises UnreadableImage."""
        return self._open(row, reading, None)

    def _open(self, row: int, reading: Reading, excess: Excess | None) -> Image.Image:
        path = self.name(row)
        if os.path.exists(path) and stamp_of(path)[0] < 0:  # opening a pipe would wait for ever
            raise UnreadableImage(path, "is a folder without images" if os.path.isdir(path) else "is not a file")
        return open_rgb(path, max_pixels=reading.max_pixels, excess=excess)

    def stamps(self) -> Iterator[tuple[int, int]]:
        """(size, modification time in nanoseconds) of each file."""
        return (stamp_of(path.as_py()) for path in self._paths)

    def fingerprint(self) -> str:
        """A hash of where the files are, their order, sizes and times: it keys the feature cache."""
        digest = hashlib.sha256()
        for path, stamp in zip(self._paths, self.stamps(), strict=True):
            digest.update(os.path.abspath(path.as_py()) + f"\0{stamp}\n".encode())
        return digest.hexdigest()

    def sample(self) -> str:
        """A hash of the bytes of some files, see ``tlearn.data.source.bytes_sample``."""
        return bytes_sample(len(self), self.name)


def find_images(paths: Iterable[str | os.PathLike[str]]) -> FileImages:
    """Images named one by one or lying in folders, at any depth, in a stable order; no file is opened.

    A file that is named counts as an image whatever it is called; in folders, those with the usual extensions do.
    Hidden names are passed over, links are followed. What does not exist, or holds no images, is listed all the same,
    and found unreadable when its turn comes. Images below class folders have a class.
    """
    found: list[pa.LargeBinaryArray] = []
    names: list[str] = []
    for path in (os.fspath(given) for given in paths):
        if os.path.isdir(path):
            keys = key_array(walk(path, list_unreadable=True))
            found.append(keys if len(keys) else key_array([path]))
            names += _class_names(path, keys) if len(keys) else [""]
        else:
            found.append(key_array([path]))
            names.append("")
    every = pa.concat_arrays(found) if found else key_array([])
    classes = tuple(sorted(set(names) - {""}))
    number = {name: index for index, name in enumerate(classes)}
    return FileImages(every, np.array([number.get(name, -1) for name in names], np.int32), classes)


@dataclass(frozen=True)
class Columns:
    """Where a table of images has what; None: under its usual name, where it is there.

    Attributes:
        root: folder that its paths start from; None: the table's own.
        image, label: names of its columns; None: ``path`` and ``label``.
        split: of its column of splits; None: it has none.
        separator: between several labels of an image; None: each has one.
    """

    root: str | None = None
    image: str | None = None
    label: str | None = None
    split: str | None = None
    separator: str | None = None

    def check(self, paths: Iterable[str]) -> None:
        """Raises UserError when something is said of a table, and no table is among the paths."""
        said = {
            "--root": self.root,
            "--image-column": self.image,
            "--label-column": self.label,
            "--split-column": self.split,
            "--label-separator": self.separator,
        }
        given = [option for option, value in said.items() if value is not None]
        if given and not any(map(is_table, paths)):
            what = "said of a table of images, and no table is given"
            raise UserError(Problem(", ".join(given), what, f"name a table ({' '.join(TABLES)}), or leave it out"))


def images_of(paths: Sequence[str], columns: Columns, *, labels: bool) -> FileImages:
    """Images of files and folders, see ``find_images``, or of one table, see ``read_table``. Raises UserError."""
    if not any(is_table(path) for path in paths):
        return find_images(paths)
    if len(paths) > 1:
        raise UserError(Problem("arguments", "a table is given with other paths", "give the table alone"))
    return read_table(paths[0], columns, labels=labels)


def read_table(path: str | os.PathLike[str], columns: Columns, *, labels: bool) -> FileImages:
    """Images of a CSV, TSV or Parquet file, see ``tlearn.data.tabular``.

    Args:
        path: of the table.
        columns: where it has what.
        labels: whether labels are wanted, where the table has a column of them.

    Raises:
        DataError: as ``index_table`` does; or a column that was named is not there.
    """
    image = columns.image or "path"
    try:
        if not labels or (columns.label is None and "label" not in table_header(Path(path).expanduser())):
            root, relative = read_paths(path, root=columns.root, image_column=image)
            return FileImages(_joined(root, relative))
        source = index_table(
            path,
            root=columns.root,
            image_column=image,
            label_column=columns.label or "label",
            label_separator=columns.separator,
            max_pixels=DataConfig().max_pixels,
        )
    except DataError as error:
        raise in_options(error) from None
    return FileImages(_joined(source.root, source.table.keys), source.table.labels, source.table.classes)


def _joined(root: Path, keys: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    top = os.fsencode(root)
    return key_array(os.path.join(top, key.as_py()) for key in keys)


_OPTIONS = {
    "data.root": "--root",
    "data.image_column": "--image-column",
    "data.label_column": "--label-column",
    "data.split_column": "--split-column",
}


def in_options(error: DataError) -> DataError:
    """An error about data in the words of the command line, not of a run's config."""

    def renamed(text: str) -> str:
        for key, option in _OPTIONS.items():
            text = text.replace(key, option)
        text = text.replace(", or allow it: data.allow_outside_root=true", "")
        text = text.replace("for a CSV or Parquet file use data=table", "a table ends in .csv, .tsv or .parquet")
        return text.replace("data.path", "images")

    return DataError([Problem(renamed(each.where), each.what, renamed(each.fix)) for each in error.problems])


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a name ends like that of a table."""
    return os.path.splitext(path)[1].lower() in TABLES


def _class_names(folder: str, keys: pa.LargeBinaryArray) -> list[str]:
    """Class of each image below a folder of class folders, as in training; empty where there is none."""
    try:
        classes, tops = class_folders(Path(folder))
    except DataError:  # not a folder of class folders
        return [""] * len(keys)
    depth = 0 if Split.unused in tops else 1
    known = {name: name for name in classes}  # one text for all images of a class, not one each

    def name(key: str) -> str:
        parts = os.path.relpath(key, folder).split(os.sep)
        return known.get(parts[depth], "") if len(parts) > depth + 1 else ""

    return [name(os.fsdecode(key.as_py())) for key in keys]


# --- arrays ----------------------------------------------------------------------------------------------------------


class ArrayImages:
    """Images in memory.

    Args:
        arrays: each (h, w, 3), RGB in 0..255. uint8 of another shape than the network's is resized as a photograph
            would be; of floats it must have the network's already.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]] | NDArray[Any]) -> None:
        problems = [
            Problem(self.name(row), f"must have a shape (height, width, 3), got {np.shape(array)}", "RGB in 0..255")
            for row, array in enumerate(arrays)
            if np.ndim(array) != 3 or np.shape(array)[2] != 3 or 0 in np.shape(array)
        ]
        if problems:
            raise DataError(problems[:3])
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays)

    def name(self, row: int) -> str:
        """``image 3``."""
        return f"image {row}"

    def load(self, row: int, reading: Reading) -> NDArray[Any]:
        """The square, uint8 or float32 (S, S, 3).

        Raises:
            DataError: values are no numbers of 0..255, or fill 0..1 alone; or others than uint8 have another shape.
        """
        array = np.asarray(self._arrays[row])
        if what := _wrong_values(array):
            raise DataError(Problem(self.name(row), what, "give RGB in 0..255: the network prepares it itself"))
        if array.shape[:2] == (reading.image_size, reading.image_size):
            return array if array.dtype == np.uint8 else array.astype(np.float32)
        if array.dtype != np.uint8:
            what = f"has {array.shape[0]} x {array.shape[1]} pixels, the network takes {reading.image_size} a side"
            raise DataError(Problem(self.name(row), what, "give uint8, which is resized here, or resize it yourself"))
        return reading.square(array)

    def picture(self, row: int, reading: Reading) -> NDArray[np.uint8]:
        """The whole image, uint8 (h, w, 3), of values that ``load`` takes."""
        return np.asarray(self._arrays[row]).astype(np.uint8)


_LARGEST = 255.5  # resizing in floating point gives a little more than 255


def _wrong_values(array: NDArray[Any]) -> str:
    """What is wrong with the values of an image; empty when nothing is."""
    if array.dtype == np.uint8:
        return ""
    if array.dtype.kind not in "uif":
        return f"holds {array.dtype}, not numbers"
    if not np.isfinite(array).all():
        return "has values that are NaN or infinite"
    least, largest = float(array.min()), float(array.max())
    return f"has values from {least:g} to {largest:g}" if least < 0 or 0 < largest <= 1 or largest > _LARGEST else ""


def as_images(images: ImageInput) -> Images:
    """What a caller gave as images.

    Args:
        images: see ``ImageInput``; one that is ``Images`` already is given back.

    Raises:
        DataError: an array is no image, or it is neither paths nor arrays.
    """
    if isinstance(images, FileImages | ArrayImages):
        return images
    if isinstance(images, str | os.PathLike):
        return find_images([images])
    if isinstance(images, list | tuple) and images and all(isinstance(item, str | os.PathLike) for item in images):
        return find_images(images)
    if isinstance(images, Image.Image):
        return ArrayImages([np.asarray(images)])
    if hasattr(images, "__array__") and np.ndim(images) == 3:
        return ArrayImages([np.asarray(images)])
    if not isinstance(images, Iterable):
        what = f"are {type(images).__name__}, neither paths nor arrays"
        raise DataError(Problem("images", what, "give paths, or arrays (height, width, 3), RGB in 0..255"))
    return ArrayImages(np.asarray(images) if hasattr(images, "__array__") else list(images))
