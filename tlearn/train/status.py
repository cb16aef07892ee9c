"""``status.json``: what a run is doing, for scripts and for people who find its folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tlearn.train.progress import Progress
from tlearn.train.run import Run
from tlearn.train.stopping import Interrupted, resume_command

if TYPE_CHECKING:
    from tlearn.train.plan import Plan


ENDED = ("finished", "pruned")
"""Of runs with a summary; there is nothing to resume."""


class StatusFile:
    """Writes the status of a run.

    Args:
        run: where to write.
        plan: of the run.
    """

    def __init__(self, run: Run, plan: Plan) -> None:
        self._run = run
        self._plan = plan
        self._progress = Progress()

    def running(self, progress: Progress) -> None:
        """The run goes on; this is its last saved state."""
        self._progress = progress
        self._write("running")

    @contextmanager
    def kept(self, progress: Progress) -> Iterator[None]:
        """Around the work on a run from where it stands: cut short in any way but by SIGKILL, the file says so."""
        self.running(progress)
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            self._write_last("stopped")
            raise
        except BaseException as error:
            self._write_last("failed", str(error) or type(error).__name__)
            raise

    def ended(self, status: str) -> None:
        """The run came to its end: it is ``finished`` or ``pruned``, and has a summary that says so."""
        self._write(status)

    def _write_last(self, status: str, reason: str = "") -> None:
        with suppress(OSError):  # an error is on its way already, perhaps of the same disk
            self._write(status, reason)

    def _write(self, status: str, reason: str = "") -> None:
        progress = self._progress
        facts = {
            "status": status,
            **({"reason": reason} if reason else {}),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "stage": self._plan.stages[progress.stage].name,
            "step": progress.global_step,
            "steps": self._plan.steps,
            **({} if status in ENDED else {"resume": resume_command(self._run.path)}),
        }
        self._run.write_status(facts)
