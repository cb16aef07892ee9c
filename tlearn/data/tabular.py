"""The source ``table``: a CSV or Parquet file with a column of image paths and a column of labels.

Everything is done on whole columns by pyarrow; the only loop over rows asks the file system for each file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlearn.data.folder import SPLIT_NAMES
from tlearn.data.source import OUTSIDE, FileSource, stamps_of
from tlearn.data.table import ImageTable, look_alikes, no_splits, shown_alike
from tlearn.errors import DataError, Problem, did_you_mean

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
EXTENSIONS = (*_DELIMITERS, ".parquet")
"""Table files, by the end of their names."""

_SUGGESTED = 1000  # columns that a misspelt name is compared with
_MOST_ROWS = 100_000_000  # 7 GB as a table of images
_MOST_TEXT = 4 * 2**30  # bytes of a column
_READING_ERRORS = (OSError, pa.ArrowException, ValueError, KeyError, TypeError)  # what pyarrow says of a broken file

_MANY = 100  # from so many images on, labels that are all different are taken for a mistake


def index_table(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    image_column: str = "path",
    label_column: str = "label",
    split_column: str | None = None,
    label_separator: str | None = None,
    allow_outside_root: bool = False,
    max_pixels: int,
) -> FileSource:
    """Read a table of images; no image is opened.

    Class names are sorted, as numbers where all of them are whole numbers.

    Args:
        path: a ``.csv``, ``.tsv`` or ``.parquet`` file. CSV and TSV have a header line and are UTF-8.
        root: folder of the images; None: the table's own.
        image_column: paths, relative to the root or absolute.
        label_column: class names.
        split_column: ``train``, ``val`` or ``test`` (or their usual synonyms), any case; None: no splits.
        label_separator: stands between several labels of one image, an empty cell being no label; None: one label.
        allow_outside_root: a path may lead out of the root, by ``..``, from ``/`` or through a symbolic link. Else it
            is refused: a table may come from a stranger, and names files below its root and nothing else.
        max_pixels: larger images are refused.

    Raises:
        DataError: the file or a column is missing, a cell is empty or not allowed, or the labels cannot be learned.
    """
    file = Path(path).expanduser()
    top = _root(root, file)
    columns = read_columns(file, named_columns(image_column, label_column, split_column))
    paths = _paths(columns["image_column"], top, file, allow_outside_root)
    labels, classes = read_labels(columns["label_column"], label_separator, file, label_column)
    splits = no_splits(len(paths))
    if split_column is not None:
        splits = _splits(columns["split_column"], file, split_column)
    keys = paths.cast(pa.large_binary())
    stamps = _stamps(top, paths, file, allow_outside_root)
    table = ImageTable(keys, labels, splits, classes, label_separator is not None, stamps)
    return FileSource("table", os.fspath(file), top, table, max_pixels)


def read_paths(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, image_column: str = "path"
) -> tuple[Path, pa.LargeBinaryArray]:
    """The images of a table that need have no labels: their root, and their paths below it.

    Arguments and errors are those of ``index_table``.
    """
    file = Path(path).expanduser()
    top = _root(root, file)
    columns = read_columns(file, {"image_column": image_column})
    paths = _paths(columns["image_column"], top, file, allow_outside=False)
    _stamps(top, paths, file, allow_outside=False)
    return top, paths.cast(pa.large_binary())


def _root(root: str | os.PathLike[str] | None, file: Path) -> Path:
    top = Path(root).expanduser() if root is not None else file.parent
    if not top.is_dir():
        raise DataError(Problem("data.root", f"there is no folder {top}", "give the folder of the images"))
    return top


def named_columns(image_column: str, label_column: str, split_column: str | None) -> dict[str, str]:
    """Column names by the option of ``DataConfig`` that names them."""
    named = {"image_column": image_column, "label_column": label_column}
    return named if split_column is None else named | {"split_column": split_column}


def read_labels(
    column: pa.LargeStringArray, separator: str | None, file: Path, name: str
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Labels and class names of a label column: int32 (n,), or with a separator uint8 (n, k).

    Raises DataError when a label is empty (without a separator), or all labels differ.
    """
    where = f"{file}, column {name!r}"
    if separator is None:
        column = pc.utf8_trim_whitespace(column)
        _refuse(pc.equal(column, ""), where, "an empty label", "name a class in each row")
        codes, classes = _coded(column)
        _refuse_alike(classes, where)
        if len(column) >= _MANY and len(classes) == len(column):
            fix = f"is {name!r} really the label? choose another data.label_column"
            raise DataError(Problem(where, f"all {len(column):,} labels are different", fix))
        return codes.astype(np.int32), classes
    parts = pc.split_pattern(column, pattern=separator)
    values = pc.utf8_trim_whitespace(pc.list_flatten(parts))
    images = pc.list_parent_indices(parts).to_numpy()
    named = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
    codes, classes = _coded(values.filter(pa.array(named)))
    if not classes:
        raise DataError(Problem(where, "there are no labels at all"))
    _refuse_alike(classes, where)
    labels = np.zeros((len(column), len(classes)), np.uint8)
    labels[images[named], codes] = 1
    return labels, classes


