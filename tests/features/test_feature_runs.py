"""Runs that keep features end where runs that compute every image every time end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.features.conftest import FRESH, SHORT, TWO_STAGES, at_step, off
from tlearn.train.trainer import Stopped

ROOT = Path(__file__).resolve().parents[2]
PROCESS = os.environ | {"PYTHONPATH": str(ROOT)}  # of other processes

UP_AND_DOWN = (  # trains a part of what the last stage freezes, and of what the first froze
    "schedule.stages=["
    "{name: head, unfreeze: none, epochs: 1},"
    "{name: low, unfreeze: {layers: low_.*}, epochs: 1, optimizer: {name: sgd, learning_rate: 0.1}},"
    "{name: again, unfreeze: none, epochs: 2},"
    "{name: top, unfreeze: {last_blocks: 1}, epochs: 1}]",
)
FORGETFUL = (  # the last stage's features depend on what the first trained
    "schedule.stages=["
    "{name: all, unfreeze: all, epochs: 1, batch_norm: train, optimizer: {name: sgd, learning_rate: 0.1}},"
    "{name: head, unfreeze: none, epochs: 3}]",
)


# --- every schedule, every family ------------------------------------------------------------------------------------

FAMILIES = {  # one network of each, at the least size it takes
    "mobilenet": (32, 0.25),
    "mobilenet_v2": (32, 0.35),
    "vgg16": (32, None),
    "resnet50": (32, None),
    "densenet121": (32, None),
    "nasnet_mobile": (32, None),
    "xception": (71, None),
    "inception_v3": (75, None),
    "inception_resnet_v2": (75, None),
}
QUICK = ("mobilenet", "mobilenet_v2", "vgg16", "resnet50")
STAGES = {"frozen": 1, "two_stage": 2, "gradual": 4, "full": 2}
FEW = "data.options={count: 15}"  # pictures, 12 of them to train on: two steps an epoch
PASSES = {"frozen": 1, "two_stage": 1, "gradual": 1, "full": 1 + 2}  # over the images; two epochs compute everything


@pytest.fixture
def settled(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """``settled("resnet50")``: overrides for a backbone whose random weights give features of ordinary size.

    Fresh batch norms do nothing in inference, and features of twenty layers of random convolutions are nearly nothing.
    """
    import keras

    from tlearn.backbones import build_backbone, save_weights_npz

    def settle(name: str) -> tuple[str, ...]:
        side, alpha = FAMILIES[name]
        keras.utils.set_random_seed(1)
        backbone = build_backbone(name, weights=None, image_size=side, alpha=alpha)
        for layer in backbone.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        images = np.random.default_rng(2).integers(0, 256, (16, side, side, 3)).astype(np.float32)
        backbone.model()(images, training=True)
        save_weights_npz(tmp_path / "settled.npz", backbone.layers)
        weights = f"backbone.weights={tmp_path / 'settled.npz'}"
        return (f"backbone.name={name}", f"backbone.image_size={side}", f"backbone.alpha={alpha or 'null'}", weights)

    return settle


@pytest.fixture
def one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs of a test are of one network, which goes back to its first weights, and save none: both take longest."""
    from tlearn.train import checkpoint, classifier

    build, built = classifier.build_classifier, []

    def once(*args: Any, **keywords: Any) -> Any:
        if not built:
            made = build(*args, **keywords)
            built.extend((made, made.model.get_weights()))
        made, weights = built
        made.model.set_weights(weights)
        return made

    monkeypatch.setattr(classifier, "build_classifier", once)
    monkeypatch.setattr(checkpoint, "save", lambda *_: None)


def assert_equivalent(train: Callable[..., Any], overrides: tuple[str, ...], eagerly: bool = True) -> Any:
    """Train both ways; give back the run that kept features."""
    cached = train(*overrides, eagerly=eagerly)
    streamed = train(*off(overrides), eagerly=eagerly)
    assert any(stage.features.cached for stage in cached.plan.stages)
    assert not any(stage.features.cached for stage in streamed.plan.stages)
    for stage in cached.plan.stages:
        assert cached.moved(stage.variables) > 1e-4, "the comparison would find nothing"
    print(" ".join(text for text in overrides if text.startswith(("backbone.name=", "schedule="))), end=": ")
    assert cached.furthest_from(streamed) <= 1e-6
    return cached


