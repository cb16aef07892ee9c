"""How a run is stopped: between two steps, at a place from which it can go on; and what else ends it early."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

_PLAIN = re.compile(r"[\w./+@-]+")  # what neither a shell nor Hydra reads in another way


class Interrupted(Exception):
    """The run was asked to stop; what was being computed is given up."""


class Pruned(Exception):
    """Raised by ``on_epoch``: whoever compares runs has seen enough of this one."""


class Stopped(Exception):
    """The run was asked to stop, and can be resumed.

    Attributes:
        run: its folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        super().__init__(f"stopped; go on with: {resume_command(run)}")


class WorkerLost(Exception):
    """Another worker of the run is gone; what it was part of cannot go on.

    Attributes:
        run: the folder, where it is known.
    """

    run: str | None = None


class NumericalFault(Exception):
    """The loss is no longer a number.

    Attributes:
        step: of the stage, counted from 1, at or shortly before which it happened.
        learning_rate: at that step.
        run: the folder, where it is known.
    """

    run: str | None = None

    def __init__(self, step: int, learning_rate: float) -> None:
        self.step, self.learning_rate = step, learning_rate
        super().__init__(f"the loss is not finite at step {step}, learning rate {learning_rate:g}")


def resume_command(run: Path) -> str:
    """What goes on with a run, ready to be pasted into a shell."""
    if _PLAIN.fullmatch(str(run)):
        return f"python -m tlearn.train resume={run}"
    quoted = str(run).replace("\\", "\\\\").replace("'", "\\'")  # for Hydra; then for the shell
    return "python -m tlearn.train " + shlex.quote(f"resume='{quoted}'")


def stoppable(batches: Iterable[T], should_stop: Callable[[], bool]) -> Iterator[T]:
    """The batches, for as long as nobody wants to stop. Raises Interrupted."""
    for batch in batches:
        if should_stop():
            raise Interrupted
        yield batch


class StopSignal:
    """Whether SIGTERM or SIGINT came: the first waits for the next question, the second ends the process.

    Questions come between two steps, two batches of a feature pass or an evaluation; the handler does not know which.

    Whoever asks once asks again and again: from the first question on, a signal waits for the next one. Before it
    there is nothing to save, and a signal raises ``KeyboardInterrupt`` wherever the program is.
    """

    def __init__(self) -> None:
        self._received = self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def __call__(self) -> bool:
        """Whether to stop."""
        self._asked = True
        return self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._received = True
        if not self._asked:
            raise KeyboardInterrupt
        os.write(2, b"\nstopping where the run can be resumed; once more stops at once\n")
