"""The steps of one stage: Keras' own training step, run from any step on, several to one execution.

``model.fit`` is not used: it cannot begin inside an epoch, forgets the metrics of a part of one, and calls back after a
number of steps that is fixed when compiling. The step itself (loss scaling, gradient, update, metrics) is Keras'
``Model.train_step``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlearn.train.distribution import Devices, make_shared_step
from tlearn.train.graphs import for_any_batch
from tlearn.train.stopping import NumericalFault

# one execution lasts about this long: short enough to stop and to show progress, long enough to hide Python
_EXECUTION_SECONDS = 0.2
_MOST_STEPS = 64

Logs = dict[str, float]


class Loop:
    """Runs the training steps of a compiled model.

    Args:
        model: compiled, with the stage's variables trainable.
        batches: from the first step that is to be run on.
        xla: compile the step with XLA.
        in_chunks: elements of ``batches`` are not steps but several of them, stacked: (steps, batch, ...).
        prefix: computes the model's inputs from those of ``batches``, as a part of each step. The gradient is taken
            above it: Keras would build one for frozen layers too, which nobody asks for, and which takes as long to
            build as all the rest.
        devices: that share the steps.
        batch_size: images of a step over all devices.
    """

    def __init__(
        self,
        model: keras.Model,
        batches: tf.data.Dataset,
        *,
        xla: bool,
        in_chunks: bool = False,
        prefix: Callable[[Any], Any] | None = None,
        devices: Devices | None = None,
        batch_size: int = 1,
    ) -> None:
        self._model = model
        self._devices = devices or Devices()
        if self._devices.strategy is None:
            train_step = make_train_step(model, xla=xla, prefix=prefix)
        else:
            train_step = make_shared_step(self._devices, model, batch_size=batch_size, prefix=prefix)
        self._execute = (_execution_on_chunks if in_chunks else _execution)(model, train_step, iter(batches))
        self._seconds_per_step = math.inf

    def run(self, start: int, stop_at: Callable[[int], int]) -> Iterator[tuple[int, Logs]]:
        """Run steps for as long as the caller asks for more.

        Args:
            start: number of steps already run in this stage.
            stop_at: given a step, the next step at which the caller must have the word (a boundary).

        Yields:
            The number of steps run so far, and the running means of loss and metrics.

        Raises:
            NumericalFault: the loss is infinite or not a number.
        """
        step = start
        while True:
            begin = time.perf_counter()
            with self._devices.watching():
                count, values = self._execute(min(stop_at(step) - step, self._affordable()))
                logs = {name: float(value) for name, value in values.items()}
            seconds = (time.perf_counter() - begin) / count
            self._seconds_per_step = self._devices.chief_says(lambda: seconds)  # noqa: B023, called at once
            step += count
            if not math.isfinite(logs["loss"]):
                raise NumericalFault(step, self.learning_rate())
            yield step, logs

    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(keras.ops.convert_to_numpy(self._model.optimizer.learning_rate))

    def _affordable(self) -> int:
        """How many steps one execution may take; their number changes nothing but the time."""
        return max(1, min(_MOST_STEPS, int(_EXECUTION_SECONDS / self._seconds_per_step)))


_TrainStep = Callable[[Any], Any]
"""A batch to the running means."""

_Execution = Callable[[int], tuple[int, dict[str, Any]]]
"""Runs some steps, at most as many as it is given; how many it has run, and the running means."""


def _execution(model: keras.Model, train_step: _TrainStep, batches: Any) -> _Execution:
    """One graph takes the batches of all its steps from the stream."""

    @tf.function(reduce_retracing=True, autograph=False)
    def run_steps(batches: Any, count: Any) -> Any:
        _repeat(lambda _: train_step(batches.get_next()), tf.constant(0), count)
        return model.get_metrics_result()

    return lambda most: (most, run_steps(batches, tf.constant(most)))


def _execution_on_chunks(model: keras.Model, train_step: _TrainStep, chunks: Any) -> _Execution:
    """The graph cuts its batches out of a chunk: taking each from a stream would cost as much as a small step."""
    number = tf.TensorSpec((), tf.int32)
    chunk_spec = chunks.element_spec  # one graph for chunks of all sizes

    @tf.function(input_signature=[chunk_spec, number, number], autograph=False)
    def run_steps(chunk: Any, first: Any, stop: Any) -> Any:
        _repeat(lambda step: train_step(tf.nest.map_structure(lambda tensor: tensor[step], chunk)), first, stop)
        return model.get_metrics_result()

    chunk, done, steps = None, 0, 0

    def execute(most: int) -> tuple[int, dict[str, Any]]:
        nonlocal chunk, done, steps
        if done == steps:
            chunk, done = next(chunks), 0
            steps = int(tf.nest.flatten(chunk)[0].shape[0])
        count = min(most, steps - done)
        done += count
        return count, run_steps(chunk, tf.constant(done - count), tf.constant(done))

    return execute


def _repeat(call: Callable[[Any], Any], first: Any, stop: Any) -> None:
    """A loop in the graph: the call with first..stop-1. It is traced once, and what it returns is not computed."""

    def body(number: Any) -> list[Any]:
        call(number)
        return [number + 1]

    tf.while_loop(lambda number: number < stop, body, [first])


def make_train_step(model: keras.Model, *, xla: bool = False, prefix: Callable[[Any], Any] | None = None) -> _TrainStep:
    """Keras' training step as a graph; arguments are those of ``Loop``."""

    def step(batch: tuple[Any, ...]) -> Any:
        inputs, *targets = batch
        return model.train_step((prefix(inputs) if prefix else inputs, *targets))

    made: _TrainStep = tf.function(step, jit_compile=xla, reduce_retracing=True, autograph=False)
    return made