@pytest.mark.parametrize("changes", [FRESH, ("augment.mixup=0.4",)], ids=["fresh augmentation", "mixup"])
def test_validation_images_are_computed_once_where_training_images_cannot_be(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...]
) -> None:
    """And every score, and all weights, are those of a run that keeps nothing."""
    from tlearn.train.streams import Streams

    validated: list[int] = []
    evaluation = Streams.evaluation
    monkeypatch.setattr(Streams, "evaluation", lambda self, rows: validated.append(len(rows)) or evaluation(self, rows))
    stages = ("schedule=two_stage", "schedule.stages.1.unfreeze={last_blocks: 1}")
    recipe = (*stages, "schedule.stages.0.epochs=3", "schedule.stages.1.epochs=2", *changes, "cache.dir=kept")
    kept = train(*recipe)
    assert validated == []
    assert (kept.said.count("features of 6 val images"), kept.passes) == (2, 0)
    nothing_kept = train(*off(recipe))
    assert validated == [6] * 5
    assert kept.furthest_from(nothing_kept) == 0
    scores, expected = (
        [[record[name] for name in ("val_loss", "val_accuracy")] for record in one.run.epochs()]
        for one in (kept, nothing_kept)
    )
    assert scores == expected
    assert len({str(score) for score in scores}) > 1, "else it compares nothing"
    again = train(*recipe)
    assert again.said.count("features of the val images are in the cache") == 2
    assert again.furthest_from(kept) == 0


def test_validation_images_are_computed_in_each_epoch_where_they_cannot_be_kept(train: Callable[..., Any]) -> None:
    Path("file").touch()
    expected = train(*off(FRESH), SHORT)
    unkept = train(*FRESH, SHORT, "cache.dir=file")
    assert "stage head computes all validation images in each epoch" in unkept.said
    assert unkept.furthest_from(expected) == 0


def shipped(schedule: str, rate: float, epochs: int = 1) -> tuple[str, ...]:
    """A schedule of ours, shortened, with a rate for all stages but the head's that moves weights far in few steps."""
    settings = [f"schedule={schedule}"]
    for index in range(STAGES[schedule]):
        settings.append(f"schedule.stages.{index}.epochs={epochs}")
        settings.append(f"schedule.stages.{index}.optimizer.learning_rate={rate if index else 0.01:f}")
    return tuple(settings)


@pytest.mark.usefixtures("one_network")
@pytest.mark.parametrize(
    "schedule", [name if name == "gradual" else pytest.param(name, marks=pytest.mark.slow) for name in STAGES]
)
def test_every_schedule_on_mobilenet(train: Callable[..., Any], schedule: str) -> None:
    """Largest difference of any weight after two epochs in each stage: at most 1e-6; measured: 0."""
    mobilenet = ("backbone.name=mobilenet", "backbone.weights=glyphs", "backbone.alpha=0.25", FEW)
    cached = assert_equivalent(train, (*mobilenet, *shipped(schedule, 0.01, epochs=2)))
    assert cached.passes == 1
    assert cached.plan.passes == PASSES[schedule]


@pytest.mark.usefixtures("one_network")
def test_two_stages_on_mobilenet_v2(train: Callable[..., Any], settled: Callable[..., tuple[str, ...]]) -> None:
    """As below, in the quick round: the other family that lasts seconds."""
    assert_equivalent(train, (*settled("mobilenet_v2"), *shipped("two_stage", 0.0005), FEW))


