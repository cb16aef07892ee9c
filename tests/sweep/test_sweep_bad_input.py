"""What the command says when it cannot search: exit status 2, what is wrong and what to do, and nothing lost."""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tlearn.sweep import storage
from tlearn.sweep.command import main
from tlearn.sweep.process import Ended
from tlearn.sweep.worker import Worker

Refused = Callable[..., str]


@pytest.fixture
def runs(fake: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """``runs(run)``: from now on a trial of the command is this instead of a process; at first it trains nothing."""

    def set_run(run: Any) -> None:
        monkeypatch.setattr(Worker, "__init__", functools.partialmethod(original, run=run))

    original = Worker.__init__
    set_run(fake["fake_run"]())
    return set_run


@pytest.fixture
def refused(rates: tuple[str, ...], runs: Any, capsys: pytest.CaptureFixture[str]) -> Refused:
    """``refused("sweep.trials=9")`` gives what the command says on standard error where it ends with status 2."""

    def run(*overrides: str) -> str:
        capsys.readouterr()
        assert main([*rates, *overrides]) == 2
        printed = capsys.readouterr()
        assert printed.out == "", "no line of JSON of a sweep that is not"
        assert "error: " in printed.err
        assert "Traceback" not in printed.err
        return printed.err

    return run


@pytest.fixture
def summary(rates: tuple[str, ...], runs: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """``summary("sweep.trials=9")`` gives the last line of a sweep that meets its budget."""

    def run(*overrides: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*rates, *overrides]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    return run


# --- the space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sweep.space={}", "sweep.space: is empty: there is nothing to search"),
        ("sweep.space={head.poling: {type: categorical, choices: [avg]}}", "did you mean head.pooling"),
        ("sweep.space={haed: {type: categorical, choices: [mlp]}}", "sweep.space.haed"),
        ("sweep.space.optimizer.learning_rate.low=2.0", "low 2 is above high 1"),
        (
            "sweep.space.head.dropout={type: float, low: 0, high: 0.5, when: {head: mlp}}",
            "the key head is not in the space",
        ),
        (
            "sweep.space={head: {type: categorical, choices: [linear]}, "
            "head.dropout: {type: float, low: 0, high: 0.5, when: {head: mlp}}}",
            "head is never 'mlp'",
        ),
        ("sweep.tirals=3", "did you mean sweep.trials"),
    ],
)
def test_a_space_that_makes_no_sense(override: str, says: str, refused: Refused, tmp_path: Path) -> None:
    assert says in refused(override)
    assert not (tmp_path / "out").exists()


# --- the storage -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(database: Path) -> Iterator[None]:
    """Another program holds a database."""
    with contextlib.closing(sqlite3.connect(database)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield


def test_a_storage_that_is_locked(
    refused: Refused, summary: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary("sweep.trials=2")
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.3)
    with held(tmp_path / "out" / "study.db"):
        assert "study.db: is locked" in refused("sweep.trials=3")
    assert summary("sweep.trials=3")["trials"] == 3


def test_a_storage_that_is_locked_while_a_trial_runs(
    refused: Refused,
    summary: Callable[..., dict[str, Any]],
    runs: Any,
    fake: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The trial that has ended meanwhile is in its folder, and counts when the command is started again."""
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.3)
    with contextlib.ExitStack() as locks:

        def lock_behind(overrides: list[str], log: Path, on_report: Any) -> Ended:
            ended: Ended = fake["fake_run"]()(overrides, log, on_report)
            locks.enter_context(held(tmp_path / "out" / "study.db"))
            return ended

        runs(lock_behind)
        said = refused("sweep.trials=2")
    assert "study.db: is locked" in said
    assert "taken up when it is started again" in said
    runs(fake["fake_run"]())
    found = summary("sweep.trials=2")
    assert (found["trials"], found["failed"]) == (2, 0)
    assert sorted(run.name for run in (tmp_path / "out" / "trials").iterdir()) == ["0000", "0001"]


def test_a_storage_that_cannot_be_reached(refused: Refused) -> None:
    assert "cannot be reached" in refused("sweep.storage='sqlite:////nowhere/at/all/study.db'")
    said = refused("sweep.storage='oracle9://me:secret@host/name'")
    assert "is no storage that Optuna knows" in said
    assert "secret" not in said


def test_a_storage_of_an_older_version(
    refused: Refused, summary: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    summary("sweep.trials=1")
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "study.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v1.3.0.a'")
        database.commit()
    said = refused("sweep.trials=2")
    assert "was made by another version of Optuna" in said
    assert "optuna storage upgrade --storage" in said


def test_a_folder_of_another_search(refused: Refused, summary: Callable[..., dict[str, Any]]) -> None:
    summary("sweep.trials=1")
    assert "name another sweep.dir or sweep.name" in refused("sweep.trials=2", "seed=5")


# --- trials that fail ------------------------------------------------------------------------------------------------


def test_all_trials_fail(rates: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Real processes: the plugin with this backbone is known here, and not to them."""
    assert main([*rates, "sweep.trials=9", "sweep.failures=2"]) == 2
    said = capsys.readouterr().err
    assert "2 trials in a row failed, 2 of them with: " in said
    assert "tiny" in said.split("2 of them with: ")[1]
    assert len(list((tmp_path / "out" / "logs").iterdir())) == 2
    assert (tmp_path / "out" / "report.html").is_file()


def test_trials_that_ended_before_others_failed_stay(
    refused: Refused, summary: Callable[..., dict[str, Any]], runs: Any, fake: dict[str, Any]
) -> None:
    before = summary("sweep.trials=2")
    runs(lambda *_: Ended(1, "out of memory"))
    assert "3 trials in a row failed, 3 of them with: out of memory" in refused("sweep.trials=9")
    runs(fake["fake_run"]())
    after = summary("sweep.trials=6")
    assert (after["trials"], after["failed"]) == (6, 3)
    assert after["best"]["val_accuracy"] >= before["best"]["val_accuracy"]


@pytest.mark.parametrize("retrain", ["true", "false"])
def test_a_budget_that_is_met_without_a_result_is_no_success(
    refused: Refused, runs: Any, retrain: str, tmp_path: Path
) -> None:
    runs(lambda *_: Ended(1, "out of memory"))
    more = ("sweep.trials=3", f"sweep.retrain={retrain}")
    assert "the budget is met with them" in refused(*more)
    assert f"no trial is complete\n    what the trials printed is in {tmp_path / 'out' / 'logs'}" in refused(*more)
