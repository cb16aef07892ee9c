"""``python -m tlearn.train``: runs, multiruns, and what Hydra shows about a config.

Hydra composes and shows; it never runs anything here. Its own run mode would instantiate what a config file names.
"""

from __future__ import annotations

import collections
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlearn.config import Config
from tlearn.errors import ConfigError, Problem, UserError, did_you_mean
from tlearn.interrupts import STOPPED as STOPPED
from tlearn.interrupts import stopped
from tlearn.train.memory import OutOfMemory
from tlearn.train.stopping import NumericalFault, Stopped, StopSignal, WorkerLost, resume_command

if TYPE_CHECKING:
    from tlearn.train.trainer import OnEpoch

OK, OUR_FAULT, USER_ERROR, NUMERICAL_FAULT = 0, 1, 2, 4

_AFTER_A_FAULT = "try a smaller learning rate, clip_global_norm=1, or precision=float32; on_nan=rollback does the first"

_MULTIRUN = ("-m", "--multirun")
_SHOWING = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info")
_COMPLETION = ("-sc", "--shell-completion")
_BEFORE_OVERRIDES = r"^\s*(tlearn\s+\w+|\S*python\S*\s+-m\s+tlearn\.\w+)\s*"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 finished, 2 a user's mistake, 3 stopped, 4 a numerical fault."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    try:
        if set(flags) & {*_SHOWING, *_COMPLETION}:
            return _show(arguments)
        for flag in flags:
            if flag not in _MULTIRUN:
                raise ConfigError(Problem(flag, "unknown flag", did_you_mean(flag, (*_MULTIRUN, *_SHOWING))))
        overrides = [argument for argument in arguments if argument not in _MULTIRUN]
        return _multirun(overrides) if flags else _run(overrides)
    except UserError as error:
        print_problems(error)
        return USER_ERROR
    except KeyboardInterrupt:
        return _stopped_early(None)


