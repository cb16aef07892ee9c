"""From plain data to a ``Config``, strictly: every unknown key and every value of a wrong type is found, all at once.

Hydra lets ``+key=value`` and ``_target_`` pass; they end here, since a config holds the fields of ``tlearn.config``
and nothing else.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tlearn.config import Config
from tlearn.errors import ConfigError, Problem, did_you_mean
from tlearn.interrupts import interrupts_wait

C = TypeVar("C")


class IllTyped(ConfigError):
    """Data that is no config as it stands.

    Attributes:
        rest: what it would be without all that is wrong, with defaults in its place.
    """

    def __init__(self, problems: Iterable[Problem], rest: Any) -> None:
        super().__init__(problems)
        self.rest = rest


def typed(data: Mapping[str, Any], schema: type[C] = Config, where: str = "") -> C:  # type: ignore[assignment]
    """Check plain data against a dataclass of ``tlearn.config`` and make it.

    Args:
        data: nested plain data, as a YAML file holds it.
        schema: the dataclass.
        where: config key of the data, for messages.

    Raises:
        IllTyped: a ConfigError with every unknown key, wrong type and missing value.
    """
    problems = [*_references(data, where), *find_problems(data, schema, where)]
    if problems:
        rest = _without({problem.where for problem in problems}, data, where)
        raise IllTyped(problems, _made(rest, schema))
    return _made(data, schema)


def _made(data: Mapping[str, Any], schema: type[C]) -> C:
    with interrupts_wait():
        merged = OmegaConf.merge(_empty(schema), OmegaConf.create(dict(data)))  # type: ignore[arg-type]
        made: C = OmegaConf.to_object(merged)  # type: ignore[assignment]
    return made


def _without(wrong: Set[str], data: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """The data without keys that are wrong. A stage that is none keeps its place among the others, with defaults."""
    kept: dict[Any, Any] = {}
    for key, value in data.items():
        path = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping) and path not in wrong:
            kept[key] = _without(wrong, value, path)
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value) and path not in wrong:
            items = ((f"{path}.{index}", item) for index, item in enumerate(value))
            kept[key] = [_without(wrong, item, place) if isinstance(item, Mapping) else {} for place, item in items]
        elif not any(other == path or other.startswith(f"{path}.") for other in wrong):
            kept[key] = value
    return kept


def typed_again(config: C) -> C:
    """A dataclass of ``tlearn.config`` that was made in Python, where nothing checks types: ``strategy="mirrored"``.

    Raises:
        ConfigError: with every wrong type, as for a file.
    """
    return typed(dataclasses.asdict(config), type(config))  # type: ignore[call-overload]


def _references(value: Any, where: str) -> Iterator[Problem]:
    """Text that OmegaConf would resolve, here or when the run is opened again: ``${oc.env:HOME}`` reads the machine.

    Composing has resolved what a person asked for. What is left is the work of a file that hides it from
    ``tlearn.experiments``: two halves in two options, put together by a third.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _references(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _references(item, f"{where}.{index}")
    elif isinstance(value, str) and "${" in value:
        yield Problem(where, f"holds an unresolved reference, {value[:100]!r}", "write the value itself")


def find_problems(data: Mapping[Any, Any], schema: type, where: str) -> Iterator[Problem]:
    """What is wrong with plain data for a dataclass, key by key."""
    types = typing.get_type_hints(schema)
    for key, value in data.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in types:
            yield Problem(path, "unknown key", suggest_key(path, value))
        elif value == "???":
            yield Problem(path, "has no value", f"give it one: {path}=...")
        else:
            yield from _value_problems(value, types[key], schema, str(key), path)


def _value_problems(value: Any, kind: Any, schema: type, key: str, path: str) -> Iterator[Problem]:
    item = typing.get_args(kind)[0] if typing.get_origin(kind) is list else None
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, Mapping):
            yield from find_problems(value, kind, path)
        else:
            names = ", ".join(field.name for field in dataclasses.fields(kind))
            yield Problem(path, f"expects a mapping, received {value!r}", f"keys: {names}")
    elif item is not None and dataclasses.is_dataclass(item) and isinstance(item, type):
        yield from _list_problems(value, item, path)
    else:
        try:
            _probe(schema)[key] = value
            taken = _probe(schema)[key]
        except (OmegaConfBaseException, ValueError) as error:  # ValueError: a number too long to be shown
            yield Problem(path, str(error).splitlines()[0])
        else:
            if isinstance(taken, float) and not math.isfinite(taken):
                yield Problem(path, f"must be a finite number, received {value!r}")


