"""A worker: it takes trials of a shared study, one after the other, until the budget is met."""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tlearn.errors import Problem, UserError
from tlearn.sweep.display import Display
from tlearn.sweep.load import Sweep
from tlearn.sweep.process import Ended, OnReport, run_trial
from tlearn.sweep.results import objective_values, recorded
from tlearn.sweep.study import Claim, SharedStudy
from tlearn.train.command import NUMERICAL_FAULT, OK, STOPPED
from tlearn.train.launch import Processes
from tlearn.words import counted

_POLL_SECONDS = 1.0

Run = Callable[[list[str], Path, OnReport], Ended]


class Worker:
    """Runs trials.

    Args:
        sweep: what is searched.
        study: shared with other workers.
        display: where to show what happens.
        run: runs one trial; by default in a process of its own.
        processes: knows those, and whether this worker was asked to stop.
    """

    def __init__(
        self,
        sweep: Sweep,
        study: SharedStudy,
        display: Display,
        run: Run | None = None,
        processes: Processes | None = None,
    ) -> None:
        self._sweep = sweep
        self._study = study
        self._display = display
        self._processes = processes or Processes()
        self._run: Run = run or functools.partial(run_trial, processes=self._processes)
        self._logs = sweep.folder / "logs"
        self._logs.mkdir(exist_ok=True)

    def work(self) -> bool:
        """Run trials until the budget is met, and wait for those of others.

        Returns:
            Whether it is met; False: this worker was asked to stop.

        Raises:
            UserError: too many trials failed.
            StorageError: the storage cannot be used any more.
        """
        with self._study.working():
            return self._work(before=self._study.ended())

    def _work(self, before: frozenset[int]) -> bool:
        said_waiting = False
        while True:
            for number in self._study.reclaim():
                self._display.say(f"trial {number} lost its worker")
            counts = self._study.counted()
            minutes = self._sweep.settings.minutes
            spent = minutes is not None and counts.seconds >= 60 * minutes
            met = counts.ended >= self._sweep.most_trials or (spent and counts.running == 0)
            self._check_failures(before, met=met)
            if met:
                return True
            if self._processes.stopped:
                return False
            if spent or (counts.waiting == 0 and counts.all >= self._sweep.most_trials):
                if not said_waiting:
                    self._display.say(f"waiting for {counted(counts.running, 'trial')} of other workers")
                said_waiting = True
                time.sleep(_POLL_SECONDS)
                continue
            claim = self._study.claim()
            if claim is not None and not self._run_trial(claim):
                return False

    def _run_trial(self, claim: Claim) -> bool:
        """Run one trial. Returns False when this worker was asked to stop."""
        begin = time.monotonic()
        self._display.started(claim, claim.trial.user_attrs.get("retry_of"))
        folder = self._study.run_folder(claim.number)
        with self._study.beating(claim):
            overrides = [*self._sweep.overrides(claim.values, folder), "log.progress=false"]
            ended = self._run(overrides, self._logs / f"{claim.number:04d}.txt", self._reporter(claim))
            if self._is_stopped(ended):
                self._study.release(claim)
                self._display.ended(claim.number, "stopped", None, time.monotonic() - begin)
                return False
            state, values, said, kept = self._enter(claim, ended, folder)
        self._display.ended(
            claim.number, state if kept else "counted by another worker", values, time.monotonic() - begin, said
        )
        return True

    def _is_stopped(self, ended: Ended) -> bool:
        """Whether a trial has no result because it was stopped: a signal may find it where it cannot say so itself."""
        return ended.status == STOPPED or (self._processes.stopped and ended.status not in (OK, NUMERICAL_FAULT))

    def _reporter(self, claim: Claim) -> OnReport:
        metric = self._sweep.settings.objectives[0].metric

        def report(epoch: int, metrics: Mapping[str, float]) -> bool:
            self._display.epoch(claim.number, epoch)
            if not self._sweep.prunes or metric not in metrics:
                return False
            claim.trial.report(metrics[metric], epoch)
            return bool(claim.trial.should_prune())

        return report

    def _enter(self, claim: Claim, ended: Ended, folder: Path) -> tuple[str, list[float] | None, str, bool]:
        """Enter a result in the study: state, values, what there is to say, and whether it counts."""
        if ended.status == NUMERICAL_FAULT:
            return "diverged", None, ended.error, self._study.end(claim, None, diverged=ended.error)
        if ended.status != OK:
            return "failed", None, ended.error, self._study.end(claim, None, error=ended.error)
        found = recorded(folder)
        if found.get("status") == "pruned":
            return "pruned", None, "", self._study.end(claim, None)
        values = objective_values(self._sweep.settings.objectives, found)
        if not isinstance(values, list):
            said = values or f"{folder} has no summary of a finished run"
            return "failed", None, said, self._study.end(claim, None, error=said)
        return "complete", values, "", self._study.end(claim, values)

    def _check_failures(self, before: frozenset[int], *, met: bool) -> None:
        """Raises UserError where too many failed; those before this worker began do not count: it was started again."""
        said = self._study.failures(before)
        if len(said) < self._sweep.settings.failures:
            return
        (common, times), *_ = collections.Counter(said).most_common(1)
        onward = "the budget is met with them" if met else "the sweep goes on when started again"
        fix = f"what they printed is in {self._logs}; {onward}"
        fix += "; sweep.failures=N lets more fail" if times < len(said) else ""
        what = f"{len(said)} trials in a row failed, {times} of them with: {common}"
        raise UserError(Problem(f"sweep {self._sweep.settings.name}", what, fix))
