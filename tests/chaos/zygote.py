"""A process that has imported TensorFlow, run nothing, and forks for every run: a kill costs a second, not five.

It reads a request a line, JSON, and answers with a line when the run has ended or was killed:

    {"arguments": [...], "log": FILE, "after": SECONDS or null, "at": [PLACE, COUNT] or null}
    {"status": exit status, or minus the number of the signal, "seconds": how long it took}

``after`` kills from outside, ``at`` from inside: SIGKILL to itself at the so-manieth passage of a place. At the place
``validation`` it is SIGTERM, and the run ends with the status of one that was stopped.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import albumentations  # noqa: F401
import keras  # noqa: F401
import sklearn.model_selection  # noqa: F401
import tensorflow  # noqa: F401
from tensorboard.plugins.hparams import api as _  # noqa: F401

from tlearn.compose import load_config
from tlearn.train import api, command, feature_cache, recorder, report, trainer  # noqa: F401


def main() -> None:
    """Serve until standard input ends."""
    load_config()  # what a first call imports and keeps, every run has then
    report.draw_curves([])
    for line in sys.stdin:
        request = json.loads(line)
        begun = time.monotonic()
        process = os.fork()
        if process == 0:
            run(request)
        status = wait(process, request["after"])
        print(json.dumps({"status": status, "seconds": time.monotonic() - begun}), flush=True)


def wait(process: int, after: float | None) -> int:
    """Exit status of a child, which is killed when it takes longer than it is to live."""
    end = None if after is None else time.monotonic() + after
    while end is not None:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(request: dict[str, Any]) -> NoReturn:
    """The command as a user starts it."""
    status = 99
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):  # nothing of a killed run is lost for whoever looks into a failure
            os.dup2(log, descriptor)
        if request["at"]:
            place, count = request["at"]
            PLACES[place](count)
        status = command.main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


# --- places to be killed at ------------------------------------------------------------------------------------------


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def counted(owner: Any, name: str, count: int, deed: Callable[..., Any]) -> None:
    """Do ``deed(original, ...)`` in place of the count-th call of a function."""
    original, calls = getattr(owner, name), 0

    def passing(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        return deed(original, *args, **keywords) if calls == count else original(*args, **keywords)

    setattr(owner, name, passing)


def in_a_write(count: int) -> None:
    """A file, of a state or of anything else, is half-written."""

    def half(original: Any, path: pathlib.Path, data: Any) -> NoReturn:
        original(path, bytes(data)[: len(data) // 2])
        die()

    counted(pathlib.Path, "write_bytes", count, half)


def before_a_rename(count: int) -> None:
    """A file is whole, but has another name still."""
    counted(os, "replace", count, lambda *args, **keywords: die())


def after_a_rename(count: int) -> None:
    """A file has its name, and what is to happen next does not happen."""

    def renamed(original: Any, *args: Any, **keywords: Any) -> NoReturn:
        original(*args, **keywords)
        die()

    counted(os, "replace", count, renamed)


def making_features(count: int) -> None:
    """Some rows of the features are written."""

    def some(original: Any, *args: Any) -> NoReturn:
        original(*args)
        die()

    counted(feature_cache.Writer, "append", count, some)


def in_a_validation(count: int) -> None:
    """Not killed but asked to stop, when the images of a validation are wanted: it is left, and saved as due."""

    def asked(original: Any, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    counted(trainer.Trainer, "_validate", count, asked)


def after_an_epoch(count: int) -> None:
    """An epoch is recorded, and no state has been saved since."""

    def recorded(original: Any, *args: Any) -> NoReturn:
        original(*args)
        die()

    counted(recorder.Recorder, "epoch", count, recorded)


def at_the_end(count: int) -> None:
    """In the final evaluation, or while the model and the report are written: so many hundredths of a second later."""

    def soon(original: Any, *args: Any, **keywords: Any) -> Any:
        threading.Timer(count / 100, die).start()
        return original(*args, **keywords)

    counted(trainer, "finish", 1, soon)


PLACES = {
    "write": in_a_write,
    "before rename": before_a_rename,
    "after rename": after_a_rename,
    "features": making_features,
    "validation": in_a_validation,
    "epoch": after_an_epoch,
    "end": at_the_end,
}

if __name__ == "__main__":
    main()
