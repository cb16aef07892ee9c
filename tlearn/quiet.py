"""Keep what TensorFlow's C++ code writes from the terminal: it is about drivers and passes, never about a run."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from tlearn.errors import UserError


def import_tensorflow() -> None:
    """Import TensorFlow and Keras and look for devices, which is when the writing happens. Takes some seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "tensorflow" in sys.modules and "keras" in sys.modules:
        return
    with hidden_output(2):
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()


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
