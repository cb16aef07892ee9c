"""``python -m tlearn.train``: Hydra's command line around ``tlearn.train.api``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType
from typing import Any

from tlearn.config import Config
from tlearn.errors import ConfigError, Problem, UserError
from tlearn.quiet import import_tensorflow

OK, OUR_FAULT, USER_ERROR, STOPPED, NUMERICAL_FAULT = 0, 1, 2, 3, 4

_BEFORE_OVERRIDES = r"^\s*(tlearn\s+\w+|\S*python\S*\s+-m\s+tlearn\.\w+)\s*"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 finished, 2 a user's mistake, 3 stopped, 4 a numerical fault."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if any(argument.startswith("-") for argument in arguments):
            return _with_hydra(arguments)
        return _run(arguments)
    except UserError as error:
        print_problems(error)
        return USER_ERROR


def print_problems(error: UserError) -> None:
    """Everything that is wrong, on standard error."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)


def _run(overrides: list[str]) -> int:
    """One run, from overrides alone."""
    from tlearn.compose import load_config

    config = load_config(overrides)
    if config.resume is not None and len(overrides) > 1:
        fix = "a run goes on with the config it began with; for a new run from its weights: backbone.weights=RUN"
        raise ConfigError(Problem("resume", "takes no other override", fix))
    return execute(config, overrides)


def execute(config: Config, overrides: list[str]) -> int:
    """Train or resume, and print the last line. Returns the exit status."""
    from tlearn.train.checks import check_config

    if config.resume is None:
        check_config(config)  # before anything slow is imported
    import_tensorflow()
    from tlearn.train.api import fit, resume
    from tlearn.train.console import Terminal
    from tlearn.train.loop import NumericalFault
    from tlearn.train.trainer import Stopped

    terminal, stop = Terminal(config.log.progress), _StopSignal()
    try:
        if config.resume is not None:
            run = resume(config.resume, terminal=terminal, should_stop=stop)
        else:
            run = fit(config, overrides=overrides, terminal=terminal, should_stop=stop)
    except Stopped as stopped:
        terminal.print(f"stopped; go on with: python -m tlearn.train resume={stopped.run}")
        return _last_line({"run": str(stopped.run), "status": "stopped"}, STOPPED)
    except NumericalFault as fault:
        terminal.print(f"{fault}; try a smaller learning rate, clip_global_norm=1, or precision=float32")
        return _last_line({"run": fault.run, "status": "failed", "reason": str(fault)}, NUMERICAL_FAULT)
    terminal.print(f"[bold]run[/] {run.path}")
    return _last_line(run.summary, OK)


def _last_line(summary: dict[str, Any], status: int) -> int:
    print(json.dumps(summary), flush=True)
    return status


class _StopSignal:
    """Whether SIGTERM or SIGINT came: the first lets the step end, the second ends the process."""

    def __init__(self) -> None:
        self._received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def __call__(self) -> bool:
        return self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._received = True


def _with_hydra(arguments: list[str]) -> int:
    """Flags (``--help``, ``--cfg``, ``-m``, ``--shell-completion``, ...) are Hydra's."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from tlearn.compose import CONFIG_NAME, hydra_overrides, load_config, register_schema, sweep_jobs
    from tlearn.paths import shipped

    register_schema()
    overrides = [text for text in arguments if text.startswith("~") or ("=" in text and not text.startswith("-"))]
    multirun = "-m" in arguments or "--multirun" in arguments
    if multirun:
        _check_jobs(sweep_jobs(overrides))
    statuses: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(shipped("configs")), config_name=CONFIG_NAME)
    def job(composed: Any) -> None:
        if multirun:
            task = list(HydraConfig.get().overrides.task)
            statuses.append(_in_own_process(task))
        else:
            from tlearn.compose import to_config

            statuses.append(execute(to_config(composed), overrides))

    given, program = arguments, "python -m tlearn.train"
    if {"-sc", "--shell-completion"} & set(arguments):  # what follows those is no override
        program = "tlearn"  # a shell completes words of a command; Hydra knows none that has a verb
        os.environ["COMP_LINE"] = re.sub(_BEFORE_OVERRIDES, "tlearn ", os.environ.get("COMP_LINE", ""))
    else:
        if not multirun:
            load_config(overrides)  # reports all problems where Hydra would stop at the first
        given = [argument for argument in arguments if argument not in overrides] + hydra_overrides(overrides)
    with tempfile.TemporaryDirectory() as folder:  # for Hydra's own multirun.yaml: each run keeps its overrides
        sys.argv = [program, *given, *([f"hydra.sweep.dir={folder}"] if multirun else [])]
        job()
    return max(statuses, default=OK)


def _check_jobs(jobs: list[list[str]]) -> None:
    """Check every run of a multirun before the first one starts."""
    from tlearn.compose import load_config
    from tlearn.train.checks import check_config

    problems: dict[Problem, None] = {}
    for overrides in jobs:
        try:
            check_config(load_config(overrides))
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(problems)


def _in_own_process(overrides: list[str]) -> int:
    """A run of a multirun: TensorFlow gives memory and state back only when its process ends."""
    return subprocess.run((sys.executable, "-m", "tlearn.train", *overrides), check=False).returncode
