"""The best trial once more, on the full schedule, and as an experiment that anybody can run."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from tlearn.compose import load_config
from tlearn.config import Config, Stage
from tlearn.errors import Problem, UserError
from tlearn.sweep.load import Sweep
from tlearn.sweep.results import recorded
from tlearn.sweep.study import SharedStudy
from tlearn.train.checkpoint import write_atomic
from tlearn.train.command import OK, STOPPED
from tlearn.train.launch import Processes, run_job
from tlearn.train.run import Run

_POLL_SECONDS = 1.0
_MARK = "# Found by the sweep "
_OF_A_RUN = ("run_dir", "resume", "name")


def check_target(sweep: Sweep) -> None:
    """Raise UserError where the experiment that ``sweep.retrain`` writes is somebody else's already."""
    path = _target(sweep)
    if sweep.settings.retrain and path.exists() and not path.read_text(encoding="utf-8").startswith(_MARK):
        fix = "name the study otherwise: sweep.name=NAME, or move the file away"
        raise UserError(Problem(str(path), "exists, and sweep.retrain would overwrite it", fix))


def retrain(sweep: Sweep, study: SharedStudy, processes: Processes) -> tuple[int, dict[str, Any]]:
    """Train the best trial's values without what ``sweep.trial`` sets, and write the experiment.

    A trial is complete. A run that was stopped is gone on with; one that is complete is left alone.

    Args:
        sweep: what was searched.
        study: whose budget is met.
        processes: to enter the run into; where these were stopped it does not begin.

    Returns:
        The exit status of the run, and what the last line says of it.
    """
    best = study.front()[0]
    run = Run(sweep.folder / f"best-{best.number:04d}")
    with _alone(run, processes):
        if not run.summary_file.is_file() and not processes.stopped:
            overrides = sweep.overrides(best.params, run.path, shortened=False)
            result = run_job([f"resume={run.path}"] if run.config_file.is_file() else overrides, os.getcwd(), processes)
            if result.status != OK and (result.summary or not processes.stopped):
                said = result.summary or {"status": "failed", "reason": f"exit status {result.status}"}
                return result.status, {"retrained": {"run": str(run.path)} | said}
        if not run.summary_file.is_file():  # a signal came before the run, or too early for it to say so itself
            return STOPPED, {"retrained": {"run": str(run.path), "status": "stopped"}}
        path = _target(sweep)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, experiment_text(sweep, run).encode())
    return OK, {"retrained": run.summary, "experiment": str(path)}


@contextlib.contextmanager
def _alone(run: Run, processes: Processes) -> Iterator[None]:
    """Hold a lock of the kernel beside the run: one worker trains it, others wait and find it trained.

    Who is asked to stop waits no longer, and comes in without the lock.
    """
    with open(run.path.with_name(f".{run.path.name}.lock"), "a") as file:
        said = False
        while not processes.stopped:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    print(f"waiting for another worker, which trains {run.path}", file=sys.stderr)
                said = True
                time.sleep(_POLL_SECONDS)
        yield


def experiment_text(sweep: Sweep, run: Run) -> str:
    """A run's config as an experiment: what it sets, and no default."""
    metrics = [objective.metric for objective in sweep.settings.objectives]
    found = recorded(run.path)
    results = ", ".join(f"{name} {found[name]:.4g}" for name in metrics if name in found)
    name = _target(sweep).stem
    header = [
        f"{_MARK}{sweep.settings.name}.",
        "#",
        f"#     python -m tlearn.train experiment={name}",
        "#",
        f"# Result: {results or json.dumps(run.summary.get('status'))} (seed {run.config.seed}).",
    ]
    data = {key: value for key, value in _plain(run.config).items() if key not in _OF_A_RUN}
    return "\n".join(header) + "\n" + yaml.safe_dump(_differences(data, _plain(load_config())), sort_keys=False)


def _target(sweep: Sweep) -> Path:
    return Path.cwd() / "experiments" / f"{sweep.settings.name}.yaml"


def _plain(config: Config | Stage) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.value if isinstance(value, Enum) else value

    made: dict[str, Any] = plain(dataclasses.asdict(config))
    return made


def _differences(data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What is not as in the defaults; in each stage, what is not as in a bare one."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            inner = _differences(value, defaults[key])
            if inner:
                found[key] = inner
        elif key == "stages":
            found[key] = [{"name": stage["name"]} | _differences(stage, _plain(Stage())) for stage in value]
        elif key not in defaults or value != defaults[key]:
            found[key] = value
    return found
