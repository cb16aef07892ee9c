"""Batches as the training step wants them: images, targets, and a weight per image where classes are weighted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from tlearn.config import ClassWeights, Config, DataCache, Stage
from tlearn.data import Data, PixelCache, evaluation_batches, reraise, training_batches
from tlearn.train.losses import as_targets
from tlearn.train.plan import Plan


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
            **self._reading(),
        )
        outputs, weights = self._plan.outputs, self._class_weights(stage)
        if weights is None:
            return batches.map(lambda images, labels: (images, as_targets(labels, outputs)))

        def weighted(images: Any, labels: Any) -> Any:
            targets = as_targets(labels, outputs)
            return images, targets, tf.linalg.matvec(targets, weights)

        return batches.map(weighted)

    def evaluation(self, rows: Any) -> tf.data.Dataset:
        """The rows once, in order."""
        outputs = self._plan.outputs
        batches = evaluation_batches(self._data.source, rows, **self._reading())
        return batches.map(lambda images, labels: (images, as_targets(labels, outputs)))

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

    def _class_weights(self, stage: Stage) -> Any:
        """Weight of each output, None where the stage weights all alike."""
        asked = stage.class_weights or self._config.loss.class_weights
        if asked is not ClassWeights.balanced or self._plan.class_weights is None:
            return None
        return tf.constant([*self._plan.class_weights] + [0.0] * (self._plan.outputs - len(self._plan.class_weights)))


def guarded(batches: Iterable[Any]) -> Iterator[Any]:
    """Errors of the loading threads arrive wrapped by TensorFlow: give the original back."""
    try:
        yield from batches
    except tf.errors.OpError as error:
        reraise(error)
        raise
