"""Classifiers on top of a backbone.

A head is a function from a feature map to logits. Logits become probabilities in one place only, ``add_scores``.
Every layer computes in float32, whatever the precision of the backbone, and has a stable name that starts with
``head_``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

from tlearn.config import Activation, Normalization, Pooling
from tlearn.errors import ConfigError, Problem, did_you_mean
from tlearn.registry import Registry

KEY = "head.name"
LINEAR = "linear"
MLP = "mlp"

HeadFunction: TypeAlias = Callable[..., Any]


def build_head(
    features: Any,
    *,
    name: str = LINEAR,
    classes: int,
    pooling: Pooling | str = Pooling.avg,
    units: Sequence[int] = (),
    activation: Activation | str = Activation.relu,
    normalization: Normalization | str = Normalization.none,
    dropout: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Build a head on a feature map.

    Args:
        features: ``KerasTensor`` (batch, h, w, channels).
        name: ``linear``, ``mlp``, or that of a registered head.
        classes: number of outputs.
        pooling: how positions are pooled, see ``pooling.pool``.
        units: widths of the hidden layers of ``mlp``.
        activation: of the hidden layers.
        normalization: before each hidden activation.
        dropout: rate before every dense layer, 0 or more and below 1.
        options: of a registered head; pooling and everything below it are then that head's own business.

    Returns:
        Logits: ``KerasTensor`` (batch, classes), float32.

    Raises:
        ConfigError: an argument makes no sense (everything wrong at once), or a registered head returns something
            else than logits.
    """
    problems = check_head(
        name=name,
        classes=classes,
        pooling=pooling,
        units=units,
        activation=activation,
        normalization=normalization,
        dropout=dropout,
        options=options,
    )
    if problems:
        raise ConfigError(problems)
    function = HEADS[name]
    if name not in _BUILTIN:
        return _registered(name, function, features, classes, options or {})
    return function(
        features,
        classes,
        pooling=Pooling(pooling),
        units=units,
        activation=Activation(activation),
        normalization=Normalization(normalization),
        dropout=dropout,
    )


def add_scores(logits: Any, multi_label: bool) -> Any:
    """Probabilities of logits: over the classes, or of each class by itself.

    Args:
        logits: ``KerasTensor`` (batch, classes).
        multi_label: an image may have several classes.

    Returns:
        ``KerasTensor`` (batch, classes), float32, from a layer called ``scores``: softmax, rows add up to 1;
        multi-label: sigmoid, each value 0..1.
    """
    from keras import layers

    return layers.Activation("sigmoid" if multi_label else "softmax", name="scores", dtype="float32")(logits)


def register_head(name: str) -> Callable[[HeadFunction], HeadFunction]:
    """Make a head of your own usable from YAML as ``head.name``.

    The decorated function takes the feature map (batch, h, w, channels), the number of classes, and ``head.options``
    as keyword arguments; it returns logits (batch, classes)::

        @register_head("cosine")
        def cosine(features, classes, scale=16.0):
            x = keras.layers.GlobalAveragePooling2D(name="head_pool")(features)
            x = keras.layers.UnitNormalization(name="head_unit")(x)
            return keras.layers.Dense(classes, kernel_constraint="unit_norm", name="head_logits")(scale * x)

    Name the layers, so that weights are found again; give them ``dtype="float32"``. Raises ValueError when the name
    is taken; the same function, defined once more, takes its own place.
    """
    return HEADS.register(name)


def check_head(
    *,
    name: str = LINEAR,
    classes: int | None = None,
    pooling: Pooling | str = Pooling.avg,
    units: Sequence[int] = (),
    activation: Activation | str = Activation.relu,
    normalization: Normalization | str = Normalization.none,
    dropout: float = 0.0,
    options: Mapping[str, Any] | None = None,
    where: str = "head",
) -> list[Problem]:
    """Everything wrong with the arguments of ``build_head``, without TensorFlow.

    Args:
        classes: None: not known yet, not checked.
        where: config key that messages start with; the others are those of ``build_head``.

    Returns:
        Problems in the order of the arguments; empty when the head can be built.
    """
    try:
        function = HEADS[name]
    except ConfigError as error:
        return list(error.problems)
    problems = []
    if classes is not None and not _is_count(classes):
        problems.append(Problem(f"{where}.classes", f"must be a whole number from 1, got {classes!r}"))
    choices: list[tuple[str, type[Enum], object]] = [
        ("pooling", Pooling, pooling),
        ("activation", Activation, activation),
        ("normalization", Normalization, normalization),
    ]
    for key, kind, value in choices:
        known = [str(choice.value) for choice in kind]
        if getattr(value, "value", value) not in known:
            problems.append(Problem(f"{where}.{key}", f"unknown value {value!r}", f"one of: {', '.join(known)}"))
    problems += _check_units(name, units, where)
    if not 0 <= dropout < 1:
        problems.append(Problem(f"{where}.dropout", f"is a rate, 0 or more and below 1, got {dropout!r}"))
    given = {"pooling": pooling, "activation": activation, "normalization": normalization, "dropout": dropout}
    wrong = {problem.where for problem in problems}
    problems += [one for one in _check_unused(name, given, where) if one.where not in wrong]
    return problems + _check_options(name, function, options or {}, where)


