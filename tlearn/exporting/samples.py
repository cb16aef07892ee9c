"""Real images to check an export with, and to measure the ranges of its activations on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlearn.data import Data, Reading, UnreadableImage, check_data, index_data
from tlearn.errors import DataError, Problem, UserError
from tlearn.images import FileImages, Images, find_images
from tlearn.train.run import Run

_ORIENTATION_TAG = 0x0112  # EXIF 2.32
_AS_THEY_ARE = {"JPEG": ("RGB", "L"), "PNG": ("RGB", "RGBA", "L", "LA", "P")}


@dataclass(frozen=True, eq=False)
class Samples:
    """A few images.

    Attributes:
        where: what they are, for a person.
        pixels: uint8 (n, S, S, 3), as the network takes them.
        files: of each image the bytes of a JPEG or PNG.
        reencoded: how many of the files are not the user's own but PNGs of the decoded, upright image, since graphs
            read neither their format nor their EXIF orientation.
    """

    where: str
    pixels: NDArray[np.uint8]
    files: tuple[bytes, ...]
    reencoded: int = 0

    def __len__(self) -> int:
        return len(self.files)


def samples_of(images: Images, rows: Iterable[int], reading: Reading, where: str) -> Samples:
    """Images by number; those that cannot be read are left out. Raises DataError when none can."""
    pixels, files, foreign = [], [], 0
    for row in rows:
        try:
            picture = images.picture(row, reading)
        except UnreadableImage:
            continue
        file = _plain_file(Path(images.name(row))) if isinstance(images, FileImages) else None
        foreign += file is None and isinstance(images, FileImages)
        pixels.append(reading.square(picture))
        files.append(file or _png(picture))
    if not files:
        raise DataError(Problem(where, "not one image could be read", "name others with --images"))
    return Samples(where, np.stack(pixels), tuple(files), foreign)


def found_samples(paths: Iterable[str], count: int, reading: Reading) -> Samples:
    """Images named one by one or lying in folders, evenly chosen. Raises DataError when none can be read."""
    paths = list(paths)
    images = find_images(paths)
    return samples_of(images, _spread(len(images), count), reading, ", ".join(paths))


class RunImages:
    """The labelled images of a run, by the rows of its table."""

    def __init__(self, data: Data) -> None:
        self._source = data.source

    def __len__(self) -> int:
        return len(self._source.table)

    def name(self, row: int) -> str:
        """Key of the row."""
        return str(self._source.table.key(row))

    def load(self, row: int, reading: Reading) -> NDArray[np.uint8]:
        """uint8 (S, S, 3). Raises UnreadableImage."""
        return reading.square(self.picture(row, reading))

    def picture(self, row: int, reading: Reading) -> NDArray[np.uint8]:
        """uint8 (h, w, 3). Raises UnreadableImage."""
        return self._source.read(row)

    def samples(self, rows: NDArray[np.int64], count: int, reading: Reading, where: str) -> Samples:
        """Some of these rows, evenly chosen; from their files where there are any."""
        chosen = [int(rows[index]) for index in _spread(len(rows), count)]
        files = [self._source.file(row) for row in chosen]
        if files and all(file is not None for file in files):
            paths = find_images([str(file) for file in files])
            return samples_of(paths, range(len(paths)), reading, where)
        return samples_of(self, chosen, reading, where)


def run_data(run: Run, image_size: int) -> tuple[Data, list[str]]:
    """The data of a run, divided as it was, and what a person should know about it.

    Raises:
        UserError: they are no longer where they were.
    """
    config, manifest = run.config, run.manifest
    try:
        data = index_data(config.data, image_size=image_size, seed=config.seed)
        if manifest["left_out"]:
            data = check_data(data, config.data)
    except UserError as error:
        fix = "check with other images: --images FOLDER; int8 also needs --calibration FOLDER, images to train on"
        problems = [Problem(f"the run's data: {problem.where}", problem.what, fix) for problem in error.problems]
        raise DataError(problems) from None
    same = data.table.manifest_hash() == manifest["hash"]
    return data, [] if same else ["the data are no longer quite those of the run: its manifest.json differs"]


def _spread(present: int, count: int) -> list[int]:
    """At most ``count`` numbers below ``present``, evenly apart: lists are sorted by class."""
    return np.unique(np.linspace(0, present - 1, min(count, present)).round().astype(int)).tolist() if present else []


def _plain_file(path: Path) -> bytes | None:
    """The file as it is, where a graph reads it as ``tlearn.data.decode`` does; else None."""
    try:
        with Image.open(path, formats=tuple(_AS_THEY_ARE)) as image:
            upright = image.getexif().get(_ORIENTATION_TAG, 1) == 1
            plain = image.mode in _AS_THEY_ARE[str(image.format)]
        file = path.read_bytes()
        packed_grey = file.startswith(b"\x89PNG") and file[24] < 8 and file[25] == 0  # see graph_reading
        return file if upright and plain and not packed_grey else None
    except Exception:  # Pillow raises whatever a format's code happens to raise: it is decoded and encoded anew
        return None


def _png(picture: NDArray[np.uint8] | Image.Image) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, "PNG")
    return buffer.getvalue()


Calibration = Callable[[], Samples]
"""Images of the training split; read when a format asks for them."""
