"""Resumable states on disk: written atomically, verified when read.

A file is a NumPy ``.npz``: a zip without pickles and without compression. Next to the arrays it holds one JSON text,
the state, and the SHA-256 of everything else in it, which is compared on reading.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tlearn.train.storage import is_storage_fault, naming

_STATE = "state.json"
_CHECKSUM = "state.sha256"
# what zipfile and NumPy raise for files that are none of theirs, or say that they are encrypted or of endless size
_DAMAGES = (OSError, ValueError, LookupError, EOFError, MemoryError, AttributeError, RuntimeError, zipfile.BadZipFile)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replace a file as a whole: after a crash it holds the old content or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under, which takes the place of ``path`` once the block has ended.

    Raises:
        OSError: it names ``path``, which holds what it held before.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}.{path.name}")
    with naming(path):
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync(path.parent)  # the rename itself must survive a power cut


TEMPORARY = ".partial."
"""What the names of unfinished files begin with: a killed process leaves them."""


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sha256(arrays: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over names, shapes and every bit of some arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.shape} {array.itemsize} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save(path: Path, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any] | None = None) -> None:
    """Write arrays and a state that JSON can hold."""
    members = {**arrays, _STATE: np.frombuffer(json.dumps(state or {}).encode(), dtype=np.uint8)}
    checksum = np.frombuffer(bytes.fromhex(sha256(members)), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{**members, _CHECKSUM: checksum})
    write_atomic(path, buffer.getbuffer())


def largest(variables: Iterable[Any]) -> int:
    """Bytes that a state with these variables of a model may have: an optimizer adds at most some copies of each."""
    network: int = sum(math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in variables)
    return _MOST_TIMES * network + _SPARE


_MOST_TIMES, _SPARE = 16, 64 * 1024**2


def load(path: Path, *, most: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what ``save`` wrote.

    Args:
        path: of the state.
        most: bytes that it may have; None: any number.

    Raises:
        ValueError: the file is not that any more.
        OSError: the disk or the network refuses to give it: it may be sound.
    """
    try:
        size = path.stat().st_size
        if most is not None and size > most:
            raise ValueError(f"it has {size:,} bytes; the states of this network have {most:,} at most")
        with np.load(path, allow_pickle=False) as file:
            members = file.zip.infolist()
            # Nothing of ours is compressed, or said twice: a few bytes could unpack to terabytes.
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("it is compressed")
            if sum(member.file_size for member in members) > size:
                raise ValueError("it declares more bytes than it has")
            arrays = {name: file[name] for name in file.files}
        if arrays.pop(_CHECKSUM).tobytes().hex() != sha256(arrays):
            raise ValueError("its checksum is that of another content")
        return arrays, json.loads(arrays.pop(_STATE).tobytes())
    except _DAMAGES as error:
        if isinstance(error, OSError) and is_storage_fault(error) and path.exists():
            raise
        raise ValueError(f"{path} is damaged: {error}") from error


def latest(
    folder: Path, damaged: Callable[[str], None] = lambda message: None, *, most: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The newest state that is whole; None when there is none.

    Args:
        folder: of the states.
        damaged: told of each one that is passed over.
        most: bytes that one may have.
    """
    for path in sorted(folder.glob("step-*.npz"), reverse=True):
        try:
            return load(path, most=most)
        except ValueError as error:
            damaged(str(error))
    return None


def save_step(folder: Path, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], keep: int) -> None:
    """Write the state of a global step, then delete all but the ``keep`` newest.

    States of later steps are deleted too: a run that was resumed before them passed over them as damaged.
    """
    path = folder / f"step-{step:010d}.npz"
    save(path, arrays, state)
    earlier = [other for other in sorted(folder.glob("step-*.npz")) if other.name <= path.name]
    for other in set(folder.glob("step-*.npz")) - set(earlier[-keep:]):
        with naming(other):
            other.unlink()
