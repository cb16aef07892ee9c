"""The name of an entry in the feature cache: a hash of everything that decides a single number in it.

The images, how they are read and changed, the operations of the prefix with their settings, order and weights, what is
kept of the results, and the versions of the programs that do all this. What is not in it (the rest of the head, the
optimizer, the batch size, the epochs) may differ between runs that share features.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from tlearn.backbones.naming import stable_names, variable_keys
from tlearn.config import AugmentConfig, PrefixEngine
from tlearn.data import Reading
from tlearn.train.feature_arrays import Layout
from tlearn.train.frontier import Frontier, is_of_keras

_FORMAT = 1  # of the entries: counts up when what they hold changes its meaning
_VERSIONS = ("tlearn", "tensorflow", "keras", "numpy", "pillow", "albumentations", "opencv-python-headless")


def feature_key(
    images: str | None,
    reading: Reading,
    prefix: str,
    layout: Layout,
    engine: PrefixEngine,
    augment: AugmentConfig | None,
    seed: int,
) -> str:
    """Name of an entry: 32 hexadecimal digits.

    Args:
        images: ``fingerprint`` of the images, in their order.
        reading: how a file becomes a square of pixels.
        prefix: ``prefix_hash`` of what is computed of them.
        layout: of the entry; its rows say how many views there are.
        engine: how they are computed; ``auto``: any way, the numbers of all agree but for rounding.
        augment: random changes; None: none, and ``seed`` does not matter.
        seed: of the changes.
    """
    ingredients = {
        "format": _FORMAT,
        "versions": {name: _version(name) for name in _VERSIONS},
        "images": images,
        "reading": [reading.resize, reading.crop_fraction, reading.interpolation, reading.decode],
        "augment": augment and {**asdict(augment), "name": None, "seed": seed},
        "prefix": prefix,
        "layout": asdict(layout),
        "engine": engine,
    }
    return hashlib.sha256(_json(ingredients)).hexdigest()[:32]


def prefix_hash(frontier: Frontier) -> str:
    """Hash of a prefix: its graph, and its weights as they are now."""
    prefix = frontier.prefix()
    layers = frontier.model.layers
    names = dict(zip([layer.name for layer in layers], stable_names(layers), strict=True))
    digest = hashlib.sha256(_json(_described(prefix.get_config(), names)))
    for operation in prefix.operations:
        if not is_of_keras(operation):
            digest.update(inspect.getsource(type(operation)).encode())
    for variable in variable_keys(prefix.layers).values():
        digest.update(np.ascontiguousarray(variable).data)
    return digest.hexdigest()


def indescribable(frontier: Frontier) -> str:
    """A cold layer that cannot be told from another one of the same name; empty where there is none."""
    for operation in frontier.cold:
        if not is_of_keras(operation):
            try:
                operation.get_config()
                inspect.getsource(type(operation))
            except (NotImplementedError, OSError, TypeError):
                return str(operation.name)
    return ""


def _described(settings: Any, names: dict[str, str]) -> Any:
    """Settings of a graph, with names that are the same in every process, and without what does not decide values."""
    if isinstance(settings, dict):
        return {key: _described(value, names) for key, value in settings.items() if key != "trainable"}
    if isinstance(settings, list | tuple):
        return [_described(value, names) for value in settings]
    return names.get(settings, settings) if isinstance(settings, str) else settings


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # tlearn in a bare checkout, OpenCV in another build
        return None


def _json(data: Any) -> bytes:
    def plain(value: Any) -> Any:
        return value.value if isinstance(value, Enum) else repr(value)

    return json.dumps(data, sort_keys=True, default=plain).encode()
