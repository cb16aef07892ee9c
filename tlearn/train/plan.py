"""The plan: what a run will do, stage by stage, before it does it. The trainer executes exactly this."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlearn.config import ClassWeights, Config, DataCache, Duration, LearningRateSchedule, Stage
from tlearn.data import Data, Split
from tlearn.heads import LINEAR, MLP
from tlearn.train.classifier import Classifier, freeze, unfrozen_layers
from tlearn.train.distribution import DevicePlan
from tlearn.train.feature_plan import FeaturePlan, FeaturePlanner
from tlearn.train.optimizers import in_steps, own_options, stage_optimizer
from tlearn.train.xla import check_xla


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: of the stage.
        unfreeze: the selector as written.
        layers: indices of the backbone layers that train.
        lowest: the lowest of them as ``name (index)``; empty when only the head trains.
        variables: keys of the variables that train.
        parameters: how many numbers they hold.
        batch_norms_training: batch norms of the backbone whose statistics move.
        steps: length in batches; epochs: the same in passes over the training images.
        first_epoch: number of the stage's first epoch, counted over the whole run from 0.
        optimizer: name and options, for people.
        features: where the frozen part ends, and whether what it computes is kept.
        notes: what a reader should know.
    """

    name: str
    unfreeze: str
    layers: tuple[int, ...]
    lowest: str
    variables: tuple[str, ...]
    parameters: int
    batch_norms_training: int
    steps: int
    epochs: int
    first_epoch: int
    optimizer: str
    features: FeaturePlan
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A whole run: facts of the model and the data, and the stages in order.

    Of what does not say what it is by its name:
        file_bytes: size of the files of the training images together; None: they are not files.
        decoded_once: whether all images stay in memory as pixels of the model's size.
        replicas: devices among which each batch is divided; ``devices`` says the same for people.
    """

    backbone: str
    weights: str
    image_size: int
    head: str
    parameters: int
    classes: tuple[str, ...]
    outputs: int
    multi_label: bool
    train_images: int
    val_images: int
    test_images: int
    batch_size: int
    steps_per_epoch: int
    class_weights: tuple[float, ...] | None
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...] = ()
    devices: str = "one"
    replicas: int = 1
    file_bytes: int | None = None
    decoded_once: bool = False

    @property
    def steps(self) -> int:
        """Length of the run in batches."""
        return sum(stage.steps for stage in self.stages)

    @property
    def epochs(self) -> int:
        """Length of the run in epochs; a stage that ends within one counts it."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def passes(self) -> int:
        """How often the training images go through the frozen part of the model; without a cache, ``epochs`` times."""
        made = {stage.features.made_in: stage.features.views for stage in self.stages if stage.features.cached}
        return sum(made.values()) + sum(stage.epochs for stage in self.stages if not stage.features.cached)

    def epoch(self, stage: StagePlan, step: int) -> int:
        """Number of the epoch that a step of a stage (from 1) belongs to, counted from 1 over the whole run."""
        return stage.first_epoch + (step - 1) // self.steps_per_epoch + 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``plan.json``."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """What ``python -m tlearn.plan`` prints."""
        from tlearn.train.console import plan_text

        return plan_text(self)


def plan_run(config: Config, data: Data, classifier: Classifier, devices: DevicePlan | None = None) -> Plan:
    """Resolve a config against the data and the built model.

    Leaves the model frozen as in the last stage.

    Args:
        config, data, classifier: of the run.
        devices: to train on; None: one.

    Raises:
        ConfigError: a selector that matches nothing.
    """
    table = data.table
    steps_per_epoch = math.ceil(len(data.train) / config.data.batch_size)
    stages: list[StagePlan] = []
    features = FeaturePlanner(config, data, classifier, 1 if devices is None else devices.workers)
    for index, stage in enumerate(config.schedule.stages):
        first_epoch = stages[-1].first_epoch + stages[-1].epochs if stages else 0
        where = f"schedule.stages.{index}"
        stages.append(_plan_stage(config, stage, classifier, features, steps_per_epoch, first_epoch, where))
    backbone = classifier.backbone
    return Plan(
        backbone=backbone.spec.name,
        weights=_describe_weights(config.backbone.weights),
        image_size=int(backbone.input.shape[1]),
        head=_describe_head(config),
        parameters=classifier.model.count_params(),
        classes=table.classes,
        outputs=classifier.classes,
        multi_label=table.multi_label,
        train_images=len(data.train),
        val_images=len(data.val),
        test_images=len(data.test),
        batch_size=config.data.batch_size,
        steps_per_epoch=steps_per_epoch,
        class_weights=class_weights(config, data),
        stages=tuple(stages),
        notes=tuple(_notes(config, data, classifier)),
        devices="one" if devices is None or devices.replicas == 1 else str(devices),
        replicas=1 if devices is None else devices.replicas,
        file_bytes=None if table.stamps is None else int(table.stamps[data.train, 0].sum()),
        decoded_once=config.data.cache is DataCache.memory,
    )


