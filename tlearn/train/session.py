"""The model of a stage while it trains: compiled, restorable, with its averaged weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlearn.config import Config, Precision, Stage
from tlearn.train.classifier import Classifier, freeze
from tlearn.train.distribution import Devices
from tlearn.train.losses import make_loss, make_metrics
from tlearn.train.optimizers import (
    build_optimizer,
    carried_iterations,
    carry_slots,
    stage_optimizer,
    start_averages,
)
from tlearn.train.plan import Plan, StagePlan


class Session:
    """One stage's model and optimizer, ready for training steps.

    Args:
        classifier: its variables go on from where they are.
        config, plan: of the run.
        index: of the stage.
        model: what of the classifier is run, where features of the rest are kept; None: all of it.
        before: the stage before in this process, whose optimizer state may be carried over.
        first_iteration: what the optimizer counts from, when resuming; None: decided here.
        rate: share of the planned learning rate, after faults.
        devices: that train.

    Attributes:
        model: frozen as planned, and compiled.
        optimizer: the stage's own, new: one that was built for other variables cannot be used again.
        first_iteration: what it counts from.
    """

    def __init__(
        self,
        classifier: Classifier,
        config: Config,
        plan: Plan,
        index: int,
        *,
        model: keras.Model | None = None,
        before: Session | None = None,
        first_iteration: int | None = None,
        rate: float = 1.0,
        devices: Devices | None = None,
    ) -> None:
        stage, stage_plan = config.schedule.stages[index], plan.stages[index]
        freeze(classifier, stage_plan.layers)
        _assert_planned(classifier, stage_plan)
        settings = stage_optimizer(config, stage)
        settings = replace(settings, learning_rate=(settings.learning_rate or 1e-3) * rate)
        carried = before.optimizer if before is not None and stage.carry_slots else None
        if carried is not None and carried.name != settings.name:
            carried = None
        if first_iteration is None:
            first_iteration = carried_iterations(carried, settings.accumulate) if carried is not None else 0
        self.model = model or classifier.model
        self._whole = classifier.model
        self.first_iteration = first_iteration
        self.optimizer: keras.optimizers.Optimizer = build_optimizer(
            settings,
            steps=stage_plan.steps,
            steps_per_epoch=plan.steps_per_epoch,
            batch_size=plan.batch_size,
            first_iteration=first_iteration,
            factors=block_factors(classifier, settings.block_decay),
        )
        varies = isinstance(self.optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)
        self._constant_rate = None if varies else settings.learning_rate
        (devices or Devices()).adopt(self.optimizer)
        self._compile(plan, _label_smoothing(config, stage), scaled=config.precision is Precision.mixed_float16)
        if carried is not None:
            carry_slots(carried, self.optimizer)

    def _compile(self, plan: Plan, label_smoothing: float, *, scaled: bool) -> None:
        """Compile, and make all variables now: a checkpoint may have values for them."""
        loss = make_loss(plan.multi_label, label_smoothing)
        # Keras scales losses where the model itself has the policy; here its layers have.
        optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer) if scaled else self.optimizer
        self.model.compile(optimizer, loss, metrics=make_metrics(plan.outputs, plan.multi_label, len(plan.classes)))
        self.model.optimizer.build(self.model.trainable_variables)  # not ours but its wrapper under mixed_float16
        start_averages(self.optimizer)
        targets = tf.one_hot([0], plan.outputs)
        logits = tf.zeros_like(targets)
        self.model.compute_loss(y=targets, y_pred=logits)
        self.model.compute_metrics(None, targets, logits)
        self.model.reset_metrics()

    def state(self) -> dict[str, np.ndarray]:
        """Everything that steps change: weights, dropout seeds, optimizer, and the running means of the epoch."""
        return {f"{index:05d}": np.asarray(variable) for index, variable in enumerate(self._variables())}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up a state. Raises ValueError when it is that of another model."""
        variables, values = self._variables(), [state[key] for key in sorted(state)]
        if [tuple(variable.shape) for variable in variables] != [value.shape for value in values]:
            raise ValueError("the saved state is that of another model")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        if self._constant_rate is not None:  # the state's own may be that of before a fault
            self.optimizer.learning_rate = self._constant_rate

    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(np.asarray(self.model.optimizer.learning_rate))

    def logs(self) -> dict[str, float]:
        """The running means of the epoch so far, as its last step gave them."""
        return {name: float(value) for name, value in self.model.get_metrics_result().items()}

    def _variables(self) -> list[Any]:  # the model's weights first: see restore_weights
        return [*self._whole.variables, *self.model.optimizer.variables, *self.model.metrics_variables]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While inside, the model has the average of its weights (EMA) where the optimizer keeps one."""
        variables = self.model.trainable_variables
        saved = [tf.identity(variable.value) for variable in variables] if self.optimizer.use_ema else []
        self.finalize()
        try:
            yield
        finally:
            for variable, value in zip(variables, saved, strict=False):
                variable.assign(value)

    def finalize(self) -> None:
        """Make the averaged weights the model's own, where the optimizer keeps an average."""
        if self.optimizer.use_ema:
            self.optimizer.finalize_variable_values(self.model.trainable_variables)


def restore_weights(classifier: Classifier, state: Mapping[str, np.ndarray]) -> None:
    """Take up the model's weights alone: what a stage keeps of its frozen part depends on the stages before.

    Raises ValueError when the state is that of another model.
    """
    variables = classifier.model.variables
    values = [state[key] for key in sorted(state)[: len(variables)]]
    if [tuple(variable.shape) for variable in variables] != [value.shape for value in values]:
        raise ValueError("the saved state is that of another model")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def block_factors(classifier: Classifier, decay: float | None) -> dict[str, float]:
    """Learning-rate factor of each backbone variable by path: the top block ``decay``, the next ``decay``², ...

    Rates that shrink from layer to layer: Howard and Ruder 2018, arXiv 1801.06146, section 3.2.
    """
    factors: dict[str, float] = {}
    if decay is None or decay == 1.0:
        return factors
    backbone = classifier.backbone
    for depth, block in enumerate(reversed(backbone.blocks), start=1):
        for layer in backbone.layers[block.first : block.last + 1]:
            factors |= {variable.path: decay**depth for variable in layer.variables}
    return factors


def _label_smoothing(config: Config, stage: Stage) -> float:
    return config.loss.label_smoothing if stage.label_smoothing is None else stage.label_smoothing


def _assert_planned(classifier: Classifier, plan: StagePlan) -> None:
    trainable = {id(variable) for variable in classifier.model.trainable_variables}
    actual = {key for key, variable in classifier.variables().items() if id(variable) in trainable}
    if actual != set(plan.variables):
        difference = sorted(actual ^ set(plan.variables))[:5]
        raise AssertionError(f"stage {plan.name} would not train what was planned: {difference}")
