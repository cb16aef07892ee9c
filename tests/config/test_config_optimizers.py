"""Every Keras optimizer with its own options, and nothing that it does not take."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from tlearn.compose import load_config, preset
from tlearn.config import Duration, LearningRateConfig, OptimizerConfig
from tlearn.errors import Problem
from tlearn.paths import shipped
from tlearn.train.checks import check_config
from tlearn.train.optimizers import OPTIMIZERS, SHARED, build_optimizer, check_optimizer, stage_optimizer
from tlearn.train.plan import describe_optimizer

LENGTHS = {"steps": 100, "steps_per_epoch": 10, "batch_size": 8}
# of keras.optimizers: wrappers, and the base class
NO_OPTIMIZERS = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
# of every optimizer: set by tlearn itself, or (the last two) by no one: Keras copies the average into the model only
# when asked, and scales losses in LossScaleOptimizer
OURS = {"learning_rate", "name", "kwargs", "use_ema", "ema_overwrite_frequency", "loss_scale_factor"}
# of Muon: layers by name, which only their author knows
NOT_OFFERED = {"muon": {"exclude_layers", "exclude_embeddings"}}


def classes() -> dict[str, type]:
    import keras

    found = {name: kind for name, kind in vars(keras.optimizers).items() if inspect.isclass(kind)}
    return {
        name: kind
        for name, kind in found.items()
        if issubclass(kind, keras.optimizers.Optimizer) and name not in NO_OPTIMIZERS
    }


def options_of(kind: type) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters) - {"self"} - OURS - set(SHARED.values())


def test_every_optimizer_of_keras_has_a_row() -> None:
    assert {class_name for class_name, _ in OPTIMIZERS.values()} == set(classes())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_row_holds_every_option_of_the_class(name: str) -> None:
    class_name, options = OPTIMIZERS[name]
    assert set(options) | NOT_OFFERED.get(name, set()) == options_of(classes()[class_name])
    for option in options:
        assert hasattr(OptimizerConfig(), option)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_shared_options_are_taken_by_all(name: str) -> None:
    class_name, _ = OPTIMIZERS[name]
    assert set(SHARED.values()) <= set(inspect.signature(classes()[class_name].__init__).parameters)


def test_every_option_of_the_config_belongs_to_some_optimizer() -> None:
    known = {option for _, options in OPTIMIZERS.values() for option in options}
    ours = {"name", "learning_rate", "schedule", "block_decay", *SHARED}
    assert set(vars(OptimizerConfig())) == known | ours


def test_every_optimizer_has_a_yaml_file_or_none_by_choice() -> None:
    files = {path.stem for path in (shipped("configs") / "optimizer").glob("*.yaml")}
    assert files <= set(OPTIMIZERS)


@pytest.mark.parametrize("path", sorted((shipped("configs") / "optimizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_builds_its_optimizer(path: Path) -> None:
    optimizer = preset("optimizer", path.stem)
    assert list(check_optimizer(optimizer, "optimizer")) == []
    made = build_optimizer(optimizer, **LENGTHS)
    assert type(made).__name__ == OPTIMIZERS[path.stem][0]
    assert float(made.learning_rate) == pytest.approx(optimizer.learning_rate)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_given_its_options(name: str) -> None:
    class_name, options = OPTIMIZERS[name]
    parameters = inspect.signature(classes()[class_name].__init__).parameters
    given = {}
    for option in options:
        default = parameters[option].default
        given[option] = not default if isinstance(default, bool) else (default or 1) * 0.5
        if isinstance(default, int) and not isinstance(default, bool):
            given[option] = default + 1
    optimizer = OptimizerConfig(name=name, learning_rate=0.25, weight_decay=0.5, ema=0.75, accumulate=3, **given)
    assert list(check_optimizer(optimizer, "optimizer")) == []
    made = build_optimizer(optimizer, **LENGTHS)
    config = made.get_config()
    assert {option: config[option] for option in given if option in config} == pytest.approx(given)
    assert float(made.learning_rate) == 0.25
    assert (made.weight_decay, made.use_ema, made.ema_momentum) == (0.5, True, 0.75)
    assert made.gradient_accumulation_steps == 3


@pytest.mark.parametrize(("ours", "theirs"), [(k, v) for k, v in SHARED.items() if k.startswith("clip")])
def test_clipping_reaches_keras(ours: str, theirs: str) -> None:
    made = build_optimizer(OptimizerConfig(name="sgd", **{ours: 0.5}), **LENGTHS)
    assert getattr(made, theirs) == 0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_option_of_another_optimizer_is_refused(name: str) -> None:
    _, takes = OPTIMIZERS[name]
    foreign = next(option for option in ("rho", "beta_1", "momentum") if option not in takes)
    (problem,) = check_optimizer(OptimizerConfig(name=name, **{foreign: 0.5}), "here")
    assert problem.where == f"here.{foreign}"
    assert all(option in problem.fix for option in takes)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("adam", "beta_1", 1.0),
        ("rmsprop", "rho", 1.5),
        ("muon", "adam_beta_2", -0.1),
        ("ftrl", "learning_rate_power", 0.5),
        ("ftrl", "initial_accumulator_value", -1.0),
        ("ftrl", "l1_regularization_strength", -1.0),
    ],
)
def test_what_keras_would_refuse_is_refused_before(name: str, option: str, value: float) -> None:
    found = list(check_optimizer(OptimizerConfig(name=name, **{option: value}), "here"))
    assert [problem.where for problem in found] == [f"here.{option}"]


def test_an_option_that_is_not_set_is_left_to_keras() -> None:
    import keras

    made = build_optimizer(OptimizerConfig(name="rmsprop", learning_rate=0.1), **LENGTHS)
    assert made.get_config() == keras.optimizers.RMSprop(0.1, name="rmsprop").get_config()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": 1e9}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, "clip_value"),
        ({"accumulate": 0}, "accumulate"),
        ({"ema": 1.0}, "ema"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"block_decay": 0.0}, "block_decay"),
        ({"block_decay": 1.5}, "block_decay"),
        ({"momentum": 1.5}, "momentum"),
        ({"momentum": -0.5}, "momentum"),
        ({"schedule": LearningRateConfig(warmup=Duration(steps=3, epochs=1.0))}, "schedule.warmup"),
        ({"schedule": LearningRateConfig(warmup=Duration(percent=-1.0))}, "schedule.warmup.percent"),
        ({"schedule": LearningRateConfig(every=Duration(steps=0))}, "schedule.every.steps"),
        ({"schedule": LearningRateConfig(rate=0.0)}, "schedule.rate"),
        ({"schedule": LearningRateConfig(final=-0.1)}, "schedule.final"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], key: str) -> None:
    found: list[Problem] = list(check_optimizer(OptimizerConfig(name="sgd", **settings), "here"))
    assert [problem.where for problem in found] == [f"here.{key}"]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("{}", "adam 0.1, ema=0.9, cosine, warm-up 2 steps"),
        ("{name: sgd}", "sgd 0.1, cosine, warm-up 2 steps"),
        ("{name: sgd, momentum: 0.9, learning_rate: 0.5}", "sgd 0.5, momentum=0.9, cosine, warm-up 2 steps"),
        ("{name: sgd, schedule: {warmup: {steps: 3}}}", "sgd 0.1, cosine, warm-up 3 steps"),
        ("{name: sgd, schedule: {name: constant}}", "sgd 0.1"),
    ],
)
def test_a_stage_has_of_the_run_what_the_config_says(stage: str, expected: str) -> None:
    """Of the learning rate and its schedule: null is the run's, under whatever name the stage trains."""
    run = ["optimizer.learning_rate=0.1", "optimizer.ema=0.9"]
    run += ["optimizer.schedule.name=cosine", "optimizer.schedule.warmup.steps=2"]
    stages = f"schedule.stages=[{{name: first, epochs: 1}}, {{name: second, epochs: 1, optimizer: {stage}}}]"
    config = load_config([*run, stages])
    check_config(config)
    assert describe_optimizer(config, config.schedule.stages[1]) == expected


