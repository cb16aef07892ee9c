"""What one step does: rates, decay, clipping, accumulation, batch norms, smoothing, class weights; by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlearn.config import Duration, LearningRateConfig, LearningRateSchedule
from tlearn.paths import shipped
from tlearn.train.api import Prepared, prepare
from tlearn.train.loop import Loop
from tlearn.train.optimizers import in_steps, learning_rate
from tlearn.train.session import Session
from tlearn.train.streams import Streams

Make = Callable[..., Any]
ALL = ("schedule.stages.0.unfreeze=all",)


def session_of(prepared: Prepared, index: int = 0, before: Session | None = None) -> Session:
    return Session(prepared.classifier, prepared.config, prepared.plan, index, before=before)


def values(prepared: Prepared) -> dict[str, np.ndarray]:
    return {key: np.array(variable.numpy()) for key, variable in prepared.classifier.variables().items()}


def batch(seed: int = 0, count: int = 8) -> tuple[tf.Tensor, tf.Tensor]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 16, 16, 3)).astype("float32")
    return tf.constant(images), tf.one_hot(random.integers(0, 3, count), 3)


def gradients(session: Session, *data: tf.Tensor) -> dict[int, np.ndarray]:
    """By the identity of the variable, from Keras' loss in training mode."""
    images, targets = data[:2]
    with tf.GradientTape() as tape:
        logits = session.model(images, training=True)
        loss = session.model.compute_loss(y=targets, y_pred=logits)
    found = tape.gradient(loss, [variable.value for variable in session.model.trainable_variables])
    return {id(v): np.array(g) for v, g in zip(session.model.trainable_variables, found, strict=True)}


def changes(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: after[key] - before[key] for key in before}


# --- learning rates --------------------------------------------------------------------------------------------------


def rates(schedule: LearningRateConfig, steps: int, peak: float = 1.0, first: int = 0) -> list[float]:
    rate = learning_rate(schedule, peak=peak, steps=steps, steps_per_epoch=10, batch_size=8, first_iteration=first)
    return [float(rate(first + step)) if callable(rate) else rate for step in range(steps)]


def test_a_constant_rate() -> None:
    assert rates(LearningRateConfig(), 3, peak=0.5) == [0.5, 0.5, 0.5]


def test_the_warm_up_is_linear_and_reaches_the_rate() -> None:
    assert rates(LearningRateConfig(warmup=Duration(steps=4)), 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_falls_from_the_rate_to_its_share() -> None:
    found = rates(LearningRateConfig(name=LearningRateSchedule.cosine, final=0.1), 20, peak=2.0)
    expected = [2.0 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * step / 20))) for step in range(20)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_cosine_after_a_warm_up_ends_with_the_stage() -> None:
    schedule = LearningRateConfig(name=LearningRateSchedule.cosine, warmup=Duration(epochs=1))
    found = rates(schedule, 30)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10:] == pytest.approx([0.5 * (1 + np.cos(np.pi * step / 20)) for step in range(20)], abs=1e-6)


def test_polynomial() -> None:
    schedule = LearningRateConfig(name=LearningRateSchedule.polynomial, power=2.0, final=0.2)
    assert rates(schedule, 10) == pytest.approx([0.8 * (1 - step / 10) ** 2 + 0.2 for step in range(10)], rel=1e-5)


def test_steps_fall_by_the_rate_every_third_of_the_stage() -> None:
    schedule = LearningRateConfig(name=LearningRateSchedule.step, rate=0.5)
    assert rates(schedule, 9) == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])
    every = LearningRateConfig(name=LearningRateSchedule.step, rate=0.5, every=Duration(steps=2))
    assert rates(every, 5) == pytest.approx([1, 1, 0.5, 0.5, 0.25])


def test_exponential_falls_smoothly() -> None:
    schedule = LearningRateConfig(name=LearningRateSchedule.exponential, rate=0.5, every=Duration(examples=16))
    assert rates(schedule, 4) == pytest.approx([1, 0.5**0.5, 0.5, 0.5**1.5], rel=1e-5)


