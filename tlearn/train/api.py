"""A run from Python: what the command line does, without it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlearn.backbones import get_spec
from tlearn.backbones.weights import locate_weights
from tlearn.config import ClassWeights, Config, DataCache
from tlearn.data import Data, FirstSquares, PixelCache, Split, checked_meanwhile, index_data
from tlearn.errors import ConfigError, DataError, Problem, UserError, did_you_mean
from tlearn.train.checks import check_config
from tlearn.train.console import Terminal, plan_table
from tlearn.train.environment import prepare_process
from tlearn.train.first_pixels import first_squares
from tlearn.train.losses import metric_names
from tlearn.train.run import Run, resolve_weights
from tlearn.train.stopping import resume_command
from tlearn.train.storage import explained

if TYPE_CHECKING:
    from tlearn.train.classifier import Classifier
    from tlearn.train.plan import Plan


@dataclass(frozen=True, eq=False)
class Prepared:
    """A config resolved: indexed data, a built model, the plan, and pixels that the check has left for the start."""

    config: Config
    data: Data
    classifier: Classifier
    plan: Plan
    squares: FirstSquares | None = None


def prepare(config: Config, *, check_images: bool = True) -> Prepared:
    """Do everything of a run that comes before its folder and its first step; what takes long comes last.

    Args:
        config: of the run.
        check_images: look at the images themselves, and not only at their names.

    Raises:
        ConfigError, DataError, WeightsError: everything a user can mend.
    """
    check_config(config)
    data = index_data(config.data, image_size=image_size(config), seed=config.seed)
    classes = _outputs(config, data)
    _check_against_data(config, data, classes)

    squares = first_squares(config, data, image_size(config)) if check_images else None
    looking = checked_meanwhile(data, config.data, squares) if check_images else contextlib.nullcontext(lambda: data)
    with looking as checked:  # in threads, while TensorFlow is imported and the model is built
        prepare_process(config)
        from tlearn.train.classifier import build_classifier
        from tlearn.train.plan import plan_run

        classifier = build_classifier(
            config.backbone,
            config.head,
            weights=resolve_weights(config.backbone.weights),
            classes=classes,
            multi_label=data.table.multi_label,
            precision=config.precision,
        )
        plan = plan_run(config, data, classifier)
        data = checked()
    if data.report.unreadable:
        plan = plan_run(config, data, classifier)
    return Prepared(config, data, classifier, plan, squares)


def make_plan(config: Config) -> Plan:
    """What a run of this config would do, without doing it; images are not opened."""
    return prepare(config, check_images=False).plan


def fit(
    config: Config,
    *,
    overrides: Sequence[str] | None = None,
    terminal: Terminal | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Train.

    Args:
        config: of the run.
        overrides: what was given on the command line, recorded in the folder; None: made from Python.
        terminal: where to print; by default standard error.
        should_stop: asked between steps; True saves the state and raises ``Stopped``.

    Returns:
        The finished run; ``run.summary`` holds its metrics, ``run.model()`` its model.

    Raises:
        UserError: before the run folder is made.
        Stopped, NumericalFault, OutOfMemory: with a state that can be resumed.
    """
    if config.resume is not None:
        raise ConfigError(Problem("resume", "is for the command line", f"call tlearn.resume({config.resume!r})"))
    terminal = terminal or Terminal(config.log.progress)
    prepared = prepare(config)
    should_stop()  # asked once, a signal waits for the next question: the folder is made as a whole
    run, given = Run.create(config), None if overrides is None else list(overrides)
    with contextlib.ExitStack() as stack:
        with run.beginning():
            stack.enter_context(run.locked())
            facts = manifest(prepared.data), _weights_identity(config), prepared.plan.as_dict()
            run.write_inputs(_absolute(config), given, *facts)
        stack.enter_context(explained(run.path, how_to_go_on(run)))
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
    _refuse_finished(run)
    with explained(run.path, how_to_go_on(run)), run.locked():
        _refuse_finished(run)  # now that nobody else can be finishing it
        prepared = prepare(config)
        _check_unchanged(run, prepared)
        should_stop()
        run.sweep()
        return _train(run, prepared, terminal, should_stop, resuming=True)


