"""A stopwatch inside ``tlearn.fit``: it takes the place of the terminal, which is told of every step."""

from __future__ import annotations

import time
from typing import Any

from tlearn.train.console import Terminal

Marks = list[tuple[float, int]]
"""(when, steps done) pairs."""


class Clock(Terminal):
    """Prints nothing, and notes when steps were done.

    Attributes:
        first_print: when the run folder was there and the plan was printed: everything is built, nothing is trained.
        epochs: label and marks of each epoch, passes that make features included.
    """

    def __init__(self) -> None:
        super().__init__(progress=False)
        self.first_print: float | None = None
        self.epochs: list[tuple[str, Marks]] = []

    def print(self, *what: Any) -> None:
        self.first_print = self.first_print or time.perf_counter()

    def start_epoch(self, label: str, steps: int, done: int) -> None:
        self.epochs.append((label, []))

    def step(self, done: int, note: str) -> None:
        self.epochs[-1][1].append((time.perf_counter(), done))

    def training(self) -> list[Marks]:
        """The marks of each epoch that trains."""
        return [marks for label, marks in self.epochs if not label.startswith("features of")]


def steps_per_second(marks: Marks, warm_up: int) -> float:
    """The rate after so many steps: tracing is over, and what was loaded ahead during it is used up."""
    steady = [mark for mark in marks if mark[1] >= warm_up]
    (begin, first), (end, last) = steady[0], steady[-1]
    return (last - first) / (end - begin)
