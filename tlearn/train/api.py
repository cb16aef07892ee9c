"""A run from Python: what the command line does, without it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from tlearn.config import Config
from tlearn.data import Data, Split, load_data
from tlearn.errors import ConfigError, DataError, Problem, UserError, did_you_mean
from tlearn.train.checks import check_config
from tlearn.train.console import Terminal, plan_table
from tlearn.train.environment import prepare_process
from tlearn.train.losses import metric_names
from tlearn.train.run import Run, resolve_weights

if TYPE_CHECKING:
    from tlearn.train.classifier import Classifier
    from tlearn.train.plan import Plan


@dataclass(frozen=True, eq=False)
class Prepared:
    """A config resolved: indexed data, a built model, and the plan."""

    config: Config
    data: Data
    classifier: Classifier
    plan: Plan


def prepare(config: Config) -> Prepared:
    """Do everything of a run that comes before its folder and its first step.

    Raises:
        ConfigError, DataError, WeightsError: everything a user can mend.
    """
    check_config(config)
    data = load_data(config.data, image_size=image_size(config), seed=config.seed)
    classes = _outputs(config, data)
    _check_metrics(config, data, classes)

    prepare_process(config)
    from tlearn.train.classifier import build_classifier
    from tlearn.train.plan import make_plan

    with contextlib.redirect_stdout(sys.stderr):  # Keras prints what it downloads; our output is for scripts
        classifier = build_classifier(
            config.backbone,
            config.head,
            weights=resolve_weights(config.backbone.weights),
            classes=classes,
            multi_label=data.table.multi_label,
            precision=config.precision,
        )
    return Prepared(config, data, classifier, make_plan(config, data, classifier))


def make_plan(config: Config) -> Plan:
    """What a run of this config would do, without doing it."""
    return prepare(config).plan


def fit(
    config: Config,
    *,
    overrides: Sequence[str] = (),
    terminal: Terminal | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Train.

    Args:
        config: of the run.
        overrides: what was given on the command line, recorded in the folder.
        terminal: where to print; by default standard error.
        should_stop: asked between steps; True saves the state and raises ``Stopped``.

    Returns:
        The finished run; ``run.summary`` holds its metrics, ``run.model()`` its model.

    Raises:
        UserError: before the run folder is made.
        Stopped, NumericalFault: with a state that can be resumed.
    """
    terminal = terminal or Terminal(config.log.progress)
    prepared = prepare(config)
    run = Run.create(config)
    with run.locked():
        run.write_inputs(config, list(overrides), manifest(prepared.data))
        run.write_plan(prepared.plan.as_dict())
        return _train(run, prepared, terminal, should_stop, resuming=False)


def resume(
    path: str | Path,
    *,
    terminal: Terminal | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Go on with a run that was stopped; arguments, result and errors are those of ``fit``.

    Raises:
        UserError: the data or the plan are no longer those of the run.
    """
    run = Run.open(path)
    config = run.config
    terminal = terminal or Terminal(config.log.progress)
    if run.summary_file.is_file():
        raise UserError(Problem(str(run.path), "has finished; there is nothing to resume"))
    with run.locked():
        prepared = prepare(config)
        _check_unchanged(run, prepared)
        return _train(run, prepared, terminal, should_stop, resuming=True)


def open_run(path: str | Path) -> Run:
    """A run made before. Raises UserError when the folder is not one."""
    return Run.open(path)


def _train(run: Run, prepared: Prepared, terminal: Terminal, should_stop: Callable[[], bool], *, resuming: bool) -> Run:
    from tlearn.train.trainer import Trainer

    terminal.log_to(run.log_file)
    terminal.print(f"[bold]run[/] {run.path}")
    terminal.print(plan_table(prepared.plan))
    for line in prepared.data.warnings():
        terminal.print(Text(f"data: {line}"))
    trainer = Trainer(
        run,
        prepared.config,
        prepared.data,
        prepared.classifier,
        prepared.plan,
        terminal=terminal,
        should_stop=should_stop,
    )
    if resuming:
        trainer.restore()
    trainer.run()
    return run


def image_size(config: Config) -> int:
    """Side of the model's input in pixels."""
    from tlearn.backbones import get_spec

    return config.backbone.image_size or get_spec(config.backbone.name).image_size


def manifest(data: Data) -> dict[str, Any]:
    """What the data of a run is: a hash over names, labels, splits and files, the classes, and their counts."""
    table = data.table
    counts = {split.name: table.counts(split).tolist() for split in (Split.train, Split.val, Split.test)}
    return {
        "hash": table.manifest_hash(),
        "source": data.source.where,
        "images": len(table),
        "classes": list(table.classes),
        "multi_label": table.multi_label,
        "counts": counts,
        "left_out": [[entry.path, entry.reason] for entry in data.report.unreadable],
    }


def _outputs(config: Config, data: Data) -> int:
    """Number of the head's outputs. Raises ConfigError when they are fewer than the data's classes."""
    present, wanted = len(data.table.classes), config.head.classes
    if wanted is not None and wanted < present:
        fix = f"head.classes=null takes the data's {present}"
        raise ConfigError(Problem("head.classes", f"{wanted} outputs for {present} classes", fix))
    return wanted or present


def _check_metrics(config: Config, data: Data, classes: int) -> None:
    """What decides the best weights must exist. Raises UserError."""
    if not len(data.val):
        fix = "data.val_fraction above 0, or a val folder, or rows of the split val"
        raise DataError(Problem("data", "there are no validation images to choose the best weights by", fix))
    monitor, names = config.checkpoint.monitor, metric_names(classes, data.table.multi_label)
    if monitor is not None and monitor not in names:
        raise ConfigError(Problem("checkpoint.monitor", f"no such metric {monitor!r}", did_you_mean(monitor, names)))


def _check_unchanged(run: Run, prepared: Prepared) -> None:
    """Refuse to go on with other data or another plan than the run began with."""
    data = json.loads(json.dumps(manifest(prepared.data)))
    problems = [
        Problem(f"manifest.json: {key}", f"the data changed: was {value!r}, is {data.get(key)!r}"[:400])
        for key, value in run.manifest.items()
        if data.get(key) != value
    ]
    now = json.loads(json.dumps(prepared.plan.as_dict()))
    problems += [
        Problem(f"plan.json: {key}", f"the plan changed: was {value!r}, is {now.get(key)!r}"[:400])
        for key, value in run.plan.items()
        if now.get(key) != value
    ]
    if problems:
        raise UserError(problems)
