"""What the stream, the loop, the metrics and the log of a streaming stage cost.

On one side a stage of ``tlearn.fit`` that reads photographs; on the other a bare ``tf.function`` of Keras' own training
step of the same model, called again and again on one batch that stays in memory. Each runs in a process of its own;
counted are the steps after the first ones. tlearn's steps are deterministic by default, which has a price of its own:
the bare step with TensorFlow's deterministic operations tells how much of the difference it is. Where compute is the
bottleneck, the rest is tlearn's overhead. Where it is not, input takes its share of the same cores, and no goal is set.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.common import (
    QUICK,
    alternated,
    compare,
    has_photographs,
    in_own_process,
    linked_photographs,
    scratch,
    write_results,
)

REPETITIONS = 1 if QUICK else 3
GOAL = 0.95
CLASSES = 5


@dataclass(frozen=True)
class Case:
    """A backbone that is trained as a whole, batch norm in inference mode.

    ``in_memory``: decoded images are kept (``data.cache=memory``), and the counted steps are those of a second epoch.
    """

    backbone: str
    alpha: float | None
    side: int
    batch: int
    warm_up: int
    steps: int
    in_memory: bool = False
    goal: float | None = None


if QUICK:
    CASES = {
        "drawn, from files": Case("mobilenet", 0.25, 32, 4, 1, 3),
        "drawn, in memory": Case("mobilenet", 0.25, 32, 4, 1, 3, in_memory=True),
    }
else:
    CASES = {
        "ResNet50, 160 px, JPEG files": Case("resnet50", None, 160, 16, 2, 5, goal=GOAL),
        "MobileNet 0.25, 160 px, kept decoded": Case("mobilenet", 0.25, 160, 32, 8, 60, in_memory=True, goal=GOAL),
        "MobileNet 0.25, 160 px, JPEG files": Case("mobilenet", 0.25, 160, 32, 8, 60),
    }


def main() -> None:
    """Measure, print a table, write the results."""
    if not has_photographs():
        return
    results: dict[str, dict[str, list[float]]] = {}
    comparisons = []
    for name, case in CASES.items():
        print(f" {name}", flush=True)
        sides = {
            side: lambda name=name, side=side: in_own_process("benchmarks.overhead", side, name)
            for side in ("tlearn", "bare", "deterministic")
        }
        figures = results[name] = alternated(sides, REPETITIONS)
        comparisons += [
            compare(name, "images/s", figures["tlearn"], figures[side], against, goal)
            for side, against, goal in (
                ("bare", "bare step, batch in memory", case.goal),
                ("deterministic", "the same, deterministic", None),
            )
        ]
    write_results("overhead", results, comparisons)


def with_tlearn(case: Case) -> float:
    import tlearn
    from benchmarks.clock import Clock, steps_per_second
    from tlearn.config import CacheConfig, CacheMode, Check, DataCache, LogConfig

    clock = Clock()
    with scratch() as folder:
        epoch = case.warm_up + case.steps
        photographs = linked_photographs(folder, epoch * case.batch // CLASSES + 1, 1)
        stage = tlearn.Stage(
            name="all",
            unfreeze="all",
            steps=epoch * (2 if case.in_memory else 1),
            optimizer=tlearn.OptimizerConfig(name="sgd", learning_rate=1e-4, momentum=0.9),
        )
        config = tlearn.Config(
            run_dir=str(folder / "run"),
            backbone=tlearn.BackboneConfig(case.backbone, weights=None, image_size=case.side, alpha=case.alpha),
            data=tlearn.DataConfig(
                name="folder",
                path=str(photographs),
                batch_size=case.batch,
                check=Check.none,
                cache=DataCache.memory if case.in_memory else DataCache.none,
            ),
            schedule=tlearn.ScheduleConfig(stages=[stage]),
            cache=CacheConfig(mode=CacheMode.off),
            log=LogConfig(progress=False, every=1 if QUICK else 50),
        )
        tlearn.fit(config, terminal=clock)
    return steps_per_second(clock.training()[-1], case.warm_up) * case.batch


def bare(case: Case, *, deterministic: bool) -> float:
    import keras
    import numpy as np
    import tensorflow as tf

    import tlearn

    if deterministic:
        keras.utils.set_random_seed(1)
        tf.config.experimental.enable_op_determinism()

    backbone = tlearn.build_backbone(case.backbone, alpha=case.alpha, image_size=case.side)
    features = keras.layers.GlobalAveragePooling2D()(backbone.output)
    model = keras.Model(backbone.input, keras.layers.Dense(CLASSES)(features))
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    model.compile(
        keras.optimizers.SGD(1e-4, momentum=0.9), keras.losses.CategoricalCrossentropy(True), metrics=["accuracy"]
    )
    random = np.random.default_rng(1)
    images = tf.constant(random.integers(0, 256, (case.batch, case.side, case.side, 3), np.uint8))
    labels = tf.one_hot(random.integers(0, CLASSES, case.batch), CLASSES)
    step = tf.function(model.train_step)

    def run(steps: int) -> Any:
        for _ in range(steps):
            logs = step((images, labels))
        return float(logs["loss"])  # waits for the last step

    run(case.warm_up)
    begin = time.perf_counter()
    run(case.steps)
    return case.steps * case.batch / (time.perf_counter() - begin)


if __name__ == "__main__":
    side, name = sys.argv[1:]
    case = CASES[name]
    rate = with_tlearn(case) if side == "tlearn" else bare(case, deterministic=side == "deterministic")
    print(json.dumps(round(rate, 2)))
