"""Whether the steps of a stage are compiled with XLA, and where they cannot be."""

from __future__ import annotations

import keras
import tensorflow as tf

from tlearn.config import Config, Stage
from tlearn.errors import ConfigError, Problem
from tlearn.train.environment import is_deterministic
from tlearn.train.frontier import find_frontier


def uses_xla(config: Config, stage: Stage) -> bool:
    """Whether a stage's steps are compiled; ``auto`` is on only where there is a GPU and runs need not repeat.

    On CPUs it was slower for every network that was measured (docs/speed.md).
    """
    asked = config.xla if stage.xla is None else stage.xla
    if asked == "auto":
        return bool(tf.config.list_physical_devices("GPU")) and not is_deterministic(config)
    return asked is True or asked == "on"


def check_xla(config: Config, stage: Stage, model: keras.Model, where: str) -> None:
    """Refuse what TensorFlow 2.21 would refuse in the first step: XLA has no deterministic gradient of max pooling.

    Args:
        config, stage: of the run.
        model: frozen as in the stage.
        where: config key of the stage.

    Raises:
        ConfigError: the stage is to be compiled and deterministic, and there is max pooling above its frontier.
    """
    if not (uses_xla(config, stage) and is_deterministic(config)):
        return
    cold = set(map(id, find_frontier(model).cold))
    for layer in model.layers:
        if isinstance(layer, keras.layers.MaxPooling2D) and id(layer) not in cold:
            what = f"XLA has no deterministic gradient of max pooling, and {layer.name} lies in what trains"
            key = "xla" if stage.xla is None else f"{where}.xla"
            raise ConfigError(Problem(key, what, "use xla=off, or deterministic=false"))