def _check_units(name: str, units: Sequence[int], where: str) -> list[Problem]:
    key = f"{where}.units"
    if bad := [width for width in units if not _is_count(width)]:
        return [Problem(key, f"widths must be whole numbers from 1, got {', '.join(map(repr, bad))}")]
    if name == LINEAR and units:
        return [Problem(key, "a linear head has no hidden layers", f"write {where}.name={MLP}, or leave it empty")]
    if name == MLP and not units:
        return [Problem(key, "an mlp needs hidden layers", f"such as {where}.units=[1024], or {where}.name={LINEAR}")]
    if name not in _BUILTIN and units:
        return [Problem(key, f"is for {MLP}; {name} was registered by a plugin", f"its options: {where}.options")]
    return []


def _check_unused(name: str, given: Mapping[str, object], where: str) -> list[Problem]:
    """Options that were set and would do nothing."""
    usual = {"pooling": "avg", "activation": "relu", "normalization": "none", "dropout": 0.0}
    if name == MLP:
        return []
    hidden = ("activation", "normalization")
    unused = hidden if name == LINEAR else tuple(usual)
    why = "a linear head has no hidden layers" if name == LINEAR else f"{name} was registered by a plugin"
    fix = f"write {where}.name={MLP}, or leave it out" if name == LINEAR else f"its options: {where}.options"
    changed = [key for key in unused if getattr(given[key], "value", given[key]) != usual[key]]
    return [Problem(f"{where}.{key}", f"has no effect: {why}", fix) for key in changed]


def _check_options(name: str, function: HeadFunction, options: Mapping[str, Any], where: str) -> list[Problem]:
    """``head.options`` against the signature of a registered head."""
    key = f"{where}.options"
    if name in _BUILTIN:
        return [Problem(key, f"{name} takes none, got {', '.join(options)}", "they are for plugins")] if options else []
    parameters = list(inspect.signature(function).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return []
    known = {parameter.name: parameter.default is parameter.empty for parameter in parameters[2:]}
    unknown = [
        Problem(f"{key}.{option}", f"{name} has no such option", did_you_mean(option, known) if known else "")
        for option in options
        if option not in known
    ]
    missing = [option for option, needed in known.items() if needed and option not in options]
    return unknown + [Problem(f"{key}.{option}", f"{name} needs it") for option in missing]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _registered(name: str, function: HeadFunction, features: Any, classes: int, options: Mapping[str, Any]) -> Any:
    """A user's head, checked and brought to float32."""
    import keras

    logits = function(features, classes, **options)
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[1] != classes:
        what = f"registered head {name!r} must return logits (batch, {classes}), got {shape or type(logits).__name__}"
        raise ConfigError(Problem(KEY, what))
    if keras.backend.standardize_dtype(logits.dtype) != "float32":
        logits = keras.layers.Activation("linear", name="head_float32", dtype="float32")(logits)
    return logits


def _linear(features: Any, classes: int, *, pooling: Pooling, dropout: float, **_: Any) -> Any:
    """Pooling and one dense layer."""
    from tlearn.heads.pooling import pool

    return _dense(_dropout(pool(features, pooling), dropout, "head_dropout"), classes, "head_logits")


def _mlp(
    features: Any,
    classes: int,
    *,
    pooling: Pooling,
    units: Sequence[int],
    activation: Activation,
    normalization: Normalization,
    dropout: float,
) -> Any:
    """Pooling, then for each width: dropout, dense, normalisation, activation; then the logits."""
    from keras import layers

    from tlearn.heads.pooling import pool

    x = pool(features, pooling)
    for number, width in enumerate(units):
        x = _dropout(x, dropout, f"head_dropout_{number}")
        x = _dense(x, width, f"head_dense_{number}")
        if normalization is Normalization.batch:
            x = layers.BatchNormalization(name=f"head_norm_{number}", dtype="float32")(x)
        elif normalization is Normalization.layer:
            x = layers.LayerNormalization(name=f"head_norm_{number}", dtype="float32")(x)
        x = layers.Activation(activation.value, name=f"head_act_{number}", dtype="float32")(x)
    return _dense(_dropout(x, dropout, "head_dropout"), classes, "head_logits")


def _dense(x: Any, width: int, name: str) -> Any:
    from keras import layers

    return layers.Dense(width, name=name, dtype="float32")(x)


def _dropout(x: Any, rate: float, name: str) -> Any:
    from keras import layers

    return layers.Dropout(rate, name=name, dtype="float32")(x) if rate else x


_BUILTIN: dict[str, HeadFunction] = {LINEAR: _linear, MLP: _mlp}

HEADS: Registry[HeadFunction] = Registry(KEY, _BUILTIN)
