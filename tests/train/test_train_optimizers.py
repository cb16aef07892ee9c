"""What an optimizer keeps from step to step and from stage to stage: averages of the weights, slots, the counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.train.test_train_pieces import ALL, Make, batch, session_of, values
from tlearn.train.api import Prepared, prepare
from tlearn.train.optimizers import OPTIMIZERS
from tlearn.train.session import Session

# --- averages --------------------------------------------------------------------------------------------------------


def test_the_average_of_the_weights_is_used_to_evaluate_and_to_finish(tiny_config: Make) -> None:
    prepared = prepare(tiny_config(*ALL, "optimizer=sgd", "optimizer.learning_rate=0.1", "optimizer.ema=0.5"))
    session = session_of(prepared)
    names = prepared.plan.stages[0].variables
    history = []
    for number in range(3):
        session.model.train_step(batch(number))
        history.append(values(prepared))
    average = {key: history[0][key] for key in names}  # the first step is the average's start
    for after in history[1:]:
        average = {key: 0.5 * average[key] + 0.5 * after[key] for key in names}
    with session.averaged():
        for key in names:
            np.testing.assert_allclose(values(prepared)[key], average[key], atol=1e-6)
    for key in names:
        np.testing.assert_array_equal(values(prepared)[key], history[-1][key])
    session.finalize()
    for key in names:
        np.testing.assert_allclose(values(prepared)[key], average[key], atol=1e-6)


TWO_STAGES = (
    "schedule.stages=[{name: head, epochs: 1}, {name: top, unfreeze: {last_blocks: 1}, epochs: 1, carry_slots: true}]",
)


def test_the_average_of_a_variable_starts_when_it_begins_to_train(tiny_config: Make) -> None:
    prepared = prepare(tiny_config(*TWO_STAGES, "optimizer.ema=0.99"))
    first = session_of(prepared, 0)
    first.model.train_step(batch())
    first.finalize()
    second = session_of(prepared, 1, before=first)
    before = values(prepared)
    second.model.train_step(batch(1))
    with second.averaged():
        averaged = values(prepared)
    for key in prepared.plan.stages[1].variables:
        np.testing.assert_allclose(averaged[key], before[key], atol=0.02)


def test_the_average_is_the_weights_where_no_step_was_made(tiny_config: Make, tiny_fit: Callable[..., Any]) -> None:
    """The gradients of so steep a head are infinite in float16: all steps of the run are left out."""
    steep = ("head.name=cosine", "head.options={scale: 1e9}", "precision=mixed_float16")
    run = tiny_fit(*ALL, *steep, "optimizer.ema=0.9", "schedule.stages.0.steps=3", "schedule.stages.0.epochs=null")
    trained = {variable.path: np.asarray(variable) for variable in run.model().trainable_variables}
    before = values(prepare(tiny_config(*ALL, *steep)))
    for key in run.plan["stages"][0]["variables"]:
        np.testing.assert_array_equal(trained[key], before[key])


# --- from stage to stage ---------------------------------------------------------------------------------------------


def slots(session: Session) -> dict[str, np.ndarray]:
    return {variable.path: np.array(variable.numpy()) for variable in session.optimizer.variables}


def test_carried_slots_and_counter_go_on(tiny_config: Make) -> None:
    prepared = prepare(tiny_config(*TWO_STAGES))
    first = session_of(prepared, 0)
    for number in range(3):
        first.model.train_step(batch(number))
    second = session_of(prepared, 1, before=first)
    old, new = slots(first), slots(second)
    kept = {path for path in old if not path.endswith("learning_rate")}
    assert len([path for path in kept if "momentum" in path or "velocity" in path]) == 4
    assert kept < set(new)
    for path in kept:
        np.testing.assert_array_equal(new[path], old[path])
    assert int(second.optimizer.iterations) == 3
    for path in set(new) - kept:
        assert path.endswith("learning_rate") or not new[path].any()


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, ()) for name in OPTIMIZERS), ("adam", ("amsgrad=true",)), ("rmsprop", ("momentum=0.9", "centered=true"))],
)
def test_two_stages_with_carried_slots_are_one(name: str, options: tuple[str, ...], tiny_config: Make) -> None:
    stages = [f"{{name: {stage}, unfreeze: all, steps: 2, carry_slots: true}}" for stage in ("one", "two")]
    given = [f"optimizer.{option}" for option in (*options, "learning_rate=0.01")]
    prepared = prepare(tiny_config(f"schedule.stages=[{', '.join(stages)}]", f"optimizer={name}", *given))
    start = {key: variable.numpy() for key, variable in prepared.classifier.variables().items()}
    ends = []
    for cut in (4, 2):
        for key, variable in prepared.classifier.variables().items():
            variable.assign(start[key])
        session = session_of(prepared)
        for number in range(4):
            if number == cut:
                session = session_of(prepared, 1, before=session)
            session.model.train_step(batch(number))
        ends.append(values(prepared))
    for key in prepared.plan.stages[0].variables:
        assert np.isfinite(ends[0][key]).all()
        assert (ends[0][key] != start[key]).any()
        np.testing.assert_array_equal(ends[1][key], ends[0][key])


def applied(session: Session, prepared: Prepared, gradients: list[float]) -> list[float]:
    """How far the bias of the head moves at each of the batches, given its gradient."""
    variables, bias = session.model.trainable_variables, prepared.classifier.variables()["head_logits/bias"]
    moved = []
    for gradient in gradients:
        before = float(bias.numpy()[0])
        session.model.optimizer.apply([gradient * tf.ones_like(v.value) for v in variables], variables)
        moved.append(float(bias.numpy()[0]) - before)
    return moved


@pytest.mark.parametrize(
    ("accumulates", "first", "second", "count"),
    [
        ((2, 2), [0, -100, 0], [0, -1, 0, -1], 1 * 2),
        ((1, 4), [-100, -100, -100], [0, 0, 0, -1], 3 * 4),
        ((4, 1), [0, 0, 0, -100, 0], [-1, -1], 1),
        ((3, 2), [0, 0], [0, -1], 0),
    ],
)
def test_each_stage_begins_with_an_empty_accumulation(
    accumulates: tuple[int, int], first: list[float], second: list[float], count: int, tiny_config: Make
) -> None:
    """The updates go on being counted; the gradients of the last batches of a stage make none, as its plan says."""
    stages = [
        f"{{name: {name}, steps: {len(moves)}, carry_slots: true, "
        f"optimizer: {{name: sgd, learning_rate: 1.0, accumulate: {accumulate}}}}}"
        for name, moves, accumulate in zip("ab", (first, second), accumulates, strict=True)
    ]
    prepared = prepare(tiny_config(f"schedule.stages=[{', '.join(stages)}]"))
    session = session_of(prepared)
    assert applied(session, prepared, [100.0] * len(first)) == pytest.approx(first)
    session = session_of(prepared, 1, before=session)
    assert session.first_iteration == count == int(session.optimizer._iterations)
    assert applied(session, prepared, [1.0] * len(second)) == pytest.approx(second, abs=1e-4)


@pytest.mark.parametrize(
    "change", ["schedule.stages.1.carry_slots=false", "schedule.stages.1.optimizer={name: sgd, learning_rate: 0.1}"]
)
def test_slots_start_anew_without_being_asked_or_with_another_optimizer(change: str, tiny_config: Make) -> None:
    prepared = prepare(tiny_config(*TWO_STAGES, change))
    first = session_of(prepared, 0)
    first.model.train_step(batch())
    second = session_of(prepared, 1, before=first)
    assert int(second.optimizer.iterations) == 0
    assert not any(value.any() for path, value in slots(second).items() if not path.endswith("learning_rate"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_schedule_starts_anew_where_the_counter_goes_on(accumulate: int, tiny_config: Make) -> None:
    prepared = prepare(tiny_config(*TWO_STAGES, "optimizer.schedule.name=cosine", f"optimizer.accumulate={accumulate}"))
    first = session_of(prepared, 0)
    for number in range(6):
        first.model.train_step(batch(number))
    second = session_of(prepared, 1, before=first)
    assert float(second.optimizer.learning_rate) == pytest.approx(1e-3)
    for number in range(3):
        second.model.train_step(batch(number))
    assert float(second.optimizer.learning_rate) == pytest.approx(0.5e-3)
