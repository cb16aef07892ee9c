"""The search space: which config keys vary, over which values, under which conditions."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlearn.errors import ConfigError, Problem, did_you_mean

if TYPE_CHECKING:
    import optuna

Scalar = bool | int | float | str | None

_FIELDS = {
    "float": {"low", "high", "step", "log"},
    "int": {"low", "high", "step", "log"},
    "categorical": {"choices"},
}
_COMMON = {"type", "when", "optional"}
_NOT_SEARCHED = ("run_dir", "resume", "name")  # they say where a run is, not what it is


@dataclass(frozen=True)
class Parameter:
    """One config key that is searched.

    Attributes:
        key: of the config, or a config group.
        type: ``float``, ``int`` or ``categorical``.
        low, high: bounds of a number, both included.
        step: distance of the values; None: any, for ``int`` 1.
        log: search the logarithm.
        choices: values of a categorical key; lists and mappings as JSON text, which is what a storage can hold.
        when: the key exists only where other searched keys have one of these values.
        optional: left out where the schedule has no such stage.
    """

    key: str
    type: str
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    choices: tuple[Scalar, ...] = ()
    when: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()
    optional: bool = False

    def applies(self, values: Mapping[str, Scalar]) -> bool:
        """Whether the key exists beside these values of the keys before it."""
        return all(key in values and values[key] in allowed for key, allowed in self.when)

    def suggest(self, trial: optuna.trial.Trial) -> Scalar:
        """The trial's value, as it is stored."""
        value: Scalar
        if self.type == "categorical":
            value = trial.suggest_categorical(self.key, list(self.choices))
        elif self.type == "int":
            value = trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        else:
            value = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return value

    def corners(self) -> list[Scalar]:
        """Values that stand for all of them: every choice, or both bounds."""
        if self.type == "categorical":
            return list(self.choices)
        ends: list[Scalar] = [self.low, self.high]
        return [int(end) for end in ends if isinstance(end, int | float)] if self.type == "int" else ends

    def values(self) -> list[Scalar] | None:
        """All values; None where there is no end of them."""
        if self.type == "categorical":
            return list(self.choices)
        if self.type == "int" and not self.log:
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is not None:
            return [self.low + index * self.step for index in range(round((self.high - self.low) / self.step) + 1)]
        return None

    def __str__(self) -> str:
        if self.type == "categorical":
            text = ", ".join(choice if isinstance(choice, str) else json.dumps(choice) for choice in self.choices)
        else:
            text = f"{self.low:g} to {self.high:g}" + (", logarithmic" if self.log else "")
            text += f", in steps of {self.step:g}" if self.step is not None else ""
        conditions = [f"{key} is {' or '.join(map(str, allowed))}" for key, allowed in self.when]
        return text + (f"; when {' and '.join(conditions)}" if conditions else "")


class Space:
    """The keys that are searched, each after those that its conditions speak of.

    Attributes:
        parameters: the keys.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)

    def suggest(self, trial: optuna.trial.Trial) -> dict[str, Scalar]:
        """The values of a trial, as they are stored."""
        values: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.applies(values):
                values[parameter.key] = parameter.suggest(trial)
        return values

    def grid(self) -> list[dict[str, Scalar]]:
        """Every combination once. Raises ConfigError where a key has no end of values."""
        endless = [parameter.key for parameter in self.parameters if parameter.values() is None]
        if endless:
            fix = "sweep.sampler.name=tpe or random, or give the key a step or choices"
            raise ConfigError(
                [Problem(f"sweep.space.{key}", "has no end of values, for a grid", fix) for key in endless]
            )
        points: list[dict[str, Scalar]] = [{}]
        for parameter in self.parameters:
            points = [
                point | ({parameter.key: value} if applies else {})
                for point in points
                for applies in [parameter.applies(point)]
                for value in (parameter.values() or [] if applies else [None])
            ]
        return points

    def corners(self) -> Iterator[tuple[Parameter, dict[str, Scalar]]]:
        """Values to try: each corner of each key, with those of other keys that it needs to exist."""
        for parameter in self.parameters:
            for needed in self._needed(parameter):
                for value in parameter.corners():
                    yield parameter, needed | {parameter.key: value}

    def _needed(self, parameter: Parameter) -> list[dict[str, Scalar]]:
        """For each combination of values that a key's conditions allow, these and what they need in turn."""
        by_key = {each.key: each for each in self.parameters}
        found: list[dict[str, Scalar]] = []
        for chosen in itertools.product(*(allowed for _, allowed in parameter.when)):
            values = dict(zip((key for key, _ in parameter.when), chosen, strict=True))
            above = [self._needed(by_key[key])[0] for key in values]
            found.append({key: value for each in above for key, value in each.items()} | values)
        return found


