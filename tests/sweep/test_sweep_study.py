"""A study shared by workers that come, go and are killed: no trial is lost, and none is counted twice."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

from tlearn.errors import UserError
from tlearn.sweep import study as shared
from tlearn.sweep.process import Ended
from tlearn.train.command import NUMERICAL_FAULT, STOPPED

FakeSweep = Callable[..., Any]


def outcome(study: Any) -> list[tuple[Any, ...]]:
    """What the trials that count searched and found, in the order of their places."""
    trials = sorted(study.trials(), key=lambda trial: trial.user_attrs.get("retry_of", trial.number))
    return [
        (trial.params, trial.state.name, trial.values, sorted(trial.intermediate_values.items())) for trial in trials
    ]


# --- budget, pruning, going on ---------------------------------------------------------------------------------------


def test_trials_are_pruned_by_what_they_report_at_every_epoch(fake_sweep: FakeSweep) -> None:
    study = fake_sweep("sweep.trials=12")
    counts = study.counted()
    assert (counts.ended, counts.failed) == (12, 0)
    assert counts.pruned >= 2
    for trial in study.trials():
        reported = sorted(trial.intermediate_values)
        assert reported == list(range(1, len(reported) + 1))
        if trial.state.name == "PRUNED":
            summary = json.loads((study.run_folder(trial.number) / "summary.json").read_text())
            assert summary["status"] == "pruned"
            better = [each for each in study.trials() if each.state.name == "COMPLETE"]
            assert trial.intermediate_values[reported[-1]] < max(each.values[0] for each in better)
        else:
            assert len(reported) == 6


def test_a_finished_study_is_left_alone_and_a_larger_budget_extends_it(fake_sweep: FakeSweep) -> None:
    first = outcome(fake_sweep("sweep.trials=4"))
    assert outcome(fake_sweep("sweep.trials=4")) == first
    extended = outcome(fake_sweep("sweep.trials=7"))
    assert (extended[:4], len(extended)) == (first, 7)
    whole = outcome(fake_sweep("sweep.trials=7", "sweep.dir=at_once"))
    assert whole == extended, "what is drawn depends on the trials before, not on who draws when"


def test_minutes_are_those_of_all_trials_together(fake_sweep: FakeSweep, fake: dict[str, Any]) -> None:
    study = fake_sweep("sweep.trials=null", "sweep.minutes=0.03", run=fake["fake_run"](0.1))
    counts = study.counted()
    assert 1.8 <= counts.seconds < 3.5
    assert counts.ended >= 2
    assert fake_sweep("sweep.trials=null", "sweep.minutes=0.03").counted().ended == counts.ended


@pytest.mark.parametrize("method", ["random", "grid", "cmaes"])
def test_every_sampler_searches(method: str, fake_sweep: FakeSweep) -> None:
    space = "{optimizer.learning_rate: {type: categorical, choices: [0.1, 0.01, 0.001]}}"
    grid = [f"sweep.space={space}", "sweep.trials=null"] if method == "grid" else ["sweep.trials=5"]
    study = fake_sweep(f"sweep.sampler.name={method}", "sweep.pruner.name=none", *grid)
    rates = [trial.params["optimizer.learning_rate"] for trial in study.trials()]
    assert len(set(rates)) == len(rates) == (3 if method == "grid" else 5)
    assert method != "grid" or set(rates) == {0.1, 0.01, 0.001}


@pytest.mark.parametrize("method", ["asha", "hyperband"])
def test_every_pruner_prunes(method: str, fake_sweep: FakeSweep) -> None:
    counts = fake_sweep(f"sweep.pruner.name={method}", "sweep.trials=14").counted()
    assert counts.ended == 14
    assert counts.pruned > 3


def test_several_objectives_give_a_front(fake_sweep: FakeSweep) -> None:
    objectives = "sweep.objectives=[{metric: val_accuracy},{metric: seconds, direction: maximize}]"
    study = fake_sweep(objectives, "sweep.sampler.name=nsgaii", "sweep.pruner.name=none", "sweep.sampler.population=4")
    front = study.front()
    assert front
    assert front[0].values[0] == max(trial.values[0] for trial in study.trials())


# --- workers that are lost -------------------------------------------------------------------------------------------


def test_a_sweep_killed_twice_ends_as_one_that_was_not(
    fake_sweep: FakeSweep, fake_process: Callable[..., Any], tmp_path: Path
) -> None:
    undisturbed = outcome(fake_sweep("sweep.trials=9", "sweep.dir=undisturbed"))
    for ended in (2, 5):
        with fake_process("sweep.trials=9", hold=ended) as worker:
            wait_for(lambda ended=ended: worker.poll() is not None or is_in_the_trial_after(ended, tmp_path / "out"))
            assert worker.poll() is None, worker.stdout.read()
            worker.send_signal(signal.SIGKILL)
    study = fake_sweep("sweep.trials=9")
    assert outcome(study) == undisturbed
    every = study.optuna.trials
    lost = [trial for trial in every if trial.user_attrs.get("void") == "lost"]
    assert len(lost) == 2
    assert len(every) == 9 + 2
    again = [trial.user_attrs["retry_of"] for trial in every if "retry_of" in trial.user_attrs]
    assert again == [trial.number for trial in lost]


def test_two_workers_share_one_study(fake_process: Callable[..., Any], fake_sweep: FakeSweep) -> None:
    start = partial(fake_process, "sweep.trials=11", seconds=0.05, together=2)
    with start() as first, start() as second:
        printed = [worker.communicate(timeout=300)[0] for worker in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], printed
    study = fake_sweep("sweep.trials=11")
    assert study.counted().ended == 11
    workers = {trial.user_attrs["worker"] for trial in study.trials()}
    assert len(workers) == 2
    ended = [re.findall(r"trial (\d+) (?:complete|pruned)", text) for text in printed]
    assert sorted(map(int, ended[0] + ended[1])) == [trial.number for trial in study.trials()]


@pytest.mark.parametrize("method", ["tpe", "random", "grid", "nsgaii", "cmaes"])
def test_two_workers_that_ask_at_once_draw_for_two_places(
    method: str, fake_sweep: FakeSweep, fake: dict[str, Any], rates: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them looks at the study, and before it asks for a trial the other one has begun one."""
    space = "{optimizer.learning_rate: {type: categorical, choices: [0.1, 0.01, 0.001]}}"
    overrides = ["sweep.trials=3", f"sweep.sampler.name={method}", "sweep.pruner.name=none"]
    overrides += [f"sweep.space={space}"] if method == "grid" else []
    alone = fake_sweep(*overrides, "sweep.dir=alone")
    one, other = (fake["open_study"]([*rates, *overrides]) for _ in range(2))
    drawn: dict[int, Any] = {}

    def claim(study: Any) -> None:
        claimed = study.claim()
        drawn[claimed.number] = claimed.values

    ask = one.optuna.ask

    def late() -> Any:
        monkeypatch.setattr(one.optuna, "ask", ask)
        claim(other)
        return ask()

    with one.working(), other.working():
        monkeypatch.setattr(one.optuna, "ask", late)
        claim(one)
        claim(one)
    expected = {trial.number: trial.params for trial in alone.trials()}
    if method in ("random", "grid"):
        assert drawn == expected
    assert len({str(values) for values in drawn.values()}) == len(drawn) == 3, drawn
    assert all(trial.params for trial in one.trials())


