"""Experiment files: found by name, read, and held to be data.

An experiment may come from a stranger. It sets fields of the config and chooses among the shipped config groups;
it cannot set Hydra, leave the config groups, or ask OmegaConf's resolvers, which read the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlearn.errors import ConfigError, Problem
from tlearn.paths import shipped
from tlearn.yaml_file import read_yaml

# ${name}, ${group.key.0} and ${..key}; a resolver would have a colon: ${oc.env:HOME}
_PLAIN_REFERENCE = re.compile(r"\$\{\.*(?!hydra\b)[A-Za-z_]\w*(\.\w+)*\}")


def experiments() -> dict[str, Path]:
    """Experiment files by name, found recursively; the working directory's go before the shipped ones."""
    found: dict[str, Path] = {}
    for root in (shipped("experiments"), Path.cwd() / "experiments"):
        for path in sorted(root.rglob("*.yaml")):
            found[path.relative_to(root).with_suffix("").as_posix()] = path
    return found


def read_experiment(path: Path) -> dict[str, Any]:
    """The content of an experiment file; its keys and types are checked when it is composed.

    Raises:
        ConfigError: it cannot be read, is no mapping, or reaches beyond the config; with every problem.
    """
    data = read_yaml(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(Problem(str(path), "is not a mapping of config keys"))
    problems = [*_hydra_problems(data, path), *_default_problems(data.get("defaults"), path)]
    problems += _reference_problems(data, str(path))
    if problems:
        raise ConfigError(problems)
    return data


def _hydra_problems(data: dict[str, Any], path: Path) -> Iterator[Problem]:
    """Hydra's settings can name classes, which a config file must not."""
    for key in data:
        if re.match(r"hydra\b", key):
            yield Problem(f"{path}: {key}", "an experiment cannot set Hydra itself")


def _default_problems(defaults: Any, path: Path) -> Iterator[Problem]:
    """A defaults list chooses options of our config groups. Hydra would follow ``..`` to any YAML file of the disk."""
    where = f"{path}: defaults"
    if defaults is None:
        return
    if not isinstance(defaults, list):
        yield Problem(where, "is not a list", "write one choice a line: - override /backbone: mobilenet_v2")
        return
    for entry in defaults:
        choices = entry.items() if isinstance(entry, dict) else [(entry, None)]
        for key, option in choices:
            group = key.split(" ")[-1] if isinstance(key, str) else key  # "override optional /backbone"
            named = f"{where}: {key}"
            if re.match(r"/*hydra\b|.*@hydra", str(group)):
                yield Problem(named, "an experiment cannot set Hydra itself")
            elif not all(map(_stays_inside, (group, *_options(option)))):
                fix = "choose options of the config groups: - override /backbone: mobilenet_v2"
                yield Problem(named, "leads out of the config groups", fix)


def _options(chosen: Any) -> list[Any]:
    """A group takes one option, several, or none."""
    if chosen is None:
        return []
    return chosen if isinstance(chosen, list) else [chosen]


def _stays_inside(name: Any) -> bool:
    return isinstance(name, str) and ".." not in name and re.fullmatch(r"[\w.@/-]*", name) is not None


def _reference_problems(value: Any, where: str) -> Iterator[Problem]:
    """References to keys of the config are fine; resolvers are not."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _reference_problems(key, where)
            yield from _reference_problems(item, f"{where}: {key}" if ": " not in where else f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _reference_problems(item, f"{where}.{index}")
    elif isinstance(value, str) and "${" in _PLAIN_REFERENCE.sub("", value):
        fix = "a file may refer to keys of the config only, as in ${seed}; give such a value on the command line"
        yield Problem(where, f"{value[:100]!r} asks for more than the config", fix)
