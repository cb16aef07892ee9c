"""What rounding weights to 8 bits does to a network on average, taken back.

A kernel whose numbers are rounded makes its layer give a little too much or too little, channel by channel, and not by
chance alone: the sums do not cancel, and the layers above see inputs of another mean. That mean is measured on images
and subtracted from the layer's bias, or where it has none, from what the batch norm above it subtracts (Nagel et al.
2019, arXiv 1906.04721, section 4.2, with images instead of statistics of batch norms). The size of the export and the
work it does stay the same.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tlearn.train.frontier import nodes_of

_LARGEST = 127  # LiteRT's weights are symmetric: -127..127, with a scale for each channel
_BATCH = 8  # images at a time: all layers' inputs are at hand at once


@contextlib.contextmanager
def mean_errors_corrected(model: keras.Model, pixels: NDArray[Any]) -> Iterator[None]:
    """Change biases for the time of a conversion.

    Args:
        model: flat, of one input, in float32.
        pixels: images to measure on, (n, S, S, 3), RGB 0..255.
    """
    places = _places(model)
    changed = [place.variable for place in places]
    before = [variable.numpy() for variable in changed]
    try:
        for place, error in zip(places, _mean_errors(model, places, pixels), strict=True):
            place.variable.assign(place.variable.numpy() + place.sign * error)
        yield
    finally:
        for variable, values in zip(changed, before, strict=True):
            variable.assign(values)


@dataclass(frozen=True, eq=False)
class _Place:
    """A layer whose mean error can be corrected.

    Attributes:
        error: of the layer's output by rounding, for its input, (batch, ..., channels).
        input: ``KerasTensor``.
        variable: what is changed by the mean of it, (channels,).
        sign: 1 where the variable is subtracted, -1 where it is added.
    """

    error: Callable[[Any], Any]
    input: Any
    variable: Any
    sign: int


def _places(model: keras.Model) -> list[_Place]:
    nodes = nodes_of(model)
    calls = Counter(id(node.operation) for node in nodes)
    users = defaultdict(list)
    for node in nodes:
        for tensor in node.input_tensors:
            users[id(tensor)].append(node.operation)
    found = []
    for node in nodes:
        layer = node.operation
        error_of = _KINDS.get(type(layer))
        if error_of is None or calls[id(layer)] > 1 or getattr(layer, "data_format", "channels_last")[-4:] != "last":
            continue
        above = users[id(node.output_tensors[0])]
        if layer.use_bias:
            found.append(_Place(error_of(layer), node.input_tensors[0], layer.bias, -1))
        elif len(above) == 1 and isinstance(above[0], keras.layers.BatchNormalization) and calls[id(above[0])] == 1:
            found.append(_Place(error_of(layer), node.input_tensors[0], above[0].moving_mean, 1))
    return found


def _mean_errors(model: keras.Model, places: list[_Place], pixels: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Of each place, (channels,), over all images and positions."""
    if not places:
        return []
    inputs = keras.Model(model.input, [place.input for place in places])

    @tf.function(input_signature=[tf.TensorSpec((None, *pixels.shape[1:]), tf.float32)], autograph=False)
    def sums(images: Any) -> list[Any]:
        many = tf.cast(tf.shape(images)[0], tf.float32)
        values = tf.nest.flatten(inputs(images, training=False))
        errors = [place.error(value) for place, value in zip(places, values, strict=True)]
        return [many * tf.reduce_mean(error, list(range(len(error.shape) - 1))) for error in errors]

    totals = [np.zeros(place.variable.shape) for place in places]
    for start in range(0, len(pixels), _BATCH):
        for total, added in zip(totals, sums(pixels[start : start + _BATCH].astype(np.float32)), strict=True):
            total += added.numpy()
    return [total / len(pixels) for total in totals]


# --- rounding --------------------------------------------------------------------------------------------------------


def _rounded(kernel: Any, channels: tuple[int, ...]) -> NDArray[np.float32]:
    """As in a LiteRT file: a scale for each channel; ``channels`` are the axes that tell them apart."""
    values = np.asarray(kernel)
    others = tuple(axis for axis in range(values.ndim) if axis not in channels)
    scale = np.abs(values).max(others, keepdims=True) / _LARGEST
    return np.asarray(np.round(values / np.where(scale, scale, 1)) * scale, np.float32)


def _error(kernel: Any, channels: tuple[int, ...]) -> NDArray[np.float32]:
    return np.asarray(_rounded(kernel, channels) - np.asarray(kernel))


def _moves(layer: Any) -> dict[str, Any]:
    """How a convolution goes over its input."""
    return {
        "strides": layer.strides,
        "padding": layer.padding,
        "dilation_rate": layer.dilation_rate,
        "data_format": "channels_last",
    }


def _of_convolution(layer: Any) -> Callable[[Any], Any]:
    error = _error(layer.kernel, (3,))
    return lambda inputs: keras.ops.conv(inputs, error, **_moves(layer))


def _of_depthwise(layer: Any) -> Callable[[Any], Any]:
    error = _error(layer.kernel, (2, 3))
    return lambda inputs: keras.ops.depthwise_conv(inputs, error, **_moves(layer))


def _of_separable(layer: Any) -> Callable[[Any], Any]:
    kernels = layer.depthwise_kernel, layer.pointwise_kernel
    rounded = _rounded(kernels[0], (2, 3)), _rounded(kernels[1], (3,))
    return lambda inputs: (
        keras.ops.separable_conv(inputs, *rounded, **_moves(layer))
        - keras.ops.separable_conv(inputs, *kernels, **_moves(layer))
    )


def _of_dense(layer: Any) -> Callable[[Any], Any]:
    error = _error(layer.kernel, (1,))
    return lambda inputs: keras.ops.matmul(inputs, error)


# exactly these: a subclass may compute something else
_KINDS: dict[type, Callable[[Any], Callable[[Any], Any]]] = {
    keras.layers.Conv2D: _of_convolution,
    keras.layers.DepthwiseConv2D: _of_depthwise,
    keras.layers.SeparableConv2D: _of_separable,
    keras.layers.Dense: _of_dense,
}
