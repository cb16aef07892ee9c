"""From the command line to a checked sweep: its settings, its space, and the runs it will make. Without TensorFlow."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlearn.compose import load_config, parse_overrides
from tlearn.config import Config
from tlearn.errors import ConfigError, Problem, UserError, did_you_mean
from tlearn.paths import shipped
from tlearn.sweep.config import Direction, Objective, Pruner, Sampler, SweepConfig
from tlearn.sweep.space import Space, config_value, parse_space
from tlearn.sweep.values import override_text
from tlearn.train.all_problems import all_problems
from tlearn.train.checks import check_config
from tlearn.typed import keys, typed
from tlearn.yaml_file import read_yaml

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_SPACE_FIELDS = ("type", "low", "high", "step", "log", "choices", "when", "optional")
_MEASURED = ("loss", "accuracy", "top5", "auc")
METRICS = (*_MEASURED, *(f"val_{name}" for name in _MEASURED), *(f"test_{name}" for name in _MEASURED))
COSTS = ("seconds", "parameters", "model_mb")
_NO_LIMIT = 10_000  # trials of a study without a budget in trials


@dataclass(frozen=True)
class Sweep:
    """A sweep, checked.

    Attributes:
        settings: of the sweep.
        space: what is searched.
        base: overrides that all runs share.
        config: of a run with these overrides alone.
        folder: of the trials and the report.
    """

    settings: SweepConfig
    space: Space
    base: tuple[str, ...]
    config: Config
    folder: Path

    def overrides(self, values: Mapping[str, Any], run_dir: Path, *, shortened: bool = True) -> list[str]:
        """What a run of these values is started with.

        Args:
            values: of the searched keys, as they are stored.
            run_dir: folder to make.
            shortened: with what ``sweep.trial`` sets for trials alone.
        """
        given = dict(self.settings.trial) if shortened else {}
        given |= {key: config_value(value) for key, value in values.items()}
        return [*self.base, *(override_text(key, value) for key, value in given.items()), f"run_dir={_quoted(run_dir)}"]

    @property
    def most_trials(self) -> int:
        """Trials that the budget allows, and that the grid has."""
        most = self.settings.trials or _NO_LIMIT
        return min(most, len(self.space.grid())) if self.settings.sampler.name is Sampler.grid else most

    @property
    def directions(self) -> list[str]:
        """``minimize`` or ``maximize`` for each objective."""
        return [direction_of(objective) for objective in self.settings.objectives]

    @property
    def prunes(self) -> bool:
        """Whether trials may be given up early."""
        return self.settings.pruner.name is not Pruner.none


def direction_of(objective: Objective) -> str:
    """``minimize`` or ``maximize``."""
    if objective.direction is not None:
        return objective.direction.value
    return "minimize" if objective.metric in COSTS or objective.metric.endswith("loss") else "maximize"


def names_a_sweep(overrides: Sequence[str]) -> bool:
    """Whether overrides are of a sweep, and not of one run. Raises ConfigError where they are not ``key=value``."""
    return any(map(_is_own, parse_overrides(overrides)))


def _is_own(override: Override) -> bool:
    return re.match(r"sweep(\.|$)", str(override.key_or_group)) is not None


def load_sweep(overrides: Sequence[str]) -> Sweep:
    """Compose and check a sweep.

    Args:
        overrides: those of a run, ``sweep=NAME`` or ``sweep=FILE.yaml``, and ``sweep.key=value``.

    Raises:
        ConfigError: with every problem found.
    """
    base: list[Override] = []
    own: list[Override] = []
    for override in parse_overrides(overrides):
        (own if _is_own(override) else base).append(override)
    settings = _settings(own)
    lines = [str(override.input_line) for override in base]
    problems = [*_check_base(base), *_check_settings(settings)]
    try:
        with all_problems():
            config = load_config([line for line in lines if not line.startswith(("run_dir=", "resume="))])
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    try:
        space = parse_space(settings.space, len(config.schedule.stages))
        if settings.sampler.name is Sampler.grid:
            space.grid()
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    folder = Path(settings.dir or f"sweeps/{settings.name}").expanduser().absolute()
    sweep = Sweep(settings, space, tuple(lines), config, folder)
    problems = problems or _check_runs(sweep)  # composing runs takes a second or two
    if problems:
        raise ConfigError(problems)
    return sweep


# --- the settings ----------------------------------------------------------------------------------------------------


def _settings(overrides: Sequence[Override]) -> SweepConfig:
    data: dict[str, Any] = {}
    problems: list[Problem] = []
    for override in overrides:
        if str(override.key_or_group) == "sweep":
            data = _read(str(override.value()))
    if not data and not any(str(override.key_or_group).startswith("sweep.space") for override in overrides):
        fix = f"sweep=NAME or sweep=FILE.yaml; {did_you_mean('', _shipped())}"
        raise ConfigError(Problem("sweep", "is not given: there is nothing to search", fix))
    for override in overrides:
        path = str(override.key_or_group).removeprefix("sweep").removeprefix(".")
        if path:
            _set(data, path, override)
    known = [key.removeprefix("sweep.") for key in keys(SweepConfig, "sweep")]
    for key in _unknown(data, known):
        problems.append(Problem(f"sweep.{key}", "unknown key", did_you_mean(key, known, prefix="sweep.")))
    if problems:
        raise ConfigError(problems)
    return typed(data, SweepConfig, "sweep")


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in shipped("configs").glob("sweep/*.yaml")}


def _read(name: str) -> dict[str, Any]:
    """A shipped sweep by its name, or a file. Its name is that of the study unless it says otherwise."""
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else _shipped().get(name)
    if path is None:
        fix = f"sweep=NAME, or sweep=FILE.yaml for one of your own; {did_you_mean(name, _shipped())}"
        raise ConfigError(Problem(f"sweep={name}", "no such sweep", fix))
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(Problem(str(path), "is not a mapping of the keys of a sweep"))
    return {"name": path.stem} | data


def _set(data: dict[str, Any], path: str, override: Override) -> None:
    """Set a key of a sweep. Searched keys have dots of their own: ``space.optimizer.learning_rate.low``."""
    head, _, rest = path.partition(".")
    parts = path.split(".")
    if head == "space" and rest:
        key, _, field = rest.rpartition(".")
        parts = ["space", key, field] if field in _SPACE_FIELDS and key else ["space", rest]
    elif head == "trial" and rest:
        parts = ["trial", rest]
    at: Any = data
    for part in parts[:-1]:
        at = (
            at[int(part)] if isinstance(at, list) and part.isdigit() and int(part) < len(at) else _child(at, part, path)
        )
    if override.is_delete():
        at.pop(parts[-1], None)
    elif isinstance(at, dict):
        at[parts[-1]] = override.value()
    else:
        raise ConfigError(Problem(f"sweep.{path}", "leads into what is no mapping"))


def _child(at: Any, part: str, path: str) -> Any:
    if not isinstance(at, dict):
        raise ConfigError(Problem(f"sweep.{path}", "leads into what is no mapping"))
    if part == "objectives" and part not in at:
        at[part] = [{}]
    child = at.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise ConfigError(Problem(f"sweep.{path}", f"{part} is no mapping"))
    return child


def _unknown(data: Mapping[str, Any], known: Sequence[str], where: str = "") -> Iterator[str]:
    for key, value in data.items():
        path = f"{where}{key}"
        if path not in known:
            yield path
        elif path in ("sampler", "pruner") and isinstance(value, Mapping):
            yield from _unknown(value, known, f"{path}.")
        elif path == "objectives" and isinstance(value, list):
            for item in value:
                yield from _unknown(item if isinstance(item, Mapping) else {}, known, "objectives.0.")


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _check_base(base: Sequence[Override]) -> Iterator[Problem]:
    for override in base:
        key = str(override.key_or_group)
        if key in ("run_dir", "resume"):
            yield Problem(
                key, "every trial makes a folder of its own", "sweep.dir=PATH holds them; a study goes on by itself"
            )
        elif override.is_sweep_override():
            fix = f"search them: sweep.space='{{{key}: {{type: categorical, choices: [...]}}}}'"
            yield Problem(str(override.input_line), "several values", fix)


def _check_settings(settings: SweepConfig) -> Iterator[Problem]:
    for key, least in (("trials", 1), ("retries", 0), ("failures", 1), ("seed", 0)):
        value = getattr(settings, key)
        if value is not None and value < least:
            yield Problem(f"sweep.{key}", f"must be {least} or more, received {value}")
    if settings.minutes is not None and settings.minutes <= 0:
        yield Problem("sweep.minutes", f"must be above 0, received {settings.minutes}")
    if settings.trials is None and settings.minutes is None and settings.sampler.name is not Sampler.grid:
        yield Problem("sweep.trials", "there is no budget", "sweep.trials=20, or sweep.minutes=60")
    if not re.fullmatch(r"[\w.+-]{1,100}", settings.name):
        yield Problem("sweep.name", f"may hold letters, digits and . + - _ only, received {settings.name!r}")
    for name in ("run_dir", "resume", "name"):
        if name in settings.trial:
            yield Problem(f"sweep.trial.{name}", "cannot be set: every trial has its own")
    yield from _check_parts(settings)
    yield from _check_objectives(settings)


def _check_parts(settings: SweepConfig) -> Iterator[Problem]:
    least = {"sampler.startup": 0, "sampler.population": 2, "pruner.startup": 0, "pruner.warmup": 0}
    least |= {"pruner.min_epochs": 1, "pruner.reduction": 2}
    for key, bound in least.items():
        part, _, name = key.partition(".")
        value = getattr(getattr(settings, part), name)
        if value is not None and value < bound:
            yield Problem(f"sweep.{key}", f"must be {bound} or more, received {value}")


def _check_objectives(settings: SweepConfig) -> Iterator[Problem]:
    objectives = settings.objectives
    if not objectives:
        yield Problem("sweep.objectives", "there is none", "objectives: [{metric: val_accuracy}]")
    for index, objective in enumerate(objectives):
        if objective.metric not in (*METRICS, *COSTS):
            where = f"sweep.objectives.{index}.metric"
            yield Problem(
                where, f"no run records {objective.metric!r}", did_you_mean(objective.metric, (*METRICS, *COSTS))
            )
    if len({objective.metric for objective in objectives}) < len(objectives):
        yield Problem("sweep.objectives", "two are the same")
    if len(objectives) > 1 and settings.sampler.name is Sampler.cmaes:
        yield Problem("sweep.sampler.name", "cmaes knows one objective only", "sweep.sampler.name=nsgaii or tpe")
    if settings.pruner.name is Pruner.none or not objectives:
        return
    if len(objectives) > 1:
        fix = "sweep.pruner.name=none"
        yield Problem("sweep.pruner.name", "trials can be compared before their end by one objective only", fix)
    elif objectives[0].metric in COSTS or objectives[0].metric.startswith("test_"):
        fix = "sweep.pruner.name=none"
        yield Problem("sweep.pruner.name", f"{objectives[0].metric} is not known before the end of a trial", fix)


def _check_runs(sweep: Sweep) -> list[Problem]:
    """Runs at the bounds of the space, composed and checked as they will be."""
    problems: dict[Problem, None] = {}
    shared = [*sweep.base, *(override_text(key, value) for key, value in sweep.settings.trial.items())]
    for parameter, values in sweep.space.corners():
        given = [override_text(key, config_value(value)) for key, value in values.items()]
        try:
            with all_problems():
                config = load_config([*shared, *given])
            check_config(config)
        except UserError as error:
            for problem in error.problems:
                own = problem.where == parameter.key or problem.where.startswith(f"{parameter.key}=")
                where = f"sweep.space.{problem.where}" if own else problem.where
                problems[dataclasses.replace(problem, where=where)] = None
    return list(problems)


def _quoted(path: Path) -> str:
    return override_text("", str(path)).removeprefix("=")


__all__ = ["COSTS", "METRICS", "Direction", "Sweep", "direction_of", "load_sweep", "names_a_sweep"]
