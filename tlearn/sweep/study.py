"""A study that any number of workers share, and that outlives any of them.

Three rules keep the trials right, whenever a process is killed:

1. **The budget.** Optuna numbers trials one by one, for all workers. A trial belongs to the budget when fewer trials
   than the budget has *count* among those with smaller numbers: those that run, wait or have ended. Whoever began one
   too many gives it back, so that two workers never share a place and none is left empty.
2. **The lease.** A worker holds a lock of the kernel on a file of its own, which ends with the process, and counts
   up in the trial that it runs. A trial is lost when its lock can be had, or, where the file is not in sight (another
   machine), when its count has stood still for ``LOST_SECONDS`` of this process' own clock.
3. **The result.** It is in the run folder before it is in the study. A lost trial whose run had ended is entered with
   it; any other one waits to be tried again with the same values. Of two that end the same trial the first counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlearn.errors import Problem, UserError
from tlearn.sweep.load import Sweep
from tlearn.sweep.methods import make_pruner, make_sampler
from tlearn.sweep.results import objective_values, recorded
from tlearn.sweep.space import Scalar
from tlearn.sweep.storage import open_storage, storage_errors, storage_url
from tlearn.train.unchanged import differing, shown

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

BEAT_SECONDS = 10.0
LOST_SECONDS = 120.0
"""A worker out of sight that gave no sign for so long is lost."""

_SETTINGS = "tlearn"


@dataclass(frozen=True)
class Claim:
    """A trial that this worker runs.

    Attributes:
        trial: of Optuna.
        number: of the trial, in the whole study.
        values: of the searched keys, as they are stored.
    """

    trial: optuna.trial.Trial
    number: int
    values: dict[str, Scalar]


@dataclass(frozen=True)
class Counts:
    """Trials of a study that count, by what became of them."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    seconds: float = 0.0

    @property
    def ended(self) -> int:
        """Trials whose result is known."""
        return self.complete + self.pruned + self.failed

    @property
    def all(self) -> int:
        """Places of the budget that are taken."""
        return self.ended + self.running + self.waiting


