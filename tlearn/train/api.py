"""A run from Python: what the command line does, without it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlearn.backbones import Backbone, get_spec
from tlearn.backbones.weights import locate_weights
from tlearn.config import ClassWeights, Config, DataCache, LogConfig
from tlearn.data import Data, FirstSquares, PixelCache, checked_meanwhile, index_data
from tlearn.errors import ConfigError, DataError, Problem, UserError, did_you_mean
from tlearn.train.all_problems import all_problems
from tlearn.train.checks import check_config
from tlearn.train.cluster import cluster_of, meet
from tlearn.train.console import Terminal, plan_table
from tlearn.train.environment import prepare_process
from tlearn.train.fingerprint import write_fingerprint
from tlearn.train.first_pixels import first_squares
from tlearn.train.losses import metric_names
from tlearn.train.run import Run, resolve_weights
from tlearn.train.stopping import resume_command
from tlearn.train.storage import explained
from tlearn.train.unchanged import check_unchanged, manifest, plain
from tlearn.typed import typed_again

if TYPE_CHECKING:
    from tlearn.train.classifier import Classifier
    from tlearn.train.distribution import Devices
    from tlearn.train.plan import Plan
    from tlearn.train.trainer import OnEpoch


@dataclass(frozen=True, eq=False)
class Prepared:
    """A config resolved: indexed data, a built model, the plan, and pixels that the check has left for the start."""

    config: Config
    data: Data
    classifier: Classifier
    plan: Plan
    devices: Devices
    squares: FirstSquares | None = None


def prepare(
    config: Config, *, check_images: bool = True, start: bool = False, backbone: Backbone | None = None
) -> Prepared:
    """Do everything of a run that comes before its folder and its first step; what takes long comes last.

    Args:
        config: of the run.
        check_images: look at the images themselves, and not only at their names.
        start: take all devices of the run, and wait for its other workers; else they are only planned with.
        backbone: of the model, where it has been built before.

    Raises:
        ConfigError, DataError, WeightsError: everything a user can mend.
    """
    check_config(config)
    if start:
        meet_workers(config)
    data = index_data(config.data, image_size=image_size(config), seed=config.seed)
    classes = _outputs(config, data)
    _check_against_data(config, data, classes)

    squares = first_squares(config, data, image_size(config)) if check_images else None
    looking = checked_meanwhile(data, config.data, squares) if check_images else contextlib.nullcontext(lambda: data)
    with looking as checked:  # in threads, while TensorFlow is imported and the model is built
        prepare_process(config)
        from tlearn.train.classifier import build_classifier
        from tlearn.train.distribution import Devices, check_devices, plan_devices, start_devices
        from tlearn.train.plan import plan_run

        check_devices(plan_devices(config), config, len(data.train))
        devices = start_devices(config) if start else Devices(plan_devices(config))
        with devices.scope():
            classifier = build_classifier(
                config.backbone,
                config.head,
                weights=resolve_weights(config.backbone.weights),
                classes=classes,
                multi_label=data.table.multi_label,
                precision=config.precision,
                built=backbone,
            )
        plan = plan_run(config, data, classifier, devices.plan)
        data = checked()
    if data.report.unreadable:
        check_devices(devices.plan, config, len(data.train))
        plan = plan_run(config, data, classifier, devices.plan)
    return Prepared(config, data, classifier, plan, devices, squares)


def make_plan(config: Config) -> Plan:
    """What a run of this config would do, without doing it; images are not opened."""
    with all_problems():
        config = typed_again(config)
    return prepare(config, check_images=False).plan


def fit(
    config: Config,
    *,
    overrides: Sequence[str] | None = None,
    terminal: Terminal | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Train.

    Args:
        config: of the run.
        overrides: what was given on the command line, recorded in the folder; None: made from Python.
        terminal: where to print; by default standard error.
        should_stop: asked between steps; True saves the state and raises ``Stopped``.
        on_epoch: called after each epoch with its number, counted from 1 over all stages, and its metrics; it may
            raise ``Pruned``, which ends the run with the status ``pruned`` and without a model.

    Returns:
        The finished run; ``run.summary`` holds its metrics, ``run.model()`` its model.

    Raises:
        UserError: before the run folder is made.
        Stopped, NumericalFault, OutOfMemory: with a state that can be resumed.
    """
    if config.resume is not None:
        raise ConfigError(Problem("resume", "is for the command line", f"call tlearn.resume({config.resume!r})"))
    if overrides is None:  # else it was composed, and that has looked at types
        with all_problems():
            config = typed_again(config)
    terminal = terminal or Terminal(config.log.progress)
    prepared = prepare(config, start=True)
    should_stop()  # asked once, a signal waits for the next question: the folder is made as a whole
    _check_alike(prepared)
    if not prepared.devices.is_chief:
        return _train_for_chief(prepared, terminal, should_stop, resuming=False)
    run, given = Run.create(config), None if overrides is None else list(overrides)
    with contextlib.ExitStack() as stack:
        with run.beginning():
            stack.enter_context(run.locked())
            _write_inputs(run, _absolute(config), given, prepared)
        stack.enter_context(explained(run.path, how_to_go_on(run)))
        return _train(run, prepared, terminal, should_stop, on_epoch, resuming=False)


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
    if run.summary_file.is_file():  # killed right after that, it may have left a file that is of no use to anyone
        with contextlib.suppress(UserError, OSError), run.locked():
            run.sweep()
    _refuse_finished(run)
    cluster = cluster_of(config)
    if cluster is not None and not cluster.is_chief:  # who writes nothing needs no lock
        prepared = _prepare_again(run)
        should_stop()
        _check_alike(prepared)
        return _train_for_chief(prepared, terminal, should_stop, resuming=True)
    with explained(run.path, how_to_go_on(run)), run.locked():
        _refuse_finished(run)  # now that nobody else can be finishing it
        prepared = _prepare_again(run)
        check_unchanged(run, config, prepared.data, prepared.plan.as_dict(), terminal.print)
        _check_alike(prepared)
        should_stop()
        run.sweep()
        return _train(run, prepared, terminal, should_stop, None, resuming=True)


