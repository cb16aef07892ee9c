"""Runs a plan: stage after stage, step after step, so that it can stop and go on anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from tlearn.config import Config, Stage
from tlearn.data import Data
from tlearn.errors import Problem, UserError
from tlearn.train import checkpoint
from tlearn.train.classifier import Classifier
from tlearn.train.console import Terminal, metrics_line
from tlearn.train.engine import Compute
from tlearn.train.features import FeatureMaker, Interrupted, StageFeatures
from tlearn.train.finish import finish
from tlearn.train.logs import MetricsLog, TensorBoardLog
from tlearn.train.loop import Logs, Loop, NumericalFault, Outputs
from tlearn.train.losses import default_monitor, smaller_is_better
from tlearn.train.plan import Plan, StagePlan
from tlearn.train.progress import Progress
from tlearn.train.run import Run
from tlearn.train.session import Session, restore_weights
from tlearn.train.streams import Streams, guarded
from tlearn.train.validation import KeptValidation, make_evaluation
from tlearn.train.xla import uses_xla

_SHOWN = ("loss", "accuracy", "val_loss", "val_accuracy", "val_auc")


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""

    def __init__(self, run: Run) -> None:
        self.run = run.path
        super().__init__(f"stopped: {run.path}")


class Trainer:
    """Executes a plan and writes the run folder.

    Args:
        run: where to write.
        config: of the run.
        data: indexed and split.
        classifier: the model, with its starting weights.
        plan: what to do.
        terminal: where to print.
        should_stop: asked between executions; True makes the run save its state and end with ``Stopped``.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        data: Data,
        classifier: Classifier,
        plan: Plan,
        *,
        terminal: Terminal,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._run = run
        self._config = config
        self._data = data
        self._classifier = classifier
        self._plan = plan
        self._terminal = terminal
        self._should_stop = should_stop
        self._streams = Streams(config, data, plan)
        self._metrics = MetricsLog(run)
        self._board = TensorBoardLog(run, config.log.tensorboard)
        self._monitor = config.checkpoint.monitor or default_monitor(plan.multi_label)
        self._progress = Progress()
        self._saved_state: dict[str, np.ndarray] | None = None
        self._saved_at = self._begun_at = time.monotonic()
        self._evaluate = make_evaluation(classifier.model, plan)
        self._kept: KeptValidation | None = None
        self._features = FeatureMaker(config, data, classifier, plan.stages, self._streams, terminal, should_stop)

    def run(self) -> dict[str, Any]:
        """Train through all stages from where the run stands, and finish the folder.

        Returns:
            The summary.

        Raises:
            Stopped: after ``should_stop``; the state is saved.
            NumericalFault: the loss is not finite; the last good state is kept.
            DataError: an image became unreadable.
        """
        self._begun_at = time.monotonic() - self._progress.seconds  # features are part of what a stage takes
        if self._progress.global_step == 0:
            self._show_samples()
        session = None
        try:
            for index in range(self._progress.stage, len(self._plan.stages)):
                session = self._run_stage(index, session)
            return self._finish()
        except NumericalFault as fault:
            fault.run = str(self._run.path)
            raise
        finally:
            self._terminal.end_epoch()
            self._features.close()
            self._board.close()

    def _finish(self) -> dict[str, Any]:
        test = self._data.test
        return finish(
            self._run,
            self._config,
            self._plan,
            self._classifier,
            self._progress,
            validate=lambda: (self._kept and self._kept.final()) or self._whole(self._data.val),
            test=(lambda: self._whole(test)) if len(test) else None,
            board=self._board,
        )

    def _whole(self, rows: np.ndarray) -> Outputs:
        """What the whole model gives for images."""
        return self._evaluate.with_outputs(guarded(self._streams.evaluation(rows)))

    def restore(self) -> None:
        """Take up the newest saved state of the run, where there is one."""
        largest = checkpoint.largest(self._classifier.model.variables)
        found = checkpoint.latest(self._run.checkpoints, most=largest)
        if found is not None:
            self._saved_state, progress = found
            self._progress = Progress(**progress)
        self._run.truncate_metrics(self._progress.global_step)

    def _run_stage(self, index: int, before: Session | None) -> Session:
        plan, progress, state = self._plan.stages[index], self._progress, self._saved_state
        if progress.stage != index:
            progress.enter(index)
        if state is not None:
            self._restore(lambda: restore_weights(self._classifier, state))  # what is kept below is made from them
        features = self._features_of(index) if progress.step < plan.steps else None
        model, prefix = (features.suffix, None) if features else self._features.streamed(index)
        session = Session(
            self._classifier,
            self._config,
            self._plan,
            index,
            model=model,
            before=before,
            first_iteration=None if state is None else progress.first_iteration,
        )
        progress.first_iteration = session.first_iteration
        if state is not None:
            self._restore(lambda: session.restore(state))
            self._saved_state = None
        self._terminal.print(f"stage {plan.name}: {plan.parameters:,} parameters, {plan.optimizer}")
        if progress.step < plan.steps:
            self._run_steps(session, plan, self._config.schedule.stages[index], features, prefix)
        session.finalize()
        self._save(session)
        return session

    def _features_of(self, index: int) -> StageFeatures | None:
        try:
            return self._features.stage(index)
        except Interrupted:
            raise Stopped(self._run) from None  # what is saved already is all there is

    def _restore(self, take_up: Callable[[], None]) -> None:
        try:
            take_up()
        except ValueError as error:
            fix = "resume with the versions the run was made with (environment.json), or start anew"
            raise UserError(Problem(str(self._run.path), str(error), fix)) from None

    # --- steps -------------------------------------------------------------------------------------------------------

    def _run_steps(
        self,
        session: Session,
        plan: StagePlan,
        stage: Stage,
        features: StageFeatures | None,
        prefix: Compute | None,
    ) -> None:
        progress, per_epoch = self._progress, self._plan.steps_per_epoch
        first, last = plan.first_epoch * per_epoch + progress.step, plan.first_epoch * per_epoch + plan.steps
        if features is None:
            batches = self._streams.training(stage, first, last)
        else:
            batches = self._streams.features(stage, features, first, last)
        validate = self._validation(features)
        xla = uses_xla(self._config, stage)
        loop = Loop(session.model, batches, xla=xla, in_chunks=features is not None, prefix=prefix)
        self._begin_epoch(session, plan)
        for step, logs in guarded(loop.run(progress.step, lambda step: self._boundary(plan, step))):
            progress.global_step += step - progress.step
            progress.step, progress.seconds = step, time.monotonic() - self._begun_at
            self._after_steps(plan, logs, loop)
            if step % per_epoch == 0 or step == plan.steps:
                self._end_epoch(session, plan, stage, logs | {"learning_rate": loop.learning_rate()}, validate)
                progress.seconds = time.monotonic() - self._begun_at
                if step == plan.steps or self._ends_early(plan, stage):
                    progress.step = plan.steps
                    return
                self._begin_epoch(session, plan)
            if self._save_is_due() or self._should_stop():
                self._save(session)
            if self._should_stop():
                raise Stopped(self._run)

    def _boundary(self, plan: StagePlan, step: int) -> int:
        """The next step at which something other than training is due."""
        periods = [self._plan.steps_per_epoch, self._config.log.every, self._config.checkpoint.every.steps]
        return min(plan.steps, *((step // period + 1) * period for period in periods if period))

    def _after_steps(self, plan: StagePlan, logs: Logs, loop: Loop) -> None:
        """Show and, when due, record training metrics: running means of the epoch so far."""
        progress = self._progress
        self._terminal.step((progress.step - 1) % self._plan.steps_per_epoch + 1, metrics_line(logs, _SHOWN))
        if progress.step % self._config.log.every == 0:
            values = logs | {"learning_rate": loop.learning_rate()}
            self._record("step", plan, **values)
            self._board.scalars("train", values, progress.global_step)

    # --- epochs ------------------------------------------------------------------------------------------------------

    def _begin_epoch(self, session: Session, plan: StagePlan) -> None:
        """Start the metrics of an epoch; of one that is resumed in the middle they are restored already."""
        epoch, done = divmod(self._progress.step, self._plan.steps_per_epoch)
        if done == 0:
            session.model.reset_metrics()
        length = min(self._plan.steps_per_epoch, plan.steps - epoch * self._plan.steps_per_epoch)
        self._terminal.start_epoch(f"{plan.name} {epoch + 1}/{plan.epochs}", length, done)

    def _validation(self, features: StageFeatures | None) -> Callable[[], Logs]:
        """Loss and metrics of the validation images, from their features where these are kept."""
        if features is None:
            self._kept = None
            return lambda: self._evaluate(self._streams.evaluation(self._data.val))
        self._kept = KeptValidation(
            self._classifier, self._plan, self._data, self._streams, features, self._terminal.print
        )
        return self._kept

    def _end_epoch(
        self, session: Session, plan: StagePlan, stage: Stage, logs: Logs, validate: Callable[[], Logs]
    ) -> None:
        """Validate, record, and keep the best weights."""
        progress = self._progress
        self._terminal.end_epoch()
        progress.epochs += 1
        with session.averaged():
            validation = validate()
            if not math.isfinite(validation["loss"]):
                raise self._fault(session)
            progress.metrics = logs | {f"val_{name}": value for name, value in validation.items()}
            is_best = progress.judge(
                progress.metrics[self._monitor],
                epoch=self._epoch(plan),
                smaller_is_better=smaller_is_better(self._monitor),
                min_delta=stage.early_stopping.min_delta,
            )
            if is_best:
                weights = {key: np.asarray(variable) for key, variable in self._classifier.variables().items()}
                checkpoint.save(self._run.best_file, weights, {"epoch": self._epoch(plan), **progress.metrics})
        self._record("epoch", plan, **progress.metrics, seconds=round(progress.seconds, 3))
        self._board.scalars("train", logs, progress.global_step)
        self._board.scalars("val", validation, progress.global_step)
        self._board.flush()
        number = self._epoch(plan) - plan.first_epoch
        self._terminal.print(f"{plan.name} {number}/{plan.epochs}  {metrics_line(progress.metrics, _SHOWN)}")

    def _ends_early(self, plan: StagePlan, stage: Stage) -> bool:
        patience, waited = stage.early_stopping.patience, self._progress.waited
        if patience is None or waited < patience:
            return False
        self._terminal.print(f"stage {plan.name} ends early: {self._monitor} did not improve for {waited} epochs")
        return True

    def _epoch(self, plan: StagePlan) -> int:
        """Number of the epoch that the last step belongs to, counted from 1 over the whole run."""
        return plan.first_epoch + (self._progress.step - 1) // self._plan.steps_per_epoch + 1

    # --- what is written ---------------------------------------------------------------------------------------------

    def _record(self, event: str, plan: StagePlan, **values: float) -> None:
        progress = self._progress
        self._metrics.write(event, plan.name, self._epoch(plan), progress.step, progress.global_step, **values)

    def _save_is_due(self) -> bool:
        every, progress = self._config.checkpoint.every, self._progress
        if every.minutes is not None and time.monotonic() - self._saved_at >= 60 * every.minutes:
            return True
        if every.steps is not None and progress.step % every.steps == 0:
            return True
        ended = progress.step % self._plan.steps_per_epoch == 0
        return every.epochs is not None and ended and progress.epochs % every.epochs == 0

    def _save(self, session: Session) -> None:
        keep, step, state = self._config.checkpoint.keep, self._progress.global_step, session.state()
        if not all(np.isfinite(array).all() for array in state.values() if array.dtype.kind == "f"):
            raise self._fault(session)  # the loss of the last step was finite still, the weights it left are not
        checkpoint.save_step(self._run.checkpoints, step, state, asdict(self._progress), keep)
        self._saved_at = time.monotonic()

    def _fault(self, session: Session) -> NumericalFault:
        return NumericalFault(self._progress.step, float(np.asarray(session.model.optimizer.learning_rate)))

    def _show_samples(self) -> None:
        """The first training images as the model sees them."""
        most = self._config.log.images
        if self._config.log.tensorboard and most:
            for images, *_ in guarded(self._streams.training(self._config.schedule.stages[0], 0, 1)):
                self._board.images("training images", images.numpy(), 0, most)


__all__ = ["NumericalFault", "Progress", "Stopped", "Trainer"]
