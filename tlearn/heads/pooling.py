"""From a feature map to one vector for each image.

Importing this module imports Keras and registers ``GeM``, which a saved model may hold.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from tlearn.config import Pooling


def pool(features: Any, pooling: Pooling | str) -> Any:
    """Pool a feature map.

    Args:
        features: ``KerasTensor`` (batch, h, w, channels), any float dtype.
        pooling: ``none`` flattens to (batch, h * w * channels); ``avg`` and ``max`` over positions; ``gem`` the
            generalised mean with a learnable exponent (``GeM``); ``avg_max`` both side by side,
            (batch, 2 * channels).

    Returns:
        ``KerasTensor``, float32, (batch, channels) unless said above. Layers are called ``head_pool...``.
    """
    pooling = Pooling(pooling)
    if pooling is Pooling.none:
        return layers.Flatten(name="head_pool", dtype="float32")(features)
    if pooling is Pooling.avg:
        return layers.GlobalAveragePooling2D(name="head_pool", dtype="float32")(features)
    if pooling is Pooling.max:
        return layers.GlobalMaxPooling2D(name="head_pool", dtype="float32")(features)
    if pooling is Pooling.gem:
        return GeM(name="head_pool", dtype="float32")(features)
    average = layers.GlobalAveragePooling2D(name="head_pool_avg", dtype="float32")(features)
    largest = layers.GlobalMaxPooling2D(name="head_pool_max", dtype="float32")(features)
    return layers.Concatenate(name="head_pool", dtype="float32")([average, largest])


@keras.saving.register_keras_serializable(package="tlearn")
class GeM(keras.layers.Layer):  # type: ignore[misc, unused-ignore]
    """Generalised mean over the spatial axes, with a learnable exponent.

    ``y = mean(x ** p) ** (1 / p)``: average pooling for p = 1, towards max pooling as p grows. Radenović, Tolias and
    Chum 2017, "Fine-tuning CNN Image Retrieval with No Human Annotation", arXiv 1711.02512, equation 3, with one p
    for all channels as in their experiments.

    Input (batch, h, w, channels), values below ``epsilon`` count as ``epsilon`` (features come out of a ReLU);
    output (batch, channels).

    Args:
        initial_p: exponent before training; the paper starts at 3.
        epsilon: smallest value, above 0 so that powers and their gradients exist.
    """

    def __init__(self, initial_p: float = 3.0, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_p = initial_p
        self.epsilon = epsilon

    def build(self, input_shape: Any) -> None:
        """Make the exponent."""
        self.p = self.add_weight(name="p", shape=(), initializer=keras.initializers.Constant(self.initial_p))

    def call(self, features: Any) -> Any:
        """Pool (batch, h, w, channels) to (batch, channels)."""
        features = ops.maximum(features, self.epsilon)
        # Dividing by the largest value first changes nothing in the result and keeps x ** p from overflowing.
        largest = ops.stop_gradient(ops.max(features, axis=(1, 2), keepdims=True))
        mean = ops.mean(ops.power(features / largest, self.p), axis=(1, 2))
        return ops.squeeze(largest, axis=(1, 2)) * ops.power(mean, 1.0 / self.p)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """(batch, channels)."""
        return (input_shape[0], input_shape[3])

    def get_config(self) -> dict[str, Any]:
        """What a saved model needs to make the layer again."""
        return {**super().get_config(), "initial_p": self.initial_p, "epsilon": self.epsilon}