# --- reading ---------------------------------------------------------------------------------------------------------


def read_columns(file: Path, columns: dict[str, str]) -> dict[str, pa.LargeStringArray]:
    """Columns as text, by the option that names them; empty cells are empty strings. Raises DataError."""
    check_columns(file, columns)
    names = list(dict.fromkeys(columns.values()))
    try:
        if file.suffix.lower() == ".parquet":
            table = _read_parquet(file, names)
        else:
            text = {name: pa.large_string() for name in names}
            convert = pyarrow.csv.ConvertOptions(include_columns=names, column_types=text)
            table = pyarrow.csv.read_csv(file, parse_options=_parsing(file), convert_options=convert)
        if not len(table):
            raise DataError(Problem("data.path", f"{file} has no rows"))
        return {option: _text(table[name]) for option, name in columns.items()}
    except _READING_ERRORS as error:
        raise _unreadable(file, error) from error


def check_columns(file: Path, columns: dict[str, str]) -> None:
    """Read the header of a table. Raises DataError when the file or a column is missing.

    Args:
        file: the table.
        columns: column names by the option of ``DataConfig`` that names them.
    """
    present = table_header(file)
    twice = sorted({name for name in columns.values() if present.count(name) > 1})
    if twice:
        raise DataError(Problem("data.path", f"{file} has two columns called {', '.join(map(repr, twice))}"))
    problems = [
        Problem(f"data.{option}", f"{file} has no column {name!r}", did_you_mean(name, present[:_SUGGESTED]))
        for option, name in columns.items()
        if name not in present
    ]
    if not problems and file.suffix.lower() == ".parquet":
        problems = _list_problems(file, columns)
    if problems:
        raise DataError(problems)


def _list_problems(file: Path, columns: dict[str, str]) -> list[Problem]:
    """Columns of lists, or of what else is no text; a label column of them is the usual case."""
    schema = pq.read_schema(file)
    several = "write several labels as one text, such as sea|sky, with data.label_separator='|'"
    return [
        Problem(
            f"data.{option}",
            f"column {name!r} of {file} cannot be read: it holds {schema.field(name).type}, not text",
            several if option == "label_column" else "write one text a row",
        )
        for option, name in columns.items()
        if pa.types.is_nested(schema.field(name).type)
    ]


def table_header(file: Path) -> list[str]:
    """Names of the columns of a table. Raises DataError when it cannot be read."""
    if file.exists() and not file.is_file():  # opening a pipe would wait for ever
        raise DataError(Problem("data.path", f"{file} is not a regular file", "give a CSV or Parquet file"))
    try:
        if file.suffix.lower() == ".parquet":
            return list(pq.read_schema(file).names)
        with pyarrow.csv.open_csv(file, parse_options=_parsing(file)) as reader:
            return list(reader.schema.names)
    except FileNotFoundError as error:
        raise DataError(Problem("data.path", f"there is no file {file}", "give an existing table")) from error
    except _READING_ERRORS as error:
        raise _unreadable(file, error) from error


def _read_parquet(file: Path, names: list[str]) -> pa.Table:
    """Columns of a Parquet file, texts as dictionaries: one value a billion times takes a few bytes of a file."""
    rows = pq.read_metadata(file).num_rows
    if rows > _MOST_ROWS:
        raise DataError(Problem("data.path", f"{file} has {rows:,} rows, more than {_MOST_ROWS:,}"))
    table = pq.read_table(file, columns=names, read_dictionary=names)
    for name in names:
        size = sum(_unfolded_bytes(chunk) for chunk in table[name].chunks)
        if size > _MOST_TEXT:
            what = f"{file}, column {name!r}: {size:,} bytes of text, more than {_MOST_TEXT:,}"
            raise DataError(Problem("data.path", what))
    return table


def _unfolded_bytes(chunk: pa.Array) -> int:
    if not pa.types.is_dictionary(chunk.type):
        return int(chunk.nbytes)
    return int(pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0)


def _text(column: pa.ChunkedArray) -> pa.LargeStringArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):  # a missing number, as pandas writes it
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    text = pa.concat_arrays(pc.fill_null(column.cast(pa.large_string()), "").chunks)
    text.validate(full=True)  # a Parquet file may call bytes text that are none
    return text


def _parsing(file: Path) -> pyarrow.csv.ParseOptions:
    suffix = file.suffix.lower()
    if suffix not in _DELIMITERS:
        raise DataError(Problem("data.path", f"{file} is no table", f"known: {', '.join(EXTENSIONS)}"))
    return pyarrow.csv.ParseOptions(delimiter=_DELIMITERS[suffix], newlines_in_values=True)


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(Problem("data.path", f"{file} cannot be read: {error}", "is it a CSV (UTF-8) or Parquet file?"))