def _plan_stage(
    config: Config,
    stage: Stage,
    classifier: Classifier,
    features: FeaturePlanner,
    steps_per_epoch: int,
    first_epoch: int,
    where: str,
) -> StagePlan:
    backbone = classifier.backbone
    layers = unfrozen_layers(classifier, stage, f"{where}.unfreeze")
    freeze(classifier, layers)
    check_xla(config, stage, classifier.model, where)
    trainable = {id(variable) for variable in classifier.model.trainable_variables}
    variables = {key: v for key, v in classifier.variables().items() if id(v) in trainable}
    steps = stage_steps(stage, steps_per_epoch, config.data.batch_size)
    moving = [index for index in layers if backbone.layers[index].non_trainable_variables]
    return StagePlan(
        name=stage.name,
        unfreeze=_plain(stage.unfreeze),
        layers=layers,
        lowest=f"{backbone.names[layers[0]]} ({layers[0]})" if layers else "",
        variables=tuple(variables),
        parameters=sum(math.prod(variable.shape) for variable in variables.values()),
        batch_norms_training=len(moving),
        steps=steps,
        epochs=math.ceil(steps / steps_per_epoch),
        first_epoch=first_epoch,
        optimizer=describe_optimizer(config, stage),
        features=features.next_stage(),
        notes=tuple(_stage_notes(config, stage, steps, steps_per_epoch)),
    )


def stage_steps(stage: Stage, steps_per_epoch: int, batch_size: int) -> int:
    """Length of a stage in batches."""
    length = Duration(epochs=stage.epochs, steps=stage.steps, examples=stage.examples)
    return in_steps(length, total=0, steps_per_epoch=steps_per_epoch, batch_size=batch_size)


def class_weights(config: Config, data: Data) -> tuple[float, ...] | None:
    """Weight of each class in the loss, mean 1 over the training images; None where no stage asks for it.

    Balanced weights are n / (classes x count of the class), as in King and Zeng 2001, "Logistic Regression in Rare
    Events Data", and scikit-learn's ``class_weight="balanced"``.
    """
    asked = [stage.class_weights or config.loss.class_weights for stage in config.schedule.stages]
    if ClassWeights.balanced not in asked:
        return None
    counts = data.table.counts(Split.train)
    total = int(counts.sum())
    return tuple(round(total / (len(counts) * max(int(count), 1)), 6) for count in counts)


def describe_optimizer(config: Config, stage: Stage) -> str:
    """An optimizer in a few words: ``sgd 0.0001, momentum=0.9``."""
    optimizer = stage_optimizer(config, stage)
    words = [f"{key}={value}" for key, value in own_options(optimizer).items()]
    for key in ("weight_decay", "clip_norm", "clip_value", "clip_global_norm", "accumulate", "ema", "block_decay"):
        if getattr(optimizer, key) is not None:
            words.append(f"{key}={getattr(optimizer, key)}")
    if optimizer.schedule.name not in (None, LearningRateSchedule.constant):
        words.append(optimizer.schedule.name.value)
    warmup = {k: v for k, v in dataclasses.asdict(optimizer.schedule.warmup).items() if v is not None}
    words += [f"warm-up {value:g} {unit}" for unit, value in warmup.items()]
    return ", ".join([f"{optimizer.name} {optimizer.learning_rate or 1e-3:g}", *words])


def _describe_weights(weights: str | None) -> str:
    """A file or run by its own name: where it lies is in the config."""
    return "random" if weights is None else Path(weights).name


def _describe_head(config: Config) -> str:
    head = config.head
    if head.name not in (LINEAR, MLP):  # a plugin's own business
        return head.name
    widths = f" {'x'.join(map(str, head.units))}" if head.units else ""
    return f"{head.name}{widths} on {head.pooling.value} pooling"


def _plain(selector: Any) -> str:
    if isinstance(selector, dict):
        return ", ".join(f"{key}: {value}" for key, value in selector.items())
    return str(selector)


def _stage_notes(config: Config, stage: Stage, steps: int, steps_per_epoch: int) -> list[str]:
    notes, optimizer = [], stage_optimizer(config, stage)
    accumulate = optimizer.accumulate or 1
    if steps % accumulate:
        notes.append(f"the last {steps % accumulate} of {steps} batches make no update: accumulate={accumulate}")
    lengths = {"total": steps, "steps_per_epoch": steps_per_epoch, "batch_size": config.data.batch_size}
    warmup = in_steps(optimizer.schedule.warmup, **lengths)
    if warmup > steps:
        notes.append(f"the warm-up takes all of its {steps} steps, not {warmup}: the stage is shorter")
    if stage.carry_slots and (why := _nothing_to_carry(config, stage)):
        notes.append(f"carry_slots has no effect: {why}")
    if stage.early_stopping.min_delta and stage.early_stopping.patience is None:
        notes.append("early_stopping.min_delta has no effect without early_stopping.patience")
    return notes


def _nothing_to_carry(config: Config, stage: Stage) -> str:
    """Why a stage cannot take optimizer state from the one before; empty where it can."""
    stages = config.schedule.stages
    index = [other.name for other in stages].index(stage.name)
    if index == 0:
        return "there is no stage before"
    before, own = (stage_optimizer(config, each).name for each in (stages[index - 1], stage))
    return "" if before == own else f"stage {stages[index - 1].name} trains with {before}, this one with {own}"


def _notes(config: Config, data: Data, classifier: Classifier) -> list[str]:
    notes = []
    if classifier.classes > len(data.table.classes):
        notes.append(f"head.classes={classifier.classes}: the data has {len(data.table.classes)}, the rest never occur")
    if config.backbone.weights is None and all(stage.unfreeze != "all" for stage in config.schedule.stages):
        notes.append("backbone.weights=null: layers that stay frozen stay random")
    if config.data.batch_size > len(data.train):
        notes.append(
            f"data.batch_size={config.data.batch_size}: there are {len(data.train)} training images, one batch"
        )
    if config.data.test_fraction and not (data.source.table.splits == Split.unused).all():
        notes.append(f"data.test_fraction={config.data.test_fraction:g} has no effect: the data has splits of its own")
    if config.backbone.weights == "glyphs" and config.data.name in ("folder", "table"):
        notes.append("backbone.weights=glyphs know drawn characters; for photographs take ImageNet weights")
    return notes