@pytest.mark.slow
@pytest.mark.usefixtures("one_network")
@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_schedules_on_every_family(
    train: Callable[..., Any], settled: Callable[..., tuple[str, ...]], name: str
) -> None:
    """Largest difference of any weight at the end of a run: at most 1e-6; measured: 0.

    All schedules on the small networks; on the others, for time's sake, the one that has the frontiers of all.
    """
    rate = 0.00001 if name == "inception_v3" else 0.0005  # without learned weights more would overflow
    network = settled(name)
    for schedule in STAGES if name in QUICK else ("gradual",):
        shortened = shipped(schedule, rate, epochs=2 if schedule == "full" else 1)  # it warms up for one
        cached = assert_equivalent(train, (*network, *shortened, FEW))
        assert cached.plan.passes == PASSES[schedule]


def test_with_compiled_steps(train: Callable[..., Any]) -> None:
    """The other comparisons run without graphs, which take longer to make; measured: 0 here too."""
    assert_equivalent(train, TWO_STAGES, eagerly=False)


# --- the tiny network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [UP_AND_DOWN, FORGETFUL], ids=["up and down", "forgetful"])
def test_stages_that_change_what_others_freeze(train: Callable[..., Any], schedule: tuple[str, ...]) -> None:
    """Features are made of the weights that a stage begins with, not of those that the run began with."""
    cached = train(*schedule)
    streamed = train(*off(schedule))
    assert cached.furthest_from(streamed) < 1e-5
    made_in = [stage.features.made_in for stage in cached.plan.stages]
    assert made_in == ([0, None, 2, 2] if schedule is UP_AND_DOWN else [None, 1])
    assert cached.passes == (2 if schedule is UP_AND_DOWN else 1)


@pytest.mark.parametrize("views", [1, 2])
def test_views_are_those_of_the_streamed_run(train: Callable[..., Any], views: int) -> None:
    """With as many versions of each image, from the same seed: largest difference below 1e-5."""
    overrides = (*FRESH, f"cache.views={views}", "schedule.stages.0.epochs=4")
    cached, streamed = train(*overrides), train(*off(overrides))
    assert cached.plan.stages[0].features.views == views
    assert cached.plan.passes == views
    assert cached.furthest_from(streamed) < 1e-5
    other = train(*FRESH, f"cache.views={views + 1}", "schedule.stages.0.epochs=4")
    assert cached.furthest_from(other) > 1e-4, "the views differ from each other"


def test_weights_of_classes_and_several_labels(train: Callable[..., Any]) -> None:
    overrides = ("loss.class_weights=balanced", "head.classes=5", "schedule.stages.0.epochs=2")
    assert train(*overrides).furthest_from(train(*off(overrides))) < 1e-5


def test_dropout_in_the_head_goes_on(train: Callable[..., Any]) -> None:
    overrides = ("head.name=mlp", "head.units=[8]", "head.dropout=0.5", "schedule.stages.0.epochs=2")
    assert train(*overrides).furthest_from(train(*off(overrides))) < 1e-5


def test_float16_is_near(train: Callable[..., Any]) -> None:
    half = train("cache.dtype=float16", "schedule.stages.0.epochs=2")
    exact = train("schedule.stages.0.epochs=2")
    assert half.plan.stages[0].features.bytes * 2 == exact.plan.stages[0].features.bytes
    assert 0 < half.furthest_from(exact) < 1e-3


def test_mixed_precision(train: Callable[..., Any]) -> None:
    overrides = ("precision=mixed_bfloat16", "schedule=two_stage", "schedule.stages.0.epochs=1")
    overrides = (*overrides, "schedule.stages.1.epochs=1", "schedule.stages.1.unfreeze={last_blocks: 1}")
    cached, streamed = train(*overrides), train(*off(overrides))
    assert cached.passes == 1
    assert cached.furthest_from(streamed) < 1e-2  # 8 bits of precision in the top block


