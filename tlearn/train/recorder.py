"""What a run writes while it trains: metrics, curves, states to resume from, and the best weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from tlearn.config import Config
from tlearn.train import checkpoint
from tlearn.train.logs import MetricsLog, TensorBoardLog
from tlearn.train.loop import Logs
from tlearn.train.plan import Plan, StagePlan
from tlearn.train.progress import Progress
from tlearn.train.run import Run
from tlearn.train.status import StatusFile


class Recorder:
    """Keeps a run folder up to date.

    Args:
        run, config, plan: of the run.
        is_chief: of several workers the chief alone saves states and weights.

    Attributes:
        board: TensorBoard's event files.
        status: the file that says what the run is doing.
    """

    def __init__(self, run: Run, config: Config, plan: Plan, *, is_chief: bool) -> None:
        self.board = TensorBoardLog(run, config.log.tensorboard)
        self.status = StatusFile(run, plan)
        self._run = run
        self._config = config
        self._plan = plan
        self._is_chief = is_chief
        self._metrics = MetricsLog(run)
        self._saved_at = time.monotonic()

    def steps(self, stage: StagePlan, progress: Progress, logs: Logs) -> None:
        """Record training metrics, running means of the epoch so far, where they are due at this step.

        The point at the end of an epoch is left to the epoch: what of it is in the event files is then there as a
        whole, or not at all.
        """
        if progress.step % self._config.log.every == 0:
            self._record("step", stage, progress, **logs)
            if progress.step % self._plan.steps_per_epoch and progress.step < stage.steps:
                self.board.scalars("train", logs, progress.global_step)

    def epoch(self, stage: StagePlan, progress: Progress, training: Logs, validation: Logs) -> None:
        """Record the metrics of an epoch; ``progress`` has both splits' under the names of ``metrics.jsonl``."""
        self._record("epoch", stage, progress, **progress.metrics, seconds=round(progress.seconds, 3))
        self.board.scalars("train", training, progress.global_step)
        self.board.scalars("val", validation, progress.global_step)
        self.board.flush()

    def _record(self, event: str, stage: StagePlan, progress: Progress, **values: float) -> None:
        epoch = self._plan.epoch(stage, progress.step)
        self._metrics.write(event, stage.name, epoch, progress.step, progress.global_step, **values)

    def go_back(self, progress: Progress) -> None:
        """Drop what was recorded after a state was saved: it will be recorded again.

        Where a validation is due, an earlier process may have done it, and recorded the epoch, after that state.
        """
        step, due = progress.global_step, progress.validation_due
        self._run.truncate_metrics(step, validation_due=due)
        self.board.go_back(step if due or step == 0 else step + 1)

    # --- states and weights ------------------------------------------------------------------------------------------

    def save_is_due(self, progress: Progress) -> bool:
        """Whether ``checkpoint.every`` asks for a state at this step."""
        every = self._config.checkpoint.every
        if every.minutes is not None and time.monotonic() - self._saved_at >= 60 * every.minutes:
            return True
        if every.steps is not None and progress.step % every.steps == 0:
            return True
        ended = progress.step % self._plan.steps_per_epoch == 0
        return every.epochs is not None and ended and progress.epochs % every.epochs == 0

    def save(self, state: Mapping[str, np.ndarray], progress: Progress) -> None:
        """Make everything durable that was recorded up to here, the state itself last."""
        if not self._is_chief:
            return
        self._metrics.sync()
        self.board.flush()
        keep = self._config.checkpoint.keep
        checkpoint.save_step(self._run.checkpoints, progress.global_step, state, asdict(progress), keep)
        self.status.running(progress)
        self._saved_at = time.monotonic()

    def save_best(self, weights: Mapping[str, np.ndarray], progress: Progress) -> None:
        """Write the weights that were just validated: they are the best so far."""
        checkpoint.save(self._run.best_file, weights, {"epoch": progress.best_epoch, **progress.metrics})