def test_a_stage_that_counts_on_starts_its_schedule_anew() -> None:
    schedule = LearningRateConfig(name=LearningRateSchedule.cosine, warmup=Duration(steps=3))
    assert rates(schedule, 12, first=100) == pytest.approx(rates(schedule, 12), rel=1e-5)


def test_a_warm_up_longer_than_the_stage_only_warms_up() -> None:
    schedule = LearningRateConfig(name=LearningRateSchedule.cosine, warmup=Duration(steps=100))
    assert rates(schedule, 4) == pytest.approx([0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (Duration(), 0),
        (Duration(epochs=2), 20),
        (Duration(epochs=0.25), 2),
        (Duration(epochs=0.01), 1),
        (Duration(steps=7), 7),
        (Duration(examples=17), 3),
        (Duration(examples=16), 2),
        (Duration(percent=50), 25),
        (Duration(percent=1), 1),
    ],
)
def test_durations_in_steps(duration: Duration, steps: int) -> None:
    assert in_steps(duration, total=50, steps_per_epoch=10, batch_size=8) == steps


# --- updates ---------------------------------------------------------------------------------------------------------


def test_a_step_of_sgd_is_the_gradient_times_the_rate(tiny_config: Make) -> None:
    prepared = prepare(tiny_config(*ALL, "optimizer=sgd", "optimizer.momentum=0", "optimizer.learning_rate=0.5"))
    session = session_of(prepared)
    data, before = batch(), values(prepared)
    expected = gradients(session, *data)
    session.model.train_step(data)
    moved = changes(before, values(prepared))
    trained = {key: v for key, v in prepared.classifier.variables().items() if id(v) in expected}
    assert set(trained) == set(prepared.plan.stages[0].variables)
    for key, variable in trained.items():
        np.testing.assert_allclose(moved[key], -0.5 * expected[id(variable)], atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "muon"])
def test_weight_decay_leaves_biases_norms_and_gem_alone(name: str, tiny_config: Make) -> None:
    overrides = [*ALL, "schedule.stages.0.batch_norm=train", f"optimizer={name}", "optimizer.learning_rate=0.1"]
    overrides.append("head.pooling=gem")
    moved = []
    for decay in (0.0, 0.5):
        prepared = prepare(tiny_config(*overrides, f"optimizer.weight_decay={decay}"))
        session, before = session_of(prepared), values(prepared)
        session.model.train_step(batch())
        moved.append(changes(before, values(prepared)))
    names = set(prepared.plan.stages[0].variables)
    kernels = {key for key in names if key.endswith("kernel")}
    assert {key.rpartition("/")[2] for key in names - kernels} == {"bias", "gamma", "beta", "p"}
    for key in kernels:
        np.testing.assert_allclose(moved[1][key] - moved[0][key], -0.1 * 0.5 * before[key], atol=1e-6)
    for key in names - kernels:
        np.testing.assert_array_equal(moved[1][key], moved[0][key])


