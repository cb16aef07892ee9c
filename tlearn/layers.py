"""The tensors of a network by the names that people give their layers.

A layer is named as ``python -m tlearn.backbones NAME`` lists it: by its stable name, by its block, or by its index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from tlearn.backbones import Backbone, stable_names
from tlearn.config import Pooling
from tlearn.errors import Problem, UserError, did_you_mean

Layer = str | int
"""A layer by stable name, by block, or by index in the order of ``python -m tlearn.backbones NAME``."""

POOLED = "pooled"
"""Name of the default features: the last feature map, averaged over positions."""


class Layers:
    """The layers of a backbone and of a head above it.

    Args:
        backbone: the architecture with its layers, stable names and blocks.
        head_layers: the layers above it.
    """

    def __init__(self, backbone: Backbone, head_layers: Sequence[Any] = ()) -> None:
        self._backbone = backbone
        self._head_layers = tuple(head_layers)
        self._tensors: dict[tuple[Layer, Pooling], Any] = {}

    @cached_property
    def feature_map(self) -> Any:
        """``KerasTensor`` (batch, h, w, channels): the last one of the backbone."""
        backbone = self._backbone
        has_top = len(backbone.output.shape) != 4
        return backbone.layers[backbone.blocks[-1].last].output if has_top else backbone.output

    def tensors(self, layers: Sequence[Layer], pooling: Pooling | str | None = None) -> dict[str, Any]:
        """``KerasTensor`` of each layer, by the names given; of none: ``pooled`` alone.

        Raises:
            UserError: with every name that is no layer of this network, and the nearest ones.
        """
        found: dict[str, Any] = {}
        problems: list[Problem] = []
        for layer in layers or [POOLED]:
            try:
                found[str(layer)] = self._tensor(layer, poolings(pooling))
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
        return found

    def _tensor(self, layer: Layer, pooling: Pooling) -> Any:
        """The same object each time: functions are compiled for it."""
        key = (layer, pooling)
        if key not in self._tensors:
            pooled = layer == POOLED
            tensor = self.feature_map if pooled else self._layer(layer).output
            self._tensors[key] = pool(tensor, Pooling.avg if pooled else pooling)
        return self._tensors[key]

    def _layer(self, layer: Layer) -> Any:
        """A layer by index, by name, or by block: its last one. A name goes before a block of the same name."""
        backbone = self._backbone
        own = dict(zip(backbone.names, backbone.layers, strict=True))
        head = dict(zip(stable_names(self._head_layers), self._head_layers, strict=True))
        blocks = {block.name: backbone.layers[block.last] for block in backbone.blocks}
        if isinstance(layer, str) and layer.isascii() and layer.lstrip("-").isdigit():
            layer = int(layer)
        if isinstance(layer, int):
            if 0 <= layer < len(backbone.layers):
                return backbone.layers[layer]
            what, fix = f"{backbone.spec.name} has layers 0 to {len(backbone.layers) - 1}, got {layer}", ""
        else:
            named = blocks | head | own
            if layer in named:
                return named[layer]
            if layer.removeprefix("block:") in blocks:
                return blocks[layer.removeprefix("block:")]
            near = did_you_mean(layer, named)
            what, fix = f"{backbone.spec.name} has no layer or block {layer!r}", near if "did you" in near else ""
            fix += "\n    " if fix else ""
        raise UserError(Problem("layer", what, f"{fix}python -m tlearn.backbones {backbone.spec.name} lists them"))

    def name_of(self, tensor: Any) -> str:
        """Stable name of the layer that makes a tensor."""
        layer = tensor._keras_history.operation
        own = str(layer.name)
        names = {id(known): name for known, name in zip(self._backbone.layers, self._backbone.names, strict=True)}
        return names.get(id(layer), own)


def named_layers(layer: Any) -> tuple[list[Layer], bool]:
    """The layers that a caller asked for, NumPy's whole numbers too, and whether they came as several.

    Raises:
        UserError: something else than a name or an index.
    """
    several = isinstance(layer, Iterable) and not isinstance(layer, str)
    named = [int(each) if isinstance(each, np.integer) else each for each in (layer if several else [layer])]
    for each in named:
        if not isinstance(each, str | int):
            raise UserError(Problem("layer", f"is {each!r}", "give a name, an index, or a list of them"))
    return named, several


def poolings(pooling: Pooling | str | None) -> Pooling:
    """A pooling that needs no weights. Raises UserError for others."""
    known = {kind.value: kind for kind in (Pooling.none, Pooling.avg, Pooling.max)}
    name = pooling.value if isinstance(pooling, Pooling) else pooling or "none"
    if name not in known:
        raise UserError(Problem("pooling", f"is {name!r}", did_you_mean(name, known)))
    return known[name]


def pool(tensor: Any, pooling: Pooling) -> Any:
    """A feature map pooled over positions; anything else as it is."""
    if pooling is Pooling.none or len(tensor.shape) != 4:
        return tensor
    import keras

    average, largest = keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D
    return (average if pooling is Pooling.avg else largest)(dtype="float32")(tensor)
