"""The main job on real photographs: ImageNet weights against random ones, everything else the same.

750 training and 150 validation photographs of five flowers, MobileNet 0.25 at 160 px, ``two_stage``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tlearn
from benchmarks.common import ASSETS, scratch, table, write_results
from tlearn.config import CacheConfig

WEIGHTS = ASSETS / "keras" / "models" / "mobilenet_2_5_224_tf_no_top.h5"
SEEDS = (1, 2, 3)


def main() -> None:
    """Measure, print a table, write the results."""
    if not ASSETS.is_dir():
        print(f"skipped: no photographs in {ASSETS}")
        return
    results = {}
    for name, weights in (("ImageNet", str(WEIGHTS)), ("random", None)):
        with scratch() as folder:
            runs = [fit(weights, seed, folder) for seed in SEEDS]
        results[name] = [
            {key: run[key] for key in ("val_accuracy", "val_loss", "seconds", "best_epoch")} for run in runs
        ]
    rows = [
        [name, ", ".join(f"{run['val_accuracy']:.3f}" for run in runs), ", ".join(f"{run['seconds']}" for run in runs)]
        for name, runs in results.items()
    ]
    table(["weights", "validation accuracy of seeds 1, 2, 3", "seconds"], rows)
    write_results("flowers", results)


def fit(weights: str | None, seed: int, folder: Path) -> dict[str, float]:
    """One run; only the first one of a folder extracts features."""
    backbone = replace(tlearn.preset("backbone", "mobilenet"), alpha=0.25, image_size=160, weights=weights)
    config = tlearn.Config(
        seed=seed,
        run_dir=str(folder / f"run-{seed}"),
        backbone=backbone,
        head=tlearn.preset("head", "mlp"),
        data=tlearn.DataConfig(name="folder", path=str(ASSETS / "flowers")),
        schedule=tlearn.preset("schedule", "two_stage"),
        cache=CacheConfig(dir=str(folder / f"features-{seed}")),
    )
    return tlearn.fit(config).summary
