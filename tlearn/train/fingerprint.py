"""Which files a run was made from: ``files.parquet`` in its folder, and what became of them since.

One row per image: name, size, modification time, label, split, and where the check has read them a hash of its bytes.
Ten million rows take about as much room as the table they came from; nothing of it is read unless the hash of the
whole says that something changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlearn.data import ImageTable, Split
from tlearn.train.checkpoint import replacing

_COLUMNS = ["key", "size", "time", "label", "split"]
_CONTENT = "content"  # is not there where no file was read as a whole
_ROWS_AT_ONCE = 1 << 14  # to write: a part of the file is in memory until it is whole
_LONGEST_ROW = 5_000  # bytes; a path has 4,096 at most
_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}  # in others, a few bytes may say a long name a million times


def write_fingerprint(path: Path, table: ImageTable, contents: Contents = None) -> None:
    """Write what ``compare`` reads; ``contents`` are those of the check's report."""
    first = _columns(table, contents, slice(0, _ROWS_AT_ONCE))
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    with replacing(path) as partial, pq.ParquetWriter(partial, first.schema, **options) as writer:
        writer.write_table(first)
        for start in range(_ROWS_AT_ONCE, len(table), _ROWS_AT_ONCE):
            writer.write_table(_columns(table, contents, slice(start, start + _ROWS_AT_ONCE)))
    pa.default_memory_pool().release_unused()  # Arrow would keep room for the next such file: there is none


def _columns(table: ImageTable, contents: Contents, rows: slice) -> pa.Table:
    """What is written of some rows."""
    stamps = np.zeros((len(table.splits[rows]), 2), np.int64) if table.stamps is None else table.stamps[rows]
    labels = _labels(table.labels[rows], multi_label=table.multi_label)
    columns = dict(zip(_COLUMNS, (table.keys[rows], *stamps.T, labels, table.splits[rows]), strict=True))
    if contents is not None:
        columns[_CONTENT] = _fixed(contents[rows])
    return pa.table(columns)


Contents = NDArray[np.uint64] | None
"""uint64 (n, 2), see ``tlearn.data.check.CheckReport``."""

MOST_LISTED = 20


@dataclass(frozen=True)
class Rows:
    """Some rows: how many there are, and what to say of the first twenty, a line each."""

    count: int
    lines: list[str]


NONE = Rows(0, [])


@dataclass(frozen=True)
class Changes:
    """Rows that are no longer what they were.

    Attributes:
        gone, added: names of files.
        altered: of another size.
        touched: of the same size, written at another time.
        doubtful: those of them whose bytes are others, or are not known to be the same.
        relabelled: of another class.
        moved: in another split.
    """

    gone: Rows
    added: Rows
    altered: Rows
    touched: Rows
    doubtful: Rows
    relabelled: Rows
    moved: Rows


def compare(path: Path, table: ImageTable, images: int, contents: Contents = None) -> Changes:
    """What became of the files of a run.

    Args:
        path: of the file that was written when the run began.
        table: of the files as they are now.
        images: how many there were.
        contents: of the files as they are now, as the check's report has them.

    Raises:
        ValueError: the file is damaged.
    """
    old = _read(path, images)
    names, now = old["key"].combine_chunks(), table.keys
    gone = names.filter(pc.is_null(pc.index_in(names, value_set=now)))
    added = now.filter(pc.is_null(pc.index_in(now, value_set=names)))
    if len(names.unique()) < len(names):  # rows cannot be told apart by their names
        return Changes(_names(gone), _names(added), NONE, NONE, NONE, NONE, NONE)
    found = pc.index_in(now, value_set=names)
    here = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    there = found.drop_null().to_numpy().astype(np.int64)

    def differ(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(before[there] != after[here])

    def lines(which: NDArray[np.bool_], say: Callable[[int, int], str]) -> Rows:
        rows = np.flatnonzero(which)
        said = [f"{table.key(here[i])} {say(int(there[i]), int(here[i]))}" for i in rows[:MOST_LISTED]]
        return Rows(len(rows), said)

    size, time, split = (old[name].to_numpy() for name in ("size", "time", "split"))
    stamps = table.stamps if table.stamps is not None else np.zeros((len(table), 2), np.int64)
    resized, rewritten = differ(size, stamps[:, 0]), differ(time, stamps[:, 1])
    doubtful = rewritten & ~resized
    if contents is not None and _CONTENT in old.column_names:
        before, after = _unfixed(old[_CONTENT])[there], contents[here]
        doubtful &= (before != after).any(axis=1) | ~after.any(axis=1)
    old_labels, new_labels = old["label"].combine_chunks(), _labels(table.labels, multi_label=table.multi_label)
    relabelled = pc.not_equal(old_labels.take(pa.array(there)), new_labels.take(pa.array(here))).to_numpy(
        zero_copy_only=False
    )

    def times(i: int, j: int) -> str:
        return f"was written at {_moment(time[i])}, is of {_moment(stamps[j, 1])}"

    return Changes(
        gone=_names(gone),
        added=_names(added),
        altered=lines(resized, lambda i, j: f"had {size[i]:,} bytes, has {stamps[j, 0]:,}"),
        touched=lines(rewritten & ~resized, times),
        doubtful=lines(doubtful, times),
        relabelled=lines(relabelled, lambda i, j: "has another label"),
        moved=lines(
            differ(split, table.splits), lambda i, j: f"was {Split(split[i]).name}, is {Split(table.splits[j]).name}"
        ),
    )


def _read(path: Path, images: int) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        encodings = {name for group in groups for i in range(group.num_columns) for name in group.column(i).encodings}
        size = sum(group.total_byte_size for group in groups)
        if file.metadata.num_rows != images or encodings - _ENCODINGS or size > _LONGEST_ROW * (images + 100):
            raise ValueError("it is not what the run has written")
        if file.schema_arrow.names not in (_COLUMNS, [*_COLUMNS, _CONTENT]):
            raise ValueError("its columns are others")
        return file.read()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _labels(labels: NDArray[Any], *, multi_label: bool) -> pa.Array:
    """Index of the class; for several labels their bits, as bytes."""
    if not multi_label:
        return pa.array(labels.astype(np.int32))
    return _fixed(np.packbits(labels.astype(bool), axis=1))


def _fixed(rows: NDArray[Any]) -> pa.FixedSizeBinaryArray:
    """The rows of an array (n, k), as bytes."""
    rows = np.ascontiguousarray(rows)
    kind = pa.binary(rows.shape[1] * rows.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pa.py_buffer(rows)])


def _unfixed(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Contents (n, 2) of a column."""
    whole = pa.concat_arrays(column.chunks)
    if whole.type != pa.binary(16) or whole.null_count:
        raise ValueError("its contents are none")
    found = np.frombuffer(whole.buffers()[1], np.uint64).reshape(-1, 2)
    return found[whole.offset : whole.offset + len(whole)]


def _names(keys: pa.Array) -> Rows:
    return Rows(len(keys), [os.fsdecode(key) for key in keys.slice(0, MOST_LISTED).to_pylist()])


def _moment(nanoseconds: Any) -> str:
    return datetime.fromtimestamp(int(nanoseconds) / 1e9).isoformat(" ", "microseconds")