def _refuse_finished(run: Run) -> None:
    if run.summary_file.is_file():
        raise UserError(Problem(str(run.path), "has finished; there is nothing to resume"))


def open_run(path: str | Path) -> Run:
    """A run made before. Raises UserError when the folder is not one."""
    return Run.open(path)


def _train(run: Run, prepared: Prepared, terminal: Terminal, should_stop: Callable[[], bool], *, resuming: bool) -> Run:
    from tlearn.train.trainer import Trainer

    terminal.log_to(run.log_file)
    terminal.print(f"run {run.path}")
    terminal.print(plan_table(prepared.plan))
    for line in prepared.data.warnings():
        terminal.print(f"data: {line}")
    trainer = Trainer(
        run,
        prepared.config,
        prepared.data,
        prepared.classifier,
        prepared.plan,
        terminal=terminal,
        should_stop=should_stop,
        squares=prepared.squares,
    )
    try:
        if resuming:
            trainer.restore()
        trainer.run()
    except DataError as error:
        error.add_note(how_to_go_on(run))
        raise
    return run


def how_to_go_on(run: Run) -> str:
    """What to do when the cause of a stop is mended."""
    return f"the run stands at its last saved state; go on with: {resume_command(run.path)}"


def image_size(config: Config) -> int:
    """Side of the model's input in pixels."""
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


def _check_against_data(config: Config, data: Data, classes: int) -> None:
    """What can be said once the images are indexed. Raises UserError."""
    if not len(data.val):
        fix = "data.val_fraction above 0, or a val folder, or rows of the split val"
        raise DataError(Problem("data", "there are no validation images to choose the best weights by", fix))
    multi_label = data.table.multi_label
    monitor, names = config.checkpoint.monitor, metric_names(classes, multi_label)
    if monitor is not None and monitor not in names:
        raise ConfigError(Problem("checkpoint.monitor", f"no such metric {monitor!r}", did_you_mean(monitor, names)))
    asked = {stage.class_weights or config.loss.class_weights for stage in config.schedule.stages}
    if multi_label and ClassWeights.balanced in asked:
        fix = "loss.class_weights=none"
        raise ConfigError(Problem("loss.class_weights", "balanced is for one label per image", fix))
    if config.data.cache is DataCache.memory:
        PixelCache(len(data.table), image_size(config))  # refuses what the machine has no memory for


def _weights_identity(config: Config) -> dict[str, Any]:
    """Which weights a run begins with: their file and its SHA-256."""
    backbone = config.backbone
    file = locate_weights(
        resolve_weights(backbone.weights),
        get_spec(backbone.name),
        image_size=backbone.image_size,
        alpha=backbone.alpha,
        depth_multiplier=backbone.depth_multiplier,
    )
    if file is None or not file.is_file():
        return {"source": backbone.weights or "random"}
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"source": backbone.weights, "file": str(file), "sha256": digest}


def _absolute(config: Config) -> Config:
    """The config with paths that mean the same from every working directory."""

    def resolved(path: str | None) -> str | None:
        return path if path is None else str(Path(path).expanduser().resolve())

    weights = config.backbone.weights
    if weights is not None and weights not in ("imagenet", "glyphs"):
        weights = resolved(weights)
    return replace(
        config,
        run_dir=None,
        backbone=replace(config.backbone, weights=weights),
        data=replace(config.data, path=resolved(config.data.path), root=resolved(config.data.root)),
        cache=replace(config.cache, dir=resolved(config.cache.dir)),
    )


def _check_unchanged(run: Run, prepared: Prepared) -> None:
    """Refuse to go on with other data or another plan than the run began with."""
    data = json.loads(json.dumps(manifest(prepared.data)))
    problems = [
        Problem(f"manifest.json: {key}", f"the data changed: was {value!r}, is {data.get(key)!r}"[:400])
        for key, value in run.manifest.items()
        if key != "source" and data.get(key) != value  # where it lies may be said in another way
    ]
    now = json.loads(json.dumps(prepared.plan.as_dict()))
    problems += [
        Problem(f"plan.json: {key}", f"the plan changed: was {value!r}, is {now.get(key)!r}"[:400])
        for key, value in run.plan.items()
        if now.get(key) != value
    ]
    if problems:
        raise UserError(problems)