def _prepare_again(run: Run) -> Prepared:
    """What a run goes on with: its model is built with the weights that it began with, and then takes up the state's.

    Raises:
        UserError: as ``prepare``; where the weights are gone, it says what to do.
    """
    try:
        return prepare(run.config, start=True)
    except UserError as error:
        if any(problem.where == "backbone.weights" for problem in error.problems):
            note = "a run goes on with the file that it began with: bring it back to where it was"
            if run.best_file.is_file():
                note += f"\n    or begin a new run with the best weights of this one: backbone.weights={run.path}"
            error.add_note(note)
        raise


def _write_inputs(run: Run, config: Config, overrides: list[str] | None, prepared: Prepared) -> None:
    run.write_inputs(
        config,
        overrides,
        manifest=manifest(prepared.data),
        weights=weights_identity(config),
        plan=prepared.plan.as_dict() | {"config": plain(config)},
        files=lambda path: write_fingerprint(path, prepared.data.table, prepared.data.report.contents),
    )


def _refuse_finished(run: Run) -> None:
    if run.summary_file.is_file():
        raise UserError(Problem(str(run.path), "has finished; there is nothing to resume"))


def open_run(path: str | Path) -> Run:
    """A run made before. Raises UserError when the folder is not one."""
    return Run.open(path)


def _train(
    run: Run,
    prepared: Prepared,
    terminal: Terminal,
    should_stop: Callable[[], bool],
    on_epoch: OnEpoch | None,
    *,
    resuming: bool,
) -> Run:
    from tlearn.train.trainer import Trainer

    if prepared.devices.is_chief:
        prepared.devices.chief_says(lambda: str(run.path))
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
        devices=prepared.devices,
        **({} if on_epoch is None else {"on_epoch": on_epoch}),
    )
    try:
        if resuming:
            trainer.restore()
        run.told = trainer.run()
    except DataError as error:
        error.add_note(
            f"{how_to_go_on(run)}\n    with the image as it was; with a mended one, or without it, begin anew"
        )
        raise
    return run


