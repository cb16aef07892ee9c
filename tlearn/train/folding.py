"""Batch norm folded into the layer before it: one multiplication less for every number that layer gives.

In inference batch norm is a scale and a shift of each channel. Where it follows a linear layer that nothing else
listens to, both can be worked into that layer's kernel and bias beforehand (Jacob et al. 2017, arXiv 1712.05877,
section 3.2). The result is the same function; its numbers differ in rounding only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tlearn.train.frontier import nodes_of


@dataclass(frozen=True, eq=False)
class Folding:
    """What a model becomes.

    Attributes:
        replaced: what is computed in place of an operation, by the operation's id.
        folded: batch norms that are gone.
        kept: batch norms that are still there.
    """

    replaced: dict[int, Callable[..., Any]]
    folded: tuple[Any, ...]
    kept: tuple[Any, ...]

    def __call__(self, model: keras.Model, images: Any) -> Any:
        """The model's outputs in inference mode, with its graph run through what it became."""
        images = keras.ops.cast(images, model.inputs[0].dtype)
        return model._run_through_graph(images, lambda operation: self.replaced.get(id(operation), operation))


def fold_batch_norms(model: keras.Model) -> Folding:
    """Fold what can be folded exactly, with the weights as they are now.

    Args:
        model: flat, of one input.
    """
    nodes = nodes_of(model)
    calls = Counter(id(node.operation) for node in nodes)
    uses = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    uses.update(id(tensor) for tensor in model.outputs)
    replaced: dict[int, Callable[..., Any]] = {}
    folded, kept = [], []
    for node in nodes:
        norm = node.operation
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        (source,) = node.input_tensors
        below = source._keras_history.operation
        alone = uses[id(source)] == 1 and calls[id(norm)] == calls[id(below)] == 1
        layer = _with_norm(below, norm) if alone and _spans_channels(norm, source) else None
        if layer is None:
            kept.append(norm)
        else:
            replaced |= {id(below): layer, id(norm): _unchanged}
            folded.append(norm)
    return Folding(replaced, tuple(folded), tuple(kept))


def _unchanged(inputs: Any, mask: Any = None) -> Any:
    return inputs


def _spans_channels(norm: Any, source: Any) -> bool:
    return norm.axis in (-1, len(source.shape) - 1) and norm.compute_dtype == "float32"


def _with_norm(layer: Any, norm: Any) -> Callable[[Any], Any] | None:
    """A linear layer together with the batch norm above it; None where the layer is of another kind."""
    make = _KINDS.get(type(layer))
    linear = make is not None and layer.activation is keras.activations.linear and layer.compute_dtype == "float32"
    if make is None or not linear or getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    scale, shift = _scale_and_shift(norm)
    if layer.use_bias:
        shift = shift + np.asarray(layer.bias, np.float64) * scale
    bias = tf.constant(shift, tf.float32)
    linear_part = make(layer, scale)
    # in this form TensorFlow fuses it with the layer and the activation above
    return lambda inputs: tf.nn.bias_add(linear_part(inputs), bias)


def _scale_and_shift(norm: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What batch norm does to each channel in inference, (channels,) each."""
    mean, variance = (np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance))
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma, np.float64)
    shift = -mean * scale
    return scale, shift + np.asarray(norm.beta, np.float64) if norm.center else shift


def _scaled(kernel: Any, scale: NDArray[np.float64]) -> Any:
    return tf.constant(np.asarray(kernel, np.float64) * scale, tf.float32)


def _places(layer: Any) -> dict[str, Any]:
    """How a convolution moves over its input."""
    return {"strides": layer.strides, "padding": layer.padding, "dilation_rate": layer.dilation_rate}


def _convolution(layer: Any, scale: NDArray[np.float64]) -> Callable[[Any], Any]:
    kernel = _scaled(layer.kernel, scale)
    return lambda inputs: keras.ops.conv(inputs, kernel, data_format="channels_last", **_places(layer))


def _depthwise(layer: Any, scale: NDArray[np.float64]) -> Callable[[Any], Any]:
    kernel = _scaled(layer.kernel, scale.reshape(layer.kernel.shape[-2:]))
    return lambda inputs: keras.ops.depthwise_conv(inputs, kernel, data_format="channels_last", **_places(layer))


def _separable(layer: Any, scale: NDArray[np.float64]) -> Callable[[Any], Any]:
    pointwise = _scaled(layer.pointwise_kernel, scale)
    return lambda inputs: keras.ops.separable_conv(
        inputs, layer.depthwise_kernel, pointwise, data_format="channels_last", **_places(layer)
    )


def _dense(layer: Any, scale: NDArray[np.float64]) -> Callable[[Any], Any]:
    kernel = _scaled(layer.kernel, scale)
    return lambda inputs: keras.ops.matmul(inputs, kernel)


# exactly these: a subclass may compute something else
_KINDS: dict[type, Callable[[Any, NDArray[np.float64]], Callable[[Any], Any]]] = {
    keras.layers.Conv2D: _convolution,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.SeparableConv2D: _separable,
    keras.layers.Dense: _dense,
}
