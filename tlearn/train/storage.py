"""What a full disk, a vanished mount or missing rights do to a run: it ends with a message, and goes on later.

Whoever writes leaves errors of the system as they are, but for the name of the file (``naming``); code that can do
without a file catches ``OSError``. Where the work on a run begins, what is left becomes a message (``explained``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tlearn.errors import Problem, UserError

_NO_ROOM = "make room there"
_NO_RIGHT = "make it writable"
_GONE = "bring the folder back; a run whose folder was deleted is lost"
_FAILING = "look after the disk, or the network it lies on"
_LIMIT = "raise the limit (ulimit)"

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _NO_ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _NO_RIGHT),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN), _GONE),
    **dict.fromkeys((errno.EIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH), _FAILING),
    **dict.fromkeys((errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET), _FAILING),
    **dict.fromkeys((errno.ENOLCK, errno.EOPNOTSUPP), "its file system knows no locks: keep runs on another"),
    **dict.fromkeys((errno.EFBIG, errno.EMFILE, errno.ENFILE), _LIMIT),
}
"""What a disk or a network may refuse, and what helps. Any other number is a fault of ours."""


class StorageError(UserError):
    """The system refused to read or write a file of a run."""


def is_storage_fault(error: OSError) -> bool:
    """Whether the disk or the network is to blame, and neither what a file holds nor what was asked for."""
    return error.errno in _REMEDIES


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system that leave the block name this file; those of ``write`` name none by themselves."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def explained(where: Path, note: str) -> Iterator[None]:
    """Around work on the files of a run: what the system refuses is said so that a person can mend it.

    Args:
        where: what is named where an error names no file.
        note: how to go on once it is mended.

    Raises:
        StorageError: in place of an error of the system, with the note.
    """
    try:
        yield
    except OSError as error:
        if not is_storage_fault(error):
            raise
        what, fix = error.strerror or str(error), _REMEDIES[error.errno or 0]
        refused = StorageError(Problem(str(error.filename or where), what, fix))
        refused.add_note(note)
        raise refused from error
