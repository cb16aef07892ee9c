"""An export appears under its name when it is whole and checked, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tlearn.errors import Problem, UserError

METADATA, LABELS = "metadata.json", "labels.txt"
KIND = "tlearn export"


def check_output(folder: Path, force: bool) -> None:
    """Raises UserError when something is in the way, or nothing can be written there."""
    where = "--output"
    if os.path.lexists(folder):
        if not _is_export(folder):
            raise UserError(Problem(where, f"{folder} exists and is no export", "choose another folder"))
        if not force:
            raise UserError(Problem(where, f"{folder} exists", "--force replaces it, or choose another folder"))
    parent = folder.parent
    if not parent.is_dir():
        raise UserError(Problem(where, f"there is no folder {parent}", "make it, or choose another"))
    if not os.access(parent, os.W_OK):
        raise UserError(Problem(where, f"{parent} may not be written to"))


def _is_export(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / METADATA).read_text(encoding="utf-8"))["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the output; nothing of it stays."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)  # mkdtemp makes it private, a server runs as somebody else
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name; an earlier export goes away at the last moment."""
    if os.path.lexists(folder):
        with temporary_folder(folder) as grave:
            folder.rename(grave / folder.name)
            temporary.rename(folder)
    else:
        temporary.rename(folder)
