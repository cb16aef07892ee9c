"""All thirteen networks take a real training step in each of the shipped schedules, and what is frozen stays.

Each network is built once, from its YAML file with random weights at a small size, and planned with every schedule.
``Model.train_step`` outside a graph is the real step without the time that tracing takes.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlearn.backbones import SPECS
from tlearn.compose import load_config
from tlearn.paths import shipped
from tlearn.train.api import Prepared, prepare
from tlearn.train.plan import plan_run
from tlearn.train.session import Session

SCHEDULES = sorted(path.stem for path in (shipped("configs") / "schedule").glob("*.yaml"))
QUICK = ("vgg16", "resnet50", "mobilenet", "mobilenet_v2")
VARIANTS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SPECS._builtin]


def overrides(name: str, schedule: str) -> list[str]:
    """Rates so large that every gradient but zero shows."""
    stages = load_config([f"schedule={schedule}"]).schedule.stages
    fast = [
        f"schedule.stages.{index}.optimizer.learning_rate=0.1"
        for index, stage in enumerate(stages)
        if stage.optimizer.learning_rate is not None
    ]
    constant = [f"schedule.stages.{index}.optimizer.schedule.name=constant" for index in range(len(stages))]
    cold = [f"schedule.stages.{index}.optimizer.schedule.warmup.epochs=null" for index in range(len(stages))]
    small = max(SPECS[name].least_size, 32)
    return [
        f"backbone={name}",
        "backbone.weights=null",
        f"backbone.image_size={small}",
        "data.name=stripes",
        "data.batch_size=2",
        f"schedule={schedule}",
        *fast,
        *(constant + cold if schedule == "full" else []),
    ]


def built(name: str) -> dict[str, Prepared]:
    """The network, built once, with the plan of each schedule."""
    keras.backend.clear_session()
    first = prepare(load_config(overrides(name, SCHEDULES[0])))
    calibrate(first)
    plans = {SCHEDULES[0]: first}
    for schedule in SCHEDULES[1:]:
        config = load_config(overrides(name, schedule))
        plan = plan_run(config, first.data, first.classifier)
        plans[schedule] = replace(first, config=config, plan=plan)
    return plans


def calibrate(prepared: Prepared) -> None:
    """Set moving statistics to those of a batch: with untouched ones random networks fade to zero or overflow."""
    norms = [x for x in prepared.classifier.backbone.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.trainable, norm.momentum = True, 0.0
    prepared.classifier.model(batch(prepared, 8)[0], training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def digests(prepared: Prepared) -> dict[str, int]:
    return {key: zlib.crc32(variable.numpy().tobytes()) for key, variable in prepared.classifier.variables().items()}


def batch(prepared: Prepared, count: int = 2) -> tuple[tf.Tensor, tf.Tensor]:
    side = prepared.plan.image_size
    images = np.random.default_rng(1).integers(0, 256, (count, side, side, 3)).astype("float32")
    return tf.constant(images), tf.one_hot([0, 2], 3)


def zero_gradients(session: Session, prepared: Prepared, data: tuple[tf.Tensor, tf.Tensor]) -> set[str]:
    """Keys of the trainable variables that a step cannot move, because nothing reaches them."""
    with tf.GradientTape() as tape:
        loss = session.model.compute_loss(y=data[1], y_pred=session.model(data[0], training=True))
    variables = session.model.trainable_variables
    found = tape.gradient(loss, [variable.value for variable in variables])
    dead = {id(v) for v, g in zip(variables, found, strict=True) if g is None or not np.asarray(g).any()}
    return {key for key, variable in prepared.classifier.variables().items() if id(variable) in dead}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_in_each_schedule(name: str, subtests: pytest.Subtests) -> None:
    plans = built(name)
    assert_stages_are_those_of_the_schedules(plans)
    for schedule, prepared in plans.items():
        with subtests.test(schedule):
            assert_a_step_changes_what_is_planned_and_nothing_else(prepared)


def assert_a_step_changes_what_is_planned_and_nothing_else(prepared: Prepared) -> None:
    """In the last stage of the schedule, which trains the most."""
    plan = prepared.plan.stages[-1]
    session = Session(prepared.classifier, prepared.config, prepared.plan, len(prepared.plan.stages) - 1)
    before, data = digests(prepared), batch(prepared)
    kept = [(variable, variable.numpy().copy()) for variable in session.model.trainable_variables]
    logs = session.model.train_step(data)
    assert np.isfinite(float(logs["loss"]))
    after = digests(prepared)
    changed = {key for key in before if before[key] != after[key]}
    moving = {key for key in before if "/moving_" in key}
    assert not changed & moving, "moving statistics of frozen batch norms drifted"
    assert changed <= set(plan.variables)
    for variable, value in kept:
        variable.assign(value)
    assert digests(prepared) == before
    still = set(plan.variables) - changed
    if still:
        assert still <= zero_gradients(session, prepared, data)
    assert len(changed) > 0.9 * len(plan.variables)


def assert_stages_are_those_of_the_schedules(plans: dict[str, Prepared]) -> None:
    network = plans["full"].classifier.backbone
    blocks = network.blocks
    first_of = {
        "head": len(network.layers),
        "all": 0,
        "top": blocks[-2].first,
        "top1": blocks[-1].first,
        "top2": blocks[-2].first,
        "top3": blocks[-3].first,
    }
    seen = set()
    for prepared in plans.values():
        for stage in prepared.plan.stages:
            seen.add(stage.name)
            above = set(range(first_of[stage.name], len(network.layers)))
            norms = {i for i in above if isinstance(network.layers[i], keras.layers.BatchNormalization)}
            assert set(stage.layers) == above - norms, stage.name
            assert stage.batch_norms_training == 0
            weights = sum(len(network.layers[i].weights) for i in stage.layers)
            assert len(stage.variables) == weights + 2, "and the head's kernel and bias"
    assert seen == set(first_of)


def test_the_classic_recipe_freezes_the_first_249_layers_of_inception_v3() -> None:
    prepared = prepare(load_config(overrides("inception_v3", "two_stage")))
    layers, stage = prepared.classifier.backbone.layers, prepared.plan.stages[1]
    assert layers[248].name == "mixed8"
    norms = {index for index in range(249, len(layers)) if isinstance(layers[index], keras.layers.BatchNormalization)}
    assert set(stage.layers) == set(range(249, len(layers))) - norms
    assert min(stage.layers) == 249
    trained = {key.split("/")[0] for key in stage.variables}
    frozen = set(prepared.classifier.backbone.names[:249])
    assert not trained & frozen


def test_every_network_is_here() -> None:
    assert len(VARIANTS) == 13
    files = {path.stem for path in (shipped("configs") / "backbone").glob("*.yaml")} - {"embedded"}
    assert files == set(SPECS._builtin)
