"""Runs a plan: stage after stage, step after step, so that it can stop and go on anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from tlearn.config import Config, OnNan, Stage
from tlearn.data import Data, FirstSquares
from tlearn.errors import Problem, UserError
from tlearn.train import checkpoint
from tlearn.train.classifier import Classifier
from tlearn.train.console import Terminal, metrics_line
from tlearn.train.distribution import Devices
from tlearn.train.engine import Compute
from tlearn.train.features import MADE, FeatureMaker, StageFeatures, ValFeatures
from tlearn.train.finish import finish, finish_pruned
from tlearn.train.loop import Logs, Loop, Outputs
from tlearn.train.losses import default_monitor, smaller_is_better
from tlearn.train.memory import OutOfMemory, memory_guard
from tlearn.train.plan import Plan, StagePlan
from tlearn.train.progress import Progress
from tlearn.train.recorder import Recorder
from tlearn.train.run import Run
from tlearn.train.session import Session, restore_weights
from tlearn.train.stopping import Interrupted, NumericalFault, Pruned, Stopped, WorkerLost, stoppable
from tlearn.train.streams import Streams, guarded
from tlearn.train.validation import KeptValidation, make_evaluation
from tlearn.train.xla import uses_xla

T = TypeVar("T")
OnEpoch = Callable[[int, Mapping[str, float]], None]

_SHOWN = ("loss", "accuracy", "val_loss", "val_accuracy", "val_auc")


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
        squares: of images that were decoded already, for their first use.
        devices: that train. Of several workers the chief alone evaluates and saves states, and tells the others.
        on_epoch: given the number of each epoch, counted from 1 over all stages, and its metrics; it may raise
            ``Pruned``, which ends the run.
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
        squares: FirstSquares | None = None,
        devices: Devices | None = None,
        on_epoch: OnEpoch = lambda epoch, metrics: None,
    ) -> None:
        self._run = run
        self._config = config
        self._data = data
        self._classifier = classifier
        self._plan = plan
        self._terminal = terminal
        self._should_stop = should_stop
        self._devices = devices or Devices()
        self._streams = Streams(config, data, plan, squares, part=self._devices.part)
        self._on_epoch = on_epoch
        self._recorder = Recorder(run, config, plan, is_chief=self._devices.is_chief)
        self._monitor = config.checkpoint.monitor or default_monitor(plan.multi_label)
        self._progress = Progress()
        self._saved_state: dict[str, np.ndarray] | None = None
        self._begun_at = time.monotonic()
        self._evaluate = make_evaluation(classifier.model, plan)
        self._kept: KeptValidation | None = None
        self._features = FeatureMaker(
            config, data, classifier, plan.stages, self._streams, terminal, should_stop, self._devices
        )

    def run(self) -> dict[str, Any]:
        """Train through all stages from where the run stands, and finish the folder.

        Returns:
            The summary; its status is ``pruned`` where ``on_epoch`` raised ``Pruned``.

        Raises:
            Stopped: after ``should_stop``; the state is saved.
            NumericalFault: the loss is not finite; the last good state is kept.
            OutOfMemory: batches, or their features, are too large; the last good state is kept.
            WorkerLost: another worker is gone.
            DataError: an image became unreadable.
        """
        self._begun_at = time.monotonic() - self._progress.seconds  # features are part of what a stage takes
        try:
            with self._recorder.status.kept(self._progress), memory_guard(self._config.data.batch_size):
                summary = self._to_its_end()
            self._recorder.status.ended(summary["status"])
            return summary
        except Interrupted:
            raise Stopped(self._run.path) from None
        except (NumericalFault, OutOfMemory, WorkerLost) as fault:
            fault.run = str(self._run.path)
            raise
        finally:
            self._terminal.end_epoch()
            self._features.close()
            self._recorder.board.close()

    def _to_its_end(self) -> dict[str, Any]:
        try:
            self._run_stages()
            return self._on_chief(self._finish)
        except Pruned:
            board = self._recorder.board
            return finish_pruned(self._run, self._config, self._plan, self._progress, board=board)

    def restore(self) -> None:
        """Take up the newest saved state of the run, where there is one."""
        found = self._latest()
        if found is not None:
            self._saved_state, progress = found
            self._progress = Progress(**progress)
        self._recorder.go_back(self._progress)
        self._terminal.print(f"goes on after step {self._progress.global_step} of {self._plan.steps}")

    def _latest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        found = None
        if self._devices.is_chief:
            largest = checkpoint.largest(self._classifier.model.variables)
            found = checkpoint.latest(self._run.checkpoints, self._terminal.print, most=largest)
        state = self._devices.chief_gives(found and found[0])
        progress = self._devices.chief_says(lambda: found and found[1])
        return None if state is None or progress is None else (state, progress)

    def _run_stages(self) -> None:
        session, last = None, len(self._plan.stages)
        index = self._progress.stage
        while index < last:
            try:
                if self._progress.global_step == 0:
                    self._show_samples()
                session = self._run_stage(index, session)
                index += 1
            except NumericalFault as fault:
                self._roll_back(fault)
                session, index = None, self._progress.stage

    def _roll_back(self, fault: NumericalFault) -> None:
        """Stand where the newest state was saved, with a smaller rate. Raises the fault where that is not to be."""
        settings, failed = self._config.on_nan, self._progress
        found = self._latest()
        if settings.action is OnNan.stop or failed.rollbacks >= settings.most or found is None:
            raise fault
        self._terminal.end_epoch()
        self._saved_state, saved = found
        self._progress = failed.back_to(Progress(**saved), settings.factor)
        step, count = self._progress.global_step, f"{failed.rollbacks + 1} of at most {settings.most}"
        self._terminal.print(f"{fault}: back to step {step}, with {settings.factor:g} times the rate ({count})")
        self._recorder.go_back(self._progress)
        self._recorder.save(self._saved_state, self._progress)  # killed from here on, the run remembers

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
            board=self._recorder.board,
            say=self._terminal.print,
        )

    def _whole(self, rows: np.ndarray) -> Outputs:
        """What the whole model gives for images."""
        return self._evaluate.with_outputs(self._evaluation(rows))

    def _on_chief(self, work: Callable[[], T]) -> T:
        """What the chief works out, on all workers. Raises Interrupted on all of them when it did there."""

        def tried() -> list[T] | None:
            try:
                return [work()]
            except Interrupted:
                return None

        said = self._devices.chief_says(tried)
        if said is None:
            raise Interrupted
        return said[0]

    def _evaluation(self, rows: np.ndarray) -> Iterator[Any]:
        return guarded(stoppable(self._streams.evaluation(rows), self._should_stop))

    def _run_stage(self, index: int, before: Session | None) -> Session:
        plan, progress, state = self._plan.stages[index], self._progress, self._saved_state
        if progress.stage != index:
            progress.enter(index)
        if state is not None:
            self._restore(lambda: restore_weights(self._classifier, state))  # what is kept below is made from them
        unfinished, is_last = progress.step < plan.steps or progress.validation_due, index == len(self._plan.stages) - 1
        features: StageFeatures | None = None
        kept: ValFeatures | None = None
        if unfinished or is_last:  # the last also tell the final scores
            features = self._features_of(index)
            kept = features or self._val_features_of(index)
        progress.engine_trial = self._features.trial or progress.engine_trial
        if self._features.outcome:
            made_in = plan.features.made_in
            maker = self._plan.stages[index if made_in is None else made_in].name
            # a run that goes on finds what it made before
            made = kept is not None and progress.features.get(maker) == MADE
            progress.features[plan.name] = MADE if made else self._features.outcome
        model, prefix = (features.suffix, None) if features else self._features.streamed(index)
        session = Session(
            self._classifier,
            self._config,
            self._plan,
            index,
            model=model,
            before=before,
            first_iteration=None if state is None else progress.first_iteration,
            rate=progress.rate,
            devices=self._devices,
        )
        progress.first_iteration = session.first_iteration
        if state is not None:
            self._restore(lambda: session.restore(state))
            self._saved_state = None
        elif progress.global_step == 0:
            self._save(session)  # there is a good state from here on
        self._terminal.print(f"stage {plan.name}: {plan.parameters:,} parameters, {plan.optimizer}")
        validate = self._validation(kept)
        if unfinished:
            self._run_steps(session, plan, self._config.schedule.stages[index], features, prefix, validate)
        session.finalize()
        self._save(session)
        return session

    def _features_of(self, index: int) -> StageFeatures | None:
        """Features of a stage on all workers, or on none: where one has no room for them, all of them stream."""
        features, stops = None, False
        with memory_guard(self._config.data.batch_size, of_features=True):
            try:
                features = self._features.stage(index)
            except Interrupted:
                stops = True
        if self._devices.any(stops):
            raise Interrupted
        if self._devices.any(features is None):
            if features is not None:
                self._features.give_up("another worker cannot keep them")
            return None
        return features

    def _val_features_of(self, index: int) -> ValFeatures | None:
        with memory_guard(self._config.data.batch_size, of_features=True):
            return self._features.validation(index)

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
        validate: Callable[[], Logs],
    ) -> None:
        progress, per_epoch = self._progress, self._plan.steps_per_epoch
        if progress.validation_due and self._end_epoch(session, plan, stage, session.logs(), validate):
            return
        first, last = plan.first_epoch * per_epoch + progress.step, plan.first_epoch * per_epoch + plan.steps
        if features is None:
            batches = self._streams.training(stage, first, last)
        else:
            batches = self._streams.features(stage, features, first, last)
        xla = uses_xla(self._config, stage)
        loop = Loop(
            session.model,
            batches,
            xla=xla,
            in_chunks=features is not None,
            prefix=prefix,
            devices=self._devices,
            batch_size=self._plan.batch_size,
        )
        self._begin_epoch(session, plan)
        for step, logs in guarded(loop.run(progress.step, lambda step: self._boundary(plan, step))):
            progress.global_step += step - progress.step
            progress.step, progress.seconds = step, time.monotonic() - self._begun_at
            self._after_steps(plan, logs, session.learning_rate())
            if step % per_epoch == 0 or step == plan.steps:
                if self._end_epoch(session, plan, stage, logs, validate):
                    return
                self._begin_epoch(session, plan)
            stops = self._devices.any(self._should_stop())
            if self._devices.chief_says(lambda: self._recorder.save_is_due(progress)) or stops:
                self._save(session)
            if stops:
                raise Interrupted

    def _boundary(self, plan: StagePlan, step: int) -> int:
        """The next step at which something other than training is due."""
        periods = [self._plan.steps_per_epoch, self._config.log.every, self._config.checkpoint.every.steps]
        return min(plan.steps, *((step // period + 1) * period for period in periods if period))

    def _after_steps(self, plan: StagePlan, logs: Logs, learning_rate: float) -> None:
        """Show and, when due, record training metrics: running means of the epoch so far."""
        step = (self._progress.step - 1) % self._plan.steps_per_epoch + 1
        self._terminal.step(step, metrics_line(logs, _SHOWN))
        self._recorder.steps(plan, self._progress, logs | {"learning_rate": learning_rate})

    # --- epochs ------------------------------------------------------------------------------------------------------

    def _begin_epoch(self, session: Session, plan: StagePlan) -> None:
        """Start the metrics of an epoch; of one that is resumed in the middle they are restored already."""
        epoch, done = divmod(self._progress.step, self._plan.steps_per_epoch)
        if done == 0:
            session.model.reset_metrics()
        length = min(self._plan.steps_per_epoch, plan.steps - epoch * self._plan.steps_per_epoch)
        self._terminal.start_epoch(f"{plan.name} {epoch + 1}/{plan.epochs}", length, done)

    def _validation(self, features: ValFeatures | None) -> Callable[[], Logs]:
        """Loss and metrics of the validation images, from their features where these are kept."""
        if features is None:
            self._kept = None
            return lambda: self._evaluate(self._evaluation(self._data.val))
        self._kept = KeptValidation(
            self._classifier,
            self._plan,
            self._data,
            self._streams,
            features,
            say=self._terminal.print,
            should_stop=self._should_stop,
        )
        return self._kept

    def _end_epoch(
        self, session: Session, plan: StagePlan, stage: Stage, logs: Logs, validate: Callable[[], Logs]
    ) -> bool:
        """Validate, record, and keep the best weights. Whether the stage ends with this epoch."""
        progress = self._progress
        self._terminal.end_epoch()
        validation = self._validate(session, validate)
        logs = logs | {"learning_rate": session.learning_rate()}
        progress.epochs += 1
        progress.metrics = logs | {f"val_{name}": value for name, value in validation.items()}
        self._keep_best(session, plan, stage)
        self._recorder.epoch(plan, progress, logs, validation)
        number = self._plan.epoch(plan, progress.step)
        shown = metrics_line(progress.metrics, _SHOWN)
        self._terminal.print(f"{plan.name} {number - plan.first_epoch}/{plan.epochs}  {shown}")
        self._on_epoch(number, progress.metrics)
        progress.seconds = time.monotonic() - self._begun_at
        if progress.step == plan.steps or self._ends_early(plan, stage):
            progress.step = plan.steps
            return True
        return False

    def _validate(self, session: Session, validate: Callable[[], Logs]) -> Logs:
        """Loss and metrics of the validation images. A run that is stopped meanwhile does it when it goes on."""
        self._progress.validation_due = True
        try:
            with session.averaged():
                validation = self._on_chief(validate)
        except Interrupted:
            self._save(session)
            raise
        self._progress.validation_due = False
        if not math.isfinite(validation["loss"]):
            raise self._fault(session)
        return validation

    def _keep_best(self, session: Session, plan: StagePlan, stage: Stage) -> None:
        """Write the weights that were validated, where they are the best so far."""
        progress = self._progress
        is_best = progress.judge(
            progress.metrics[self._monitor],
            epoch=self._plan.epoch(plan, progress.step),
            smaller_is_better=smaller_is_better(self._monitor),
            min_delta=stage.early_stopping.min_delta,
        )
        if is_best and self._devices.is_chief:
            with session.averaged():
                weights = {key: np.asarray(variable) for key, variable in self._classifier.variables().items()}
            self._recorder.save_best(weights, progress)

    def _ends_early(self, plan: StagePlan, stage: Stage) -> bool:
        patience, waited = stage.early_stopping.patience, self._progress.waited
        if patience is None or waited < patience:
            return False
        self._terminal.print(f"stage {plan.name} ends early: {self._monitor} did not improve for {waited} epochs")
        return True

    def _save(self, session: Session) -> None:
        state = session.state()
        if not all(np.isfinite(array).all() for array in state.values() if array.dtype.kind == "f"):
            raise self._fault(session)  # the loss of the last step was finite still, the weights it left are not
        self._recorder.save(state, self._progress)

    def _fault(self, session: Session) -> NumericalFault:
        return NumericalFault(self._progress.step, session.learning_rate())

    def _show_samples(self) -> None:
        """The first training images as the model sees them."""
        most = self._config.log.images
        if self._config.log.tensorboard and most:
            for images, *_ in guarded(self._streams.training(self._config.schedule.stages[0], 0, 1)):
                self._recorder.board.images("training images", images.numpy(), 0, most)


__all__ = ["OnEpoch", "Pruned", "Stopped", "Trainer"]
