"""Peak memory of a run against the number of its image files.

The files are small JPEGs, every one different. Each run is a process of its own: it indexes and checks all of them, and
then either trains some steps from the files, or keeps features of all of them and trains on those for an epoch.
Reported are the peak of the resident memory, of its part that is the process' own (not pages of files, such as mapped
features, which the system takes back when it wants to), and the bytes of the table of images.
"""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.common import QUICK, compare, in_own_process, scratch, write_results

SIZES = (100, 400) if QUICK else (1_000, 10_000, 100_000)
REPETITIONS = dict.fromkeys(("streaming", "features kept"), 1 if QUICK else 3)
STEPS = 2 if QUICK else 40
CLASSES = 10
SIDE = 32
FLAT = 0.95  # apart from the table: the smallest peak as a share of the largest


def main() -> None:
    """Measure, print a table, write the results."""
    results: dict[str, dict[str, Any]] = {mode: {str(size): [] for size in SIZES} for mode in REPETITIONS}
    with scratch() as folder:
        folders = {size: _files(folder, size) for size in SIZES}
        tables = {size: _table_bytes(folders[size]) for size in SIZES}
        for mode, repetitions in REPETITIONS.items():
            for _ in range(repetitions):
                for size in SIZES:
                    measured = in_own_process("benchmarks.memory", mode, folders[size])
                    results[mode][str(size)].append(measured)
                    print(f"  {mode}, {size:,} files: {measured}", flush=True)
    least, most = SIZES[0], SIZES[-1]
    comparisons = []
    for mode in REPETITIONS:
        peaks = {
            size: [run["own_mb"] - tables[size] / 1e6 for run in results[mode][str(size)]] for size in (least, most)
        }
        comparisons.append(
            compare(
                f"{mode}: own memory without the table, {most:,} files",
                "MB",
                peaks[most],
                peaks[least],
                f"{least:,} files",
                FLAT,
            )
        )
    growth = {
        mode: (_median_peak(results[mode][str(most)]) - _median_peak(results[mode][str(least)])) / (most - least)
        for mode in REPETITIONS
    }
    write_results(
        "memory",
        results,
        comparisons,
        table_bytes_an_image={str(size): round(tables[size] / size, 1) for size in SIZES},
        growth_bytes_an_image={mode: round(bytes_) for mode, bytes_ in growth.items()},
    )


def _median_peak(runs: list[dict[str, float]]) -> float:
    return statistics.median(run["own_mb"] for run in runs) * 1e6


def _files(folder: Path, count: int) -> Path:
    """``count`` small JPEGs in ten classes; bytes after their end, which decoders pass over, keep them different."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(1)
    originals = []
    for _ in range(100):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "JPEG")
        originals.append(buffer.getvalue())
    top = folder / f"{count}-images"
    for label in range(CLASSES):
        (top / f"class-{label}").mkdir(parents=True)
    for index in range(count):
        file = top / f"class-{index % CLASSES}" / f"photograph-{index:08d}.jpg"
        file.write_bytes(originals[index % 100] + index.to_bytes(4, "little"))
    return top


def _table_bytes(folder: Path) -> int:
    """Of the columns of the table of images."""
    import tlearn
    from tlearn.data import index_data

    table = index_data(tlearn.DataConfig(name="folder", path=str(folder)), image_size=SIDE, seed=1).table
    columns = (getattr(table, field.name) for field in dataclasses.fields(table))
    return sum(column.nbytes for column in columns if hasattr(column, "nbytes"))


def run(mode: str, folder: Path) -> dict[str, float]:
    """Peaks of this process, in MB of 10^6 bytes."""
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _train(mode, folder)
    finally:
        ended.set()
        watcher.join()
    return {"own_mb": round(peak / 1e6, 1), "resident_mb": round(_status("VmHWM") / 1e6, 1)}


def _train(mode: str, folder: Path) -> None:
    import tlearn
    from benchmarks.clock import Clock
    from tlearn.config import CacheConfig, CacheMode

    keeps = mode == "features kept"
    stage = tlearn.Stage(name="head", epochs=1) if keeps else tlearn.Stage(name="head", steps=STEPS)
    with scratch() as scratch_folder:
        config = tlearn.Config(
            run_dir=str(scratch_folder / "run"),
            backbone=tlearn.BackboneConfig("mobilenet", weights=None, image_size=SIDE, alpha=0.25),
            data=tlearn.DataConfig(name="folder", path=str(folder), val_fraction=0.1 if QUICK else 0.01),
            schedule=tlearn.ScheduleConfig(stages=[stage]),
            cache=CacheConfig(mode=CacheMode.auto if keeps else CacheMode.off, dir=str(scratch_folder / "features")),
        )
        tlearn.fit(config, terminal=Clock())


def _status(field: str) -> int:
    """Bytes of a field of this process' status."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
