"""Import TensorFlow without what its C++ code writes to the terminal: it is about drivers, never about a run."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache

from tlearn.errors import UserError


@cache
def import_tensorflow() -> None:
    """Import TensorFlow and Keras and look for devices, which is when the writing happens. Takes some seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with native_output_hidden():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def native_output_hidden() -> Iterator[None]:
    """What C++ code writes to standard error is hidden; what Python writes there is shown.

    When an exception leaves the block, what was hidden is shown after all.
    """
    sys.stderr.flush()
    python, kept = sys.stderr, os.dup(2)
    with tempfile.TemporaryFile() as sink, os.fdopen(os.dup(2), "w", buffering=1) as visible:
        os.dup2(sink.fileno(), 2)
        if _is_descriptor_2(python):
            sys.stderr = visible
        try:
            yield
        except BaseException:
            sink.seek(0)
            os.write(kept, sink.read())
            raise
        finally:
            sys.stderr.flush()
            sys.stderr = python
            os.dup2(kept, 2)
            os.close(kept)


def _is_descriptor_2(stream: object) -> bool:
    """A notebook, or a test, may have put another stream in the place of standard error."""
    try:
        return stream.fileno() == 2  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError):
        return False


@contextlib.contextmanager
def hidden_output(*descriptors: int) -> Iterator[None]:
    """Nothing is written to these file descriptors, 1 or 2; a fault that leaves the block shows it after all.

    A ``UserError`` does not: it says all that a user needs.
    """
    _flush()
    kept = {number: os.dup(number) for number in descriptors}
    with tempfile.TemporaryFile() as sink:
        for number in descriptors:
            os.dup2(sink.fileno(), number)
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
            for number, original in kept.items():
                os.dup2(original, number)
                os.close(original)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
