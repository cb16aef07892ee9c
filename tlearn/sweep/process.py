"""A trial in a process of its own, as its worker sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tlearn.train.launch import Processes

OnReport = Callable[[int, Mapping[str, float]], bool]
"""Given an epoch and its metrics; whether the trial is to be pruned."""


@dataclass(frozen=True)
class Ended:
    """How a trial's process ended.

    Attributes:
        status: its exit status; -n when signal n killed it.
        error: what it said, where it did not end well.
    """

    status: int
    error: str = ""


def run_trial(overrides: Sequence[str], log: Path, on_report: OnReport, *, processes: Processes | None = None) -> Ended:
    """Run a trial to its end.

    Args:
        overrides: of the run.
        log: file for everything it prints.
        on_report: called after each epoch.
        processes: to enter it into while it runs.
    """
    reports, out = os.pipe()
    answers, into = os.pipe()
    command = (sys.executable, "-m", "tlearn.sweep.trial", str(out), str(answers), *overrides)
    with open(log, "w", encoding="utf-8") as printed:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, pass_fds=(out, answers)
        )
    os.close(out)
    os.close(answers)
    running = (processes or Processes()).running(process)
    with process, running, os.fdopen(reports) as lines, os.fdopen(into, "w", buffering=1) as reply:
        for line in lines:
            report = json.loads(line)
            prune = on_report(report["epoch"], report["metrics"])
            try:
                reply.write("prune\n" if prune else "go\n")
            except BrokenPipeError:
                break
        status = process.wait()
    return Ended(status, _what_it_said(log, status) if status else "")


def _what_it_said(log: Path, status: int) -> str:
    """The error in a trial's output, in one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if status < 0:
        return f"killed by signal {-status}" + (", as for want of memory" if status == -9 else "")
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[0]
    if not lines:
        return f"exit status {status}"
    try:
        return str(json.loads(lines[-1])["reason"])
    except (ValueError, TypeError, KeyError):
        return lines[-1]
