"""The evaluation at the end of a run: from kept features, where they speak for the whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tlearn.train.feature_arrays import Features
from tlearn.train.streams import Streams

RUN = ("data.options={count: 240}", "schedule.stages.0.epochs=1")  # 48 validation images


@dataclass
class Ended:
    """What came of the evaluation at the end of the last run.

    Attributes:
        meddle: done to the model before it.
        outputs: metrics, logits and targets.
        looked_at: how many images went through the whole model.
    """

    meddle: Callable[[Any], None] = lambda model: None
    outputs: Any = None
    looked_at: int = 0


@pytest.fixture
def ended(train: Any, monkeypatch: pytest.MonkeyPatch) -> Ended:
    from tlearn.train import trainer

    ended = Ended()
    evaluation = Streams.evaluation

    def counting(self: Streams, rows: Any) -> Any:
        ended.looked_at += len(rows)
        return evaluation(self, rows)

    def finish(run: Any, config: Any, plan: Any, classifier: Any, *args: Any, validate: Any, **keywords: Any) -> Any:
        ended.meddle(classifier.model)
        ended.looked_at = 0
        ended.outputs = validate()
        return {"status": "finished"}

    monkeypatch.setattr(Streams, "evaluation", counting)
    monkeypatch.setattr(trainer, "finish", finish)
    return ended


def assert_like_the_whole_model(ended: Ended, train: Any, *overrides: str) -> None:
    kept = ended.outputs
    train(*RUN, *overrides, "cache.mode=off")
    assert ended.looked_at == 48
    np.testing.assert_allclose(kept.logits, ended.outputs.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kept.targets, ended.outputs.targets)
    assert kept.values == pytest.approx(ended.outputs.values, rel=1e-5)


def test_features_tell_what_the_whole_model_gives(train: Any, ended: Ended) -> None:
    """16 images, spread over the split, go through it all the same."""
    train(*RUN)
    assert ended.looked_at == 16
    assert_like_the_whole_model(ended, train)


def test_a_fault_of_the_cache_shows(train: Any, ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Features.take
    monkeypatch.setattr(Features, "take", lambda self, rows: take(self, (rows + 1) % self.layout.rows))
    said = train(*RUN).said
    assert "kept features differ from the whole model by" in said
    assert ended.looked_at == 16 + 48


def test_weights_that_changed_below_the_frontier(train: Any, ended: Ended) -> None:
    """The best weights may be of a stage that trained what the last one freezes."""

    def meddle(model: Any) -> None:
        kernel = model.get_layer("low_conv").kernel
        kernel.assign(kernel * 1.01)

    ended.meddle = meddle
    said = train(*RUN).said
    assert ended.looked_at == 48
    assert "differ" not in said
    assert_like_the_whole_model(ended, train)


def test_half_precision_features_do_not_tell(train: Any, ended: Ended) -> None:
    train(*RUN, "cache.dtype=float16")
    assert ended.looked_at == 48
