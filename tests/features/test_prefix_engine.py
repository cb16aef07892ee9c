"""The ways to compute the frozen part of a model agree, and which of them is taken does not depend on chance."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tests.features.conftest import TWO_STAGES, at_step
from tlearn.backbones import SPECS
from tlearn.config import BackboneConfig, HeadConfig, PrefixEngine
from tlearn.train import engine
from tlearn.train.api import fit, resume
from tlearn.train.classifier import build_classifier, freeze
from tlearn.train.engine import Extractor, make_engine
from tlearn.train.folding import Folding, fold_batch_norms
from tlearn.train.frontier import find_frontier
from tlearn.train.stopping import Stopped

QUICK = ("mobilenet", "mobilenet_v2")
VARIANTS = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in SPECS]
TOLERANCE = 2e-5
"""Largest difference from graph as a share of the largest feature; measured over 11 variants: at most 3e-6."""


def with_statistics(model: keras.Model) -> keras.Model:
    """As after training: batch norms that do something to each channel."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        layer.trainable = False
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                low, high = (0.5, 1.5) if variable.name in ("gamma", "moving_variance") else (-0.3, 0.3)
                variable.assign(random.uniform(low, high, variable.shape))
    return model


def some_images(side: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.float32)


def furthest(values: Any, expected: Any) -> float:
    return max(
        float(np.abs(np.asarray(one) - other).max() / np.abs(other).max())
        for one, other in zip(values, map(np.asarray, expected), strict=True)
    )


# which batch norms have no layer of their own below them: they come before a convolution, or after concatenation
LONELY = {"densenet121": 62, "densenet169": 86, "densenet201": 102, "nasnet_mobile": 4, "nasnet_large": 4}


@pytest.mark.parametrize("name", VARIANTS)
def test_engines_agree(name: str) -> None:
    spec = SPECS[name]
    backbone = BackboneConfig(name=name, weights=None, image_size=spec.least_size)
    if name.startswith("mobilenet"):
        backbone.alpha = 0.5
    classifier = build_classifier(backbone, HeadConfig(), weights=None, classes=3, multi_label=False)
    model = with_statistics(classifier.model)
    freeze(classifier, tuple(range(len(classifier.backbone.layers) // 2, len(classifier.backbone.layers))))
    lower = find_frontier(model)
    freeze(classifier, ())
    upper = find_frontier(model)
    tensors = [*upper.tensors, *lower.tensors]  # as for two stages in one pass
    images = some_images(spec.least_size)
    expected = make_engine(PrefixEngine.graph, model, tensors, 2)(images)
    assert furthest(make_engine(PrefixEngine.folded, model, tensors, 2)(images), expected) < TOLERANCE
    folding = fold_batch_norms(upper.prefix())
    assert len(folding.kept) == LONELY.get(name, 0)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert len(folding.folded) + len(folding.kept) == len(norms)


def test_xla_fills_up_the_last_batch() -> None:
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, layers.ReLU()(layers.Conv2D(4, 3)(images)))
    compute = make_engine(PrefixEngine.xla, model, model.outputs, 4)
    expected = make_engine(PrefixEngine.graph, model, model.outputs, 4)
    for count in (4, 1):
        (values,) = compute(some_images(8, count))
        assert values.shape == (count, 6, 6, 4)
        assert furthest([values], expected(some_images(8, count))) < TOLERANCE


# --- folding ---------------------------------------------------------------------------------------------------------


def folded(build: Callable[[Any], Any], shape: tuple[int, ...] = (8, 8, 4)) -> tuple[Folding, float]:
    """What becomes of a model, and how far its outputs move."""
    inputs = keras.Input(shape)
    model = with_statistics(keras.Model(inputs, build(inputs)))
    folding = fold_batch_norms(model)
    values = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    expected = keras.tree.flatten(model(values, training=False))
    return folding, furthest(keras.tree.flatten(folding(model, values)), expected)


def norm(**options: Any) -> Any:
    return layers.BatchNormalization(**options)


@pytest.mark.parametrize(
    "build",
    [
        lambda x: norm()(layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)(x)),
        lambda x: norm()(layers.Conv2D(6, 3, dilation_rate=2, groups=2, bias_initializer="ones")(x)),
        lambda x: norm()(layers.DepthwiseConv2D(3, depth_multiplier=2, bias_initializer="ones")(x)),
        lambda x: norm()(layers.SeparableConv2D(5, 3, depth_multiplier=2, bias_initializer="ones")(x)),
        lambda x: norm()(layers.Dense(5, bias_initializer="ones")(x)),
        lambda x: norm(scale=False, center=False)(layers.Conv2D(5, 3)(x)),
        lambda x: norm(axis=3, epsilon=0.1)(layers.Conv2D(5, 3)(x)),
    ],
    ids=["strides", "groups", "depthwise", "separable", "dense", "bare norm", "axis"],
)
def test_what_folds(build: Callable[[Any], Any]) -> None:
    folding, difference = folded(build)
    assert (len(folding.folded), len(folding.kept)) == (1, 0)
    assert difference < TOLERANCE


def heard_twice(x: Any) -> Any:
    made = layers.Conv2D(4, 3)(x)
    return layers.Add()([norm()(made), made])


def asked_for(x: Any) -> Any:
    made = layers.Conv2D(4, 3)(x)
    return [made, norm()(made)]


def called_twice(x: Any) -> Any:
    shared = layers.Conv2D(4, 3, padding="same")
    return shared(norm()(shared(x)))


class Doubling(layers.Conv2D):
    def call(self, inputs: Any) -> Any:
        return super().call(inputs) * 2


@pytest.mark.parametrize(
    "build",
    [
        lambda x: norm()(x),
        lambda x: norm()(layers.Concatenate()([x, x])),
        lambda x: norm()(layers.Conv2D(4, 3, activation="relu")(x)),
        lambda x: norm(axis=1)(layers.Conv2D(4, 3)(x)),
        lambda x: norm()(Doubling(4, 3)(x)),
        lambda x: norm()(layers.Conv2D(4, 3, dtype="mixed_bfloat16")(x)),
        heard_twice,
        asked_for,
        called_twice,
    ],
    ids=["first", "joined", "activated", "rows", "subclass", "bfloat16", "heard twice", "asked for", "called twice"],
)
def test_what_stays(build: Callable[[Any], Any]) -> None:
    folding, difference = folded(build)
    assert (len(folding.folded), len(folding.kept)) == (0, 1)
    assert difference == 0


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "seconds", "says"),
    [
        (10, {}, "graph: too few images to try others"),
        (100, {"folded": 0.5}, "folded: 0.5 s for 32 images; graph 1 s"),
        (100, {"folded": 2.0}, "graph: 1 s for 32 images; folded 2 s"),
        (1000, {"folded": 0.5, "xla": 0.25}, "xla: 0.25 s for 32 images; graph 1 s, folded 0.5 s"),
        (1000, {"folded": 0.5, "xla": 10.0}, "folded: 0.5 s for 32 images; graph 1 s, xla 10 s"),
    ],
)
def test_the_fastest_is_taken(
    monkeypatch: pytest.MonkeyPatch, batches: int, seconds: dict[str, float], says: str
) -> None:
    """Graph takes ten seconds to make and one to run; what is not listed is not tried."""
    took = {"graph": 1.0, **seconds}
    said: list[str] = []
    monkeypatch.setattr(engine, "make_engine", lambda kind, *_: kind.value)
    monkeypatch.setattr(engine, "_seconds", lambda made, _: (10.0, took[made]))
    extractor = Extractor(PrefixEngine.auto, None, [], batch_size=32, batches=batches, say=said.append)
    assert extractor._fastest([None] * 32) == says.split(":")[0]
    assert said == [says]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["folded", "xla"])
