"""The process of one trial: ``python -m tlearn.sweep.trial OUT IN key=value ...`` is a run that reports its epochs.

It writes one JSON line for each epoch to the descriptor OUT and waits for a line on IN: ``go`` or ``prune``. When IN
ends, so does it: a trial does not outlive its worker, or two workers would run the same one.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from tlearn.errors import UserError
from tlearn.interrupts import stopped
from tlearn.train.command import OUR_FAULT, USER_ERROR, execute, print_problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial; returns the exit status of a run."""
    out, answers, *overrides = sys.argv[1:] if argv is None else argv
    worker = _Worker(open(int(out), "w", buffering=1), open(int(answers)))  # noqa: SIM115  open to the end
    try:
        from tlearn.compose import load_config

        return execute(load_config(overrides), overrides, on_epoch=worker.report)
    except UserError as error:
        print_problems(error)
        return USER_ERROR
    except KeyboardInterrupt:
        return stopped()


class _Worker:
    """The other end of the two pipes."""

    def __init__(self, out: IO[str], answers: IO[str]) -> None:
        self._out = out
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Tell of an epoch. Raises Pruned where the worker has seen enough."""
        from tlearn.train.stopping import Pruned

        self._out.write(json.dumps({"epoch": epoch, "metrics": dict(metrics)}) + "\n")
        if self._answers.get() == "prune":
            raise Pruned

    def _listen(self, answers: IO[str]) -> None:
        for line in answers:
            self._answers.put(line.strip())
        os._exit(OUR_FAULT)  # the worker is gone


if __name__ == "__main__":
    sys.exit(main())