@cache
def _empty(schema: type) -> Any:
    """The defaults, to merge into a copy of."""
    return OmegaConf.structured(schema)


@cache
def _probe(schema: type) -> Any:
    """A node of this type to try values on; making one for each value would take longer than composing."""
    return OmegaConf.structured(schema)


def _list_problems(value: Any, item: type, path: str) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield Problem(path, f"expects a list, received {value!r}")
        return
    for index, element in enumerate(value):
        if isinstance(element, Mapping):
            yield from find_problems(element, item, f"{path}.{index}")
        else:
            yield Problem(f"{path}.{index}", f"expects a mapping, received {element!r}")


def keys(schema: type = Config, where: str = "") -> Iterator[str]:
    """Every dotted key of the config; items of a list are written as ``stages.0``."""
    for name, kind in typing.get_type_hints(schema).items():
        path = f"{where}.{name}" if where else name
        yield path
        if typing.get_origin(kind) is list:
            kind, path = typing.get_args(kind)[0], f"{path}.0"
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from keys(kind, path)


def suggest_key(path: str, value: Any = None) -> str:
    """What is said of an unknown key: those that may have been meant, else those that there are beside it.

    Args:
        path: the key.
        value: what it was given; for a group that is not there, ``train: {batch_size: 32}``, its keys are looked for.
    """
    near = near_keys(path)
    if not near and isinstance(value, Mapping):
        near = [key for name in value for key in near_keys(f"{path}.{name}")]
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    parent = _generic(path).rpartition(".")[0]
    known = list(keys())
    return did_you_mean(path, [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == parent] or known)


def meant_keys(path: str) -> list[str]:
    """The keys that somebody who wrote this one may have meant: itself, where there is such a key."""
    return [path] if _generic(path) in keys() else [path, *near_keys(path)]


def near_keys(path: str) -> list[str]:
    """The keys that an unknown one may stand for: of nearly its name beside it, of just its name elsewhere."""
    parent, _, last = path.rpartition(".")
    places = [key.rpartition(".")[::2] for key in keys()]
    beside = [name for place, name in places if place == _generic(parent)]
    if not beside and (near := difflib.get_close_matches(path, keys(), n=1, cutoff=0.85)):
        return near  # backbon.name
    elsewhere = _shallowest(last, parent, places)
    near = difflib.get_close_matches(last, beside, n=3, cutoff=0.8 if elsewhere else 0.6)
    if not near and not elsewhere:
        like = difflib.get_close_matches(last, {name for _, name in places}, n=1, cutoff=0.8)
        elsewhere = _shallowest(like[0], parent, places) if like else []
    return [f"{parent}.{name}" if parent else name for name in near] + elsewhere


def _shallowest(name: str, parent: str, places: Sequence[tuple[str, str]]) -> list[str]:
    """The keys of this name that lie least deep, after those in the same item of a list: the options of a stage."""
    found = [place for place, other in places if other == name]
    item = parent if parent != _generic(parent) or parent.endswith(".0") else ""
    inside = [place for place in found if item and place.startswith(f"{_generic(item)}.")]
    outside = [place for place in found if place not in inside]
    chosen = [item + place.removeprefix(_generic(item)) for place in _least_deep(inside)] + _least_deep(outside)
    return [f"{place}.{name}" if place else name for place in chosen]


def _least_deep(places: Sequence[str]) -> list[str]:
    depths = [place.count(".") - place.count(".0") + bool(place) for place in places]  # an index is no level
    return [place for place, depth in zip(places, depths, strict=True) if depth == min(depths)]


def _generic(path: str) -> str:
    """A key with 0 for every index, as ``keys`` writes it."""
    return ".".join("0" if part.isdigit() else part for part in path.split("."))
