"""The frozen frontier: how far into a model nothing changes while a stage trains.

An operation is *cold* when it has no trainable weight, gives the same result in training as in inference, and all its
inputs are cold. The *frontier* is the set of tensors made by cold operations and used by others. Below it each image
needs to be computed only once. It is found from the model's graph alone; there is no table of architectures.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import keras


@dataclass(frozen=True, eq=False)
class Frontier:
    """Where a model is cut for a stage.

    Attributes:
        model: the whole model.
        tensors: the frontier, ``KerasTensor`` s (batch, ...), in the order of the graph.
        cold: the cold operations, in the order of the graph.
    """

    model: keras.Model
    tensors: tuple[Any, ...]
    cold: tuple[Any, ...]

    @property
    def is_worthwhile(self) -> bool:
        """Whether the cold part holds weights: else it is preprocessing alone, cheaper to repeat than to store."""
        return any(getattr(operation, "weights", ()) for operation in self.cold)

    @property
    def values(self) -> int:
        """Numbers to be kept for one image."""
        return sum(_size(tensor) for tensor in self.tensors)

    def prefix(self) -> keras.Model:
        """Model from images to the frontier: a list of tensors. It shares the variables of the whole model."""
        return keras.Model(self.model.input, list(self.tensors), name="prefix")

    def suffix(self) -> keras.Model:
        """Model from the frontier (a list of tensors) to the outputs. It shares the variables of the whole model."""
        return keras.Model(list(self.tensors), self.model.output, name="suffix")


def find_frontier(model: keras.Model) -> Frontier:
    """The frontier for the layers that are trainable now.

    Args:
        model: flat (no models within), of one input and one output.
    """
    nodes = nodes_of(model)
    cold_tensors = {id(tensor) for tensor in model.inputs}
    cold_operations: list[Any] = []
    hot_inputs: list[Any] = []
    for node in nodes:
        if is_still(node.operation) and all(id(tensor) in cold_tensors for tensor in node.input_tensors):
            cold_tensors |= {id(tensor) for tensor in node.output_tensors}
            cold_operations.append(node.operation)
        else:
            hot_inputs += node.input_tensors
    frontier = {id(tensor): tensor for tensor in hot_inputs if id(tensor) in cold_tensors}
    return Frontier(model, tuple(_smallest(frontier)), tuple(cold_operations))


def _smallest(frontier: dict[int, Any]) -> list[Any]:
    """Step back over operations without weights where their inputs are fewer numbers to keep than their result.

    That leaves out padding, and what can be made again from another tensor of the frontier, such as the pooling branch
    of an inception block.
    """
    pending = list(frontier.values())
    while pending:
        tensor = pending.pop()
        node = _node(tensor)
        if node.is_input or getattr(node.operation, "weights", ()):
            continue
        sources = [source for source in node.input_tensors if id(source) not in frontier]
        if sum(_size(source) for source in sources) < _size(tensor):
            del frontier[id(tensor)]
            frontier |= {id(source): source for source in sources}
            pending += sources
    return list(frontier.values())


def _size(tensor: Any) -> int:
    return math.prod(tensor.shape[1:])


def _node(tensor: Any) -> Any:
    """The call of an operation that made a tensor."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def is_still(operation: Any) -> bool:
    """Whether an operation has nothing to train and does in training what it does in inference."""
    if not isinstance(operation, keras.layers.Layer):
        return True  # an operation of keras.ops: it has no state
    if operation.trainable_variables or operation.losses or operation.activity_regularizer:
        return False  # a loss of what a layer gives counts even where nothing below it trains
    if len(operation.variables) > len(operation.weights):
        return False  # it draws random numbers: the state of a seed is a variable but no weight
    if isinstance(operation, keras.layers.BatchNormalization):
        return not operation.trainable  # the flag decides whether it uses the batch's own statistics
    if isinstance(operation, keras.layers.SpectralNormalization):
        return False  # it goes on estimating the norm even when frozen
    return is_of_keras(operation) or not _may_differ_in_training(operation)


def is_of_keras(operation: Any) -> bool:
    """Whether Keras itself defines an operation; else a user does."""
    return type(operation).__module__.partition(".")[0] == "keras"


def _may_differ_in_training(layer: Any) -> bool:
    """Of a user's own layer: it can see that it trains, or it keeps variables that may move."""
    moves = layer.trainable and bool(layer.non_trainable_variables)
    return moves or "training" in inspect.signature(layer.call).parameters


def nodes_of(model: keras.Model) -> list[Any]:
    """The nodes of the graph that lead to the outputs, each after those it depends on."""
    ordered: list[Any] = []
    seen = {id(tensor) for tensor in model.inputs}
    pending = [(tensor, False) for tensor in model.outputs]
    while pending:  # depth first without recursion: some networks are deeper than Python's stack allows
        tensor, expanded = pending.pop()
        node = _node(tensor)
        if expanded:
            if id(node) not in seen:
                seen.add(id(node))
                ordered.append(node)
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            pending.append((tensor, True))
            pending += [(source, False) for source in node.input_tensors if id(source) not in seen]
    return ordered