def config_value(value: Scalar) -> Any:
    """A stored value as the config takes it: JSON text of a list or mapping becomes one again, other text stays."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def parse_space(data: Mapping[str, Any], stages: int) -> Space:
    """Check the ``space`` of a sweep.

    Args:
        data: by config key, as YAML holds it.
        stages: length of the schedule, for keys that are optional.

    Raises:
        ConfigError: with everything that is wrong in itself; whether the keys exist is not looked at.
    """
    if not data:
        fix = "for example optimizer.learning_rate: {type: float, low: 0.0001, high: 0.1, log: true}"
        raise ConfigError(Problem("sweep.space", "is empty: there is nothing to search", fix))
    problems: list[Problem] = []
    parameters: list[Parameter] = []
    for key, fields in data.items():
        try:
            parameters.append(_parse(str(key), fields, data))
        except ConfigError as error:
            problems += error.problems
    problems += _impossible_conditions(parameters)
    if problems:
        raise ConfigError(problems)
    return Space(_ordered([each for each in parameters if not (each.optional and _stage_of(each.key) >= stages)]))


def _stage_of(key: str) -> int:
    parts = key.split(".")
    return int(parts[2]) if parts[:2] == ["schedule", "stages"] and len(parts) > 2 and parts[2].isdigit() else -1


def _parse(key: str, fields: Any, space: Mapping[str, Any]) -> Parameter:
    where = f"sweep.space.{key}"
    if key in _NOT_SEARCHED:
        raise ConfigError(Problem(where, "cannot be searched: every trial has its own"))
    if not isinstance(fields, Mapping):
        example = "{type: float, low: 0.0001, high: 0.1, log: true}, or {type: categorical, choices: [a, b]}"
        raise ConfigError(Problem(where, f"expects a mapping, received {fields!r}", f"such as {example}"))
    kind = fields.get("type")
    if kind not in _FIELDS:
        said = "has no type" if kind is None else f"has the unknown type {kind!r}"
        raise ConfigError(Problem(f"{where}.type", said, did_you_mean(str(kind), _FIELDS)))
    known = _FIELDS[kind] | _COMMON
    problems = [
        Problem(f"{where}.{name}", f"is no field of a key of type {kind}", did_you_mean(str(name), known))
        for name in fields
        if name not in known
    ]
    when = list(_conditions(fields.get("when"), f"{where}.when", key, space, problems))
    if kind == "categorical":
        choices, optional = _choices(fields.get("choices"), where, problems), fields.get("optional") is True
        parameter = Parameter(key, kind, choices=choices, when=tuple(when), optional=optional)
    else:
        parameter = _number(key, kind, fields, where, tuple(when), problems)
    if problems:
        raise ConfigError(problems)
    return parameter


def _number(
    key: str,
    kind: str,
    fields: Mapping[str, Any],
    where: str,
    when: tuple[tuple[str, tuple[Scalar, ...]], ...],
    problems: list[Problem],
) -> Parameter:
    found: dict[str, float] = {}
    for name in ("low", "high", "step"):
        value = _as_number(fields.get(name))
        if fields.get(name) is None:
            if name != "step":
                problems.append(Problem(f"{where}.{name}", "is missing", "a number needs low and high"))
        elif value is None or (kind == "int" and value != int(value)):
            expected = "a whole number" if kind == "int" else "a finite number"
            problems.append(Problem(f"{where}.{name}", f"must be {expected}, received {fields[name]!r}"))
        else:
            found[name] = value
    log = fields.get("log", False)
    if not isinstance(log, bool):
        problems.append(Problem(f"{where}.log", f"must be true or false, received {log!r}"))
    low, high, step = found.get("low", 0.0), found.get("high", math.inf), found.get("step")
    if low > high:
        problems.append(Problem(where, f"low {low:g} is above high {high:g}", "exchange them"))
    if log is True and low <= 0 and "low" in found:
        problems.append(Problem(f"{where}.low", f"must be above 0 where log is true, received {low:g}"))
    if step is not None and not 0 < step <= max(high - low, step if low == high else 0):
        problems.append(Problem(f"{where}.step", f"must be above 0 and at most high - low, received {step:g}"))
    if step is not None and log is True and not (kind == "int" and step == 1):
        problems.append(Problem(f"{where}.step", "cannot be together with log: true", "leave one of them out"))
    if step and high < math.inf:
        high = low + step * math.floor((high - low) / step + 1e-9)  # the last value that a step reaches
    optional = fields.get("optional") is True
    return Parameter(key, kind, low, high, step, log is True, (), when, optional)


def _as_number(value: Any) -> float | None:
    """A finite number; YAML 1.1 takes 1e-4 for text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _choices(choices: Any, where: str, problems: list[Problem]) -> tuple[Scalar, ...]:
    if not isinstance(choices, list) or not choices:
        problems.append(Problem(f"{where}.choices", "must be a list with at least one value", "choices: [a, b]"))
        return ()
    stored = tuple(json.dumps(each) if isinstance(each, list | dict) else each for each in choices)
    if len({(type(each), each) for each in stored}) < len(stored):
        problems.append(Problem(f"{where}.choices", "holds a value twice"))
    return stored


