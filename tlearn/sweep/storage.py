"""Where a study is kept: one file beside its trials, or any storage that Optuna knows; its errors become ours."""

from __future__ import annotations

import contextlib
import fcntl
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tlearn.errors import Problem, UserError

LOCK_SECONDS = 30.0
"""How long another process may hold a database before it counts as locked."""


_ATTEMPTS = 10


class StorageError(UserError):
    """The storage of a study cannot be used, or no longer."""


def storage_url(storage: str | None, folder: Path) -> str:
    """The storage of a sweep: as given, by default one file in its folder."""
    return storage or f"sqlite:///{folder / 'study.db'}"


def open_storage(url: str) -> Any:
    """Open or make a storage.

    SQLite by default: a transaction is there or not, whenever a process is killed. Its locks do not hold on most
    network file systems; a ``.journal`` file is for those.

    Args:
        url: a path that ends in ``.journal``, or an SQLAlchemy URL as Optuna takes it.

    Raises:
        StorageError: it is locked, unreachable, damaged, or of another version.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    with storage_errors(url), _opening_errors(url):
        if url.endswith(".journal"):
            return _journal(Path(url).expanduser())
        options = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite:") else {"pool_pre_ping": True}
        return _database(url, options)


def _database(url: str, options: dict[str, Any]) -> Any:
    """A database with its tables; workers that begin at the same time meet while they make them."""
    import optuna
    import sqlalchemy.exc

    for attempt in range(_ATTEMPTS):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except sqlalchemy.exc.DBAPIError as error:
            met = isinstance(error, sqlalchemy.exc.IntegrityError) or "already exists" in str(error)
            if not met or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.2)
    raise AssertionError


def _journal(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_KernelLock(path)))


class _KernelLock:
    """A lock that ends with the process: those of Optuna outlive one that is killed, and block others for a while."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        self._file = open(self._path, "a")  # noqa: SIM115  open until it is released
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """What a database says when it cannot be used, as a message. Trials that ended are in their run folders too."""
    import optuna
    import sqlalchemy.exc

    kept = "trials that ended are kept in their run folders and are taken up when it is started again"
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        said = _innermost(error)
        if "locked" in said:
            fix = f"another program holds it; end that, or wait. {kept}"
            raise StorageError(Problem(_shown(url), f"is locked: {said}", fix)) from None
        if "not a database" in said or "malformed" in said:
            raise StorageError(Problem(_shown(url), f"is damaged: {said}", "name another storage")) from None
        if isinstance(error, sqlalchemy.exc.NoSuchModuleError | sqlalchemy.exc.ArgumentError):
            fix = "such as sqlite:///study.db or postgresql://user@host/name, or a file that ends in .journal"
            raise StorageError(Problem(_shown(url), f"is no storage that Optuna knows: {said}", fix)) from None
        fix = f"see whether its folder or server is there and may be written to; {kept}"
        raise StorageError(Problem(_shown(url), f"cannot be reached: {said}", fix)) from None


@contextlib.contextmanager
def _opening_errors(url: str) -> Iterator[None]:
    """What else can be wrong when a storage is opened."""
    try:
        yield
    except RuntimeError as error:
        if "schema" not in str(error):
            raise
        fix = f"make a copy of it, then: optuna storage upgrade --storage {_shown(url)}; or name another storage"
        said = "was made by another version of Optuna, whose tables differ"
        raise StorageError(Problem(_shown(url), said, fix)) from None
    except ImportError as error:
        fix = f"install the driver of this kind of database: pip install {error.name}"
        raise StorageError(Problem(_shown(url), str(error), fix)) from None
    except OSError as error:
        raise StorageError(Problem(_shown(url), f"cannot be reached: {error.strerror or error}")) from None
    except (ValueError, KeyError) as error:  # a line of a journal that is no JSON, or none of Optuna's
        if not url.endswith(".journal"):
            raise
        raise StorageError(Problem(url, f"is damaged: {error}", "name another storage")) from None


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    original = getattr(error, "orig", None)
    return " ".join(str(original or error).split())[:300]


def _shown(url: str) -> str:
    """Without the password."""
    import sqlalchemy

    try:
        return str(sqlalchemy.make_url(url).render_as_string(hide_password=True))
    except sqlalchemy.exc.SQLAlchemyError:
        return url
