"""A run folder may come from a stranger: before tlearn writes into one, nothing in it leads elsewhere."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from tlearn.errors import Problem, UserError

LARGEST_JSON = 64 * 1024**2
"""Bytes. The manifest of a million classes takes a third of it."""

_LISTED_WRONG = 10


def refuse_links(folder: Path) -> None:
    """Make sure that what is written into a folder stays there.

    Metrics, logs and events are appended to: through a link they would end up in any file of the user's, and old
    states are deleted where ``checkpoints`` leads. A pipe would hold the run up for ever.

    Raises:
        UserError: below the folder are symbolic links out of it, or pipes, sockets or devices.
    """
    problems = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode) and not _is_below(path, folder):
                problems.append(Problem(path, "is a link out of the run folder", "put a copy of what it names there"))
            elif not stat.S_ISREG(mode) | stat.S_ISDIR(mode) | stat.S_ISLNK(mode):
                problems.append(Problem(path, "is no regular file", "remove it"))
    if problems:
        raise UserError(problems[:_LISTED_WRONG])


def _is_below(path: str, folder: Path) -> bool:
    top = os.path.realpath(folder)
    return os.path.commonpath((os.path.realpath(path), top)) == top


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most ``LARGEST_JSON`` bytes. Raises UserError when it is damaged or larger."""
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON:,} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}", "the run folder is damaged")) from None
    return data
