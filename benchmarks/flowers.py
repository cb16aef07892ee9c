"""The main job on real photographs: ImageNet weights against random ones, everything else the same.

750 training and 150 validation photographs of five flowers, MobileNet 0.25 at 160 px, ``two_stage``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tlearn
from benchmarks.common import ASSETS, QUICK, flowers, has_photographs, scratch, table, write_results
from tlearn.config import CacheConfig

WEIGHTS = ASSETS / "keras" / "models" / "mobilenet_2_5_224_tf_no_top.h5"
SEEDS = (1,) if QUICK else (1, 2, 3)


def main() -> None:
    """Measure, print a table, write the results."""
    if not has_photographs():
        return
    results = {}
    for name, weights in (("ImageNet", str(WEIGHTS)), ("random", None)):
        with scratch() as folder:
            photographs = flowers(folder)
            runs = [fit(photographs, None if QUICK else weights, seed, folder) for seed in SEEDS]
        results[name] = [
            {key: run[key] for key in ("val_accuracy", "val_loss", "seconds", "best_epoch")} for run in runs
        ]
    table(*summary(results))
    write_results("flowers", results)


def summary(results: dict[str, list[dict[str, float]]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the table."""
    rows = [
        [name, ", ".join(f"{run['val_accuracy']:.3f}" for run in runs), ", ".join(f"{run['seconds']}" for run in runs)]
        for name, runs in results.items()
    ]
    return ["weights", "validation accuracy of seeds 1, 2, 3", "seconds"], rows


def fit(photographs: Path, weights: str | None, seed: int, folder: Path) -> dict[str, float]:
    """One run with an empty cache."""
    backbone = replace(
        tlearn.preset("backbone", "mobilenet"), alpha=0.25, image_size=32 if QUICK else 160, weights=weights
    )
    schedule = tlearn.preset("schedule", "two_stage")
    for stage in schedule.stages if QUICK else ():
        stage.epochs = 1
    config = tlearn.Config(
        seed=seed,
        run_dir=str(folder / f"run-{seed}"),
        backbone=backbone,
        head=tlearn.preset("head", "mlp"),
        data=tlearn.DataConfig(name="folder", path=str(photographs)),
        schedule=schedule,
        cache=CacheConfig(dir=str(folder / f"features-{seed}")),
    )
    return tlearn.fit(config).summary
