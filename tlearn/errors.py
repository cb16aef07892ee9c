"""Errors a user can mend. Everything else is a fault of ours and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing to mend: where it is (a config key, a file, a row), what is wrong, what to do about it."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return visible(f"{self.where}: {self.what}") + (f"\n    {visible(self.fix, keep=chr(10))}" if self.fix else "")


def visible(text: str, keep: str = "") -> str:
    """The text with every character written out that would move, colour or command a terminal.

    A file name may hold any of them, and names of files end up in messages.
    """
    if text.isprintable():
        return text
    shown = (sign if sign.isprintable() or sign in keep else ascii(sign)[1:-1] for sign in text)
    return "".join(shown)


class UserError(Exception):
    """Wrong input. The command line prints its problems without a traceback and exits with status 2.

    Args:
        problems: everything found wrong, in the order a person would mend it; each is said once.
    """

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))


class ConfigError(UserError):
    """The configuration is wrong, by itself or for this architecture."""


class DataError(UserError):
    """The images, the folder or the table are wrong."""


class WeightsError(UserError):
    """Weights are missing, damaged or made for another network."""


def did_you_mean(name: str, options: Iterable[str], prefix: str = "") -> str:
    """A suggestion where one is near, else the options themselves (at most 20).

    Args:
        name: as it was given.
        options: that there are.
        prefix: of all of them, which is said with each and not compared.
    """
    known = sorted(options)
    near = [f"{prefix}{option}" for option in difflib.get_close_matches(name, known, n=3, cutoff=0.6)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    shown = ", ".join(f"{prefix}{option}" for option in known[:20])
    return f"one of: {shown}" + (f", ... ({len(known)} in all)" if len(known) > 20 else "")
