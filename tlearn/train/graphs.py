"""Functions as graphs of TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def for_any_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors (batch, ...) as one graph for all sizes of batches.

    ``tf.function`` makes a graph for the first size, and with ``reduce_retracing`` another one for all sizes when it
    meets the second; the last batch of nearly every pass has one. Of a large network a graph takes seconds to make.
    """
    graph = tf.function(function, autograph=False)

    def call(*tensors: Any) -> Any:
        tensors = tf.nest.map_structure(tf.convert_to_tensor, tensors)
        if tf.config.functions_run_eagerly():  # asked for by who wants to look inside, as for any tf.function
            return function(*tensors)
        specs = tf.nest.map_structure(lambda one: tf.TensorSpec([None, *one.shape[1:]], one.dtype), tensors)
        return graph.get_concrete_function(*specs)(*tensors)  # which is looked up, not made, but for the first time

    return call
