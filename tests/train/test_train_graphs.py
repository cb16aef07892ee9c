"""One graph for batches of all sizes."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tlearn.train.graphs import for_any_batch


def test_one_graph_is_made_for_all_sizes() -> None:
    made = []

    @for_any_batch
    def total(pair: list[tf.Tensor], factor: tf.Tensor) -> tf.Tensor:
        made.append(pair[0].shape)
        return tf.reduce_sum(pair[0] + pair[1]) * factor[0]

    @tf.function
    def outer(images: tf.Tensor) -> tf.Tensor:
        return total([images, images], tf.constant([2.0]))

    for size in (4, 3, 4, 1):
        images = np.ones((size, 2), np.float32)
        assert total([images, images], np.array([2.0], np.float32)).numpy() == 8 * size
        assert outer(tf.constant(images)).numpy() == 8 * size
    assert [shape.as_list() for shape in made] == [[None, 2]]
    total([np.ones((2, 3), np.float32)] * 2, np.array([1.0], np.float32))
    assert len(made) == 2, "another shape behind the batch is another graph"


def test_none_is_made_where_somebody_wants_to_look_inside() -> None:
    seen = []
    tf.config.run_functions_eagerly(True)
    try:
        for_any_batch(lambda images: seen.append(images.numpy().sum()))(np.ones((3, 2), np.float32))
    finally:
        tf.config.run_functions_eagerly(False)
    assert seen == [6]
