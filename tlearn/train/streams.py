"""Batches as the training step wants them: images, targets, and a weight per image where classes are weighted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tlearn.config import ClassWeights, Config, DataCache, Stage
from tlearn.data import (
    Data,
    FirstSquares,
    PixelCache,
    Reading,
    evaluation_batches,
    reraise,
    training_batches,
    view_batches,
)
from tlearn.data.pipeline import EpochOrder, untuned
from tlearn.train.feature_arrays import Layout
from tlearn.train.losses import as_targets

if TYPE_CHECKING:
    from tlearn.train.features import StageFeatures, ValFeatures
    from tlearn.train.plan import Plan

EXTRACTION_BATCH = 32
"""Images in one call of the frozen part: fixed, so that features do not depend on a run's batch size."""

# Of functions of tf.data: they hold no Python loops or branches on tensors, and looking for some takes 50 ms each.
_as_written = tf.autograph.experimental.do_not_convert

_CHUNK_STEPS = 64  # steps whose features are read at once, where they are small
_CHUNK_BYTES = 1 << 23  # and where they are not; a few times this is in memory at a time


class Streams:
    """The data of a run as datasets of (images, targets) or (images, targets, sample weights).

    Images are uint8 or float32 (batch, side, side, 3), RGB in 0..255; targets float32 (batch, outputs); sample
    weights float32 (batch,).

    Args:
        config, data, plan: of the run.
        squares: of images that were decoded already, for their first use.
        part: (index, count): of each batch that is trained on, give this one of so many parts.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        plan: Plan,
        squares: FirstSquares | None = None,
        *,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._part = part
        self._config = config
        self._data = data
        self._plan = plan
        self._reading = Reading.of(config.data, plan.image_size)
        self._cache: PixelCache | FirstSquares | None = squares
        if config.data.cache is DataCache.memory:
            self._cache = PixelCache(len(data.table.labels), plan.image_size)

    def training(self, stage: Stage, start: int, stop: int) -> tf.data.Dataset:
        """The training stream from step ``start`` to before ``stop``, both counted over the whole run."""
        config = self._config
        batches = training_batches(
            self._data.source,
            self._data.train,
            self._reading,
            seed=config.seed,
            start_step=start,
            steps=stop - start,
            augment=config.augment,
            views=config.cache.views,
            part=self._part,
            **self._loading(config.data.batch_size),
        )
        return batches.map(self._targets(stage))

    def evaluation(self, rows: Any) -> tf.data.Dataset:
        """The rows once, in order."""
        loading = self._loading(self._config.data.batch_size)
        return evaluation_batches(self._data.source, rows, self._reading, **loading).map(self._targets(None))

    def features(self, stage: Stage, features: StageFeatures, start: int, stop: int) -> tf.data.Dataset:
        """The training stream of a stage that keeps features: in place of each image, its features.

        Order, targets and weights are those of ``training``; epoch e takes view e modulo the number of views. The
        steps come in chunks: every tensor is (steps, batch, ...), and their number varies.
        """
        images = len(self._data.train)
        order = EpochOrder(np.arange(images), self._config.data.batch_size, self._config.seed)

        def read(steps: range) -> tuple[np.ndarray, ...]:
            batches = [order.batch(step, self._part) for step in steps]
            positions = np.stack([positions for _, positions in batches])
            views = np.array([[epoch % features.views] for epoch, _ in batches])
            return (*features.train.take(positions + views * images), self._labels(self._data.train[positions]))

        steps = _chunks(start, stop, self._plan.steps_per_epoch, self._steps_at_once(features.train.layout))
        return self._feature_chunks(steps, read, features.train.layout, self._targets(stage))

    def validation_features(self, features: ValFeatures) -> Iterator[tuple[list[np.ndarray], Any]]:
        """Features of the validation images in place of ``evaluation``: chunks of steps and their targets."""
        images, size = len(self._data.val), self._config.data.batch_size
        count = math.ceil(images / size)
        for first, stop in _chunks(0, count, count, self._steps_at_once(features.val.layout)):
            steps = range(first, stop)
            positions = np.stack([np.arange(step * size, min((step + 1) * size, images)) for step in steps])
            labels = tf.constant(self._labels(self._data.val[positions]))
            yield features.val.take(positions), as_targets(labels, self._plan.outputs)

    def _feature_chunks(
        self,
        chunks: np.ndarray,
        read: Callable[[range], tuple[np.ndarray, ...]],
        layout: Layout,
        targets: Callable[..., Any],
    ) -> tf.data.Dataset:
        """Steps on features, many at once: a call of Python, or of tf.data, costs more than a small step does.

        Args:
            chunks: int (n, 2), the steps to read at once, from first to before last.
            read: gives the features (steps, batch, ...) per tensor, and labels, of some steps.
            layout: of the features.
            targets: (features, labels) to what a step takes.
        """
        table = self._data.table
        dtypes = [*[tf.float32] * len(layout.shapes), tf.float32 if table.multi_label else tf.int32]

        @_as_written
        def load(begin: Any, end: Any) -> Any:
            *tensors, labels = tf.numpy_function(
                lambda begin, end: read(range(begin, end)), [begin, end], dtypes, stateful=False
            )
            for tensor, shape in zip(tensors, layout.shapes, strict=True):
                tensor.set_shape([None, None, *shape])
            labels.set_shape([None, None, len(table.classes)] if table.multi_label else [None, None])
            return targets(tuple(tensors), labels)

        steps = tf.data.Dataset.from_tensor_slices((chunks[:, 0], chunks[:, 1]))
        return untuned(steps.map(load).prefetch(2))

    def _labels(self, rows: np.ndarray) -> np.ndarray:
        table = self._data.table
        labels: np.ndarray = table.labels[rows].astype(np.float32 if table.multi_label else np.int32)
        return labels

    def _steps_at_once(self, layout: Layout) -> int:
        """So many that they are worth a call, so few that their features do not fill the memory."""
        return max(1, min(_CHUNK_STEPS, _CHUNK_BYTES // (self._config.data.batch_size * layout.bytes_per_row)))

    def extraction(self, rows: Any, views: int) -> tf.data.Dataset:
        """(images, labels) of the rows once, in order; with ``views`` above 0 once in each of the augmented views."""
        config, loading = self._config, self._loading(EXTRACTION_BATCH)
        images = (self._data.source, rows, self._reading)
        if views == 0:
            return evaluation_batches(*images, **loading)
        passes = [
            view_batches(*images, seed=config.seed, epoch=view, augment=config.augment, **loading)
            for view in range(views)
        ]
        return functools.reduce(lambda first, second: first.concatenate(second), passes)

    def _loading(self, batch_size: int) -> dict[str, Any]:
        return {"batch_size": batch_size, "workers": self._config.data.workers, "cache": self._cache}

    def _targets(self, stage: Stage | None) -> Any:
        """(inputs, labels) to (inputs, targets), with a weight per image where the stage weights classes."""
        outputs = self._plan.outputs
        asked = (stage.class_weights or self._config.loss.class_weights) if stage else ClassWeights.none
        if asked is ClassWeights.none or self._plan.class_weights is None:
            return _as_written(lambda inputs, labels: (inputs, as_targets(labels, outputs)))
        weights = tf.constant([*self._plan.class_weights] + [0.0] * (outputs - len(self._plan.class_weights)))

        def weighted(inputs: Any, labels: Any) -> Any:
            targets = as_targets(labels, outputs)
            return inputs, targets, tf.linalg.matvec(targets, weights)

        return _as_written(weighted)


def _chunks(start: int, stop: int, per_epoch: int, most: int) -> np.ndarray:
    """Parts of the steps start..stop-1, int64 (n, 2): at most ``most`` steps, and batches of one size, in each.

    The last batch of an epoch may be smaller than the others, so it is a part of its own.
    """
    chunks = []
    while start < stop:
        left = per_epoch - start % per_epoch
        end = min(stop, start + min(max(left - 1, 1), most))
        chunks.append((start, end))
        start = end
    return np.array(chunks, np.int64).reshape(-1, 2)


def guarded(batches: Iterable[Any]) -> Iterator[Any]:
    """Errors of the loading threads arrive wrapped by TensorFlow: give the original back."""
    try:
        yield from batches
    except tf.errors.OpError as error:
        reraise(error)
        raise
