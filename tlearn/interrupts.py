"""Ctrl-C, and SIGTERM where that is taken the same way, before there is a run to save: one line and an exit status."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module

STOPPED = 3
"""Exit status of a command that a signal has stopped."""


def enter(module: str, arguments: Sequence[str] | None = None) -> int:
    """Import a command and run its ``main``; the import may be interrupted like the rest. Returns the exit status.

    Args:
        module: with the ``main``.
        arguments: for it; None: those of the process.
    """
    try:
        status: int = import_module(module).main(arguments)
    except KeyboardInterrupt:
        return stopped()
    return status


def stopped(line: str = "stopped") -> int:
    """Say that a command was interrupted. Returns the exit status."""
    print(f"\n{line}", file=sys.stderr)
    return STOPPED


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Inside, a signal that would raise ``KeyboardInterrupt`` waits for the end of the block, which must be short.

    Python raises it between any two instructions. OmegaConf, and Hydra above it, clean up after exceptions with
    variables that are not set then, and what comes out is an ``UnboundLocalError``.
    """
    if threading.current_thread() is not threading.main_thread():  # others receive none
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    received: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for came in dict.fromkeys(received):
            signal.raise_signal(came)
