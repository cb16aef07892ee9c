"""Trains the same configs on one device and on two, in a process that has two CPUs for TensorFlow.

    python mirrored_runs.py FOLDER CASE...

FOLDER/CASE-one and FOLDER/CASE-mirrored are the run folders. Of the case overflow there is the second only: how large a
loss may be scaled depends on the size of the shares.
"""

import os
import sys
from functools import partial
from pathlib import Path

import keras
import tensorflow as tf

from tlearn.compose import load_config
from tlearn.registry import load_plugins
from tlearn.train import trainer
from tlearn.train.api import fit, resume
from tlearn.train.trainer import Stopped

TINY = (
    "backbone.name=tiny",
    "backbone.weights=null",
    "backbone.alpha=null",
    "backbone.image_size=16",
    "data.name=stripes",
    "data.batch_size=9",  # 48 images: shares of 4 and 5, the last batch has shares of 1 and 2
    "data.check=none",
    "log.tensorboard=false",
    "log.every=1",
    "prefix.engine=graph",
)
TWO_STAGES = (
    "schedule.stages=[{name: head, epochs: 2}, {name: top, unfreeze: {last_blocks: 1}, epochs: 1, carry_slots: true}]"
)
CASES = {
    # everything that must be done once, on the whole batch or on the sum of the gradients
    "streamed": (
        "cache.mode=off",
        TWO_STAGES,
        "optimizer.accumulate=2",
        "optimizer.clip_global_norm=0.3",
        "optimizer.ema=0.9",
        "optimizer.weight_decay=0.01",
        "loss.class_weights=balanced",
        "loss.label_smoothing=0.1",
        "augment.mixup=0.3",
        "augment.cutmix=1.0",
    ),
    "cached": ("cache.mode=auto", TWO_STAGES, "head=mlp", "head.units=[8]", "optimizer.block_decay=0.5"),
    **{
        precision: (
            f"precision={precision}",
            "schedule.stages=[{name: all, unfreeze: all, epochs: 3}]",
            "optimizer=sgd",
        )
        for precision in ("mixed_float16", "mixed_bfloat16")
    },
    "overflow": ("precision=mixed_float16", "schedule.stages=[{name: all, unfreeze: all, epochs: 3}]", "optimizer=sgd"),
    "moving": ("schedule.stages=[{name: all, unfreeze: all, epochs: 3, batch_norm: train}]", "augment.mixup=0.3"),
}


def train(folder: Path, case: str, strategy: str) -> None:
    path = folder / f"{case}-{strategy}"
    config = load_config([*TINY, *CASES[case], f"strategy={strategy}", f"run_dir={path}"])
    if case == "overflow":
        keras.optimizers.LossScaleOptimizer = partial(keras.optimizers.LossScaleOptimizer, initial_scale=2.0**24)
    if case == "streamed" and strategy == "mirrored":  # and stopped within an epoch of the second stage
        asked = iter([False] * 13 + [True] * 99)
        try:
            fit(config, should_stop=lambda: next(asked))
            raise AssertionError("did not stop")
        except Stopped:
            resume(path)
        return
    fit(config)


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    load_plugins()
    # evaluation and report take longer than such runs
    trainer.finish = lambda *arguments, **keywords: {"status": "finished"}
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    for case in sys.argv[2:]:
        for strategy in ("mirrored",) if case == "overflow" else ("one", "mirrored"):
            train(Path(sys.argv[1]), case, strategy)
