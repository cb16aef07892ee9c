"""Full fine-tuning, nothing frozen and no cache: tlearn against a bare Keras ``fit`` and against PyTorch.

Images a second after the first steps, from JPEG files, random weights, batch norm training. Each runs in a process of
its own. PyTorch's networks are written plainly in ``torch_networks.py``; they are measured in its usual memory layout
and channels-last. Without ``TORCH_PYTHON`` the comparison with PyTorch is left out.

tlearn is measured with ``precision=mixed_bfloat16`` as well, which processors with AVX512-BF16 or AMX multiply faster;
whether a network gains depends on how much of its time goes to multiplying.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

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
from benchmarks.peer import torch_python, torch_recipe

REPETITIONS = 1 if QUICK else 3
HALF = "tlearn, mixed_bfloat16"


@dataclass(frozen=True)
class Case:
    """A network, and how much of it is run; the first steps are not counted."""

    network: str
    side: int
    batch: int
    warm_up: int
    steps: int


if QUICK:
    CASES = {"MobileNetV2, 32 px": Case("mobilenet_v2", 32, 4, 1, 2)}
else:
    CASES = {
        "ResNet50, 160 px, batch 16": Case("resnet50", 160, 16, 2, 4),
        "MobileNetV2, 160 px, batch 32": Case("mobilenet_v2", 160, 32, 2, 4),
    }


def main() -> None:
    """Measure, print a table, write the results."""
    if not has_photographs():
        return
    python, torch, results, comparisons = torch_python(), None, {}, []
    for name, case in CASES.items():
        print(f" {name}", flush=True)
        with scratch() as folder:
            photographs = linked_photographs(folder, (case.warm_up + case.steps) * case.batch // 5 + case.batch, 1)
            sides = {
                side: lambda side=side, name=name, photographs=photographs: in_own_process(
                    "benchmarks.full", side, name, photographs
                )
                for side in ("tlearn", HALF, "Keras")
            }
            for layout in ("PyTorch", "PyTorch, channels last") if python else ():
                options = asdict(case) | {"photographs": str(photographs), "channels_last": "last" in layout}
                options["workers"] = 1  # reading takes a small part of a core here; more would only get in the way
                sides[layout] = lambda options=options: torch_recipe("full", python, **options)
            figures = alternated(sides, REPETITIONS)
        for layout in [side for side in figures if side.startswith("PyTorch")]:
            torch = figures[layout][0]["torch"]
            figures[layout] = [run["images_per_second"] for run in figures[layout]]
        others = [side for side in figures if side not in ("tlearn", HALF)]
        comparisons += [
            *(compare(name, "images/s", figures["tlearn"], figures[side], side) for side in others),
            compare(f"{name}, mixed_bfloat16", "images/s", figures[HALF], figures["tlearn"], "tlearn, float32"),
        ]
        results[name] = figures
    about = {"torch": torch} if python else {"left_out": "PyTorch: TORCH_PYTHON names no interpreter"}
    write_results("full", results, comparisons, **about)


def with_tlearn(case: Case, photographs: Path, precision: str = "float32") -> float:
    import tlearn
    from benchmarks.clock import Clock, steps_per_second
    from tlearn.config import BatchNorm, CacheConfig, CacheMode, Check, Precision

    clock = Clock()
    stage = tlearn.Stage(
        name="all",
        unfreeze="all",
        steps=case.warm_up + case.steps,
        optimizer=tlearn.OptimizerConfig(name="sgd", learning_rate=1e-4, momentum=0.9),
        batch_norm=BatchNorm.train,
    )
    with scratch() as folder:
        config = tlearn.Config(
            run_dir=str(folder / "run"),
            backbone=tlearn.BackboneConfig(case.network, weights=None, image_size=case.side),
            data=tlearn.DataConfig(name="folder", path=str(photographs), batch_size=case.batch, check=Check.none),
            schedule=tlearn.ScheduleConfig(stages=[stage]),
            cache=CacheConfig(mode=CacheMode.off),
            log=tlearn.LogConfig(every=1),
            precision=Precision(precision),
        )
        tlearn.fit(config, terminal=clock)
    return steps_per_second(clock.training()[-1], case.warm_up) * case.batch


def with_keras(case: Case, photographs: Path) -> float:
    import keras
    import tensorflow as tf

    train = keras.utils.image_dataset_from_directory(
        photographs / "train",
        image_size=(case.side, case.side),
        batch_size=case.batch,
        label_mode="categorical",
        crop_to_aspect_ratio=True,
        seed=1,
        verbose=False,
    ).prefetch(tf.data.AUTOTUNE)
    network = {"resnet50": keras.applications.ResNet50, "mobilenet_v2": keras.applications.MobileNetV2}[case.network]
    images = keras.Input((case.side, case.side, 3))
    base = network(include_top=False, weights=None, input_tensor=keras.layers.Rescaling(1 / 127.5, -1)(images))
    scores = keras.layers.Dense(5, activation="softmax")(keras.layers.GlobalAveragePooling2D()(base.output))
    model = keras.Model(images, scores)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), "categorical_crossentropy", metrics=["accuracy"])
    marks = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: marks.append(time.perf_counter()))
    model.fit(train, steps_per_epoch=case.warm_up + case.steps, callbacks=[note], verbose=0)
    return case.steps * case.batch / (marks[-1] - marks[case.warm_up - 1])


if __name__ == "__main__":
    side, name, photographs = sys.argv[1:]
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    measure = {"tlearn": with_tlearn, HALF: partial(with_tlearn, precision="mixed_bfloat16"), "Keras": with_keras}[side]
    print(json.dumps(round(measure(CASES[name], Path(photographs)), 3)))
