"""Features on disk: gathered beside the output so that a killed process can go on, then written as one file.

While images are read, ``features.npz.partial/`` holds each layer's numbers as raw bytes, the numbers of the images
they are of, and a journal. A batch's bytes are written first and its line in the journal after them, with their
CRC-32: whatever a kill or a power cut leaves behind, the lines whose bytes are all there and right are kept and the
rest is cut off.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlearn.errors import Problem, UserError, did_you_mean
from tlearn.images import FileImages
from tlearn.labelled import Labelled

_CHUNK_BYTES = 16_000_000  # of features held at once while the output is written


class Partial:
    """Features gathered so far.

    Args:
        output: the file they are for.
        shapes: of each layer's features for one image.
        dtype: ``float32`` or ``float16``.
        signature: everything that decides the features, as plain data: what was gathered for another is not gone on
            with.

    Attributes:
        stop: number of images looked at.
        count: how many of them could be read.
        unreadable: (path, reason) of the others.
        kept: ``stop`` when it was opened.
    """

    def __init__(
        self, output: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, signature: Mapping[str, Any]
    ) -> None:
        self.folder = output.with_name(f"{output.name}.partial")
        self.shapes = dict(shapes)
        self.dtype = np.dtype(dtype)
        self.stop = self.count = self.kept = 0
        self.unreadable: list[tuple[str, str]] = []
        self._signature = json.loads(json.dumps(signature))
        self._files = {name: self.folder / f"{number}.bin" for number, name in enumerate(shapes)}
        self._rows_file = self.folder / "rows.bin"
        self._signature_file = self.folder / "signature.json"
        self._journal_file = self.folder / "journal.jsonl"
        self._lock_file = self.folder / "lock"

    @contextlib.contextmanager
    def opened(self, *, discard: bool) -> Iterator[Partial]:
        """Take the folder, and what an earlier process left in it.

        Args:
            discard: begin anew where it was gathered for something else, instead of raising.

        Raises:
            UserError: another process works on it, or it was gathered for something else.
        """
        self.folder.mkdir(exist_ok=True)
        with open(self._lock_file, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(Problem(str(self.folder), "another process is writing these features")) from None
            different = self._different()
            if different and not discard and self._signature_file.exists():
                what = f"holds features of another extraction: {', '.join(different)} differ"
                fix = "--overwrite discards them; or choose another --output"
                raise UserError(Problem(str(self.folder), what, fix))
            if different:
                self._begin()
            self._keep_what_is_right()
            with contextlib.ExitStack() as stack:
                self._open = {
                    path: stack.enter_context(path.open("ab")) for path in (*self._files.values(), self._rows_file)
                }
                self._journal = stack.enter_context(self._journal_file.open("a", encoding="utf-8"))
                yield self

    def append(
        self,
        stop: int,
        rows: NDArray[np.int64],
        features: Mapping[str, NDArray[Any]],
        unreadable: Iterable[tuple[str, str]],
    ) -> None:
        """Add a batch: images up to ``stop`` were looked at, those numbered ``rows`` have these features (b, ...).

        Raises:
            UserError: a number does not fit the type.
        """
        data = {self._rows_file: rows.astype(np.int64).tobytes()}
        for name, path in self._files.items():
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(features[name], self.dtype)
            if not np.isfinite(stored).all() and np.isfinite(features[name]).all():
                raise UserError(Problem("--dtype", f"{name} has numbers beyond {self.dtype}", "use float32"))
            data[path] = stored.tobytes()
        for path, content in data.items():
            self._open[path].write(content)
            self._open[path].flush()
        self.stop, self.count = stop, self.count + len(rows)
        left_out = [list(entry) for entry in unreadable]
        self.unreadable += [(name, reason) for name, reason in left_out]
        line = {
            "stop": stop,
            "count": self.count,
            "crc": {path.name: zlib.crc32(content) for path, content in data.items()},
            "unreadable": left_out,
        }
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()

    def chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """Features of a layer, (b, ...) at a time."""
        shape, path = self.shapes[name], self._files[name]
        at_once = self.rows_at_once()
        with path.open("rb") as file:
            for start in range(0, self.count, at_once):
                many = min(at_once, self.count - start)
                flat = np.fromfile(file, self.dtype, many * math.prod(shape))
                yield flat.reshape(many, *shape)

    def rows(self) -> Iterator[NDArray[np.int64]]:
        """Numbers of the images, in the same portions."""
        with self._rows_file.open("rb") as file:
            for start in range(0, self.count, self.rows_at_once()):
                yield np.fromfile(file, np.int64, min(self.rows_at_once(), self.count - start))

    def rows_at_once(self) -> int:
        """Images in one portion."""
        widest = max(math.prod(shape) for shape in self.shapes.values()) * self.dtype.itemsize
        return max(1, min(_CHUNK_BYTES // max(widest, 1), 65536))

    def remove(self) -> None:
        """Delete the folder: the output is complete, or there is nothing to keep."""
        for path in self._own_files():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else's file is in it
            self.folder.rmdir()

    def _own_files(self) -> list[Path]:
        numbered = [path for path in self.folder.glob("*.bin") if path.stem.isdigit()]
        return [*numbered, self._rows_file, self._journal_file, self._signature_file, self._lock_file]

    def _begin(self) -> None:
        for path in self._own_files():
            if path != self._lock_file:
                path.unlink(missing_ok=True)
        temporary = self._signature_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._signature, indent=1), encoding="utf-8")
        temporary.replace(self._signature_file)

    def _different(self) -> list[str]:
        """What of the signature is not that of the folder; all of it where the folder has none."""
        try:
            found = json.loads(self._signature_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            return ["all facts"]
        return [key for key in self._signature if found.get(key) != self._signature[key]]

    def _keep_what_is_right(self) -> None:
        """Read the journal as far as the bytes it speaks of are right, and cut off the rest."""
        sizes = {path: math.prod(self.shapes[name]) * self.dtype.itemsize for name, path in self._files.items()}
        sizes[self._rows_file] = 8
        for path in (*sizes, self._journal_file):
            path.touch()
        journal_end = 0
        with contextlib.ExitStack() as stack:
            files = {path: stack.enter_context(path.open("rb")) for path in sizes}
            for line in stack.enter_context(self._journal_file.open("rb")):
                entry = _entry(line)
                if entry is None or entry["count"] < self.count:
                    break
                many = entry["count"] - self.count
                crcs = {path.name: zlib.crc32(file.read(many * sizes[path])) for path, file in files.items()}
                if crcs != entry["crc"]:
                    break
                self.stop, self.count = entry["stop"], entry["count"]
                self.unreadable += [(name, reason) for name, reason in entry["unreadable"]]
                journal_end += len(line)
        for path, size in sizes.items():
            os.truncate(path, self.count * size)
        os.truncate(self._journal_file, journal_end)
        self.kept = self.stop


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of the journal; None when it was not written to its end."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"stop", "count", "crc", "unreadable"} <= entry.keys() else None


# --- the output ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Features with what they are of: what every format writes."""

    partial: Partial
    images: FileImages | Labelled
    facts: Mapping[str, Any]

    def paths(self) -> Iterator[list[str]]:
        """Paths of the images, a portion at a time."""
        for rows in self.partial.rows():
            yield [self.images.name(int(row)) for row in rows]

    def labels(self) -> NDArray[Any]:
        """int32 (n,), -1 where there is none; or uint8 (n, k)."""
        rows = list(self.partial.rows())
        labels: NDArray[Any] = self.images.labels[np.concatenate(rows) if rows else np.empty(0, np.int64)]
        return labels

    def utf8_classes(self) -> list[str]:
        """Names of the classes for formats whose text is UTF-8: they may be names of folders, which need not be."""
        return [_utf8(name) for name in self.images.classes]

    def label_names(self, rows: NDArray[np.int64], classes: list[str] | tuple[str, ...]) -> list[Any]:
        """Names out of ``classes``: one or None for each image, or a list for each."""
        labels = self.images.labels[rows]
        if labels.ndim == 2:
            return [[classes[index] for index in np.flatnonzero(row)] for row in labels]
        return [classes[label] if label >= 0 else None for label in labels]