# --- columns ---------------------------------------------------------------------------------------------------------


def _paths(paths: pa.LargeStringArray, root: Path, file: Path, allow_outside: bool) -> pa.LargeStringArray:
    """Paths relative to the root; those that lead out of it are refused."""
    where = f"{file}, image paths"
    _refuse(pc.equal(paths, ""), where, "an empty path", "give the image's path in each row")
    relative = _without(paths, os.path.abspath(root))
    if not allow_outside:
        relative = _through_links(relative, root)
    outside = pc.or_(pc.starts_with(relative, os.sep), pc.match_substring_regex(relative, r"(^|/)\.\.(/|$)"))
    if not allow_outside:
        _refuse(outside, where, f"a path outside {root}", _OUTSIDE_FIX)
    return relative


def _without(paths: pa.LargeStringArray, top: str, within: str = "") -> pa.LargeStringArray:
    """Paths that begin with a folder, relative to the root, in which that folder is ``within``; others as they are."""
    prefix = f"{top.rstrip(os.sep)}{os.sep}"
    rest = pc.utf8_slice_codeunits(paths, len(prefix))
    if within:
        rest = pc.binary_join_element_wise(
            pa.scalar(within, pa.large_string()), rest, pa.scalar(os.sep, pa.large_string())
        )
    return pc.if_else(pc.starts_with(paths, prefix), rest, paths)


def _through_links(paths: pa.LargeStringArray, root: Path) -> pa.LargeStringArray:
    """Absolute paths that lie in the root by another name of it, or of a folder in it, relative to the root."""
    real = os.path.realpath(root)
    first = -1
    for _ in range(_MOST_NAMES):
        first = pc.index(pc.starts_with(paths, os.sep), True, start=first + 1).as_py()
        if first < 0:
            break
        path = paths[first].as_py()
        folders = [] if "\0" in path else [part for part in reversed(Path(path).parents) if ".." not in part.parts]
        known = next((folder for folder in folders if _lies_in(os.path.realpath(folder), real)), None)
        if known is not None:
            within = os.path.relpath(os.path.realpath(known), real)
            paths = _without(paths, os.fspath(known), "" if within == os.curdir else within)
    return paths


def _lies_in(path: str, folder: str) -> bool:
    return os.path.commonpath((path, folder)) == folder


_MOST_NAMES = 20  # of one root, in one table
_OUTSIDE_FIX = "set data.root to a folder above all images, or allow it: data.allow_outside_root=true"


def _stamps(root: Path, paths: pa.LargeStringArray, file: Path, allow_outside: bool) -> NDArray[np.int64]:
    """(size, modification time) of each image, int64 (n, 2); links that lead out of the root are refused."""
    stamps = stamps_of(root, paths.cast(pa.large_binary()), allow_outside=allow_outside)
    _refuse(pa.array(stamps[:, 0] == OUTSIDE), f"{file}, image paths", f"a link out of {root}", _OUTSIDE_FIX, paths)
    return stamps


def _splits(column: pa.LargeStringArray, file: Path, name: str) -> NDArray[np.int8]:
    values = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    known = pa.array(SPLIT_NAMES, type=pa.large_string())
    found = pc.index_in(values, value_set=known)
    fix = f"one of: {', '.join(SPLIT_NAMES)}"
    _refuse(pc.is_null(found), f"{file}, column {name!r}", "an unknown split", fix, values=column)
    numbers = np.array(list(SPLIT_NAMES.values()), np.int8)
    return np.asarray(numbers[found.to_numpy()])


def _coded(values: pa.LargeStringArray) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Index of each value among the sorted different values."""
    encoded = values.dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    numbers = all(name.isascii() and name.isdigit() for name in names)
    order = sorted(range(len(names)), key=lambda code: (int(names[code]) if numbers else 0, names[code]))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return rank[encoded.indices.to_numpy()], tuple(names[code] for code in order)


def _refuse_alike(classes: tuple[str, ...], where: str) -> None:
    """Raise DataError when two labels differ in nothing that a person sees."""
    if alike := look_alikes(classes):
        what = f"two labels read the same but are written with other characters: {shown_alike(alike)}"
        raise DataError(Problem(where, what, "write both with the same characters (Unicode's form NFC)"))


def _refuse(wrong: pa.BooleanArray, where: str, what: str, fix: str, values: Any = None) -> None:
    """Raise DataError when any row is wrong, with their number and the first; rows are counted from 1, no header."""
    rows = np.flatnonzero(wrong.to_numpy(zero_copy_only=False))
    if len(rows):
        shown = "" if values is None else f" {values[int(rows[0])].as_py()!r}"
        raise DataError(Problem(f"{where}, row {rows[0] + 1}", f"{what}{shown} ({len(rows)} such rows)", fix))
