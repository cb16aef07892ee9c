"""YAML files and command-line overrides in, one checked ``Config`` out; Hydra composes, nothing is instantiated.

Config groups come from ``configs/``, whole runs from ``experiments/`` (the shipped ones and those in the working
directory). TensorFlow is not imported.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tlearn.config import Config
from tlearn.errors import ConfigError, Problem, did_you_mean
from tlearn.experiments import experiments, read_experiment
from tlearn.interrupts import interrupts_wait
from tlearn.paths import shipped
from tlearn.typed import IllTyped, keys, suggest_key, typed
from tlearn.yaml_file import read_yaml

with interrupts_wait():  # Hydra composes something of its own while it is imported
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, Override
    from hydra.errors import HydraException
    from hydra.version import VersionBase

CONFIG_NAME = "train"


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose a config as the command line does.

    Args:
        overrides: ``key=value`` pairs, ``group=option`` choices and ``experiment=NAME``.

    Returns:
        The typed config. It is checked by itself, not yet against architectures or data.

    Raises:
        ConfigError: with every problem found.
    """
    with interrupts_wait():
        return _load_config(overrides)


def _load_config(overrides: Sequence[str]) -> Config:
    parsed = parse_overrides(overrides)
    problems: list[Problem] = []
    sound: list[str] = []  # what is wrong in the others is reported too
    for override in parsed:
        found = _override_problems(override)
        problems += found
        if not found:
            sound += _for_hydra(override)
    try:
        with own_hydra(with_experiments=any(override.key_or_group == "experiment" for override in parsed)):
            composed = _compose(sound)
        config = to_config(composed)
    except IllTyped as error:
        raise IllTyped([*problems, *error.problems], error.rest) from None
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise IllTyped(problems, config)
    return config


def to_config(composed: DictConfig) -> Config:
    """The typed config of what Hydra composed; the run is named after its experiment, in the signs a name may have."""
    choices = OmegaConf.select(composed, "hydra.runtime.choices") or {}
    try:
        plain: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(Problem("config", str(error).splitlines()[0], "look at its ${...} references")) from None
    plain.pop("hydra", None)
    experiment = choices.get("experiment")
    if experiment and plain.get("name") is None:
        plain["name"] = re.sub(r"[^\w.+/-]", "-", str(experiment))[:100]
    return typed(plain)


def preset(group: str, name: str) -> Any:
    """One shipped option of a config group as its dataclass, without Hydra.

    Args:
        group: ``backbone``, ``head``, ``data``, ``augment``, ``optimizer`` or ``schedule``.
        name: an option of that group, such as ``two_stage``.

    Raises:
        ConfigError: unknown group or option.
    """
    groups = {path.name: path for path in shipped("configs").iterdir() if path.is_dir()}
    if group not in groups:
        raise ConfigError(Problem(group, "no such config group", did_you_mean(group, groups)))
    options = {path.stem: path for path in groups[group].glob("*.yaml")}
    if name not in options:
        raise ConfigError(Problem(f"{group}={name}", "no such option", did_you_mean(name, options)))
    data = read_yaml(options[name])
    schema = type(getattr(Config(), group))
    return typed({key: value for key, value in data.items() if value != "???"}, schema, group)


@contextlib.contextmanager
def own_hydra(*, with_experiments: bool = True) -> Iterator[None]:
    """Inside, Hydra knows the defaults of ``Config`` and the experiments; types are checked after composition.

    What Hydra knows is in singletons: a program that composes configs of its own finds them as they were.

    Args:
        with_experiments: where none is asked for, reading them all would be a sixth of the time that composing takes.
    """
    current, version, store = GlobalHydra.instance(), VersionBase.instance(), ConfigStore.instance()
    theirs = current.hydra, version.version_base, store.repo
    current.clear()
    store.repo = {name: entry for name, entry in store.repo.items() if name not in ("schema.yaml", "experiment")}
    # Hydra 1.3.8 copies the whole store with each list of a group's options: 90 times for --help, half of its time
    vars(store)["__deepcopy__"] = lambda memo: store
    try:
        store.store(name="schema", node=_defaults())
        if with_experiments:
            _store_experiments(store)
        yield
    finally:
        vars(store).pop("__deepcopy__", None)
        GlobalHydra.set_instance(current)  # Hydra leaves a copy in its place, or none
        current.hydra, version.version_base, store.repo = theirs


def _store_experiments(store: ConfigStore) -> None:
    for name, path in experiments().items():  # each time: in a notebook they are edited between two runs
        try:
            node = OmegaConf.create(read_experiment(path))
        except (ConfigError, OmegaConfBaseException):
            continue  # reported when it is chosen: a broken file of one experiment must not stop the others
        folder, _, stem = f"experiment/{name}".rpartition("/")
        store.store(group=folder, name=stem, package="_global_", node=node)


@cache
def _defaults() -> DictConfig:
    defaults: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(Config), enum_to_str=True)  # type: ignore[assignment]
    return OmegaConf.create(defaults)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse Hydra overrides. Raises ConfigError for every one that is not ``key=value``."""
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            key, equals, value = text.partition("=")
            fix = "write overrides as key=value"
            if equals:
                fix += f", and quote a value with other signs: \"{key}='{value}'\""
            problems.append(Problem(text, str(error).splitlines()[0], fix))
        except (ValueError, RecursionError) as error:  # a number too long for int(), brackets too deep to follow
            problems.append(Problem(f"{text[:60]} ...", f"cannot be read: {error}"))
    if problems:
        raise ConfigError(problems)
    return parsed


def hydra_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra is to be given them. Raises ConfigError for every one that is not ``key=value``."""
    return [text for override in parse_overrides(overrides) for text in _for_hydra(override)]