def test_executions_of_many_steps_end_where_somebody_wants_to_know(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small steps go many into one execution, and their number changes nothing."""
    from tlearn.train import loop

    ends: list[list[int]] = []
    run = loop.Loop.run

    def noted(self: Any, start: int, stop_at: Any) -> Any:
        ends.append([])
        for step, logs in run(self, start, stop_at):
            ends[-1].append(step)
            yield step, logs

    monkeypatch.setattr(loop.Loop, "run", noted)
    overrides = ("data.batch_size=1", "schedule.stages.0.epochs=2", "log.every=5", "checkpoint.every.steps=8")
    monkeypatch.setattr(loop, "_EXECUTION_SECONDS", 0.0)
    expected = train(*overrides, eagerly=False)
    monkeypatch.setattr(loop, "_EXECUTION_SECONDS", 1e9)
    made = train(*overrides, eagerly=False)
    logged, saved, epochs = range(5, 37, 5), range(8, 37, 8), (18, 36)
    apart = (1, 17, 35)  # the first, to see how long a step takes; and the last batch of an epoch may be a smaller one
    assert ends == [list(range(1, 37)), sorted({*logged, *saved, *epochs, *apart})]
    assert made.furthest_from(expected) == 0
    assert [line["step"] for line in made.run.metrics if line["event"] == "step"] == list(logged)


def test_the_number_of_steps_read_at_once_changes_nothing(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlearn.train import streams

    overrides = ("schedule.stages.0.epochs=5", "data.batch_size=4")  # the last batch of each epoch is smaller
    expected = train(*overrides)
    monkeypatch.setattr(streams, "_CHUNK_STEPS", 3)
    assert train(*overrides).furthest_from(expected) == 0
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 1)
    assert train(*overrides).furthest_from(expected) == 0


def test_nothing_tunes_a_stream_of_features_in_the_background(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever drops a stream would wait for the thread that does."""
    from tlearn.train import trainer

    tuned = []

    class Noted(trainer.Loop):
        def __init__(self, model: Any, batches: Any, **keywords: Any) -> None:
            tuned.append(batches.options().autotune.enabled)
            super().__init__(model, batches, **keywords)

    monkeypatch.setattr(trainer, "Loop", Noted)
    train(SHORT)
    assert tuned == [False]


# --- stopped and resumed ---------------------------------------------------------------------------------------------


def stopped(train: Callable[..., Any], *overrides: str, should_stop: Callable[[], bool]) -> Path:
    with pytest.raises(Stopped) as caught:
        train(*overrides, should_stop=should_stop)
    return Path(caught.value.run)


@pytest.mark.parametrize("schedule", [UP_AND_DOWN, FORGETFUL], ids=["up and down", "forgetful"])
def test_resumed_inside_a_cached_stage(train: Callable[..., Any], schedule: tuple[str, ...]) -> None:
    """To the same weights, bit for bit, though the weights that the features are made of were trained before."""
    every_step = (*schedule, "log.every=1", "cache.dir=kept")
    expected = train(*every_step)
    for step, forgets in ((expected.plan.stages[0].steps + 1, False), (expected.plan.steps - 2, True)):
        path = stopped(train, *every_step, should_stop=at_step(step))
        if forgets:
            shutil.rmtree("kept")
        resumed = train(*every_step, resume=path)
        assert resumed.furthest_from(expected) == 0


def test_stopped_while_features_are_made(train: Callable[..., Any]) -> None:
    expected = train(SHORT)
    path = stopped(train, "cache.dir=kept", SHORT, should_stop=lambda: True)
    assert list(Path("kept").iterdir()) == []
    resumed = train("cache.dir=kept", SHORT, resume=path)
    assert resumed.passes == 2, "one of them was stopped"
    assert resumed.furthest_from(expected) == 0


@pytest.mark.slow
def test_resumed_where_features_cannot_be_kept(train: Callable[..., Any]) -> None:
    """The optimizer's state fits the whole model as well as the suffix."""
    schedule = ("schedule.stages.0.unfreeze={last_blocks: 2}", "schedule.stages.0.epochs=4", "log.every=1")
    expected = train(*schedule)
    path = stopped(train, *schedule, "cache.dir=kept", should_stop=at_step(6))
    shutil.rmtree("kept")
    Path("kept").write_text("no folder")
    resumed = train(*schedule, "cache.dir=kept", resume=path)
    assert "features cannot be kept" in resumed.said
    assert resumed.furthest_from(expected) < 1e-5