def test_a_run_with_other_features_ends_in_the_same_weights(train: Callable[..., Any], engine: str) -> None:
    """To a difference of 1e-4, after 60 steps; folded also without a cache, where the engine bears on streaming too."""
    stages = ("schedule=two_stage", "schedule.stages.1.unfreeze={last_blocks: 1}")
    plain, other = train(*stages), train(*stages, f"prefix.engine={engine}", eagerly=engine == "folded")
    assert plain.passes == other.passes == 1
    assert 0 < plain.furthest_from(other) < 1e-4
    if engine == "folded":
        assert other.furthest_from(train(*stages, "prefix.engine=folded", "cache.mode=off")) < 1e-4


def test_without_a_clock_where_runs_must_repeat(train: Callable[..., Any]) -> None:
    short = "schedule.stages.0.epochs=1"
    run = train("prefix.engine=auto", "deterministic=true", short)
    assert run.plan.stages[0].features.engine == "folded"
    assert "prefix engine" not in run.said


def test_the_choice_is_told(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what was measured, in one line of a terminal, in the log, the summary and the report."""
    monkeypatch.setattr(engine, "_WORTH_FOLDING", 0)
    monkeypatch.setattr(engine, "_WORTH_COMPILING", 10**9)
    run = fit(tiny_config("prefix.engine=auto", "deterministic=false", "schedule.stages.0.epochs=1", "run_dir=run"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prefix engine ")]
    assert re.fullmatch(r"prefix engine (graph|folded): \S+ s for 18 images; (graph|folded) \S+ s", line)
    assert len(line) <= 80
    assert line in run.log_file.read_text().splitlines()
    assert run.summary["prefix_engine"] == line.removeprefix("prefix engine ")
    assert f"| prefix_engine | {run.summary['prefix_engine']} |" in run.report_file.read_text()
    again = fit(tiny_config("prefix.engine=auto", "deterministic=false", "schedule.stages.0.epochs=1", "run_dir=again"))
    assert "prefix_engine" not in again.summary, "the features were there"


def in_the_pass_over_val_images() -> bool:
    log = Path("run0/log.txt")
    return log.is_file() and "features of 6 val images" in log.read_text()


@pytest.mark.parametrize(
    ("should_stop", "trials"),
    [(in_the_pass_over_val_images, 2), (at_step(1), 1), (at_step(4), 1)],
    ids=["in the pass", "in the stage of the trial", "in the stage after it"],
)
def test_the_choice_is_told_of_a_run_that_was_stopped(
    should_stop: Callable[[], bool], trials: int, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is made with the features, which are there when the run goes on."""
    monkeypatch.setattr(engine, "_WORTH_FOLDING", 0)
    monkeypatch.setattr(engine, "_WORTH_COMPILING", 10**9)
    config = tiny_config("prefix.engine=auto", "deterministic=false", *TWO_STAGES, "log.every=1", "run_dir=run0")
    with pytest.raises(Stopped):
        fit(config, should_stop=should_stop)
    run = resume("run0")
    told = [line for line in run.log_file.read_text().splitlines() if line.startswith("prefix engine ")]
    assert len(told) == trials
    assert run.summary["prefix_engine"] == told[-1].removeprefix("prefix engine ")
    page = run.report_file.read_text()
    assert f"| prefix_engine | {run.summary['prefix_engine']} |" in page
    assert page.count("; made in this run\n") == 2, "of both stages, before it was stopped or after"
