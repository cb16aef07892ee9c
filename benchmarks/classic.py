"""The classic Keras fine-tuning script against tlearn: same photographs, weights, epochs and batches.

Head for E epochs with RMSprop, then the top two blocks for E more with SGD, batch norm frozen. Each runs in a process
of its own; time is from after the imports to the end of training, tlearn's with an empty feature cache. The pairs run
one after the other, so that a slow moment of the machine meets both.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import tlearn
from benchmarks.common import ASSETS, scratch, table, write_results

EPOCHS = 10
BATCH = 32
SEEDS = (1, 2, 3)
MODELS = ASSETS / "keras" / "models"
# name: (backbone, alpha, side, weights, first layer that trains: the top two blocks)
CASES = {
    "mobilenet 0.25, 160 px": ("mobilenet", 0.25, 160, MODELS / "mobilenet_2_5_224_tf_no_top.h5", "conv_pad_12"),
    "mobilenet_v2 0.35, 160 px": (
        "mobilenet_v2",
        0.35,
        160,
        MODELS / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5",
        "block_16_expand",
    ),
}


def main() -> None:
    """Measure all cases and seeds, print a table, write the results."""
    if not ASSETS.is_dir():
        print(f"skipped: no photographs in {ASSETS}")
        return
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for case in CASES:
        for seed in SEEDS:
            for side in ("keras", "tlearn"):
                measured = _in_own_process(side, case, seed)
                results.setdefault(case, {}).setdefault(side, []).append(measured)
                print(f"{case}, seed {seed}, {side}: {measured}", flush=True)
    rows = []
    for case, sides in results.items():
        seconds = {side: statistics.median(run["seconds"] for run in runs) for side, runs in sides.items()}
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(sides["keras"], sides["tlearn"], strict=True)]
        accuracy = {side: ", ".join(f"{run['val_accuracy']:.3f}" for run in runs) for side, runs in sides.items()}
        ratio = f"{statistics.median(ratios):.1f}"
        rows.append([case, f"{seconds['keras']:.1f}", f"{seconds['tlearn']:.1f}", ratio, *accuracy.values()])
    table(["", "Keras script, s", "tlearn, s", "ratio", "accuracy, script", "accuracy, tlearn"], rows)
    write_results("classic", results)


def _in_own_process(side: str, case: str, seed: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.classic", side, case, str(seed)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def classic_script(case: str, seed: int) -> dict[str, float]:
    """What one finds in tutorials, with the whole model trained and validated in every epoch."""
    import keras
    import tensorflow as tf

    name, alpha, side, weights, first = CASES[case]
    keras.utils.set_random_seed(seed)
    begin = time.perf_counter()
    train, val = (
        keras.utils.image_dataset_from_directory(
            ASSETS / "flowers" / split,
            image_size=(side, side),
            batch_size=BATCH,
            label_mode="categorical",
            crop_to_aspect_ratio=True,
            seed=seed,
            shuffle=split == "train",
            verbose=False,
        ).prefetch(tf.data.AUTOTUNE)
        for split in ("train", "val")
    )
    network = keras.applications.MobileNet if name == "mobilenet" else keras.applications.MobileNetV2
    base = network(alpha=alpha, include_top=False, weights=None, input_shape=(side, side, 3))
    base.load_weights(weights)
    base.trainable = False
    images = keras.Input((side, side, 3))
    x = base(images / 127.5 - 1.0, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(1024, activation="relu")(x)
    model = keras.Model(images, keras.layers.Dense(5, activation="softmax")(x))
    model.compile(keras.optimizers.RMSprop(1e-3), "categorical_crossentropy", metrics=["accuracy"])
    model.fit(train, validation_data=val, epochs=EPOCHS, verbose=0)
    head_seconds = time.perf_counter() - begin
    base.trainable = True
    index = [layer.name for layer in base.layers].index(first)
    for position, layer in enumerate(base.layers):
        layer.trainable = position >= index and not isinstance(layer, keras.layers.BatchNormalization)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), "categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(train, validation_data=val, epochs=EPOCHS, verbose=0).history
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "head_seconds": round(head_seconds, 2),
        "val_accuracy": round(history["val_accuracy"][-1], 4),
    }


def with_tlearn(case: str, seed: int) -> dict[str, float]:
    """The same as a config; from the empty run folder to the finished one."""
    name, alpha, side, weights, _ = CASES[case]
    schedule = tlearn.preset("schedule", "two_stage")
    for stage in schedule.stages:
        stage.epochs = EPOCHS
    from tlearn.quiet import import_tensorflow

    import_tensorflow()  # imports are not counted on the other side either
    with scratch() as folder:
        config = tlearn.Config(
            seed=seed,
            run_dir=str(folder / "run"),
            backbone=replace(tlearn.preset("backbone", name), alpha=alpha, image_size=side, weights=str(weights)),
            head=tlearn.preset("head", "mlp"),
            data=tlearn.DataConfig(name="folder", path=str(ASSETS / "flowers"), batch_size=BATCH),
            schedule=schedule,
            cache=tlearn.config.CacheConfig(dir=str(folder / "features")),
            checkpoint=tlearn.CheckpointConfig(final=tlearn.config.Keep.last),
        )
        begin = time.perf_counter()
        run = tlearn.fit(config)
        seconds = time.perf_counter() - begin
        head = [record["seconds"] for record in run.epochs() if record["stage"] == "head"][-1]
        return {
            "seconds": round(seconds, 2),
            "head_seconds": round(head, 2),
            "val_accuracy": run.summary["val_accuracy"],
        }


if __name__ == "__main__":
    side, case, seed = sys.argv[1:]
    print(json.dumps((classic_script if side == "keras" else with_tlearn)(case, int(seed))))