def test_muon_decays_what_it_leaves_to_adam_by_itself_where_asked(tiny_config: Make) -> None:
    decays = ("optimizer.weight_decay=0", "optimizer.adam_weight_decay=0.5")
    prepared = prepare(tiny_config(*ALL, "optimizer=muon", "optimizer.learning_rate=0.1", *decays))
    session, before = session_of(prepared), values(prepared)
    variables = session.model.trainable_variables
    session.model.optimizer.apply([tf.zeros_like(variable.value) for variable in variables], variables)
    after = values(prepared)
    for key in prepared.plan.stages[0].variables:
        kept = 0.95 if key.endswith("_conv/kernel") else 1.0
        np.testing.assert_allclose(after[key], kept * before[key], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "weight_decay"), [("sgd", 0.0), ("sgd", 0.5), ("adam", 0.0), ("adamw", 0.5), ("muon", 0.5)]
)
def test_block_decay_shrinks_the_rate_block_by_block(name: str, weight_decay: float, tiny_config: Make) -> None:
    moved = []
    for decay in ("null", "0.5"):
        overrides = (f"optimizer.block_decay={decay}", f"optimizer.weight_decay={weight_decay}")
        prepared = prepare(tiny_config(*ALL, f"optimizer={name}", *overrides))
        session, before = session_of(prepared), values(prepared)
        for number in range(2):
            session.model.train_step(batch(number))
            if number == 0:
                moved.append(changes(before, values(prepared)))
    factors = {"head": 1.0, "top": 0.5, "mid": 0.25, "low": 0.125}
    checked = set()
    for key in prepared.plan.stages[0].variables:
        factor = factors[key.split("_")[0]]
        checked.add(factor)
        assert np.abs(moved[0][key]).max() > 0
        np.testing.assert_allclose(moved[1][key], factor * moved[0][key], rtol=1e-3, atol=1e-7)
    assert checked == set(factors.values())


@pytest.mark.parametrize("name", sorted(path.stem for path in (shipped("configs") / "optimizer").glob("*.yaml")))
def test_every_shipped_optimizer_bears_channels_without_a_gradient(name: str, tiny_config: Make) -> None:
    prepared = prepare(tiny_config(*ALL, f"optimizer={name}"))
    for key, variable in prepared.classifier.variables().items():
        if key.endswith("_norm/beta"):  # a ReLU follows
            variable.assign([-1e3, *variable.numpy()[1:]])
    session, before = session_of(prepared), values(prepared)
    kernel = prepared.classifier.variables()["mid_conv/kernel"]
    assert not gradients(session, *batch())[id(kernel)][:, :, 0].any()
    for number in range(3):
        assert np.isfinite(float(session.model.train_step(batch(number))["loss"]))
    after = values(prepared)
    assert all(np.isfinite(value).all() for value in after.values())
    assert all((after[key] != before[key]).any() for key in prepared.plan.stages[0].variables if "kernel" in key)


@pytest.mark.parametrize("clip", ["clip_norm", "clip_value", "clip_global_norm"])
def test_clipping(clip: str, tiny_config: Make) -> None:
    limit = 1e-3
    prepared = prepare(tiny_config(*ALL, "optimizer=sgd", "optimizer.learning_rate=1", f"optimizer.{clip}={limit}"))
    session, before = session_of(prepared), values(prepared)
    free = gradients(session, *batch())
    session.model.train_step(batch())
    moved = [delta for delta in changes(before, values(prepared)).values() if delta.any()]
    norms = [np.linalg.norm(delta) for delta in moved]
    assert max(np.linalg.norm(gradient) for gradient in free.values()) > 2 * limit
    if clip == "clip_norm":
        assert max(norms) == pytest.approx(limit, rel=1e-2)
    if clip == "clip_value":
        assert max(np.abs(delta).max() for delta in moved) == pytest.approx(limit, rel=1e-2)
    if clip == "clip_global_norm":
        assert np.linalg.norm(norms) == pytest.approx(limit, rel=1e-2)


def test_accumulated_batches_are_one_update_with_their_mean(tiny_config: Make) -> None:
    overrides = (*ALL, "optimizer=sgd", "optimizer.momentum=0", "optimizer.learning_rate=0.1")
    accumulated = prepare(tiny_config(*overrides, "optimizer.accumulate=2"))
    session, before = session_of(accumulated), values(accumulated)
    first, second = batch(1), batch(2)
    session.model.train_step(first)
    assert all((delta == 0).all() for delta in changes(before, values(accumulated)).values())
    session.model.train_step(second)
    together = prepare(tiny_config(*overrides))
    session = session_of(together)
    session.model.train_step(tuple(tf.concat(parts, 0) for parts in zip(first, second, strict=True)))
    for key, value in values(together).items():
        np.testing.assert_allclose(values(accumulated)[key], value, atol=1e-6)