def _conditions(
    when: Any, where: str, key: str, space: Mapping[str, Any], problems: list[Problem]
) -> Iterator[tuple[str, tuple[Scalar, ...]]]:
    """``when: {other key: value or list of values}``."""
    if when is None:
        return
    if not isinstance(when, Mapping) or not when:
        problems.append(Problem(where, f"expects a mapping, received {when!r}", "when: {head.name: mlp}"))
        return
    for other, allowed in when.items():
        if other == key:
            problems.append(Problem(where, f"{key} depends on itself"))
        elif other not in space:
            fix = did_you_mean(str(other), [name for name in space if name != key])
            problems.append(Problem(where, f"the key {other} is not in the space", fix))
        else:
            values = allowed if isinstance(allowed, list) else [allowed]
            yield str(other), tuple(json.dumps(each) if isinstance(each, list | dict) else each for each in values)


def _impossible_conditions(parameters: Sequence[Parameter]) -> Iterator[Problem]:
    """Conditions that no value of the other key can meet."""
    by_key = {parameter.key: parameter for parameter in parameters}
    for parameter in parameters:
        for other, allowed in parameter.when:
            possible = by_key[other].values() if other in by_key else None
            for value in allowed:
                if possible is not None and value not in possible:
                    where = f"sweep.space.{parameter.key}.when"
                    yield Problem(where, f"{other} is never {value!r}", did_you_mean(str(value), map(str, possible)))


def _ordered(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Each key after those that it depends on. Raises ConfigError where they depend on each other in a circle."""
    placed: dict[str, Parameter] = {}
    waiting = list(parameters)
    while waiting:
        ready = [each for each in waiting if all(key in placed for key, _ in each.when)]
        if not ready:
            keys = ", ".join(each.key for each in waiting)
            raise ConfigError(Problem("sweep.space", f"conditions lead in a circle, or to a key left out: {keys}"))
        placed |= {each.key: each for each in ready}
        waiting = [each for each in waiting if each.key not in placed]
    return list(placed.values())