@dataclass(frozen=True, eq=False)
class Outputs:
    """Of a whole split, in its order.

    Attributes:
        values: loss and metrics.
        logits, targets: float32 (images, outputs).
    """

    values: Logs
    logits: np.ndarray
    targets: np.ndarray


class Evaluation:
    """Loss and metrics over a whole split, in inference mode, without label smoothing or class weights.

    Args:
        model: (batch, side, side, 3) to logits.
        loss: from logits, with ``reduction`` mean.
        metrics: against (batch, classes) targets.
    """

    def __init__(self, model: keras.Model, loss: keras.losses.Loss, metrics: list[keras.metrics.Metric]) -> None:
        self._metrics = [keras.metrics.Mean("loss"), *metrics]

        @for_any_batch
        def step(images: Any, targets: Any) -> Any:
            logits = model(images, training=False)
            self._metrics[0].update_state(loss(targets, logits), sample_weight=tf.shape(targets)[0])
            for metric in metrics:
                metric.update_state(targets, logits)
            return logits

        def stacked(tensor: Any) -> tf.TensorSpec:
            return tf.TensorSpec([None, None, *tensor.shape[1:]], tf.float32)

        signature = [[stacked(tensor) for tensor in model.inputs], stacked(model.output)]

        @tf.function(input_signature=signature, autograph=False)  # one graph for chunks of all sizes
        def chunk(tensors: Any, targets: Any) -> None:
            steps = tf.shape(targets)[0]
            _repeat(lambda index: step([tensor[index] for tensor in tensors], targets[index]), tf.constant(0), steps)

        self._step, self._chunk = step, chunk

    def __call__(self, batches: Iterable[tuple[Any, Any]]) -> Logs:
        """The metrics by name over batches of (images, targets)."""
        for metric in self._metrics:
            metric.reset_state()
        for images, targets in batches:
            self._step(images, targets)
        return self._results()

    def on_chunks(self, chunks: Iterable[tuple[Sequence[Any], Any]]) -> Logs:
        """The metrics over chunks, each several steps stacked: the model's inputs (steps, batch, ...), and targets.

        What is read from memory needs no stream of tf.data, which costs more to set up than small steps to run.
        """
        for metric in self._metrics:
            metric.reset_state()
        for tensors, targets in chunks:
            self._chunk(list(tensors), targets)
        return self._results()

    def with_outputs(self, batches: Iterable[tuple[Any, Any]]) -> Outputs:
        """The same over batches, with what the model gives for each image."""
        for metric in self._metrics:
            metric.reset_state()
        logits, targets = [], []
        for inputs, truth in batches:
            logits.append(self._step(inputs, truth).numpy())
            targets.append(np.asarray(truth))
        return Outputs(self._results(), np.concatenate(logits), np.concatenate(targets))

    def _results(self) -> Logs:
        return {metric.name: float(metric.result()) for metric in self._metrics}
