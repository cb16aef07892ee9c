"""Training on several devices, on one machine or many, with ``tf.distribute``.

What is distributed is the gradient and nothing else. The weights of the model are mirrored: made under the strategy's
scope, they have one copy on each device. In a step every replica takes its share of the batch and computes a gradient
from its copy; the gradients are summed over all replicas and workers; then clipping, accumulation, loss scaling, the
optimizer and its averages run once in each worker, on the sum, just as they would on one device, and what they assign
to a weight goes to all its copies. Optimizer state and metrics are plain variables of each worker. All workers see the
same sum and the same logits, so they hold the same state, and any one of them could write the checkpoint.

Keras' own ``Model.train_step`` is not used here, for four reasons; ``tests/strategy/test_strategy_keras.py`` fails when
one of them is gone:

- its mean of a batch is a mean of the replicas' means, which is another one where the shares differ in size;
- it clips gradients before they are summed;
- gradient accumulation ends in an error under a strategy (``merge_call`` inside a condition);
- ``Model.fit``, where the rest of it is at home, fails under ``MultiWorkerMirroredStrategy``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tlearn.config import Config, Strategy
from tlearn.data.pipeline import part_bounds
from tlearn.errors import ConfigError, Problem
from tlearn.train.cluster import Cluster, cluster_of
from tlearn.train.stopping import WorkerLost

T = TypeVar("T")

_REGISTER_SECONDS = 120  # they have met already: this is the start of TensorFlow's own server
_HEARTBEAT_SECONDS = 60  # a process that dies is noticed at once; this is for machines that vanish
_SHUTDOWN_SECONDS = 10


@dataclass(frozen=True)
class DevicePlan:
    """What a run trains on.

    Attributes:
        kind: ``one``, ``mirrored`` or ``multi_worker``.
        local: devices of this process.
        workers: processes, each with as many devices.
        index: of this process among them; 0 is the chief.
        type: ``CPU`` or ``GPU``.
    """

    kind: Strategy
    local: int = 1
    workers: int = 1
    index: int = 0
    type: str = "CPU"

    @property
    def replicas(self) -> int:
        """Devices of all workers: into so many shares each batch is cut."""
        return self.local * self.workers

    def __str__(self) -> str:
        """For people: ``2 x CPU, mirrored``."""
        machines = f" on each of {self.workers} workers" if self.workers > 1 else ""
        return f"{self.local} x {self.type}{machines}, {self.kind.value}"


def plan_devices(config: Config) -> DevicePlan:
    """Decide what a run trains on, without beginning to.

    Raises:
        ConfigError: ``mirrored`` without a second device, or a ``TF_CONFIG`` that makes no sense.
    """
    gpus, cluster = len(tf.config.list_physical_devices("GPU")), cluster_of(config)
    kind = "GPU" if gpus else "CPU"
    if cluster is not None:
        return DevicePlan(Strategy.multi_worker, max(gpus, 1), len(cluster.workers), cluster.index, kind)
    if config.strategy is Strategy.mirrored or (config.strategy is Strategy.auto and gpus > 1):
        local = len(tf.config.list_logical_devices(kind))
        if local < 2:
            fix = "strategy=auto takes what there is; CUDA_VISIBLE_DEVICES may hide devices"
            raise ConfigError(Problem("strategy", f"mirrored needs two devices or more; there is {local} {kind}", fix))
        return DevicePlan(Strategy.mirrored, local, type=kind)
    return DevicePlan(Strategy.one, type=kind)


def check_devices(plan: DevicePlan, config: Config, images: int) -> None:
    """Raise ConfigError where batches cannot be shared, or an option is not for several devices.

    Args:
        plan: of the devices.
        config: of the run.
        images: to train on.
    """
    replicas, size = plan.replicas, config.data.batch_size
    if replicas == 1:
        return
    problems = []
    if size < replicas:
        what = f"{size} images cannot be shared among {replicas} devices"
        problems.append(Problem("data.batch_size", what, f"data.batch_size={replicas} or more"))
    elif 0 < images % size < replicas:
        what = f"the last batch of an epoch has {images % size} of {images:,} images, too few for {replicas} devices"
        fits = next((fit for fit in range(size, replicas - 1, -1) if not 0 < images % fit < replicas), None)
        fix = f"data.batch_size={fits}" if fits else "use fewer devices"
        problems.append(Problem("data.batch_size", what, fix))
    for key, asked in [("xla", config.xla), *_stage_switches(config)]:
        if asked is True or asked == "on":
            problems.append(Problem(key, "steps on several devices are not compiled", "xla=auto, or strategy=one"))
    if problems:
        raise ConfigError(problems)


def _stage_switches(config: Config) -> list[tuple[str, Any]]:
    return [(f"schedule.stages.{index}.xla", stage.xla) for index, stage in enumerate(config.schedule.stages)]


# --- devices at work -------------------------------------------------------------------------------------------------


class Devices:
    """What a run trains on, at work; the default is one device, which changes nothing at all.

    Args:
        plan: of the devices.
        strategy: that makes them one; None for one device.
    """

    def __init__(self, plan: DevicePlan | None = None, strategy: tf.distribute.Strategy | None = None) -> None:
        self.plan = plan or DevicePlan(Strategy.one)
        self.strategy = strategy

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""
        return self.plan.index == 0

    @property
    def part(self) -> tuple[int, int]:
        """(index, count): which part of each batch this process computes, of how many."""
        return self.plan.index, self.plan.workers

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Variables of a model made inside have a copy on each device."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def adopt(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Let an optimizer, not built yet, update mirrored weights with gradients that are summed already."""
        if self.strategy is not None:
            optimizer._distribution_strategy = _AsOneDevice()

    # --- what workers say to one another: all of them must make the same calls in the same order ----------------------

    def chief_says(self, value: Callable[[], T]) -> T:
        """A value that JSON can hold, worked out by the chief alone and given to all."""
        if self.plan.workers == 1:
            return value()
        text = json.dumps(value()).encode() if self.is_chief else b""
        said: T = json.loads(self._from_chief(np.frombuffer(text, np.uint8)).tobytes())
        return said

    def chief_gives(self, arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
        """Arrays of the chief, bit for bit; the others give None. None where the chief has none."""
        if self.plan.workers == 1:
            return arrays
        kinds = self.chief_says(
            lambda: None if arrays is None else {k: (v.dtype.str, v.shape) for k, v in arrays.items()}
        )
        if kinds is None:
            return None
        given = {}
        for key, (dtype, shape) in kinds.items():
            own = np.ascontiguousarray(arrays[key]) if arrays is not None and self.is_chief else np.empty(0, np.uint8)
            given[key] = self._from_chief(own.reshape(-1).view(np.uint8)).view(dtype).reshape(shape)
        return given

    def any(self, flag: bool) -> bool:
        """Whether one of the workers says so."""
        return flag if self.plan.workers == 1 else bool(self._sum(np.array([int(flag)], np.int32))[0])

    def _from_chief(self, data: np.ndarray) -> np.ndarray:
        """Bytes of the chief: a sum with the zeros of all others, as integers, in which no bit is lost."""
        length = int(self._sum(np.array([len(data) if self.is_chief else 0], np.int32))[0])
        padded = np.zeros(math.ceil(length / 4) * 4, np.uint8)
        if self.is_chief:
            padded[:length] = data
        return self._sum(padded.view(np.int32)).view(np.uint8)[:length]

    def _sum(self, values: np.ndarray) -> np.ndarray:
        with self.watching():
            total: np.ndarray = self._sum_of_workers(tf.constant(values)).numpy()
        return total

    @functools.cached_property
    def _sum_of_workers(self) -> Callable[[Any], Any]:
        strategy, local = self.strategy, self.plan.local
        assert strategy is not None

        def replica(values: Any) -> Any:
            context = tf.distribute.get_replica_context()
            speaks = tf.equal(tf.cast(context.replica_id_in_sync_group, tf.int32) % local, 0)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, values * tf.cast(speaks, values.dtype))

        def total(values: Any) -> Any:
            return strategy.experimental_local_results(strategy.run(replica, args=(values,)))[0]

        made: Callable[[Any], Any] = tf.function(total, reduce_retracing=True, autograph=False)
        return made

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While inside, the loss of another worker is ``WorkerLost``, and not one of TensorFlow's many errors."""
        try:
            yield
        except tf.errors.OpError as error:
            if self.plan.workers > 1 and _is_loss(error):
                raise WorkerLost("another worker is gone, or cannot be reached") from error
            raise


