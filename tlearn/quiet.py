"""Import TensorFlow without what its C++ code writes to the terminal: it is about drivers, never about a run."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

from tlearn.errors import UserError


@cache
def import_tensorflow() -> None:
    """Import TensorFlow and Keras and look for devices, which is when the writing happens. Takes some seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with hidden_output(2, python=False), _rare_collections():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for garbage rarely while so much is made that stays, and never again among what stays.

    Seen: 3.6 instead of 4.4 processor seconds for TensorFlow, and each full collection later 0.2 less.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
    gc.freeze()


@contextlib.contextmanager
def hidden_output(*descriptors: int, python: bool = True) -> Iterator[None]:
    """Nothing is written to these file descriptors, 1 or 2; a fault that leaves the block shows it after all.

    A ``UserError`` does not: it says all that a user needs.

    Args:
        descriptors: what to hide.
        python: hide what Python writes as well, and not only what C++ code does.
    """
    _flush()
    kept = {number: os.dup(number) for number in descriptors}
    stderr = sys.stderr
    shown = _StandardError(stderr)
    with tempfile.TemporaryFile() as sink, os.fdopen(os.dup(2), "w", buffering=1) as visible:
        for number in descriptors:
            os.dup2(sink.fileno(), number)
        if not python and _is_descriptor_2(stderr):
            shown.stream, sys.stderr = visible, cast(Any, shown)
        try:
            yield
        except Exception as error:
            _flush()
            sink.seek(0)
            if not isinstance(error, UserError):
                os.write(kept[max(kept)], sink.read())
            raise
        finally:
            _flush()
            shown.stream = sys.stderr = stderr
            for number, original in kept.items():
                os.dup2(original, number)
                os.close(original)


class _StandardError:
    """Stands for a stream that changes: loggers made meanwhile keep hold of what they find as standard error."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _is_descriptor_2(stream: object) -> bool:
    """A notebook, or a test, may have put another stream in the place of standard error."""
    try:
        return stream.fileno() == 2  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError):
        return False


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
