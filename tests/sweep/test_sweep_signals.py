"""A sweep that is asked to stop: at once where no trial runs, else with the one that does, and none is lost by it."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tlearn.sweep import command as sweep_command
from tlearn.sweep import retrain, worker
from tlearn.sweep.command import main
from tlearn.sweep.display import Display
from tlearn.sweep.process import Ended
from tlearn.sweep.worker import Worker
from tlearn.train.command import NUMERICAL_FAULT
from tlearn.train.launch import JobResult

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])


@pytest.fixture(autouse=True)
def survived() -> Iterator[list[int]]:
    """Signals that the command left to whoever called it; without this they would end the tests."""
    came: list[int] = []
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in kept:
        signal.signal(number, lambda number, frame: came.append(number))
    yield came
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def command(
    rates: tuple[str, ...], fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """``command("sweep.trials=2", run=...)`` gives exit status, last line and what was said; trials train nothing."""
    original = Worker.__init__
    monkeypatch.setattr(sweep_command, "_report", lambda *_: None)  # as everywhere else, and it takes a second

    def run_command(*overrides: str, run: Any = None) -> tuple[int, dict[str, Any], str]:
        run = run or fake["fake_run"]()
        monkeypatch.setattr(Worker, "__init__", functools.partialmethod(original, run=run))
        capsys.readouterr()
        status = main([*rates, "sweep.pruner.name=none", *overrides])
        out, err = capsys.readouterr()
        return status, json.loads(out.splitlines()[-1]), err

    return run_command


Command = Callable[..., tuple[int, dict[str, Any], str]]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


# --- while a trial runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "ended"),
    [
        (signal.SIGTERM, Ended(-15, "killed by signal 15")),
        (signal.SIGINT, Ended(-2, "killed by signal 2")),
        (signal.SIGINT, Ended(1, "Traceback")),
    ],
)
def test_a_trial_that_a_signal_ended_is_tried_again_and_did_not_fail(
    number: int, ended: Ended, command: Command, survived: list[int]
) -> None:
    def stopped(*_: Any) -> Ended:
        send(number)
        return ended

    status, line, said = command("sweep.trials=2", run=stopped)
    assert (status, line["status"], line["trials"], line["failed"]) == (3, "stopped", 0, 0)
    assert said.count("trial 0") == 2, "it begins and is stopped; no other one begins"
    assert "trial 0 stopped" in said
    assert "start the same command again to go on" in said
    assert survived == []
    status, line, said = command("sweep.trials=2")
    assert (status, line["trials"], line["complete"]) == (0, 2, 2)
    assert "(trial 0 again)" in said


def test_a_trial_that_comes_to_its_end_counts_and_is_the_last(command: Command, fake: dict[str, Any]) -> None:
    def finishes(*given: Any) -> Ended:
        send(signal.SIGINT)
        ended: Ended = fake["fake_run"]()(*given)
        return ended

    status, line, _ = command("sweep.trials=2", run=finishes)
    assert (status, line["status"], line["complete"], line["best"]["trial"]) == (3, "stopped", 1, 0)
    status, line, _ = command(
        "sweep.trials=3", run=lambda *_: send(signal.SIGTERM) or Ended(NUMERICAL_FAULT, "no number")
    )
    assert (status, line["pruned"], line["trials"]) == (3, 1, 2), "that is a result, too"
    status, line, _ = command("sweep.trials=3", run=finishes)
    assert (status, line["status"], line["trials"]) == (0, "finished", 3), "there is nothing left to do"


@SIGNALS
def test_a_signal_while_the_process_of_a_trial_is_started(
    number: int,
    rates: tuple[str, ...],
    plugin_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Too late for the worker to leave it alone, too early for the trial to hear of it."""
    started = Display.started

    def interrupted(*given: Any) -> None:
        started(*given)
        for name, value in plugin_env.items():  # for the trial; here the plugin is loaded
            monkeypatch.setenv(name, value)
        send(number)

    monkeypatch.setattr(Display, "started", interrupted)
    assert main([*rates, "sweep.trials=2"]) == 3
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["status"], line["trials"]) == ("stopped", 0)


def test_ctrl_c_reaches_a_trial_that_is_starting(
    rates: tuple[str, ...], plugin_env: dict[str, str], tmp_path: Path
) -> None:
    """As a terminal sends it, to all processes at once."""
    given = [*rates, "sweep.trials=2"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "tlearn.sweep", *given],
        cwd=tmp_path,
        env=os.environ | plugin_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    with sweep:
        said = next(line for line in sweep.stderr or () if line.startswith("trial 0 "))
        log = tmp_path / "out" / "logs" / "0000.txt"
        while not log.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        os.killpg(sweep.pid, signal.SIGINT)
        out, err = sweep.communicate(timeout=100)
    assert sweep.returncode == 3, said + err
    line = json.loads(out.splitlines()[-1])
    assert (line["status"], line["trials"], line["failed"]) == ("stopped", 0, 0)
    assert "stopping; once more stops at once" in err
    assert "trial 1 " not in err


# --- where none runs -------------------------------------------------------------------------------------------------


def test_a_worker_that_waits_for_others_stops(
    command: Command, fake: dict[str, Any], rates: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fake["open_study"]([*rates, "sweep.trials=1", "sweep.pruner.name=none"])
    say, polls = Display.say, iter(range(3))

    def waits(display: Display, text: str) -> None:
        say(display, text)
        if text.startswith("waiting"):
            send(signal.SIGTERM)

    monkeypatch.setattr(Display, "say", waits)
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: next(polls)))
    with other.working():
        claim = other.claim()
        status, line, said = command("sweep.trials=1")
        assert (status, line["status"], line["trials"]) == (3, "stopped", 0)
        assert "waiting for 1 trial of other workers" in said
        assert other.end(claim, [0.5]), "the other one's trial is untouched"


def test_the_second_signal_is_not_outlived() -> None:
    code = (
        "import os, sys; from tlearn.train.launch import Processes\n"
        "with Processes().outlive_signals('once'):\n"
        "    os.kill(os.getpid(), 15); print('outlived', flush=True); os.kill(os.getpid(), 2)\n"
        "    print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "outlived\n", "\nonce\n")


# --- the best once more ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("summary", [{}, {"status": "stopped", "epochs": 1}])
def test_the_run_of_the_best_stops(summary: dict[str, Any], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever moment: it may say so, or be killed before it can."""

    def stopped(*_: Any) -> JobResult:
        send(signal.SIGTERM)
        return JobResult(3 if summary else 128 + signal.SIGTERM, summary, 1.0)

    monkeypatch.setattr(retrain, "run_job", stopped)
    status, line, said = command("sweep.trials=1", "sweep.retrain=true")
    assert (status, line["retrained"]["status"]) == (3, "stopped")
    assert "start the same command again to go on" in said


def test_a_signal_before_the_run_of_the_best(
    command: Command, fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def finishes(*given: Any) -> Ended:
        send(signal.SIGTERM)
        ended: Ended = fake["fake_run"]()(*given)
        return ended

    monkeypatch.setattr(retrain, "run_job", lambda *_: pytest.fail("begins"))
    status, line, _ = command("sweep.trials=1", "sweep.retrain=true", run=finishes)
    assert (status, line["complete"], line["retrained"]["status"]) == (3, 1, "stopped")