def test_a_worker_takes_over_from_one_that_dies_while_it_waits(
    fake_process: Callable[..., Any], fake_sweep: FakeSweep, tmp_path: Path
) -> None:
    with fake_process("sweep.trials=1", hold=0) as slow:
        wait_for(lambda: (tmp_path / "out" / "trials" / "0000").is_dir())
        with fake_process("sweep.trials=1") as other:
            begun = [next(other.stdout) for _ in range(3)]
            assert "waiting for 1 trial of other workers" in begun[2]
            slow.send_signal(signal.SIGKILL)
            printed, _ = other.communicate(timeout=300)
    assert "trial 0 lost its worker" in printed
    assert [trial.number for trial in fake_sweep("sweep.trials=1").trials()] == [1]


def test_a_result_that_did_not_reach_the_study_is_taken_from_its_run(
    fake_sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise optuna.exceptions.StorageInternalError("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(shared.SharedStudy, "end", gone)
        with pytest.raises(optuna.exceptions.StorageInternalError):
            fake_sweep("sweep.trials=2")
    study = fake_sweep("sweep.trials=2")
    assert [trial.number for trial in study.trials()] == [0, 1]
    summary = json.loads((study.run_folder(0) / "summary.json").read_text())
    assert study.trials()[0].values == [summary["val_accuracy"]]


def test_a_trial_is_tried_again_only_so_often(fake_sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> Ended:
        raise Killed

    for attempt in range(3):
        monkeypatch.setattr(shared.os, "getpid", lambda attempt=attempt: 10_000_000 + attempt)
        with contextlib.suppress(Killed):
            fake_sweep("sweep.trials=1", "sweep.retries=1", run=killed)
    (trial,) = fake_sweep("sweep.trials=1", "sweep.retries=1").trials()
    assert trial.user_attrs["error"] == "its worker was lost 2 times"
    assert trial.state.name == "FAIL"


def test_a_worker_on_another_machine_is_lost_when_it_gives_no_sign(
    fake_sweep: FakeSweep, fake_process: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_process("sweep.trials=1", hold=0) as far:
        wait_for(lambda: (tmp_path / "out" / "trials" / "0000").is_dir())
        far.send_signal(signal.SIGKILL)
    for lease in (tmp_path / "out" / "workers").iterdir():
        lease.unlink()  # as seen from another machine
    monkeypatch.setattr(shared, "LOST_SECONDS", 1.5)
    begin = time.monotonic()
    study = fake_sweep("sweep.trials=1")
    assert time.monotonic() - begin > 1.5
    assert [trial.user_attrs["retry_of"] for trial in study.trials()] == [0]


def test_a_stopped_trial_is_given_back_and_does_not_count_as_lost(fake_sweep: FakeSweep) -> None:
    assert fake_sweep("sweep.trials=2", run=lambda *_: Ended(STOPPED)).counted().waiting == 1
    study = fake_sweep("sweep.trials=2")
    assert [trial.user_attrs.get("retries", 0) for trial in study.trials()] == [0, 0]
    assert study.counted().ended == 2


# --- trials that fail ------------------------------------------------------------------------------------------------


def test_a_sweep_ends_when_trials_fail_one_after_the_other(fake_sweep: FakeSweep, fake: dict[str, Any]) -> None:
    said = iter(["out of memory", "out of memory", "disk full", "out of memory"])
    with pytest.raises(UserError, match="3 trials in a row failed, 2 of them with: out of memory"):
        fake_sweep("sweep.trials=9", run=lambda *_: Ended(1, next(said)))
    study = fake_sweep("sweep.trials=9")  # as that message says, it goes on
    assert (study.counted().failed, study.counted().ended) == (3, 9)


def test_started_again_a_sweep_counts_failures_anew(fake_sweep: FakeSweep) -> None:
    begun: list[Path] = []

    def fails(overrides: list[str], log: Path, on_report: object) -> Ended:
        begun.append(log)
        return Ended(1, "disk full")

    for trials, onward in ((2, "goes on when started again"), (4, "the budget is met with them")):
        with pytest.raises(UserError, match=f"2 trials in a row failed(.|\n)*{onward}"):
            fake_sweep("sweep.trials=4", "sweep.failures=2", run=fails)
        assert len(begun) == trials
    assert fake_sweep("sweep.trials=4").counted().failed == 4


def test_losses_that_are_not_finite_are_results_unless_there_is_nothing_else(
    fake_sweep: FakeSweep, fake: dict[str, Any]
) -> None:
    diverges = Ended(NUMERICAL_FAULT, "the loss is not finite")
    runs = iter([True, False, False, False, False, True])
    study = fake_sweep("sweep.trials=6", run=lambda *given: fake["fake_run"]()(*given) if next(runs) else diverges)
    assert (study.counted().complete, study.counted().pruned) == (2, 4)
    with pytest.raises(UserError, match="3 of them with: the loss is not finite"):
        fake_sweep("sweep.trials=6", "sweep.dir=all", run=lambda *_: diverges)


# --- storages --------------------------------------------------------------------------------------------------------


def test_a_journal_and_a_url_hold_a_study_too(fake_sweep: FakeSweep, tmp_path: Path) -> None:
    in_file = outcome(fake_sweep("sweep.trials=4"))
    for number, place in enumerate((tmp_path / "study.journal", f"sqlite:///{tmp_path}/other.db")):
        given = (f"sweep.storage='{place}'", f"sweep.dir=out{number}")
        assert outcome(fake_sweep("sweep.trials=2", *given)) == in_file[:2]
        assert outcome(fake_sweep("sweep.trials=4", *given)) == in_file


def test_a_study_of_another_search_is_not_gone_on_with(fake_sweep: FakeSweep) -> None:
    fake_sweep("sweep.trials=1")
    with pytest.raises(UserError, match=r"space.optimizer.learning_rate: the study there has .* to 1, .* not .* to 2"):
        fake_sweep("sweep.trials=1", "sweep.space.optimizer.learning_rate.high=2.0")
    with pytest.raises(UserError) as caught:
        fake_sweep("sweep.trials=1", "seed=5")
    (problem,) = caught.value.problems
    assert problem.where.endswith("study.db: overrides.seed")
    assert problem.what == 'the study there has nothing, not "5"', "what is the same is not said"


def test_trials_without_their_study_are_not_overwritten(fake_sweep: FakeSweep, tmp_path: Path) -> None:
    fake_sweep("sweep.trials=1")
    (tmp_path / "out" / "study.db").unlink()
    with pytest.raises(UserError, match="holds trials that the study does not know"):
        fake_sweep("sweep.trials=1")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("sqlite:////nowhere/at/all/study.db", "cannot be reached: unable to open database file"),
        ("nonsense", "is no storage that Optuna knows"),
        ("oracle9://host/name", "is no storage that Optuna knows"),
        ("postgresql+psycopg2://me:secret@localhost/x", "install the driver"),
        ("damaged.db", "is damaged: file is not a database"),
        ("damaged.journal", "is damaged"),
        ("/proc/study.journal", "cannot be reached"),
    ],
)
def test_a_storage_that_cannot_be_used(place: str, says: str, fake_sweep: FakeSweep, tmp_path: Path) -> None:
    for name in ("damaged.db", "damaged.journal"):
        (tmp_path / name).write_text("this is no database of any kind, " * 90 + "\nnor is this\n")
    url = f"sqlite:///{tmp_path / place}" if place == "damaged.db" else place
    with pytest.raises(UserError) as caught:
        fake_sweep(f"sweep.storage='{url}'")
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def is_in_the_trial_after(ended: int, folder: Path) -> bool:
    """Whether so many have ended, or more, and the newest has not."""
    trials = sorted(folder.glob("trials/*"))
    summaries = [(trial / "summary.json").is_file() for trial in trials]
    return sum(summaries) >= ended and not summaries[-1]


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)
