"""Loss and metrics of the validation images, from the features that a stage keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tlearn.data import Data
from tlearn.train.classifier import Classifier
from tlearn.train.features import ValFeatures
from tlearn.train.loop import Evaluation, Logs, Outputs
from tlearn.train.losses import make_loss, make_metrics
from tlearn.train.plan import Plan
from tlearn.train.stopping import stoppable
from tlearn.train.streams import Streams, guarded

_COMPARED = 16  # images that the whole model must see as its features say
_LARGEST_DIFFERENCE = 1e-3  # of the largest logit; engines differ by some 1e-5 (docs/speed.md)


def make_evaluation(model: keras.Model, plan: Plan) -> Evaluation:
    """Loss and metrics of a model that ends in the run's logits."""
    return Evaluation(
        model, make_loss(plan.multi_label, 0.0), make_metrics(plan.outputs, plan.multi_label, len(plan.classes))
    )


class KeptValidation:
    """Validates a stage's model from features to logits.

    Args:
        classifier: the whole model.
        plan, data, streams: of the run.
        features: of the stage, open.
        say: told where features are not what the whole model computes.
        should_stop: asked between chunks of images; True ends the evaluation with ``Interrupted``.
    """

    def __init__(
        self,
        classifier: Classifier,
        plan: Plan,
        data: Data,
        streams: Streams,
        features: ValFeatures,
        *,
        say: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._whole = classifier.model
        self._data = data
        self._streams = streams
        self._features = features
        self._say = say
        self._should_stop = should_stop
        self._evaluate = make_evaluation(features.suffix, plan)

    def __call__(self) -> Logs:
        """The metrics for the weights as they are now."""
        return self._evaluate.on_chunks(self._chunks())

    def final(self) -> Outputs | None:
        """What the whole model with its final weights gives, had from the features; None where they do not tell.

        They do where they are exact and the frozen part still is what it was when they were made. A fault of the
        cache would show here last: some images spread over the split go through the whole model as well.
        """
        if self._features.val.layout.dtype != "float32" or not self._features.are_current():
            return None
        outputs = self._evaluate.with_outputs(self._batches())
        difference = self._difference(outputs.logits)
        if difference <= _LARGEST_DIFFERENCE:
            return outputs
        self._say(f"kept features differ from the whole model by {difference:.1g} of the largest logit: not used")
        return None

    def _chunks(self) -> Iterator[tuple[list[Any], Any]]:
        return stoppable(self._streams.validation_features(self._features), self._should_stop)

    def _batches(self) -> Iterator[tuple[list[Any], Any]]:
        for tensors, targets in self._chunks():
            for step in range(len(targets)):
                yield [tensor[step] for tensor in tensors], targets[step]

    def _difference(self, logits: np.ndarray) -> float:
        """The largest, as a share of the largest logit. NaN where there are some."""
        rows = np.unique(np.linspace(0, len(logits) - 1, _COMPARED).astype(int))
        batches = guarded(self._streams.evaluation(self._data.val[rows]))
        # not as a graph: making one takes longer than so few images
        whole = np.concatenate([np.asarray(self._whole(images, training=False)) for images, _ in batches])
        return float(np.abs(whole - logits[rows]).max() / max(np.abs(whole).max(), 1e-6))
