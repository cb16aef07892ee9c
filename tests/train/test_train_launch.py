"""Launchers of multiruns."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from tlearn.errors import ConfigError
from tlearn.train import launch as launching
from tlearn.train.console import results_table
from tlearn.train.launch import JobResult, LauncherConfig, LauncherName, launch, split_launcher

RunCli = Callable[..., Any]


def test_launcher_keys_are_taken_out_of_the_overrides() -> None:
    config, others = split_launcher(["seed=1,2", "launcher=joblib", "launcher.workers=3", "head=mlp"])
    assert (config.name, config.workers, others) == (LauncherName.joblib, 3, ["seed=1,2", "head=mlp"])
    assert split_launcher(["seed=1"]) == (LauncherConfig(), ["seed=1"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["launcher=slurm"], "launcher.name"),
        (["launcher=joblib", "launcher.wrokers=2"], "did you mean workers"),
        (["launcher.workers=2"], "has no effect with launcher=basic"),
        (["launcher=joblib", "launcher.gpus=1"], "launcher=submitit or launcher=ray"),
        (["launcher=joblib", "launcher.workers=0"], "must be 1 or more"),
        (["launcher=joblib", "launcher.workers=two"], "launcher.workers"),
    ],
)
def test_wrong_launchers_are_explained(given: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_launcher(given)
    assert says in str(caught.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package ray\n.*tlearn\[cluster\]"):
        split_launcher(["launcher=ray"])


@pytest.mark.parametrize("name", ["basic", "joblib"])
def test_a_stopped_run_ends_the_multirun(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def run_job(overrides: list[str], folder: str, processes: Any = None) -> JobResult:
        started.append(int(overrides[0]))
        return JobResult(3 if overrides == ["1"] else 0, {"status": "finished"}, 1.0)

    monkeypatch.setattr(launching, "run_job", run_job)
    config = LauncherConfig(name=LauncherName(name), workers=1)
    results = launch(config, [["0"], ["1"], ["2"]], lambda number, result: None)
    assert started == [0, 1]
    assert [result and result.status for result in results] == [0, 3, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joblib", "submitit", "ray"])
def test_each_launcher_trains(
    name: str, run_cli: RunCli, tiny: tuple[str, ...], plugin_env: dict[str, str | None]
) -> None:
    pytest.importorskip(name, reason=f"needs {name}: pip install 'tlearn[cluster]'")
    given = ["-m", f"launcher={name}", "launcher.workers=2", "seed=1,2", *tiny, "schedule.stages.0.epochs=1"]
    done = run_cli("train", *given, env=plugin_env | {"RAY_USAGE_STATS_ENABLED": "0"}).assert_ok()
    summaries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [summary["status"] for summary in summaries] == ["finished"] * 2
    assert len({summary["run"] for summary in summaries}) == 2
    assert len({os.path.dirname(summary["run"]) for summary in summaries}) == 1, "runs are made where the command is"
    assert "val_accuracy" in done.stderr.splitlines()[-3]


def test_the_table_shows_what_differs_and_what_came_of_it() -> None:
    jobs = [["seed=1", "head=mlp", "data=digits"], ["seed=2", "head=mlp", "data=digits"], ["seed=3", "data=digits"]]
    results = [JobResult(0, {"status": "finished", "val_accuracy": 0.91234}, 4.0), JobResult(2, {}, 1.0), None]
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(results_table(jobs, results))
    lines = [line.split() for line in capture.get().splitlines()]
    assert lines[0] == ["run", "seed", "head", "status", "val_accuracy", "seconds"]
    assert lines[1] == ["1", "1", "mlp", "finished", "0.9123", "4.0"]
    assert lines[2] == ["2", "2", "mlp", "exit", "status", "2", "1.0"]
    assert lines[3] == ["3", "3", "not", "started"]
