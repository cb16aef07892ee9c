"""Import TensorFlow without what its C++ code writes to the terminal: it is about drivers, never about a run."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache


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