def print_problems(error: UserError) -> None:
    """Everything that is wrong, on standard error."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(note, file=sys.stderr)


def _run(overrides: list[str]) -> int:
    """One run, from overrides alone."""
    from tlearn.compose import load_config
    from tlearn.train.all_problems import all_problems

    if len(overrides) > 1 and any(override.startswith("resume=") for override in overrides):
        fix = "a run goes on with the config it began with; for a new run from its weights: backbone.weights=RUN"
        raise ConfigError(Problem("resume", "takes no other override", fix))
    with all_problems():
        config = load_config(overrides)
    return execute(config, overrides)


def execute(config: Config, overrides: list[str], *, on_epoch: OnEpoch | None = None) -> int:
    """Train or resume, and print the last line. Returns the exit status.

    Args:
        config, overrides: of the run.
        on_epoch: for ``fit``.
    """
    stop = StopSignal()
    try:
        return _execute(config, overrides, stop, on_epoch)
    except KeyboardInterrupt:
        return _stopped_early(config.resume)


def _execute(config: Config, overrides: list[str], stop: StopSignal, on_epoch: OnEpoch | None) -> int:
    from tlearn.train.checks import check_config

    if config.resume is None:
        check_config(config)  # before anything slow is imported
    from tlearn.train.api import fit, resume  # TensorFlow is imported while images are looked at
    from tlearn.train.console import Terminal

    terminal = Terminal(config.log.progress)
    try:
        if config.resume is not None:
            run = resume(config.resume, terminal=terminal, should_stop=stop)
        else:
            run = fit(config, overrides=overrides, terminal=terminal, should_stop=stop, on_epoch=on_epoch)
    except Stopped as asked:
        terminal.print(str(asked))
        return _last_line({"run": str(asked.run), "status": "stopped"}, STOPPED)
    except NumericalFault as fault:
        terminal.print(f"{fault}; {_AFTER_A_FAULT}")
        return _failed(fault.run, fault, NUMERICAL_FAULT)
    except OutOfMemory as error:
        terminal.print(f"{error}; {error.advice}")
        return _failed(error.run, error, USER_ERROR)
    except WorkerLost as lost:
        terminal.print(f"{lost}; go on with the same command on all workers: python -m tlearn.train resume={lost.run}")
        return _last_line({"run": lost.run, "status": "stopped", "reason": str(lost)}, STOPPED)
    terminal.print(f"run {run.path}")
    return _last_line(run.summary, OK)


def _failed(run: str | None, why: Exception, status: int) -> int:
    """A run that its settings, its data or the machine put an end to; what it saved is kept."""
    return _last_line({"run": run, "status": "failed", "reason": str(why)}, status)


def _stopped_early(run: str | None) -> int:
    """A signal came before there was anything to save."""
    hint = f"nothing was changed; go on with: {resume_command(Path(run))}" if run else "nothing was written"
    return _last_line({"run": run, "status": "stopped"}, stopped(f"stopped before training: {hint}"))


def _last_line(summary: dict[str, Any], status: int) -> int:
    print(json.dumps(summary), flush=True)
    return status


def _show(arguments: list[str]) -> int:
    """``--help``, ``--cfg job``, ``--info``, ``--shell-completion`` and the like: Hydra prints, nothing runs."""
    import hydra

    from tlearn.compose import CONFIG_NAME, hydra_overrides, load_config, own_hydra
    from tlearn.paths import shipped

    program, given = "python -m tlearn.train", arguments
    if set(arguments) & set(_COMPLETION):  # what follows those is no override
        program = "tlearn"  # a shell completes words of a command; Hydra knows none that has a verb
        os.environ["COMP_LINE"] = re.sub(_BEFORE_OVERRIDES, "tlearn ", os.environ.get("COMP_LINE", ""))
    else:
        overrides = [text for text in arguments if text.startswith("~") or ("=" in text and not text.startswith("-"))]
        load_config(overrides)  # reports all problems where Hydra would stop at the first
        given = [argument for argument in arguments if argument not in overrides] + hydra_overrides(overrides)

    @hydra.main(version_base="1.3", config_path=str(shipped("configs")), config_name=CONFIG_NAME)
    def nothing(composed: Any) -> None:
        raise AssertionError(f"Hydra was to show, not to run: {arguments}")

    sys.argv = [program, *given]
    with own_hydra():
        nothing()
    return OK


def _multirun(overrides: list[str]) -> int:
    """All runs of a sweep; every one is checked before the first starts. Ends with a table of them.

    Returns:
        The worst exit status. A run that was stopped ends the sweep.
    """
    from tlearn.compose import sweep_jobs
    from tlearn.train.console import print_results
    from tlearn.train.launch import JobResult, launch, split_launcher

    launcher, overrides = split_launcher(overrides)
    jobs = sweep_jobs(overrides)
    _check_jobs(jobs)

    def done(number: int, result: JobResult) -> None:
        if result.summary:
            print(json.dumps(result.summary), flush=True)
        status = result.summary.get("status", f"ended with status {result.status}")
        print(f"run {number + 1} of {len(jobs)} {status}: {' '.join(jobs[number])}", file=sys.stderr, flush=True)

    results = launch(launcher, jobs, done)
    print_results(jobs, results)
    return max([OK, *(result.status for result in results if result is not None)])


def _check_jobs(jobs: list[list[str]]) -> None:
    from tlearn.compose import load_config
    from tlearn.train.all_problems import all_problems
    from tlearn.train.checks import check_config

    problems: dict[Problem, None] = {}
    folders: collections.Counter[str] = collections.Counter()
    for overrides in jobs:
        try:
            with all_problems():
                config = load_config(overrides)
            folders.update([config.run_dir] if config.run_dir is not None else [])
            check_config(config)
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
    for folder, runs in folders.items():
        if runs > 1:
            fix = (
                "leave it away: each run makes a folder of its own; or name it by what differs: 'run_dir=\"r-${seed}\"'"
            )
            problems[Problem("run_dir", f"{runs} runs would be made in {folder}", fix)] = None
    if problems:
        raise ConfigError(problems)
