"""Settings of the process a run happens in."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from tlearn.config import Config


def use_determinism(config: Config) -> None:
    """Seed everything, and ask TensorFlow for deterministic operations where the config wants them."""
    with quiet_import():
        import keras
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    keras.utils.set_random_seed(config.seed)
    if config.deterministic is True or (config.deterministic == "auto" and not gpus):
        tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Hide what TensorFlow's C++ code writes to standard error while it loads: it is about drivers, never about a run.

    It is shown after all when the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except BaseException:
            sink.seek(0)
            os.write(kept, sink.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
