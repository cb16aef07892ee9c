"""The classic Keras fine-tuning script against tlearn: same photographs, weights, epochs and batches.

Head for E epochs with RMSprop, then the top two blocks for E more with SGD, batch norm frozen. Each runs in a process
of its own; time is from after the imports to the end of training, tlearn's with an empty feature cache. The pairs run
one after the other, so that a slow moment of the machine meets both.

The script decodes and resizes as tutorials do, with ``image_dataset_from_directory`` (bilinear, not antialiased);
tlearn antialiases, which costs time and helps accuracy. The script saves nothing; tlearn's time includes its
checkpoints, the report and the saved model.

The MobileNets are measured at 224 pixels, which is what they and their weights are made for, and once more at 160,
where less of an epoch is the network's own work and more is reading photographs.

There are no ImageNet weights of InceptionV3 among the assets, so it has random ones, which are as fast: its accuracy
says nothing and is not compared. It has one seed, as three would take half an hour.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import tlearn
from benchmarks.common import (
    ASSETS,
    FLOWERS,
    QUICK,
    alternated,
    compare,
    compare_accuracy,
    has_photographs,
    in_own_process,
    linked_photographs,
    scratch,
    write_results,
)

EPOCHS = 1 if QUICK else 10
BATCH = 4 if QUICK else 32
SEEDS = (1,) if QUICK else (1, 2, 3)
HEAD_GOAL = 0.8 * EPOCHS
GOAL = 5.0
MODELS = ASSETS / "keras" / "models"


@dataclass(frozen=True)
class Case:
    """A network, and the first layer of its top two blocks, by name or index.

    ``per_class``: train and val photographs; None: all there are.
    """

    backbone: str
    keras_name: str
    alpha: float | None
    side: int
    weights: Path | None
    first: str | int
    per_class: tuple[int, int] | None = None
    seeds: tuple[int, ...] = SEEDS


if QUICK:
    CASES = {"MobileNet 0.25, drawn": Case("mobilenet", "MobileNet", 0.25, 32, None, "conv_pad_12", (8, 2))}
else:
    MOBILENET = Case("mobilenet", "MobileNet", 0.25, 224, MODELS / "mobilenet_2_5_224_tf_no_top.h5", "conv_pad_12")
    MOBILENET_V2 = Case(
        "mobilenet_v2",
        "MobileNetV2",
        0.35,
        224,
        MODELS / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5",
        "block_16_expand",
    )
    CASES = {
        "MobileNet 0.25, 224 px": MOBILENET,
        "MobileNetV2 0.35, 224 px": MOBILENET_V2,
        "MobileNet 0.25, 160 px": replace(MOBILENET, side=160, seeds=(1,)),
        "MobileNetV2 0.35, 160 px": replace(MOBILENET_V2, side=160, seeds=(1,)),
        "InceptionV3, 139 px": Case("inception_v3", "InceptionV3", None, 139, None, 249, seeds=(1,)),
    }

SMALLEST = next(name for name in CASES if CASES[name].side < 224)
"""For benchmarks that compare with other things than Keras, or many runs."""


def main() -> None:
    """Measure all cases and seeds, print a table, write the results."""
    if not has_photographs():
        return
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    comparisons = []
    for name, case in CASES.items():
        runs = results[name] = {"tlearn": [], "keras": []}
        for seed in case.seeds:
            print(f" {name}, seed {seed}", flush=True)
            sides = {side: lambda side=side, name=name, seed=seed: measured(side, name, seed) for side in runs}
            for side, figures in alternated(sides, 1).items():
                runs[side] += figures
        seconds, head, accuracy = (
            [[run[key] for run in runs[side]] for side in ("tlearn", "keras")]
            for key in ("seconds", "head_seconds", "val_accuracy")
        )
        comparisons += [
            compare(f"{name}, {EPOCHS} + {EPOCHS} epochs", "s", *seconds, "Keras script", GOAL),
            compare(f"{name}, head stage", "s", *head, "Keras script", HEAD_GOAL),
        ]
        if case.weights is not None:
            comparisons.append(compare_accuracy(name, *accuracy, "Keras script"))
    write_results("classic", results, comparisons)


def measured(side: str, case: str, seed: int) -> dict[str, float]:
    """Seconds and accuracy of one side, in a process of its own."""
    figures: dict[str, float] = in_own_process("benchmarks.classic", side, case, seed)
    return figures


def classic_script(case: Case, photographs: Path, seed: int) -> dict[str, float]:
    """What one finds in tutorials, with the whole model trained and validated in every epoch."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    begin = time.perf_counter()
    train, val = (
        keras.utils.image_dataset_from_directory(
            photographs / split,
            image_size=(case.side, case.side),
            batch_size=BATCH,
            label_mode="categorical",
            crop_to_aspect_ratio=True,
            seed=seed,
            shuffle=split == "train",
            verbose=False,
        ).prefetch(tf.data.AUTOTUNE)
        for split in ("train", "val")
    )
    width: dict[str, Any] = {} if case.alpha is None else {"alpha": case.alpha}
    network = getattr(keras.applications, case.keras_name)
    base = network(include_top=False, weights=None, input_shape=(case.side, case.side, 3), **width)
    if case.weights is not None:
        base.load_weights(case.weights)
    base.trainable = False
    images = keras.Input((case.side, case.side, 3))
    x = base(images / 127.5 - 1.0, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(1024, activation="relu")(x)
    model = keras.Model(images, keras.layers.Dense(5, activation="softmax")(x))
    model.compile(keras.optimizers.RMSprop(1e-3), "categorical_crossentropy", metrics=["accuracy"])
    model.fit(train, validation_data=val, epochs=EPOCHS, verbose=0)
    head_seconds = time.perf_counter() - begin
    base.trainable = True
    first = case.first
    index = first if isinstance(first, int) else [layer.name for layer in base.layers].index(first)
    for position, layer in enumerate(base.layers):
        layer.trainable = position >= index and not isinstance(layer, keras.layers.BatchNormalization)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), "categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(train, validation_data=val, epochs=EPOCHS, verbose=0).history
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "head_seconds": round(head_seconds, 2),
        "val_accuracy": round(history["val_accuracy"][-1], 4),
    }