def _for_hydra(override: Override) -> list[str]:
    """An override as Hydra is to be given it.

    Hydra knows the keys that stand in YAML, and merges mappings; here a key may be any of the schema, in a stage too,
    and a selector replaces the one before.
    """
    key, text = str(override.key_or_group), str(override.input_line)
    if key == "experiment" and override.value() is None:
        return []  # there may be no such group
    if not override.is_add() and not override.is_delete() and re.match(r"schedule\.stages\.\d+\.|\w+\.options\b", key):
        text = f"++{text}" if not text.startswith("++") else text
    if not override.is_delete() and re.fullmatch(r"schedule\.stages\.\d+\.unfreeze", key):
        return [f"++{key}=null", text]
    return [text]


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The runs of a multirun: the product of all overrides that name several values.

    As with Hydra's basic sweeper these are ``key=a,b``, ``choice(a,b)``, ``range(1,4)`` and ``group=glob(a*)``.

    Raises:
        ConfigError: with every override that is none, or whose values cannot be counted out.
    """
    choices: list[list[str]] = []
    problems: list[Problem] = []
    for override in parse_overrides(overrides):
        try:
            choices.append(_choices(override))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return [list(job) for job in itertools.product(*choices)]


def _choices(override: Override) -> list[str]:
    """What one override of a multirun stands for in its runs, one after the other."""
    text, key = str(override.input_line), str(override.key_or_group)
    if not override.is_sweep_override():
        return [text]
    if override.is_interval_sweep():
        fix = f"name some: {key}=a,b or {key}=range(start,stop,step); python -m tlearn.sweep searches intervals"
        raise ConfigError(Problem(text, "has no end of values", fix))
    pattern: Any = override.value()
    try:
        values = _matching(override, pattern) if isinstance(pattern, Glob) else list(override.sweep_string_iterator())
    except ValueError as error:  # a range in steps of 0
        raise ConfigError(Problem(text, str(error))) from None
    if not values:
        raise ConfigError(Problem(text, "names no value"))
    return [f"{override.get_key_element()}={value}" for value in values]


def _matching(override: Override, pattern: Glob) -> list[str]:
    """The options that match. Raises ConfigError where there are none."""
    text, group = str(override.input_line), str(override.key_or_group)
    options = sorted(_options(group))
    if not options:
        fix = f"glob is for config groups and experiments; name the values: {group}=a,b"
        raise ConfigError(Problem(text, "has no options to choose from", fix))
    chosen: list[str] = pattern.filter(options)
    if not chosen:
        raise ConfigError(Problem(text, "matches no option", f"choose from: {', '.join(options)}"))
    return chosen


def _options(group: str) -> list[str]:
    """Names of what may be chosen for a config group, or as an experiment; none: it is neither."""
    if group == "experiment":
        return list(experiments())
    return [path.stem for path in (shipped("configs") / group).glob("*.yaml")] if group else []


def _override_problems(override: Override) -> list[Problem]:
    """An unknown key or group option, said with the nearest names."""
    key = str(override.key_or_group)
    if not key:
        return [Problem(str(override.input_line), "has no key", "write overrides as key=value")]
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return [Problem(key, "Hydra's own settings have no effect here", "run_dir=... names the folder of a run")]
    if override.is_sweep_override():
        return [Problem(str(override.input_line), "several values", "sweeps need -m: python -m tlearn.train -m ...")]
    if key == "experiment":
        return _experiment_problems(str(override.value()))
    if re.match(r"(sweep|launcher)(\.|$)", key):
        command = "python -m tlearn.sweep" if key.startswith("sweep") else "python -m tlearn.train -m"
        return [Problem(key, "is no key of a run", f"it is for {command}")]
    options, value = _options(key), override.value()
    if options and not isinstance(value, dict | list):
        if value is not None and str(value) not in options:
            return [Problem(f"{key}={value}", "no such option", _option_hint(key, str(value), options))]
        return []
    generic = ".".join("0" if part.isdigit() else part for part in key.split("."))
    if generic in _known_keys() or ".options." in f".{generic}" or ".unfreeze." in generic:
        return []
    return [Problem(key, "unknown key", suggest_key(key, value))]


@cache
def _known_keys() -> frozenset[str]:
    return frozenset(keys())


def _option_hint(group: str, value: str, options: list[str]) -> str:
    family = [option for option in options if option.startswith(value)]
    if family:
        return f"choose one of: {', '.join(sorted(family))}"
    named = f"; an own {group} is chosen by its name: {group}.name={value}" if group in ("backbone", "head") else ""
    return did_you_mean(value, options) + named


def _experiment_problems(name: str) -> list[Problem]:
    found = experiments()
    if name in ("null", "None"):
        return []
    if name not in found:
        return [Problem(f"experiment={name}", "no such experiment", did_you_mean(name, found) if found else "")]
    try:
        read_experiment(found[name])
    except ConfigError as error:
        return list(error.problems)
    return []


def _compose(overrides: Sequence[str]) -> DictConfig:
    """Compose with Hydra; its errors become ours."""
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(shipped("configs")), job_name=CONFIG_NAME):
            return hydra_compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        message = " ".join(str(error).split())
        if str(cause) not in message:
            message += f" ({' '.join(str(cause).split())})"
        stage = re.search(r"schedule\.stages\.\d+", message)
        if stage and "out of range" in message:
            fix = "stages count from 0; python -m tlearn.plan shows those of the schedule"
            raise ConfigError(Problem(stage[0], "the schedule has no such stage", fix)) from error
        raise ConfigError(Problem("config", message)) from error
    except RecursionError:
        raise ConfigError(Problem("config", "is nested too deeply, or an experiment includes itself")) from None
