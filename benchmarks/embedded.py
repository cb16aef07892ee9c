"""Do the embedded weights transfer? Digits with them, against honest controls.

Held out: a fifth of scikit-learn's digits, stratified. Training: all the rest, or ten of each class (five draws of
split and images). Controls see the same images:

- logistic regression on the raw pixels;
- the same network with random weights, frozen: logistic regression on its standardised features (plain ones are so
  small that a dense layer learns nothing from them);
- the same network with random weights, all of it trained: with the same number of steps on all images (the better of
  two learning rates), with ten times as many on ten a class, where fewer leave it at chance.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tlearn
from benchmarks.common import QUICK, scratch, table, write_results
from tlearn.config import (
    BatchNorm,
    CacheConfig,
    DataConfig,
    LearningRateConfig,
    LearningRateSchedule,
    LogConfig,
)
from tlearn.data import load_data

DRAWS = 1 if QUICK else 5
IMAGE_SIZE = 64
COLUMNS = ("all images", "ten a class")
ANNEALED = tlearn.OptimizerConfig(schedule=LearningRateConfig(name=LearningRateSchedule.cosine))


def main() -> None:
    """Measure, print a table, write the results."""
    results: dict[str, dict[str, list[float]]] = {}
    with scratch() as folder:
        for per_class, name, draws in ((20 if QUICK else None, COLUMNS[0], 1), (10, COLUMNS[1], DRAWS)):
            for draw in range(draws):
                data = DataConfig(name="digits", split_seed=draw, per_class=per_class)
                for method, accuracy in _measure(data, folder / f"{name}-{draw}").items():
                    results.setdefault(method, {}).setdefault(name, []).append(accuracy)
                    print(f"{name} {draw}: {method}: {accuracy:.4f}", flush=True)
    means = {method: {name: statistics.mean(row[name]) for name in COLUMNS} for method, row in results.items()}
    table(*summary({"means": means}))
    write_results("embedded", {"means": means, "draws": results})


def summary(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the table."""
    means = results["means"]
    return ["", *COLUMNS], [[method, *(f"{row[name]:.3f}" for name in COLUMNS)] for method, row in means.items()]


def _measure(data: DataConfig, folder: Path) -> dict[str, float]:
    loaded = load_data(data, image_size=IMAGE_SIZE, seed=1)
    few = data.per_class == 10
    probe = tlearn.Stage(name="head", epochs=100 if few else 30)
    whole = tlearn.Stage(name="all", unfreeze="all", epochs=40 if few else 15, optimizer=ANNEALED)
    # From scratch, batch norm must learn its statistics, which takes hundreds of steps: more of them for few images.
    scratch_epochs = 400 if few else 15
    from_scratch = replace(whole, batch_norm=BatchNorm.train, epochs=scratch_epochs)
    rates = (0.01,) if few else (0.001, 0.01)
    return {
        "embedded weights, frozen, linear head": _fit(data, probe, "glyphs", 0.01, folder / "a"),
        "embedded weights, all trained": _fit(data, whole, "glyphs", 0.001, folder / "b"),
        "random weights, frozen, logistic regression": _logistic(*_random_features(loaded)),
        "random weights, all trained": max(_fit(data, from_scratch, None, rate, folder / f"c{rate}") for rate in rates),
        "no network: logistic regression on pixels": _logistic(*_pixels(loaded)),
    }


def _fit(data: DataConfig, stage: tlearn.Stage, weights: str | None, rate: float, folder: Path) -> float:
    if QUICK:
        stage = replace(stage, epochs=1)
    config = tlearn.Config(
        run_dir=str(folder),
        backbone=replace(tlearn.preset("backbone", "embedded"), weights=weights),
        data=data,
        optimizer=tlearn.OptimizerConfig(name="adam", learning_rate=rate),
        schedule=tlearn.ScheduleConfig(stages=[stage]),
        cache=CacheConfig(dir=str(folder.parent / "features")),
        checkpoint=tlearn.CheckpointConfig(final=tlearn.config.Keep.last),  # nothing is chosen on the held-out images
        log=LogConfig(tensorboard=False, progress=False),
    )
    accuracy: float = tlearn.fit(config).summary["val_accuracy"]
    return accuracy


def _random_features(loaded: Any) -> tuple[np.ndarray, ...]:
    from tlearn.data import Reading, evaluation_batches

    backbone = tlearn.build_backbone("mobilenet", alpha=0.25, image_size=IMAGE_SIZE)
    features, labels = [], []
    for rows in (loaded.train, loaded.val):
        batches = list(evaluation_batches(loaded.source, rows, Reading(IMAGE_SIZE), batch_size=64))
        maps = [np.asarray(backbone.model()(images, training=False)) for images, _ in batches]
        features.append(np.concatenate(maps).mean(axis=(1, 2)))
        labels.append(np.concatenate([truth.numpy() for _, truth in batches]))
    scale = features[0].std(axis=0) + 1e-30
    mean = features[0].mean(axis=0)
    return (features[0] - mean) / scale, labels[0], (features[1] - mean) / scale, labels[1]


def _pixels(loaded: Any) -> tuple[np.ndarray, ...]:
    both = []
    for rows in (loaded.train, loaded.val):
        both.append(np.stack([loaded.source.read(int(row))[..., 0].ravel() / 255.0 for row in rows]))
        both.append(loaded.labels(rows))
    return tuple(both)


def _logistic(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression

    return float(LogisticRegression(max_iter=5000).fit(train, train_labels).score(test, test_labels))
