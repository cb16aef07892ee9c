"""Many trials of a head over one shared feature cache, against as many runs that each make their own features.

The trials differ in learning rate and width of the head, as those of a search do. All of them run in one process, so
that nobody pays for importing TensorFlow twice; each pair of trials is run in turn. The shared cache is empty at first:
its first trial fills it.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from benchmarks.classic import CASES
from benchmarks.common import QUICK, compare, flowers, has_photographs, scratch, write_results

TRIALS = 2 if QUICK else 20
EPOCHS = 1 if QUICK else 10
RATES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
UNITS = ((), (64,), (256,), (1024,))


def main() -> None:
    """Measure, print a table, write the results."""
    if not has_photographs():
        return
    from tlearn.quiet import import_tensorflow

    import_tensorflow()
    trials: list[dict[str, Any]] = []
    with scratch() as folder:
        photographs = flowers(folder)
        for number, (units, rate) in enumerate(itertools.islice(itertools.product(UNITS, RATES), TRIALS)):
            trial: dict[str, Any] = {"units": units, "learning_rate": rate}
            for side, cache in (("shared", folder / "shared"), ("own", folder / f"own-{number}")):
                run_dir = folder / f"{side}-{number}"
                trial[side] = _run(photographs, rate, units, run_dir, cache)
            trials.append(trial)
            print(f"  {trial}", flush=True)
    seconds = {side: [trial[side]["seconds"] for trial in trials] for side in ("shared", "own")}
    differing = sum(trial["shared"]["val_loss"] != trial["own"]["val_loss"] for trial in trials)
    against = "a cache for each"
    comparisons = [
        compare(f"{TRIALS} trials in all", "s", [sum(seconds["shared"])], [sum(seconds["own"])], against),
        compare("a trial after the first", "s", seconds["shared"][1:], seconds["own"][1:], against),
    ]
    write_results("sweep", trials, comparisons, trials_with_other_results=differing)


def _run(photographs: Path, rate: float, units: tuple[int, ...], run_dir: Path, cache: Path) -> dict[str, float]:
    import keras

    import tlearn
    from benchmarks.clock import Clock

    case = next(iter(CASES.values()))
    keras.backend.clear_session()
    config = tlearn.Config(
        run_dir=str(run_dir),
        backbone=tlearn.BackboneConfig(
            case.backbone,
            weights=None if case.weights is None else str(case.weights),
            image_size=case.side,
            alpha=case.alpha,
        ),
        head=tlearn.HeadConfig(name="mlp" if units else "linear", units=list(units)),
        data=tlearn.DataConfig(name="folder", path=str(photographs), batch_size=4 if QUICK else 32),
        optimizer=tlearn.OptimizerConfig(name="adam", learning_rate=rate),
        schedule=tlearn.ScheduleConfig(stages=[tlearn.Stage(name="head", epochs=EPOCHS)]),
        cache=tlearn.CacheConfig(dir=str(cache)),
        log=tlearn.LogConfig(tensorboard=False),
    )
    begin = time.perf_counter()
    summary = tlearn.fit(config, terminal=Clock()).summary
    return {"seconds": round(time.perf_counter() - begin, 2), "val_loss": summary["val_loss"]}
