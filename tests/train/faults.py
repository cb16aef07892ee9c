"""A disk that fails: every open, write, sync, rename, deletion and new folder below some folder can be refused."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_WRITING = re.compile(r"[wax+]")
_ASKED = {"fsync": 0, "replace": 1, "rename": 1, "unlink": 0, "mkdir": 0, "rmdir": 0}  # and which argument says where


@dataclass(frozen=True)
class Point:
    """Something asked of the disk.

    Attributes:
        kind: ``open``, ``write``, or the function of ``os``.
        path: below the folder that is watched, without numbers of processes.
        lines: of the file so far, where it is a log that each line is opened anew for.
    """

    kind: str
    path: str
    lines: int = 0


class OnceEach:
    """Refuses the first point that it has not refused before, and nothing else until ``again``.

    Args:
        points: which there are, as ``kind path``.
        passing: points whose refusal should not matter: they do not count as the one.
        every_line: each line of a log is a point of its own, and each state.

    Attributes:
        refused: all points so far.
        now: the one since ``again``.
    """

    def __init__(self, points: re.Pattern[str], passing: Callable[[Point], bool], *, every_line: bool) -> None:
        self.refused: set[Point] = set()
        self._points = points
        self._passing = passing
        self.now: Point | None = None
        self._every_line = every_line

    def again(self) -> None:
        self.now = None

    def __call__(self, point: Point) -> bool:
        known = point if self._every_line else Point(point.kind, re.sub(r"step-\d+", "step-N", point.path))
        chosen = self._points.fullmatch(f"{point.kind} {point.path}") is not None
        if self.now is not None or known in self.refused or not chosen:
            return False
        self.refused.add(known)
        self.now = None if self._passing(point) else point
        return True


@contextlib.contextmanager
def faulty_disk(top: Path, refuses: Callable[[Point], bool], number: int = errno.ENOSPC) -> Iterator[None]:
    """While inside, what Python asks of the disk below a folder fails where ``refuses`` says so."""
    top = top.resolve()

    def named(path: Any) -> Point | None:
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)
        place = Path(os.path.abspath(path))
        if not place.is_relative_to(top):
            return None
        logged = place.name.endswith((".jsonl", ".txt")) and place.is_file()
        lines = place.read_bytes().count(b"\n") if logged else 0
        return Point("", place.relative_to(top).as_posix().replace(f".{os.getpid()}.", ".PID."), lines)

    def ask(kind: str, path: Any) -> None:
        point = named(path)
        if point is not None and refuses(Point(kind, point.path, point.lines)):
            name = () if isinstance(path, int) else (os.fsdecode(path),)  # a descriptor's error names no file
            raise OSError(number, os.strerror(number), *name)

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            view = memoryview(data).cast("B")
            try:
                ask("write", self.name)
            except OSError as error:
                super().write(view[: len(view) // 2])  # the part that still finds room
                raise OSError(error.errno, error.strerror) from None  # the system names no file here
            return super().write(view)

    real_open = io.open

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *more: Any,
        **others: Any,
    ) -> Any:
        if isinstance(file, int) or not _WRITING.search(mode) or named(file) is None:
            return real_open(file, mode, buffering, encoding, errors, newline, *more, **others)
        ask("open", file)
        raw = Raw(os.fsdecode(file), mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    def asking(name: str, argument: int) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            ask(name, arguments[argument])
            return real(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        for name, argument in _ASKED.items():
            patch.setattr(os, name, asking(name, argument))
        yield
