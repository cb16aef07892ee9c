"""A worker whose trials train nothing: ``python fake_worker.py '{"hold": 2}' override ...``, see ``fake_run``.

A trial's metric is a function of its values alone, so that studies can be compared.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

EPOCHS = 6


def fake_run(seconds=0.0, together=1, hold=None):
    """A run that leaves what a real one leaves, as far as a sweep looks at it.

    Args:
        seconds: that an epoch takes.
        together: it begins when so many workers have begun.
        hold: when so many trials have ended, it stays in its third epoch, to be killed there.
    """
    from tlearn.sweep.process import Ended

    def run(overrides, log, on_report):
        given = dict(text.split("=", 1) for text in overrides)
        folder = Path(given["run_dir"].strip("'"))
        folder.mkdir(parents=True)
        log.write_text("", encoding="utf-8")
        rate = float(given["optimizer.learning_rate"])
        top = 0.9 - 0.1 * (math.log10(rate) + 2) ** 2 - 0.02 * int(given.get("data.batch_size", 8)) / 8
        status, trials = "finished", folder.parent
        while len(list((trials.parent / "workers").iterdir())) < together:
            time.sleep(0.02)
        holds = hold is not None and len(list(trials.glob("*/summary.json"))) >= hold
        for epoch in range(1, EPOCHS + 1):
            time.sleep(120 if holds and epoch == 3 else seconds)
            metric = top * (1 - math.exp(-epoch / 2))
            with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": "epoch", "loss": 1 - metric, "val_accuracy": metric}) + "\n")
            if on_report(epoch, {"val_accuracy": metric}):
                status = "pruned"
                break
        summary = {
            "run": str(folder),
            "status": status,
            "val_accuracy": metric,
            "seconds": 0.1 * epoch,
            "parameters": 7,
        }
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        return Ended(0)

    return run


def open_study(overrides):
    """The study as one more worker sees it."""
    from tlearn.sweep.load import load_sweep
    from tlearn.sweep.study import SharedStudy

    return SharedStudy(load_sweep(overrides))


def work(overrides, run):
    """Run a worker to its end; returns the study."""
    from rich.console import Console

    from tlearn.sweep.display import Display
    from tlearn.sweep.load import load_sweep
    from tlearn.sweep.study import SharedStudy
    from tlearn.sweep.worker import Worker

    sweep = load_sweep(overrides)
    study = SharedStudy(sweep)
    with Display(sweep, study, Console(file=sys.stdout, width=200)) as display:
        Worker(sweep, study, display, run).work()
    return study


if __name__ == "__main__":
    work(sys.argv[2:], fake_run(**json.loads(sys.argv[1])))
