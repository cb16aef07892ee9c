"""The source ``folder``: one folder per class, with or without split folders above them.

    flowers/daisy/1.jpg              flowers/train/daisy/1.jpg
    flowers/roses/2.jpg              flowers/val/daisy/2.jpg

Hidden files and folders are passed over, and so is everything that is not named like an image. Class folders may hold
folders of their own; symbolic links are followed, for each class each real folder once, but none to a folder that the
class itself lies in. Everything is sorted, so that a row number means the same image wherever the folder lies.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tlearn.data.decode import EXTENSIONS
from tlearn.data.source import FileSource, is_folder, stamp_of
from tlearn.data.table import ImageTable, KeyBuilder, Split, look_alikes, shown_alike
from tlearn.errors import DataError, Problem, visible

SPLIT_NAMES = {
    "train": Split.train,
    "training": Split.train,
    "val": Split.val,
    "valid": Split.val,
    "validation": Split.val,
    "test": Split.test,
    "testing": Split.test,
}
"""What split folders, and the values of a split column, may be called (in lower case)."""

_DEEPEST = 100  # folders below a class folder
_WHERE = "data.path"
_LAYOUT = "expected FOLDER/CLASS/image.jpg, or FOLDER/train/CLASS/image.jpg and FOLDER/val/CLASS/image.jpg"


def index_folder(path: str | os.PathLike[str], *, max_pixels: int, empty_classes: bool = False) -> FileSource:
    """List the images of a folder; no file is opened.

    Args:
        path: of the folder.
        max_pixels: larger images are refused.
        empty_classes: a class folder may be without images, as long as another one has some.

    Raises:
        DataError: the folder is missing, may not be read, holds no class folders, or a class folder has no image.
    """
    root = Path(path).expanduser()
    classes, by_split = class_folders(root)
    keys, stamps = KeyBuilder(), array("q")  # as they are found: a list of paths would outgrow the table
    labels, splits = [], []
    listing = _Listing(root)
    for split, top in by_split.items():
        for label, name in enumerate(classes):
            before = len(keys)
            for path in listing.images(top / name) if (top / name).is_dir() else ():
                keys.append(os.path.relpath(path, root))
                stamps.extend(stamp_of(path))
            found = len(keys) - before
            if not found and not empty_classes and split in (Split.train, Split.unused):
                raise _no_images(top / name)
            labels.append(np.full(found, label, np.int32))
            splits.append(np.full(found, split, np.int8))
    if not len(keys):
        raise _no_images(root)
    table = ImageTable(
        keys.build(),
        np.concatenate(labels),
        np.concatenate(splits),
        classes,
        stamps=np.frombuffer(stamps, np.int64).reshape(-1, 2),
    )
    return FileSource("folder", os.fspath(root), root, table, max_pixels, listing.notes())


def class_folders(root: Path) -> tuple[tuple[str, ...], dict[Split, Path]]:
    """Class names, sorted, and the folder above the class folders for each split (``unused``: no split folders).

    Reads two levels of folders at most. Raises DataError as ``index_folder`` does.
    """
    tops = _subfolders(root)
    splits = {name: SPLIT_NAMES[name.lower()] for name in tops if name.lower() in SPLIT_NAMES}
    if not tops:
        raise DataError(Problem(_WHERE, f"{root} holds no folders", _LAYOUT))
    if not splits or (len(splits) < len(tops) and len(splits) < 2):
        return tuple(_classes_in(root)), {Split.unused: root}
    if len(splits) < len(tops):
        others = ", ".join(repr(name) for name in tops if name not in splits)
        raise DataError(Problem(_WHERE, f"{root} mixes split folders with others: {others}", _LAYOUT))
    if len(set(splits.values())) < len(splits):
        raise DataError(Problem(_WHERE, f"{root} has two folders for one split: {', '.join(splits)}", _LAYOUT))
    by_split = {split: root / name for name, split in sorted(splits.items(), key=lambda item: item[1])}
    if Split.train not in by_split:
        raise DataError(Problem(_WHERE, f"{root} has {', '.join(splits)} but no train folder", _LAYOUT))
    classes = _classes_in(by_split[Split.train])
    if not classes:
        raise DataError(Problem(_WHERE, f"{by_split[Split.train]} holds no class folders", _LAYOUT))
    for split, top in by_split.items():
        extra = sorted(set(_subfolders(top)) - set(classes))
        if alike := look_alikes([*classes, *extra]):
            raise _alike(alike, f"{by_split[Split.train]} and {top} hold")
        if extra:
            raise DataError(
                Problem(
                    _WHERE,
                    f"{split.name} has classes that train lacks: {', '.join(map(repr, extra[:20]))}",
                    f"add them to {by_split[Split.train]} or remove them from {top}",
                )
            )
    return tuple(classes), by_split


def _classes_in(folder: Path) -> list[str]:
    classes = _subfolders(folder)
    if alike := look_alikes(classes):
        raise _alike(alike, f"{folder} holds")
    return classes


def _alike(alike: tuple[str, str], hold: str) -> DataError:
    what = f"{hold} two folders that read the same but are written with other characters: {shown_alike(alike)}"
    return DataError(Problem(_WHERE, what, "rename one of them; copying and pasting the other's name does it"))


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if is_folder(entry))


def walk(
    folder: str,
    *,
    list_unreadable: bool = False,
    passed_over: Callable[[str], None] = lambda path: None,
    seen: set[tuple[int, int]] | None = None,
    depth: int = 0,
) -> Iterator[str]:
    """Paths of the images below a folder, sorted by name within each folder.

    Args:
        folder: where to begin; its path begins theirs.
        list_unreadable: give the path of a folder that may not be read or lies too deep, instead of raising DataError.
        passed_over: told the path of every file that is not named like an image.
        seen: device and inode of the folders so far: links may lead in circles, or to one folder in a million ways.
            None: of those that the folder lies in, since a link to them would list its neighbours.
        depth: of the folder.
    """
    seen = _above(folder) if seen is None else seen
    try:
        entries = sorted(_entries(folder), key=lambda entry: entry.name)
        status = os.stat(folder)
        if depth > _DEEPEST:
            raise DataError(Problem(_WHERE, f"{folder} is more than {_DEEPEST} folders deep", _LAYOUT))
    except (DataError, OSError):
        if not list_unreadable:
            raise
        yield folder
        return
    identity = status.st_dev, status.st_ino
    if identity in seen:
        return
    seen.add(identity)
    options: dict[str, Any] = {"list_unreadable": list_unreadable, "passed_over": passed_over, "seen": seen}
    for entry in entries:
        if is_folder(entry):
            yield from walk(entry.path, depth=depth + 1, **options)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            yield entry.path
        else:
            passed_over(entry.path)


def _above(folder: str) -> set[tuple[int, int]]:
    """Device and inode of the folders that a folder lies in, by its path and by where links on it lead."""
    identities = set()
    for path in (os.path.abspath(folder), os.path.realpath(folder)):
        for parent in Path(path).parents:
            with contextlib.suppress(OSError):
                status = os.stat(parent)
                identities.add((status.st_dev, status.st_ino))
    return identities


class _Listing:
    """Lists the images of class folders, and counts what is worth a word."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = os.path.realpath(root)
        self._others: Counter[str] = Counter()
        self._outside = 0

    def images(self, folder: Path) -> Iterator[str]:
        """Paths of the images below a class folder."""
        for path in walk(os.fspath(folder), passed_over=self._count):
            self._outside += os.path.islink(path) and self._leads_out(path)
            yield path

    def _count(self, path: str) -> None:
        self._others[os.path.splitext(path)[1].lower() or "no extension"] += 1

    def _leads_out(self, path: str) -> bool:
        return os.path.commonpath((os.path.realpath(path), self._real)) != self._real

    def notes(self) -> list[str]:
        """What was passed over, and how many images lie elsewhere."""
        notes = []
        if self._others:
            kinds = ", ".join(f"{count} {name}" for name, count in self._others.most_common(8))
            more = ", ..." if len(self._others) > 8 else ""
            known = " ".join(sorted(EXTENSIONS))
            notes.append(f"files passed over: {self._others.total()} ({kinds}{more}); images are {known}")
        if self._outside:
            notes.append(f"links to images outside {self._root}: {self._outside}")
        return [visible(note) for note in notes]


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without hidden names."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError as error:
        raise DataError(Problem(_WHERE, f"there is no folder {folder}", "give an existing folder")) from error
    except NotADirectoryError as error:
        fix = "give the folder of class folders; for a CSV or Parquet file use data=table"
        raise DataError(Problem(_WHERE, f"{folder} is not a folder", fix)) from error
    except OSError as error:
        fix = "check its owner and permissions"
        raise DataError(Problem(_WHERE, f"{folder} cannot be read: {error.strerror}", fix)) from error


def _no_images(folder: Path) -> DataError:
    known = ", ".join(sorted(EXTENSIONS))
    return DataError(Problem(_WHERE, f"{folder} holds no images", f"add images ({known}) or remove the folder"))