def write_features(output: Path, result: Result) -> None:
    """Write the output by the end of its name: complete under its name, or not there at all."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        WRITERS[output.suffix.lower()](temporary, result)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if output.suffix.lower() == ".npy":
            _write_csv(beside(output), result)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def beside(output: Path) -> Path:
    """Where paths and labels go if the output cannot hold them; not ``.csv`` alone: that may be the table itself."""
    return output.with_suffix(".paths.csv")


def check_format(output: Path, layers: int) -> None:
    """Raise UserError when the name of the output says no format, or one that cannot hold so many layers."""
    suffix = output.suffix.lower()
    if suffix not in WRITERS:
        hint = did_you_mean(suffix, WRITERS) if suffix else f"one of: {', '.join(WRITERS)}"
        raise UserError(Problem("--output", f"{output} has no ending that says its format", hint))
    if suffix == ".npy" and layers > 1:
        raise UserError(Problem("--output", f"a .npy file holds one array, not {layers}", "use .npz, .parquet or .h5"))


def _write_npy(path: Path, result: Result) -> None:
    """One array; paths and labels go to a CSV file of the same name."""
    (name,) = result.partial.shapes
    with path.open("wb") as file:
        _array(file, result, name)


def _write_csv(path: Path, result: Result) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "label"])
            for rows, paths in zip(result.partial.rows(), result.paths(), strict=True):
                names = result.label_names(rows, result.images.classes)
                labels = ["|".join(name) if isinstance(name, list) else name for name in names]
                writer.writerows(zip(paths, labels, strict=True))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_npz(path: Path, result: Result) -> None:
    """Arrays by layer, ``paths`` (n,), ``labels`` (n,) or (n, k), ``classes`` (k,); no pickles."""
    longest = max((len(name) for names in result.paths() for name in names), default=1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in result.partial.shapes:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _array(file, result, name)
        text = np.dtype(f"<U{longest}")
        with archive.open("paths.npy", "w", force_zip64=True) as file:
            _header(file, text, (result.partial.count,))
            for names in result.paths():
                file.write(np.array(names, text).tobytes())
        for key, array in (("labels", result.labels()), ("classes", np.array(result.images.classes, dtype=np.str_))):
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _array(file: IO[bytes], result: Result, name: str) -> None:
    partial = result.partial
    _header(file, partial.dtype, (partial.count, *partial.shapes[name]))
    for chunk in partial.chunks(name):
        file.write(chunk.tobytes())


def _header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_2_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _write_parquet(path: Path, result: Result) -> None:
    """A row an image: ``path``, ``label``, and each layer as a list of fixed length; shapes are in the metadata."""
    partial, several = result.partial, result.images.labels.ndim == 2
    number = pa.from_numpy_dtype(partial.dtype)
    fields = [pa.field("path", pa.string()), pa.field("label", pa.list_(pa.string()) if several else pa.string())]
    for name, shape in partial.shapes.items():
        fields.append(pa.field(name, pa.list_(number, math.prod(shape)), metadata={"shape": json.dumps(shape)}))
    classes = result.utf8_classes()
    facts = {**result.facts, "classes": classes}
    schema = pa.schema(fields, metadata={"tlearn": json.dumps(facts)})
    with pq.ParquetWriter(path, schema) as writer:
        for rows, paths, *features in zip(
            partial.rows(), result.paths(), *(partial.chunks(name) for name in partial.shapes), strict=True
        ):
            labels = pa.array(result.label_names(rows, classes), fields[1].type)
            columns = [pa.array(map(_utf8, paths), pa.string()), labels]
            for chunk in features:
                flat = pa.array(chunk.reshape(-1))
                columns.append(pa.FixedSizeListArray.from_arrays(flat, math.prod(chunk.shape[1:])))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _write_hdf5(path: Path, result: Result) -> None:
    """A dataset for each layer, and ``paths``, ``labels``, ``classes``; the facts are attributes."""
    import h5py

    partial, text = result.partial, h5py.string_dtype()
    with h5py.File(path, "w") as file:
        paths = file.create_dataset("paths", (partial.count,), text)
        start = 0
        for names in result.paths():
            paths[start : start + len(names)] = [_utf8(name) for name in names]
            start += len(names)
        file["labels"] = result.labels()
        file.create_dataset("classes", data=result.utf8_classes(), dtype=text)
        for name, shape in partial.shapes.items():
            dataset = file.create_dataset(name, (partial.count, *shape), partial.dtype)
            start = 0
            for chunk in partial.chunks(name):
                dataset[start : start + len(chunk)] = chunk
                start += len(chunk)
        file.attrs["tlearn"] = json.dumps(result.facts)


def _utf8(name: str) -> str:
    """A name from the file system as text: bytes that are not UTF-8 are written as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


WRITERS: dict[str, Callable[[Path, Result], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".h5": _write_hdf5,
    ".hdf5": _write_hdf5,
}
