"""The two-stage recipe in PyTorch against tlearn: same photographs, weights, epochs, batches and optimizers.

PyTorch's side is what one writes with torch and Pillow: a data set, a loader, a loop; the whole network in every epoch,
the frozen part without gradients. With the first seed the loader is tried with no workers and with one for each core;
the other seeds, and the comparison, have the faster of the two. Its MobileNet starts from the same ImageNet weights as
Keras', converted; that both compute the same features is checked and part of the result. A dense layer starts from the
same distribution, the order of the images is each side's own. Time is from after the imports to the end of training,
tlearn's with an empty feature cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import classic
from benchmarks.common import (
    CORES,
    QUICK,
    compare,
    compare_accuracy,
    flowers,
    has_photographs,
    in_own_process,
    scratch,
    write_results,
)
from benchmarks.peer import torch_python, torch_recipe

CASE = classic.SMALLEST
GOAL = 3.0
TOLERANCE = 1e-4  # of the largest feature: float rounding through 27 layers


def main() -> None:
    """Measure, print a table, write the results."""
    python = torch_python()
    if python is None or not has_photographs():
        return
    case = classic.CASES[CASE]
    runs: dict[str, list[dict[str, Any]]] = {"tlearn": [], "PyTorch": []}
    tried: dict[int, dict[str, Any]] = {}
    with scratch() as folder:
        photographs, weights = flowers(folder), folder / "weights.npz"
        in_own_process("benchmarks.peers", photographs, weights)
        options = {
            "photographs": str(photographs),
            "weights": str(weights),
            "alpha": case.alpha,
            "side": case.side,
            "batch": classic.BATCH,
            "epochs": classic.EPOCHS,
        }

        def with_pytorch(seed: int, workers: int) -> dict[str, Any]:
            return torch_recipe("two_stage", python, seed=seed, workers=workers, **options)

        for seed in classic.SEEDS:
            print(f" seed {seed}", flush=True)
            runs["tlearn"].append(classic.measured("tlearn", CASE, seed))
            print(f"  tlearn: {runs['tlearn'][-1]}", flush=True)
            for workers in (0, CORES) if seed == classic.SEEDS[0] else ():
                tried[workers] = with_pytorch(seed, workers)
                print(f"  PyTorch, {workers} workers: {tried[workers]}", flush=True)
            fastest = min(tried, key=lambda workers: tried[workers]["seconds"])
            again = seed != classic.SEEDS[0]
            runs["PyTorch"].append(with_pytorch(seed, fastest) if again else tried[fastest])
            if again:
                print(f"  PyTorch, {fastest} workers: {runs['PyTorch'][-1]}", flush=True)
    difference = max(run["feature_difference"] for run in runs["PyTorch"])
    if difference > TOLERANCE:
        sys.exit(f"the converted network is not the same one: features differ by {difference}")
    seconds, head, accuracy = (
        [[run[key] for run in runs[side]] for side in ("tlearn", "PyTorch")]
        for key in ("seconds", "head_seconds", "val_accuracy")
    )
    comparisons = [
        compare(f"{CASE}, {classic.EPOCHS} + {classic.EPOCHS} epochs", "s", *seconds, "PyTorch", GOAL),
        compare(f"{CASE}, head stage", "s", *head, "PyTorch"),
        compare_accuracy(f"{CASE}", *accuracy, "PyTorch"),
    ]
    versions = {"torch": runs["PyTorch"][0]["torch"], "feature_difference": difference, "workers": fastest}
    write_results("peers", runs | {"tried": tried}, comparisons, **versions)


def export_weights(photographs: Path, file: Path) -> None:
    """Keras' weights as plain arrays, ``layer/variable``, and its features of a few photographs to check them by."""
    import keras
    import tensorflow as tf
    from PIL import Image

    case = classic.CASES[CASE]
    network = keras.applications.MobileNet(
        alpha=case.alpha, include_top=False, weights=None, input_shape=(case.side, case.side, 3)
    )
    if case.weights is not None:
        network.load_weights(case.weights)
    arrays = {
        f"{layer.name}/{variable.name}": np.asarray(variable)
        for layer in network.layers
        for variable in layer.variables
    }
    chosen = sorted(photographs.glob("val/*/*.jpg"))[:: 30 if not QUICK else 2]
    pixels = [Image.open(path).convert("RGB").resize((case.side, case.side)) for path in chosen]
    arrays["check_pixels"] = np.stack([np.asarray(image) for image in pixels])
    images = tf.constant(arrays["check_pixels"], tf.float32) / 127.5 - 1.0
    arrays["check_features"] = np.asarray(network(images, training=False))
    np.savez(file, **arrays)


if __name__ == "__main__":
    export_weights(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps("written"))