def test_batches_that_make_no_update_are_noted(tiny_config: Make) -> None:
    plan = prepare(tiny_config("optimizer.accumulate=7", "schedule.stages.0.epochs=2")).plan
    assert plan.stages[0].notes == ("the last 5 of 12 batches make no update: accumulate=7",)


@pytest.mark.parametrize(
    ("first", "second", "notes"),
    [
        (", carry_slots: true", "", (("carry_slots has no effect: there is no stage before",), ())),
        ("", ", carry_slots: true", ((), ())),
        (
            "",
            ", carry_slots: true, optimizer: {name: sgd}",
            ((), ("carry_slots has no effect: stage a trains with adam, this one with sgd",)),
        ),
        (
            ", optimizer: {schedule: {warmup: {epochs: 3}}}",
            ", optimizer: {schedule: {warmup: {epochs: 1}}}",
            (("the warm-up takes all of its 6 steps, not 18: the stage is shorter",), ()),
        ),
        (
            ", early_stopping: {min_delta: 0.1}",
            ", early_stopping: {min_delta: 0.1, patience: 2}",
            (("early_stopping.min_delta has no effect without early_stopping.patience",), ()),
        ),
    ],
)
def test_the_plan_says_what_has_no_effect(
    first: str, second: str, notes: tuple[tuple[str, ...], ...], tiny_config: Make
) -> None:
    stages = f"[{{name: a, epochs: 1{first}}}, {{name: b, epochs: 1{second}}}]"
    plan = prepare(tiny_config(f"schedule.stages={stages}")).plan
    assert tuple(stage.notes for stage in plan.stages) == notes


def test_the_batch_norm_policy_moves_only_what_is_unfrozen(tiny_config: Make) -> None:
    for policy, moving in (("inference", set()), ("train", {"mid_norm", "top_norm"})):
        prepared = prepare(
            tiny_config(
                "schedule.stages.0.unfreeze={last_blocks: 2}", f"schedule.stages.0.batch_norm={policy}", "optimizer=sgd"
            )
        )
        session, before = session_of(prepared), values(prepared)
        session.model.train_step(batch())
        moved = {key for key, delta in changes(before, values(prepared)).items() if delta.any()}
        assert {key.split("/")[0] for key in moved if "/moving_" in key} == moving
        assert {key.split("/")[0] for key in moved if "_norm/" in key} == moving
        assert prepared.plan.stages[0].batch_norms_training == len(moving)
        assert not any(key.startswith("low") for key in moved)


# --- the loss --------------------------------------------------------------------------------------------------------


def softmax_loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return -(targets * (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))).sum(axis=1)


def test_label_smoothing_changes_the_loss_as_by_hand(tiny_config: Make) -> None:
    prepared = prepare(tiny_config("loss.label_smoothing=0.3"))
    session, (images, targets) = session_of(prepared), batch()
    logits = np.asarray(session.model(images, training=True))
    smooth = 0.7 * np.asarray(targets) + 0.3 / 3
    logs = session.model.train_step((images, targets))
    assert float(logs["loss"]) == pytest.approx(softmax_loss(logits, smooth).mean(), rel=1e-5)


def test_a_stage_has_its_own_label_smoothing(tiny_config: Make) -> None:
    prepared = prepare(tiny_config("loss.label_smoothing=0.3", "schedule.stages.0.label_smoothing=0"))
    session, (images, targets) = session_of(prepared), batch()
    logits = np.asarray(session.model(images, training=True))
    logs = session.model.train_step((images, targets))
    assert float(logs["loss"]) == pytest.approx(softmax_loss(logits, np.asarray(targets)).mean(), rel=1e-5)


