"""Everything about a config that can be found wrong without TensorFlow, all of it at once."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlearn.backbones import check_backbone, check_unfreeze, get_spec
from tlearn.config import (
    Check,
    ClassWeights,
    Config,
    DataCache,
    Duration,
    LearningRateConfig,
    LearningRateSchedule,
    OnError,
    OptimizerConfig,
    Stage,
)
from tlearn.data import check_augment_config, check_data_config, peek_classes
from tlearn.errors import ConfigError, Problem, UserError
from tlearn.heads import check_head
from tlearn.train.cluster import cluster_of
from tlearn.train.optimizers import SCHEDULE_DEFAULTS, check_duration, check_optimizer, stage_optimizer, unused_options
from tlearn.train.run import resolve_weights

_SWITCHES = ("auto", "on", "off", True, False)
_PERIODS = (LearningRateSchedule.exponential, LearningRateSchedule.step)
# options of the learning rate: the schedules that have them
_OF_SCHEDULES = {
    "final": (LearningRateSchedule.cosine, LearningRateSchedule.polynomial),
    "power": (LearningRateSchedule.polynomial,),
    "rate": _PERIODS,
    "every": _PERIODS,
}


def check_config(config: Config) -> None:
    """Raise ConfigError with every problem of a config, by itself and for its architecture and data."""
    problems = [
        *_check_run(config),
        *_check_model(config),
        *check_data_config(config.data),
        *check_augment_config(config.augment),
        *_check_augment(config),
        *_check_reading(config),
        *_check_cache(config),
        *_check_schedule(config),
    ]
    if not problems:
        problems = [*_check_classes(config)]
    if problems:
        raise ConfigError(problems)


def _check_run(config: Config) -> Iterator[Problem]:
    for key, seed in (("seed", config.seed), ("data.split_seed", config.data.split_seed)):
        if not 0 <= seed < 2**32:
            yield Problem(key, f"must be 0 or more and below 2^32, received {seed}")
    if config.run_dir is not None and Path(config.run_dir).expanduser().exists():
        fix = "a run never overwrites another: choose another run_dir, or resume=... to go on with this one"
        yield Problem("run_dir", f"{config.run_dir} exists", fix)
    if not _is_one_of(config.deterministic, ("auto", True, False)):
        yield Problem("deterministic", f"must be true, false or auto, received {config.deterministic!r}")
    if not _is_one_of(config.xla, _SWITCHES):
        yield Problem("xla", f"must be auto, on or off, received {config.xla!r}")
    if not 0 < config.strategy_timeout <= 86400:
        yield Problem("strategy_timeout", f"must be above 0 and at most a day, received {config.strategy_timeout}")
    try:
        cluster_of(config)
    except ConfigError as error:
        yield from error.problems
    if config.name is not None and not re.fullmatch(r"[\w.+/-]{1,100}", config.name):
        yield Problem("name", f"may hold letters, digits and . + - _ / only, received {config.name!r}")
    if config.checkpoint.keep < 1:
        yield Problem("checkpoint.keep", "at least one state must be kept, else nothing could be resumed")
    for key, value in dataclasses.asdict(config.checkpoint.every).items():
        if value is not None and value <= 0:
            yield Problem(f"checkpoint.every.{key}", f"must be above 0, received {value}", "null turns it off")
    if not 0 < config.on_nan.factor < 1:
        yield Problem(
            "on_nan.factor", f"must be between 0 and 1, received {config.on_nan.factor}", "0.5 halves the rate"
        )
    if config.on_nan.most < 1:
        yield Problem(
            "on_nan.most", f"must be 1 or more, received {config.on_nan.most}", "on_nan.action=stop never does"
        )
    if config.log.every < 1:
        yield Problem("log.every", f"must be 1 or more, received {config.log.every}")
    if config.log.images < 0:
        yield Problem("log.images", f"must be 0 or more, received {config.log.images}")
    yield from _fraction(config.loss.label_smoothing, "loss.label_smoothing")


def _check_model(config: Config) -> Iterator[Problem]:
    backbone = config.backbone
    try:
        weights = resolve_weights(backbone.weights)
    except UserError as error:
        yield from error.problems
        weights = None
    yield from check_backbone(
        backbone.name,
        weights=weights,
        image_size=backbone.image_size,
        alpha=backbone.alpha,
        depth_multiplier=backbone.depth_multiplier,
        options=backbone.options,
    )
    head = config.head
    yield from check_head(
        name=head.name,
        classes=head.classes,
        pooling=head.pooling,
        units=head.units,
        activation=head.activation,
        normalization=head.normalization,
        dropout=head.dropout,
        options=head.options,
    )


def _check_augment(config: Config) -> Iterator[Problem]:
    if config.augment.random_resized_crop.p > 0 and config.data.cache is DataCache.memory:
        fix = "data.cache=none, or augment.random_resized_crop.p=0"
        yield Problem("data.cache", "keeps resized images, but random_resized_crop needs the whole ones", fix)


def _check_reading(config: Config) -> Iterator[Problem]:
    if config.data.on_error is OnError.skip and config.data.check in (Check.header, Check.none):
        fix = "data.check=decode; once training runs, an unreadable image can only stop it"
        yield Problem(
            "data.on_error", f"skip needs every image decoded first, but data.check={config.data.check.value}", fix
        )


def _check_cache(config: Config) -> Iterator[Problem]:
    if config.cache.max_gb < 0:
        yield Problem("cache.max_gb", f"must be 0 or more, received {config.cache.max_gb}")
    if config.cache.views is not None and config.cache.views < 1:
        yield Problem("cache.views", f"must be 1 or more, received {config.cache.views}", "null: fresh augmentation")


def _check_schedule(config: Config) -> Iterator[Problem]:
    stages = config.schedule.stages
    if not stages:
        yield Problem("schedule.stages", "there is no stage", "choose one: schedule=two_stage")
    names = [stage.name for stage in stages]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem("schedule.stages", f"two stages are called {name!r}", "metrics are told apart by stage name")
    for index, stage in enumerate(stages):
        yield from _check_stage(config, stage, f"schedule.stages.{index}")
    unused = unused_options(config)
    if unused:
        fix = "every stage names an optimizer of its own: set schedule.stages.N.optimizer, or its name to null"
        yield Problem("optimizer", f"{', '.join(unused)}: is used by no stage", fix)


def _check_stage(config: Config, stage: Stage, where: str) -> Iterator[Problem]:
    length = Duration(epochs=stage.epochs, steps=stage.steps, examples=stage.examples)
    for problem in check_duration(length, where, required=True):
        yield dataclasses.replace(problem, what=problem.what.replace(", percent", ""))
    with contextlib.suppress(UserError):  # an unknown backbone is reported already
        yield from check_unfreeze(stage.unfreeze, get_spec(config.backbone.name), f"{where}.unfreeze")
    own = stage.optimizer.name is not None or stage.optimizer != OptimizerConfig()
    yield from check_optimizer(stage_optimizer(config, stage), f"{where}.optimizer" if own else "optimizer")
    yield from _check_learning_rate(config, stage, where)
    if not _is_one_of(stage.xla, (None, *_SWITCHES)):
        yield Problem(f"{where}.xla", f"must be auto, on or off, received {stage.xla!r}")
    if stage.label_smoothing is not None:
        yield from _fraction(stage.label_smoothing, f"{where}.label_smoothing")
    patience = stage.early_stopping.patience
    if patience is not None and patience < 1:
        yield Problem(f"{where}.early_stopping.patience", f"must be 1 or more, received {patience}")
    if not stage.early_stopping.min_delta >= 0:
        what = f"must be 0 or more, received {stage.early_stopping.min_delta}"
        yield Problem(f"{where}.early_stopping.min_delta", what, "whether larger is better is known of the metric")


def _check_learning_rate(config: Config, stage: Stage, where: str) -> Iterator[Problem]:
    """Options that the schedule of a stage's learning rate does not have, and a warm-up beyond the stage."""
    used, own, unset = stage_optimizer(config, stage).schedule, stage.optimizer.schedule, LearningRateConfig()

    def key_of(option: str) -> str:
        is_own = getattr(own, option) != getattr(unset, option)
        return f"{where}.optimizer.schedule" if is_own else "optimizer.schedule"

    name = used.name or LearningRateSchedule.constant
    for option, schedules in _OF_SCHEDULES.items():
        is_set = getattr(used, option) not in (getattr(unset, option), SCHEDULE_DEFAULTS.get(option))
        if name not in schedules and is_set:
            names = " or ".join(schedule.value for schedule in schedules)
            fix = f"{key_of(option)}.name={names}"
            yield Problem(f"{key_of(option)}.{option}", f"a {name.value} learning rate has no such option", fix)
    percent = used.warmup.percent
    if percent is not None and percent > 100:
        yield Problem(f"{key_of('warmup')}.warmup.percent", f"must be at most 100, received {percent:g}")


def _check_classes(config: Config) -> Iterator[Problem]:
    """Classes of the data against the head, where the names can be had cheaply."""
    classes, wanted = peek_classes(config.data), config.head.classes
    if classes is not None and wanted is not None and wanted < len(classes):
        shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        fix = f"head.classes=null takes the data's; they are: {shown}"
        yield Problem("head.classes", f"{wanted} outputs for {len(classes)} classes", fix)
    if config.data.label_separator is not None:
        asked = {stage.class_weights or config.loss.class_weights for stage in config.schedule.stages}
        if ClassWeights.balanced in asked:
            yield Problem("loss.class_weights", "balanced is for one label per image", "loss.class_weights=none")


def _is_one_of(value: Any, options: tuple[Any, ...]) -> bool:
    """Unlike ``in``, does not take 1 for true."""
    return any(value == option and type(value) is type(option) for option in options)


def _fraction(value: Any, where: str) -> Iterator[Problem]:
    if not 0 <= value <= 1:
        yield Problem(where, f"must be between 0 and 1, received {value}")
