"""The whole thing on photographs: twenty trials and more, killed twice, against the same sweep undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 20

SWEEP = f"""\
name: flowers
trials: {TRIALS}
pruner: {{startup: 4, warmup: 1}}
space:
  head: {{type: categorical, choices: [linear, mlp]}}
  head.units: {{type: categorical, choices: [[16], [64]], when: {{head: mlp}}}}
  optimizer.learning_rate: {{type: float, low: 0.0001, high: 0.3, log: true}}
"""


@pytest.fixture
def sweep(assets: Path, tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """``sweep("a")`` starts the command with the folder ``a``; all share one cache of features."""
    (tmp_path / "flowers.yaml").write_text(SWEEP, encoding="utf-8")
    weights = next((assets / "keras" / "models").glob("mobilenet_2_5_*_tf_no_top.h5"), None)
    if weights is None:
        pytest.skip("assets: no weights of MobileNet 0.25")
    command = [
        *(sys.executable, "-m", "tlearn.sweep", "sweep=flowers.yaml"),
        *("backbone=mobilenet", "backbone.alpha=0.25", "backbone.image_size=64", f"backbone.weights='{weights}'"),
        *("data=folder", f"data.path='{assets / 'flowers'}'", "data.per_class=20", "data.check=header"),
        *("schedule.stages.0.epochs=8", "log.tensorboard=false"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def start(folder: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, f"sweep.dir={folder}"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    return start


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_as_one_that_was_not(
    sweep: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    kills = {"undisturbed": (), "killed": (5, 12)}

    def last_line(folder: str) -> dict[str, Any]:
        for ended in kills[folder]:
            with sweep(folder) as process:
                wait_for(lambda ended=ended: len(summaries(tmp_path / folder)) >= ended)
                time.sleep(1.5)  # into a trial
                process.send_signal(signal.SIGKILL)
        with sweep(folder) as process:
            printed, said = process.communicate(timeout=1500)
        assert process.returncode == 0, said
        summary: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return summary

    with ThreadPoolExecutor() as both:
        results = dict(zip(kills, both.map(last_line, kills), strict=True))
    assert results["killed"]["trials"] == results["undisturbed"]["trials"] == TRIALS
    assert results["undisturbed"]["pruned"] > 3
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "undisturbed")
    assert results["killed"]["best"]["val_accuracy"] == results["undisturbed"]["best"]["val_accuracy"] > 0.4
    folders = len(list((tmp_path / "killed" / "trials").iterdir()))
    assert TRIALS <= folders <= TRIALS + 2, "a killed trial is tried again in a folder of its own, or had ended"
    assert b"<svg" in (tmp_path / "killed" / "report.html").read_bytes()


def outcome(folder: Path) -> list[tuple[Any, ...]]:
    """What the trials that count searched and found, bit for bit, in the order of their places."""
    study = optuna.load_study(study_name="flowers", storage=f"sqlite:///{folder}/study.db")
    counted = [trial for trial in study.trials if "void" not in trial.user_attrs]
    return [
        (trial.params, trial.state.name, trial.values, sorted(trial.intermediate_values.items()))
        for trial in sorted(counted, key=lambda trial: trial.user_attrs.get("retry_of", trial.number))
    ]


def summaries(folder: Path) -> list[Path]:
    return list(folder.glob("trials/*/summary.json"))


def wait_for(condition: Callable[[], bool], seconds: float = 900.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)