def _train_for_chief(prepared: Prepared, terminal: Terminal, should_stop: Callable[[], bool], *, resuming: bool) -> Run:
    """Train as a worker beside the chief, who has the run's folder; what is recorded here goes to one that vanishes."""
    from tlearn.train.memory import OutOfMemory
    from tlearn.train.stopping import NumericalFault, Stopped, WorkerLost

    path = Path(prepared.devices.chief_says(str))
    terminal.print(f"worker {prepared.devices.plan.index} of run {path}")
    try:
        with tempfile.TemporaryDirectory(prefix="tlearn-worker-") as scratch:
            own = Run(Path(scratch))
            own.checkpoints.mkdir()
            told = _train(own, prepared, terminal, should_stop, None, resuming=resuming).told
    except Stopped:
        raise Stopped(path) from None
    except (NumericalFault, OutOfMemory, WorkerLost) as fault:
        fault.run = str(path)
        raise
    run = Run(path)
    run.told = told
    return run


def how_to_go_on(run: Run) -> str:
    """What to do when the cause of a stop is mended."""
    return f"the run stands at its last saved state; go on with: {resume_command(run.path)}"


def image_size(config: Config) -> int:
    """Side of the model's input in pixels."""
    return config.backbone.image_size or get_spec(config.backbone.name).image_size


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


def weights_identity(config: Config) -> dict[str, Any]:
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


def meet_workers(config: Config) -> None:
    """Where a run has several workers, wait for them, and see that they run the same.

    Raises:
        ConfigError: a worker is missing, or has another config or version.
    """
    cluster = cluster_of(config)
    if cluster is not None:
        asked = json.dumps(dataclasses.asdict(_same_everywhere(config)), default=str, sort_keys=True)
        about = {"version of tlearn": version("tlearn"), "version of tensorflow": version("tensorflow")}
        about["config"] = hashlib.sha256(asked.encode()).hexdigest()
        meet(cluster, about, config.strategy_timeout)


def _same_everywhere(config: Config) -> Config:
    """The config without what may differ from machine to machine: where things lie."""
    return replace(
        config,
        run_dir=None,
        resume=None,
        backbone=replace(config.backbone, weights=None),
        data=replace(config.data, path=None, root=None, workers=None),
        cache=replace(config.cache, dir=None),
        log=LogConfig(every=config.log.every),
    )


def _check_alike(prepared: Prepared) -> None:
    """Refuse workers that see other images, or begin with other weights, than the chief. Raises DataError."""
    if prepared.devices.plan.workers == 1:
        return
    weights = hashlib.sha256()
    for variable in prepared.classifier.model.variables:
        weights.update(np.ascontiguousarray(variable).data)
    own = {"images": prepared.data.table.manifest_hash(), "weights": weights.hexdigest()}
    theirs = prepared.devices.chief_says(lambda: own)
    apart = [name for name, value in own.items() if theirs[name] != value]
    if prepared.devices.any(bool(apart)):
        what = f"this worker has other {apart[0]} than the chief" if apart else "another worker differs from the chief"
        raise DataError(Problem("data" if apart != ["weights"] else "backbone.weights", what, "give all the same"))


def _absolute(config: Config) -> Config:
    """The config with paths that mean the same from every working directory.

    Links stay as they are: what one leads to may have a name that tells nothing, as in the caches of DVC and of hubs,
    and lie among other things.
    """

    def absolute(path: str | None) -> str | None:
        return path if path is None else str(Path(path).expanduser().absolute())

    weights = config.backbone.weights
    if weights is not None and weights not in ("imagenet", "glyphs"):
        weights = absolute(weights)
    return replace(
        config,
        run_dir=None,
        backbone=replace(config.backbone, weights=weights),
        data=replace(config.data, path=absolute(config.data.path), root=absolute(config.data.root)),
        cache=replace(config.cache, dir=absolute(config.cache.dir)),
    )
