"""Names of layers and variables that do not depend on what else the process has built.

Keras numbers unnamed layers through the whole process: the first InceptionV3 starts at ``conv2d``, the second at
``conv2d_94``. Weight files and selectors need names that are the same everywhere, so such layers are numbered again,
from zero within the network, which is what a fresh process would have called them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def stable_names(layers: Sequence[Any]) -> tuple[str, ...]:
    """One name for each layer: its own if somebody chose it, else its type with a number that starts at zero.

    Args:
        layers: all layers of a network (numbers start at the smallest of each type among them).

    Returns:
        Names in the order of ``layers``, each once.

    Raises:
        ValueError: two layers would have the same name.
    """
    numbers = [_automatic_number(layer) for layer in layers]
    first: dict[str, int] = {}
    for layer, number in zip(layers, numbers, strict=True):
        if number is not None:
            kind = _snake_case(type(layer).__name__)
            first[kind] = min(number, first.get(kind, number))

    names = []
    for layer, number in zip(layers, numbers, strict=True):
        if number is None:
            names.append(layer.name)
        else:
            kind = _snake_case(type(layer).__name__)
            names.append(f"{kind}_{number - first[kind]}" if number > first[kind] else kind)
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"layers share a name: {', '.join(twice)}")
    return tuple(names)


def variable_keys(layers: Sequence[Any], names: Sequence[str] | None = None) -> dict[str, Any]:
    """Every weight of the layers under a key ``<stable layer name>/<variable name>``, such as ``conv1/kernel``.

    The keys of ``.npz`` weight files and of checkpoints. Two variables of one layer that share a name (a layer made of
    layers) are told apart by ``_1``, ``_2``, ... in Keras' order. Seeds of random layers are not weights.

    Args:
        layers: all layers of a network.
        names: their names; None: ``stable_names(layers)``.

    Returns:
        Key → ``keras.Variable``, in the order of the layers.
    """
    keys: dict[str, Any] = {}
    for name, layer in zip(names or stable_names(layers), layers, strict=True):
        for variable in layer.weights:
            key, number = f"{name}/{variable.name}", 0
            while key in keys:
                number += 1
                key = f"{name}/{variable.name}_{number}"
            keys[key] = variable
    return keys


def class_counters(layers: Sequence[Any]) -> tuple[str, ...]:
    """What Keras calls each layer inside a ``.weights.h5`` file: its type, counted in the order of the layers."""
    seen: dict[str, int] = {}
    names = []
    for layer in layers:
        kind = _snake_case(type(layer).__name__)
        count = seen.get(kind, 0)
        names.append(f"{kind}_{count}" if count else kind)
        seen[kind] = count + 1
    return tuple(names)


def _automatic_number(layer: Any) -> int | None:
    """The number Keras gave an unnamed layer (0 for none), None for a layer with a name of its own."""
    match = re.fullmatch(re.escape(_snake_case(type(layer).__name__)) + r"(?:_(\d+))?", layer.name)
    return None if match is None else int(match[1] or 0)


def _snake_case(name: str) -> str:
    """A class name as Keras writes it in layer names: ``MaxPooling2D`` → ``max_pooling2d``, ``ReLU`` → ``re_lu``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<!^)(?=[A-Z][a-z])", "_", name).lower()
