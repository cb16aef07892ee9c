"""Resumable states on disk: written atomically, verified when read.

A file is a NumPy ``.npz``: a zip without pickles, whose CRC-32 of each array is checked on reading. Next to the arrays
it holds one JSON text, ``state``.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_STATE = "state.json"


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file as a whole: after a crash it holds the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def save(path: Path, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any] | None = None) -> None:
    """Write arrays and a state that JSON can hold."""
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(state or {}).encode(), dtype=np.uint8)
    np.savez(buffer, allow_pickle=False, **{**arrays, _STATE: text})
    write_atomic(path, buffer.getvalue())


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what ``save`` wrote. Raises ValueError when the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(arrays.pop(_STATE).tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def latest(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The newest state that can be read; None when there is none. A damaged one is passed over."""
    for path in sorted(folder.glob("step-*.npz"), reverse=True):
        try:
            return load(path)
        except ValueError:
            continue
    return None


def save_step(folder: Path, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], keep: int) -> None:
    """Write the state of a global step, then delete all but the ``keep`` newest.

    States of later steps are deleted too: a run that was resumed before them passed over them as damaged.
    """
    path = folder / f"step-{step:010d}.npz"
    save(path, arrays, state)
    earlier = [other for other in sorted(folder.glob("step-*.npz")) if other.name <= path.name]
    for other in set(folder.glob("step-*.npz")) - set(earlier[-keep:]):
        other.unlink()