def with_tlearn(case: Case, photographs: Path, seed: int) -> dict[str, float]:
    """The same as a config; from the empty run folder to the finished one."""
    from tlearn.quiet import import_tensorflow

    import_tensorflow()  # imports are not counted on the other side either
    import_module("tlearn.train.trainer")
    from benchmarks.clock import Clock
    from tlearn.train.api import fit

    schedule = tlearn.preset("schedule", "two_stage")
    for stage in schedule.stages:
        stage.epochs = EPOCHS
    weights = None if case.weights is None else str(case.weights)
    architecture = replace(tlearn.preset("backbone", case.backbone), alpha=case.alpha, image_size=case.side)
    clock = Clock()
    with scratch() as folder:
        config = tlearn.Config(
            seed=seed,
            run_dir=str(folder / "run"),
            backbone=replace(architecture, weights=weights),
            head=tlearn.preset("head", "mlp"),
            data=tlearn.DataConfig(name="folder", path=str(photographs), batch_size=BATCH),
            schedule=schedule,
            cache=tlearn.CacheConfig(dir=str(folder / "features")),
            checkpoint=tlearn.CheckpointConfig(final=tlearn.config.Keep.last),
        )
        begin = time.perf_counter()
        run = fit(config, terminal=clock)
        seconds = time.perf_counter() - begin
        # A run counts from where everything is built, and it is there that it prints for the first time.
        built = (clock.first_print or begin) - begin
        head = [record["seconds"] for record in run.epochs() if record["stage"] == "head"][-1]
        return {
            "seconds": round(seconds, 2),
            "head_seconds": round(built + head, 2),
            "val_accuracy": round(run.summary["val_accuracy"], 4),
        }


def _measure(side: str, case: Case, seed: int) -> dict[str, float]:
    call = classic_script if side == "keras" else with_tlearn
    if case.per_class is None:
        return call(case, FLOWERS, seed)
    with scratch() as folder:
        return call(case, linked_photographs(folder, *case.per_class), seed)


if __name__ == "__main__":
    side, name, seed = sys.argv[1:]
    print(json.dumps(_measure(side, CASES[name], int(seed))))
