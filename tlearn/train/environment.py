"""Settings of the process a run happens in."""

from __future__ import annotations

import os

from tlearn.config import Config
from tlearn.quiet import import_tensorflow


def prepare_process(config: Config) -> None:
    """Import TensorFlow, seed everything, and ask for deterministic operations where the config wants them."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it looks for a newer version of itself on import
    import_tensorflow()
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(config.seed)
    if is_deterministic(config):
        tf.config.experimental.enable_op_determinism()


def is_deterministic(config: Config) -> bool:
    """Whether the same config must give the same weights, bit for bit; ``auto``: where there is no GPU."""
    import tensorflow as tf

    on_cpu = not tf.config.list_physical_devices("GPU")
    return config.deterministic is True or (config.deterministic == "auto" and on_cpu)