@pytest.mark.parametrize(
    ("run", "stage", "expected"),
    [
        ("{name: polynomial, final: 0.5, power: 2}", "{warmup: {steps: 1}}", (0.5, 2.0, None)),
        ("{name: polynomial, final: 0.5, power: 2}", "{final: 0.0, power: 1.0}", (0.0, 1.0, None)),
        ("{name: polynomial, final: 0.5, power: 2}", "{name: cosine}", (None, None, None)),
        ("{name: step, rate: 0.5}", "{rate: 0.1}", (None, None, 0.1)),
        ("{name: constant}", "{final: 0.0, power: 1.0, rate: 0.1}", (0.0, 1.0, 0.1)),  # as older runs wrote it
    ],
)
def test_a_stage_may_set_an_option_of_the_schedule_back_to_its_default(
    run: str, stage: str, expected: tuple[float | None, ...]
) -> None:
    stages = f"schedule.stages=[{{name: only, epochs: 1, optimizer: {{schedule: {stage}}}}}]"
    config = load_config([f"optimizer.schedule={run}", stages])
    check_config(config)
    used = stage_optimizer(config, config.schedule.stages[0]).schedule
    assert (used.final, used.power, used.rate) == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("frozen", ["adam 0.001"]),
        ("full", ["adam 0.001", "adam 0.0001, cosine, warm-up 1 epochs"]),
        ("gradual", ["adam 0.001", "adam 0.0003", "adam 0.0001", "adam 3e-05"]),
        ("two_stage", ["rmsprop 0.001", "sgd 0.0001, momentum=0.9"]),
    ],
)
def test_the_shipped_schedules_train_as_they_say(schedule: str, expected: list[str]) -> None:
    config = load_config([f"schedule={schedule}"])
    assert [describe_optimizer(config, stage) for stage in config.schedule.stages] == expected