class SharedStudy:
    """One study, as one worker sees it.

    Args:
        sweep: what is searched. Its folder is made.

    Raises:
        StorageError: the storage cannot be used.
        UserError: the study there is of another sweep.
    """

    def __init__(self, sweep: Sweep) -> None:
        import optuna

        self._sweep = sweep
        self.url = storage_url(sweep.settings.storage, sweep.folder)
        self.trials_folder = sweep.folder / "trials"
        self._leases = sweep.folder / "workers"
        _make_folders(self.trials_folder, self._leases)
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._beats: dict[int, tuple[int, float]] = {}  # of others: their count, and when it was last seen to change
        with storage_errors(self.url):
            self.optuna = optuna.create_study(
                storage=open_storage(self.url),
                study_name=sweep.settings.name,
                directions=sweep.directions,
                sampler=make_sampler(sweep, 0),
                pruner=make_pruner(sweep),
                load_if_exists=True,
            )
            self._check_same()

    def _check_same(self) -> None:
        """Raises UserError where the study was made for another search."""
        now = _identity(self._sweep)
        before = self.optuna.user_attrs.get(_SETTINGS)
        if before is None:
            self._check_folder_unused()
            self.optuna.set_user_attr(_SETTINGS, now)
            self.optuna.set_metric_names([objective.metric for objective in self._sweep.settings.objectives])
            return
        fix = "budget, pruner, retries, failures and retrain may change; else name another sweep.dir or sweep.name"
        problems = [
            Problem(f"{self.url}: {key}", f"the study there has {shown(was)}, not {shown(wanted)}", fix)
            for key, was, wanted in differing(_by_key(before), _by_key(now))
        ]
        if problems:
            raise UserError(problems)

    def _check_folder_unused(self) -> None:
        if self.optuna.trials or not any(self.trials_folder.iterdir()):
            return
        fix = "choose another sweep.dir, or give back the storage they were made with"
        raise UserError(Problem(str(self.trials_folder), "holds trials that the study does not know", fix))

    # --- what there is -----------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """The trials that count, by number."""
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if counts(trial)]

    def counted(self) -> Counts:
        """How many there are of what."""
        found: dict[str, int] = {}
        seconds = 0.0
        for trial in self.trials():
            name = trial.state.name.lower()
            found[name] = found.get(name, 0) + 1
            seconds += trial.duration.total_seconds() if trial.duration else 0.0
        return Counts(
            found.get("complete", 0),
            found.get("pruned", 0),
            found.get("fail", 0),
            found.get("running", 0),
            found.get("waiting", 0),
            seconds,
        )

    def ended(self) -> frozenset[int]:
        """Numbers of the trials whose result is known."""
        return frozenset(trial.number for trial in self.trials() if trial.state.is_finished())

    def failures(self, before: Collection[int] = ()) -> list[str]:
        """What the trials said that failed since the last one that did not.

        A loss that is not finite is a result like others, unless it is all there is.

        Args:
            before: numbers of trials whose failures are left out.
        """
        ended = [trial for trial in self.trials() if trial.state.is_finished()]
        ended.sort(key=lambda trial: trial.datetime_complete, reverse=True)
        errors = [trial.user_attrs.get("error") for trial in ended]
        diverged = [trial.user_attrs.get("diverged") for trial in ended]
        either = [error or fault for error, fault in zip(errors, diverged, strict=True)]
        in_a_row = either if all(either) else itertools.takewhile(bool, errors)
        return [said for trial, said in zip(ended, in_a_row, strict=False) if trial.number not in before]

    def front(self) -> list[FrozenTrial]:
        """The best complete trial, or those of the Pareto front, best first objective first."""
        if not any(trial.state.name == "COMPLETE" for trial in self.trials()):
            return []
        if len(self._sweep.directions) == 1:
            return [self.optuna.best_trial]
        sign = 1 if self._sweep.directions[0] == "minimize" else -1
        return sorted(self.optuna.best_trials, key=lambda trial: sign * trial.values[0])

    def run_folder(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.trials_folder / f"{number:04d}"

    # --- a trial of this worker --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Hold this worker's lease. Where it ends with an error, so does its trial: the file stays, and is free."""
        path = self._leases / f"{self._worker}.lock"
        with open(path, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
            path.unlink(missing_ok=True)

    def claim(self) -> Claim | None:
        """Begin a trial: one that waits to be tried again, or a new one. None where the budget has no place for it."""
        from optuna.trial import Trial

        taken = [trial for trial in self.trials() if trial.state.name != "WAITING"]
        self.optuna.sampler = make_sampler(self._sweep, len(taken), taken)
        trial = self.optuna.ask()
        trial.set_user_attr("worker", self._worker)
        before = [each for each in self.trials() if each.number < trial.number]
        if len(before) >= self._sweep.most_trials:
            self._give_back(trial, "surplus")
            return None
        # Another worker was faster: nobody draws for its place again.
        if len(before) != len(taken) and not trial.params:
            self.optuna.sampler = make_sampler(self._sweep, len(before), before)
            trial = Trial(self.optuna, trial._trial_id)
        values = self._sweep.space.suggest(trial)
        trial.set_user_attr("run", str(self.run_folder(trial.number)))
        return Claim(trial, trial.number, values)

    @contextlib.contextmanager
    def beating(self, claim: Claim) -> Iterator[None]:
        """Give signs of life while a trial runs."""
        ended = threading.Event()

        def beat() -> None:
            count = 0
            while not ended.wait(BEAT_SECONDS):
                count += 1
                with contextlib.suppress(Exception):  # a storage that is away for a moment is not the trial's fault
                    claim.trial.set_user_attr("beat", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def end(
        self, claim: Claim, values: list[float] | None, *, error: str | None = None, diverged: str | None = None
    ) -> bool:
        """Enter the result of a trial.

        Args:
            claim: the trial.
            values: of the objectives; None: it was pruned, or failed.
            error: why it failed; None: it did not.
            diverged: what was not finite; such a trial counts as pruned.

        Returns:
            Whether it counts: another worker may have taken this one for lost.
        """
        from optuna.trial import TrialState

        state = TrialState.COMPLETE if values is not None else TrialState.PRUNED if error is None else TrialState.FAIL
        with contextlib.suppress(ValueError, RuntimeError):
            for name, said in (("error", error), ("diverged", diverged)):
                if said is not None:
                    claim.trial.set_user_attr(name, said)
            self.optuna.tell(claim.trial, values, state=state)
            return True
        return False

    def release(self, claim: Claim) -> None:
        """Give a trial back that was stopped: somebody tries it again."""
        self._give_back(claim.trial, "stopped")
        self._try_again(self.optuna.trials[claim.number], lost=False)

    def _give_back(self, trial: optuna.trial.Trial, why: str) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr("void", why)
        self.optuna.tell(trial, state=TrialState.FAIL)

    # --- trials of lost workers --------------------------------------------------------------------------------------

    def reclaim(self) -> list[int]:
        """Find trials whose worker is lost: enter their result, or have them tried again. Returns their numbers."""
        lost = [trial for trial in self.trials() if trial.state.name == "RUNNING" and self._is_lost(trial)]
        return [trial.number for trial in lost if self._take_over(trial)]

    def _is_lost(self, trial: FrozenTrial) -> bool:
        worker = str(trial.user_attrs.get("worker", ""))
        if worker == self._worker:
            return False
        lease = self._leases / f"{worker}.lock"
        if not worker and self._sweep.settings.storage is None and not self._others():
            return True  # killed before it could say whose it is
        if worker and lease.is_file():
            return _is_free(lease)
        count, now = int(trial.user_attrs.get("beat", 0)), time.monotonic()
        seen, since = self._beats.get(trial.number, (-1, now))
        self._beats[trial.number] = (count, since if seen == count else now)
        return now - self._beats[trial.number][1] > LOST_SECONDS

    def _others(self) -> list[Path]:
        """Leases in sight that somebody else holds."""
        own = f"{self._worker}.lock"
        return [path for path in self._leases.iterdir() if path.name != own and not _is_free(path)]

    def _take_over(self, trial: FrozenTrial) -> bool:
        """End a lost trial with what its run left. False where another worker was faster."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        storage, retries = self.optuna._storage, int(trial.user_attrs.get("retries", 0))
        found = recorded(Path(str(trial.user_attrs.get("run", ""))))
        values = objective_values(self._sweep.settings.objectives, found)
        tried_enough = retries >= self._sweep.settings.retries
        try:
            if found.get("status") == "pruned":
                last = trial.last_step  # a pruned trial has the value of its last epoch, as ``tell`` would store it
                value = None if last is None else [trial.intermediate_values[last]]
                storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED, value)
            elif isinstance(values, list):
                storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, values)
            else:
                key = "error" if tried_enough else "void"
                said = f"its worker was lost {retries + 1} times" if tried_enough else "lost"
                storage.set_trial_user_attr(trial._trial_id, key, said)
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                if not tried_enough:
                    self._try_again(trial, lost=True)
        except UpdateFinishedTrialError:
            return False
        return True

    def _try_again(self, trial: FrozenTrial, *, lost: bool) -> None:
        import optuna

        retries = int(trial.user_attrs.get("retries", 0)) + (1 if lost else 0)
        first = trial.user_attrs.get("retry_of", trial.number)
        drawn = "run" in trial.user_attrs  # else it was killed while its values were chosen: they are chosen anew
        again = optuna.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=trial.params if drawn else {},
            distributions=trial.distributions if drawn else {},
            user_attrs={"retries": retries, "retry_of": first},
            system_attrs={key: value for key, value in trial.system_attrs.items() if key.startswith(("nsga", "cma"))},
        )
        self.optuna.add_trial(again)


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial takes a place of the budget; one that was lost or given back does not."""
    return "void" not in trial.user_attrs


def _identity(sweep: Sweep) -> dict[str, Any]:
    """What two invocations must agree in to share a study."""
    settings = sweep.settings
    return {
        "space": {parameter.key: str(parameter) for parameter in sweep.space.parameters},
        "objectives": [
            f"{direction} {objective.metric}"
            for direction, objective in zip(sweep.directions, settings.objectives, strict=True)
        ],
        "sampler": settings.sampler.name.value,
        "seed": settings.seed,
        "trial": json.loads(json.dumps(settings.trial)),
        "overrides": sorted(sweep.base),
    }


def _by_key(identity: dict[str, Any]) -> dict[str, Any]:
    """With a place for each override, so that those which differ can be named alone."""
    values = dict(text.partition("=")[::2] for text in identity["overrides"])
    return identity | {"overrides": values} if len(values) == len(identity["overrides"]) else identity


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(Problem("sweep.dir", f"{folder} cannot be made: {error.strerror}")) from None


def _is_free(lease: Path) -> bool:
    """Whether nobody holds a lock."""
    try:
        with open(lease, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
