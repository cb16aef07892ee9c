"""``python -m tlearn.sweep``: search config keys with many runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlearn.errors import ConfigError, Problem, UserError, did_you_mean
from tlearn.interrupts import STOPPED, stopped
from tlearn.train.command import OK, USER_ERROR, print_problems
from tlearn.train.launch import Processes

if TYPE_CHECKING:
    from tlearn.sweep.load import Sweep
    from tlearn.sweep.study import SharedStudy

_HELP = """\
Search the values of config keys with many runs, each a trial in a process of its own.

    python -m tlearn.sweep sweep=NAME [sweep.key=value ...] [key=value ...]

    sweep=learning_rates      configs/sweep/NAME.yaml, or a file of your own: sweep=FILE.yaml
    sweep.trials=20           budget, of all workers and invocations together; also sweep.minutes=60
    sweep.dir=PATH            of the trials, the study and report.html; default sweeps/NAME
    sweep.storage=URL         of a study that other machines share
    sweep.retrain=true        train the best once more and write experiments/NAME.yaml
    --plan                    say what would be done, and how often images are put through the frozen part

All other overrides are those of python -m tlearn.train, for every trial. Started again, the sweep goes on; started
several times at once, the processes share its trials. docs/sweeps.md says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 the budget is met, 2 a user's mistake or no result, 3 stopped.

    Where the budget is met, but the best was not trained again as ``sweep.retrain`` asks: the status of that run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return OK
    try:
        for flag in arguments:
            if flag.startswith("-") and flag != "--plan":
                raise ConfigError(Problem(flag, "unknown flag", did_you_mean(flag, ("--plan", "--help"))))
        from tlearn.sweep.load import load_sweep

        sweep = load_sweep([argument for argument in arguments if argument != "--plan"])
        if "--plan" in arguments:
            from tlearn.sweep.extractions import print_plan

            print_plan(sweep)
            return OK
        processes = Processes()
        with processes.outlive_signals("stopping; once more stops at once"):
            return _run(sweep, processes)
    except UserError as error:
        print_problems(error)
        return USER_ERROR
    except KeyboardInterrupt:
        return stopped(_STOPPED)


def _run(sweep: Sweep, processes: Processes) -> int:
    """Work on the study; the report is written however that ends."""
    from tlearn.sweep.display import Display
    from tlearn.sweep.retrain import check_target, retrain
    from tlearn.sweep.storage import storage_errors
    from tlearn.sweep.study import SharedStudy
    from tlearn.sweep.worker import Worker

    begin = time.monotonic()
    check_target(sweep)
    study = SharedStudy(sweep)
    with storage_errors(study.url):
        try:
            with Display(sweep, study) as display:
                met = Worker(sweep, study, display, processes=processes).work()
        finally:
            _report(sweep, study)
        result = _result(sweep, study, met, time.monotonic() - begin)
    status = OK if met else STOPPED
    if met and result["best"] is None:
        fix = f"what the trials printed is in {sweep.folder / 'logs'}; a larger sweep.trials runs more"
        raise UserError(Problem(f"sweep {sweep.settings.name}", "no trial is complete", fix))
    if met and sweep.settings.retrain:
        with processes.outlive_signals():  # that run can be heard
            status, again = retrain(sweep, study, processes)
        result |= again
    if status == STOPPED:
        print(_STOPPED, file=sys.stderr)
    print(json.dumps(result), flush=True)
    return status


_STOPPED = "stopped; start the same command again to go on"


def _report(sweep: Sweep, study: SharedStudy) -> None:
    from tlearn.sweep.page import write_page

    path = write_page(sweep, study)
    print(f"report {path}", file=sys.stderr)


def _result(sweep: Sweep, study: SharedStudy, met: bool, seconds: float) -> dict[str, Any]:
    """The last line."""
    counts, front = study.counted(), study.front()
    metrics = [objective.metric for objective in sweep.settings.objectives]
    several = len(metrics) > 1
    best = None
    if front:
        best = {
            "trial": front[0].number,
            **dict(zip(metrics, front[0].values, strict=True)),
            "values": {key: _plain(value) for key, value in front[0].params.items()},
            "run": front[0].user_attrs.get("run"),
        }
    return {
        "study": sweep.settings.name,
        "status": "finished" if met else "stopped",
        "trials": counts.ended,
        "complete": counts.complete,
        "pruned": counts.pruned,
        "failed": counts.failed,
        "best": best,
        **({"front": [trial.number for trial in front]} if several else {}),
        "dir": str(sweep.folder),
        "seconds": round(seconds, 1),
    }


def _plain(value: Any) -> Any:
    from tlearn.sweep.space import config_value

    return config_value(value)