_LOSSES = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


def _is_loss(error: tf.errors.OpError) -> bool:
    return isinstance(error, _LOSSES) or "ollective" in str(error.message)


class _AsOneDevice:
    """Stands where a Keras optimizer keeps its strategy.

    Under a strategy Keras would sum the gradients once more and update each copy of a weight by itself, with state of
    its own. Here an update is made once; mirrored weights bring what is assigned to them to all their copies.
    """

    @property
    def extended(self) -> _AsOneDevice:
        return self

    def update(self, variable: Any, function: Any, args: Any = (), kwargs: Any = None, group: bool = True) -> Any:
        return function(variable, *args, **(kwargs or {}))

    def colocate_vars_with(self, variable: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


# --- beginning -------------------------------------------------------------------------------------------------------


def start_devices(config: Config) -> Devices:
    """Take the devices of a run; with several workers, wait until TensorFlow of all of them is there.

    Raises:
        ConfigError: see ``plan_devices``; or another strategy is at work in this process already.
        WorkerLost: a worker that was there has gone again.
    """
    plan = plan_devices(config)
    if plan.kind is Strategy.one:
        return Devices(plan)
    if plan.kind is Strategy.mirrored:
        return Devices(plan, _mirrored(tuple(device.name for device in tf.config.list_logical_devices(plan.type))))
    cluster = cluster_of(config)
    assert cluster is not None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return Devices(plan, _multi_worker(cluster, os.environ["TF_CONFIG"]))
    except tf.errors.OpError as error:
        raise WorkerLost("another worker went away while TensorFlow started") from error
    finally:
        for number, handler in handlers.items():  # TensorFlow takes SIGTERM for itself
            if handler is not None:
                signal.signal(number, handler)


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One for all runs of a process: a second one would number its collective operations as the first did."""
    return tf.distribute.MirroredStrategy(list(devices))


@functools.cache
def _multi_worker(cluster: Cluster, text: str) -> tf.distribute.Strategy:
    """TensorFlow has one cluster in a process, made before anything is computed, and never another."""
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context

    jobs = [("chief", 1), ("worker", len(cluster.workers) - 1)] if cluster.named_chief else []
    tasks = [
        coordination_config_pb2.CoordinatedJob(name=name, num_tasks=count)
        for name, count in jobs or [("worker", len(cluster.workers))]
        if count
    ]
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{tasks[0].name}/replica:0/task:0",
        cluster_register_timeout_in_ms=1000 * _REGISTER_SECONDS,
        heartbeat_timeout_in_ms=1000 * _HEARTBEAT_SECONDS,
        shutdown_barrier_timeout_in_ms=1000 * _SHUTDOWN_SECONDS,
        coordinated_jobs=tasks,
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        fix = "begin with it in a process of its own"
        raise ConfigError(Problem("strategy", f"multi_worker must be the first: {error}", fix)) from None


# --- the step --------------------------------------------------------------------------------------------------------


def make_shared_step(
    devices: Devices, model: keras.Model, *, batch_size: int, prefix: Callable[[Any], Any] | None = None
) -> Callable[[Any], None]:
    """A training step in which each replica computes a share of the batch.

    Args:
        devices: with a strategy.
        model: compiled, its weights mirrored, its optimizer adopted.
        batch_size: images of a whole batch over all workers; the last of an epoch may have fewer.
        prefix: see ``Loop``.

    Returns:
        Takes this worker's part of a batch, (inputs, targets) or (inputs, targets, weights); to be traced.
    """
    strategy, local = devices.strategy, devices.plan.local
    assert strategy is not None
    trained, moving = model.trainable_variables, _moving_statistics(model)
    replicas = devices.plan.replicas

    def replica(batch: Any) -> Any:
        context = tf.distribute.get_replica_context()
        index = tf.cast(context.replica_id_in_sync_group, tf.int32) % local
        inputs, targets, *weights = _share(batch, index, local)
        images = tf.shape(targets)[0]
        inputs = prefix(inputs) if prefix else inputs
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            # Keras takes it that each replica has one share of many, and divides; here shares are weighed below.
            mean = model.compute_loss(inputs, targets, logits, *weights, training=True) * replicas
            weight = tf.cast(images, mean.dtype) / batch_size
            loss = model.optimizer.scale_loss(mean * weight)
        gradients = tape.gradient(loss, [variable.value for variable in trained])
        statistics = [variable.value * tf.cast(weight, variable.dtype) for variable in moving]
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, *statistics, mean * weight, weight])
        return sums, context.all_gather(logits, axis=0), context.all_gather(targets, axis=0)

    def step(batch: Any) -> None:
        sums, logits, targets = _first(strategy, strategy.run(replica, args=(batch,)))
        *sums, loss, weight = (value for value in sums)
        means = [value / tf.cast(weight, value.dtype) for value in sums]
        model.optimizer.apply(means[: len(trained)], trained)
        for variable, value in zip(moving, means[len(trained) :], strict=True):
            variable.assign(value)
        model._loss_tracker.update_state(loss / weight, sample_weight=tf.shape(targets)[0])
        model.compute_metrics(None, targets, logits)

    return step


def _share(batch: Any, index: Any, count: int) -> Any:
    """A replica's rows of each tensor, cut on the host: a device is given no more than its own."""

    def cut(tensor: Any) -> Any:
        first, stop = part_bounds(tf.shape(tensor)[0], index, count)
        return tensor[first:stop]

    with tf.device("CPU:0"):
        return tf.nest.map_structure(cut, batch)


def _first(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Of values that are the same on each device, those of the first."""
    return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], values)


def _moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Means and variances of the batch norms that train: each replica moves its own copy, by its own share."""
    return [
        variable
        for layer in model.layers
        if layer.trainable
        for variable in layer.non_trainable_variables
        if tf.as_dtype(variable.dtype).is_floating
    ]
