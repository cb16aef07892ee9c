"""Batches as the training step wants them: images, targets, and a weight per image where classes are weighted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tlearn.config import ClassWeights, Config, DataCache, Stage
from tlearn.data import Data, PixelCache, evaluation_batches, reraise, training_batches, view_batches
from tlearn.data.pipeline import EpochOrder
from tlearn.train.feature_cache import Layout
from tlearn.train.losses import as_targets

if TYPE_CHECKING:
    from tlearn.train.features import StageFeatures
    from tlearn.train.plan import Plan

EXTRACTION_BATCH = 32
"""Images in one call of the frozen part: fixed, so that features do not depend on a run's batch size."""

_AHEAD = 64  # batches of features prepared ahead: they are small, and the steps on them are fast


class Streams:
    """The data of a run as datasets of (images, targets) or (images, targets, sample weights).

    Images are uint8 or float32 (batch, side, side, 3), RGB in 0..255; targets float32 (batch, outputs); sample
    weights float32 (batch,).
    """

    def __init__(self, config: Config, data: Data, plan: Plan) -> None:
        self._config = config
        self._data = data
        self._plan = plan
        self._cache = None
        if config.data.cache is DataCache.memory:
            self._cache = PixelCache(len(data.table.labels), plan.image_size)

    def training(self, stage: Stage, start: int, stop: int) -> tf.data.Dataset:
        """The training stream from step ``start`` to before ``stop``, both counted over the whole run."""
        config = self._config
        batches = training_batches(
            self._data.source,
            self._data.train,
            seed=config.seed,
            start_step=start,
            steps=stop - start,
            augment=config.augment,
            views=config.cache.views,
            **self._reading(),
        )
        return batches.map(self._targets(stage))

    def evaluation(self, rows: Any) -> tf.data.Dataset:
        """The rows once, in order."""
        return evaluation_batches(self._data.source, rows, **self._reading()).map(self._targets(None))

    def features(self, stage: Stage, features: StageFeatures, start: int, stop: int) -> tf.data.Dataset:
        """The training stream of a stage that keeps features: in place of each image, its features.

        Order, targets and weights are those of ``training``; epoch e takes view e modulo the number of views.
        """
        data, table = self._data, self._data.table
        order = EpochOrder(np.arange(len(data.train)), self._config.data.batch_size, self._config.seed)

        def load(step: int) -> tuple[np.ndarray, ...]:
            epoch, positions = order.batch(step)
            labels = table.labels[data.train[positions]].astype(np.float32 if table.multi_label else np.int32)
            view = epoch % features.views
            return (*features.train.take(positions + view * len(data.train)), labels)

        batches = tf.data.Dataset.range(start, stop).map(self._loading(load, features.train.layout))
        return batches.map(self._targets(stage)).prefetch(_AHEAD)

    def validation_features(self, features: StageFeatures) -> tf.data.Dataset:
        """Features of the validation images in place of ``evaluation``."""
        rows, table, size = self._data.val, self._data.table, self._config.data.batch_size

        def load(step: int) -> tuple[np.ndarray, ...]:
            positions = np.arange(step * size, min((step + 1) * size, len(rows)))
            labels = table.labels[rows[positions]].astype(np.float32 if table.multi_label else np.int32)
            return (*features.val.take(positions), labels)

        steps = tf.data.Dataset.range(math.ceil(len(rows) / size))
        return steps.map(self._loading(load, features.val.layout)).map(self._targets(None)).prefetch(_AHEAD)

    def extraction(self, rows: Any, views: int) -> tf.data.Dataset:
        """(images, labels) of the rows once, in order; with ``views`` above 0 once in each of the augmented views."""
        reading = self._reading() | {"batch_size": EXTRACTION_BATCH}
        if views == 0:
            return evaluation_batches(self._data.source, rows, **reading)
        config, passes = self._config, []
        for view in range(views):
            passes.append(
                view_batches(self._data.source, rows, seed=config.seed, epoch=view, augment=config.augment, **reading)
            )
        return functools.reduce(lambda first, second: first.concatenate(second), passes)

    def _loading(self, load: Callable[[int], tuple[np.ndarray, ...]], layout: Layout) -> Any:
        """A step number to (features, labels), by one call of Python."""
        table, classes = self._data.table, len(self._data.table.classes)
        label_dtype, label_shape = (tf.float32, [None, classes]) if table.multi_label else (tf.int32, [None])

        def tensors(step: Any) -> Any:
            *features, labels = tf.numpy_function(
                load, [step], [*[tf.float32] * len(layout.shapes), label_dtype], stateful=False
            )
            for feature, shape in zip(features, layout.shapes, strict=True):
                feature.set_shape([None, *shape])
            labels.set_shape(label_shape)
            return tuple(features), labels

        return tensors

    def _reading(self) -> dict[str, Any]:
        data = self._config.data
        return {
            "image_size": self._plan.image_size,
            "batch_size": data.batch_size,
            "resize": data.resize,
            "crop_fraction": data.crop_fraction,
            "interpolation": data.interpolation,
            "workers": data.workers,
            "cache": self._cache,
        }

    def _targets(self, stage: Stage | None) -> Any:
        """(inputs, labels) to (inputs, targets), with a weight per image where the stage weights classes."""
        outputs = self._plan.outputs
        asked = (stage.class_weights or self._config.loss.class_weights) if stage else ClassWeights.none
        if asked is ClassWeights.none or self._plan.class_weights is None:
            return lambda inputs, labels: (inputs, as_targets(labels, outputs))
        weights = tf.constant([*self._plan.class_weights] + [0.0] * (outputs - len(self._plan.class_weights)))

        def weighted(inputs: Any, labels: Any) -> Any:
            targets = as_targets(labels, outputs)
            return inputs, targets, tf.linalg.matvec(targets, weights)

        return weighted


def guarded(batches: Iterable[Any]) -> Iterator[Any]:
    """Errors of the loading threads arrive wrapped by TensorFlow: give the original back."""
    try:
        yield from batches
    except tf.errors.OpError as error:
        reraise(error)
        raise