def test_class_weights_change_the_loss_as_by_hand_and_are_named(
    tiny_config: Make, pictures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from tlearn.train.console import plan_table

    for file in sorted((pictures / "bee").iterdir())[2:]:
        file.unlink()
    prepared = prepare(
        tiny_config("data.name=folder", f"data.path={pictures}", "loss.class_weights=balanced", "data.val_fraction=0.1")
    )
    counts = np.array([5, 1, 5])
    weights = 11 / (3 * counts)
    assert prepared.plan.class_weights == pytest.approx(weights, abs=1e-5)
    Console(width=100).print(plan_table(prepared.plan))
    assert "ant 0.733, bee 3.67, cat 0.733" in capsys.readouterr().out
    session = session_of(prepared)
    ((images, targets, given),) = Streams(prepared.config, prepared.data, prepared.plan).training(
        prepared.config.schedule.stages[0], 0, 1
    )
    labels = np.asarray(targets).argmax(axis=1)
    np.testing.assert_allclose(given, weights[labels], rtol=1e-5)
    logits = np.asarray(session.model(images, training=True))
    losses = softmax_loss(logits, np.asarray(targets))
    logs = session.model.train_step((images, targets, given))
    assert float(logs["loss"]) == pytest.approx((losses * weights[labels]).mean(), rel=1e-5)


def test_a_stage_may_leave_its_classes_unweighted(tiny_config: Make) -> None:
    prepared = prepare(tiny_config("loss.class_weights=balanced", "schedule.stages.0.class_weights=none"))
    stream = Streams(prepared.config, prepared.data, prepared.plan).training(prepared.config.schedule.stages[0], 0, 1)
    assert len(stream.element_spec) == 2
    assert prepared.plan.class_weights is None


def test_metrics_of_a_step_are_over_the_targets_not_the_smoothed_ones(tiny_config: Make) -> None:
    prepared = prepare(tiny_config("loss.label_smoothing=0.9"))
    session, (images, targets) = session_of(prepared), batch()
    right = np.asarray(session.model(images)).argmax(axis=1) == np.asarray(targets).argmax(axis=1)
    assert float(session.model.train_step((images, targets))["accuracy"]) == pytest.approx(right.mean())


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("xla", [False, True])
def test_a_step_in_the_loop_is_the_same_as_alone(xla: bool, tiny_config: Make) -> None:
    """Compiled, several to one execution, with or without XLA."""
    alone, looped = (prepare(tiny_config(*ALL, "optimizer=sgd")) for _ in range(2))
    session = session_of(alone)
    batches = [batch(number) for number in range(4)]
    for data in batches:
        session.model.train_step(data)
    session = session_of(looped)
    images, targets = (tf.stack(parts) for parts in zip(*batches, strict=True))
    loop = Loop(session.model, tf.data.Dataset.from_tensor_slices((images, targets)), xla=xla)
    steps = loop.run(0, lambda step: 4)
    done = 0
    while done < 4:
        done, logs = next(steps)
        assert np.isfinite(logs["loss"])
    for key, value in values(alone).items():
        np.testing.assert_allclose(values(looped)[key], value, atol=1e-5)


def test_half_precision_keeps_the_head_and_the_variables_whole(tiny_config: Make) -> None:
    prepared = prepare(tiny_config(*ALL, "precision=mixed_bfloat16", "head=mlp", "head.units=[4]"))
    layers = {layer.name: layer for layer in prepared.classifier.model.layers}
    assert layers["mid_conv"].compute_dtype == "bfloat16"
    assert {layer.compute_dtype for name, layer in layers.items() if name.startswith("head_")} == {"float32"}
    assert {variable.dtype for variable in prepared.classifier.model.variables} <= {"float32", "uint32"}
    assert prepared.classifier.model.output.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    session, before = session_of(prepared), values(prepared)
    logs = session.model.train_step(batch())
    assert np.isfinite(float(logs["loss"]))
    assert any(delta.any() for key, delta in changes(before, values(prepared)).items() if key.startswith("low_conv"))


def test_float16_scales_its_losses(tiny_config: Make) -> None:
    prepared = prepare(tiny_config(*ALL, "precision=mixed_float16"))
    session = session_of(prepared)
    assert isinstance(session.model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.isfinite(float(session.model.train_step(batch())["loss"]))
    state = session.state()
    session.restore(state)
