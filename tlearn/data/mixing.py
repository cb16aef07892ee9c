"""Random changes of whole batches, by Keras' own layers: RandAugment, mixup, CutMix.

They run inside tf.data, as TensorFlow operations. What happens to a batch is a function of (seed, global step): the
layers draw from the stateless seeds made here, and never from the counters that they bring along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tlearn.config import AugmentConfig
from tlearn.data.table import ImageTable

OPERATIONS = (
    "random_shear",
    "random_translation",
    "random_rotation",
    "random_brightness",
    "random_color_degeneration",
    "random_contrast",
    "random_sharpness",
    "random_posterization",
    "solarization",
    "auto_contrast",
    "equalization",
)
"""The operations of ``keras.layers.RandAugment``, by the attributes that hold them."""


class Mixing:
    """The batch-level part of an AugmentConfig.

    Args:
        augment: what to do; with mixup and CutMix both set, a coin decides for each batch.
        classes: width of one-hot labels.
        seed: of everything here.
    """

    @staticmethod
    def of(augment: AugmentConfig, table: ImageTable, seed: int) -> Mixing | None:
        """The mixing that a config asks for; None when it asks for none."""
        if augment.rand_augment.p > 0 or augment.mixup > 0 or augment.cutmix > 0:
            return Mixing(augment, len(table.classes), seed)
        return None

    def __init__(self, augment: AugmentConfig, classes: int, seed: int) -> None:
        import keras

        self._classes = classes
        self._seed = seed
        self._probability = augment.rand_augment.p
        self._rounds = augment.rand_augment.operations if self._probability > 0 else 0
        # float32 whatever the dtype policy of the model. The seed given here is never used, but without one the
        # layers would take it from Python's global generator.
        common: dict[str, Any] = {"dtype": "float32", "seed": 0}
        operations = keras.layers.RandAugment(value_range=(0, 255), factor=augment.rand_augment.magnitude, **common)
        self._operations = [getattr(operations, name) for name in OPERATIONS]
        self._mixers: list[Any] = []
        if augment.mixup > 0:
            self._mixers.append(keras.layers.MixUp(alpha=augment.mixup, **common))
        if augment.cutmix > 0:
            # A range of one value: the layer then draws the weight from Beta(alpha, alpha), as the paper does.
            self._mixers.append(keras.layers.CutMix(factor=(augment.cutmix, augment.cutmix), **common))

    def __call__(self, images: Any, labels: Any, step: Any) -> tuple[Any, Any]:
        """Change one batch.

        Args:
            images: uint8 (b, S, S, 3).
            labels: int32 (b,) or float32 (b, k).
            step: int64 scalar, the global step.

        Returns:
            float32 (b, S, S, 3) in 0..255; labels as they were, or float32 (b, k) when images are mixed.
        """
        import tensorflow as tf

        seeds = _step_seeds(self._seed, step)
        images = tf.cast(images, tf.float32)
        for _ in range(self._rounds):
            images = self._operate(images, seeds)
        if not self._mixers:
            return images, labels
        if labels.shape.rank == 1:
            labels = tf.one_hot(labels, self._classes, dtype=tf.float32)
        branches = [_mix(mixer, images, labels, seeds) for mixer in self._mixers]
        mixed: tuple[Any, Any] = _one_of(branches, seeds)
        return mixed

    def _operate(self, images: Any, seeds: Any) -> Any:
        """One RandAugment operation, drawn for the batch, on each of its images with probability p.

        Calling the RandAugment layer itself would compute all eleven operations and keep one: six times slower
        (0.63 s against 0.10 s for 32 images of 160 pixels on one core).
        """
        import tensorflow as tf

        changed = _one_of([_apply(layer, images, seeds) for layer in self._operations], seeds)
        chosen = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seeds.next()) < self._probability
        return tf.where(chosen, changed, images)


def _apply(layer: Any, images: Any, seeds: Any) -> Callable[[], Any]:
    """A branch of the graph: an image layer's random change."""

    def branch() -> Any:
        change = layer.get_random_transformation(images, training=True, seed=seeds)
        changed = layer.transform_images(images, change, training=True)
        changed.set_shape(images.shape)  # some layers forget it, and branches must agree
        return changed

    return branch


def _mix(mixer: Any, images: Any, labels: Any, seeds: Any) -> Callable[[], tuple[Any, Any]]:
    """A branch of the graph: images and labels mixed alike."""

    def branch() -> tuple[Any, Any]:
        change = mixer.get_random_transformation({"images": images, "labels": labels}, training=True, seed=seeds)
        mixed_images = mixer.transform_images(images, change, training=True)
        mixed_labels = mixer.transform_labels(labels, change, training=True)
        mixed_images.set_shape(images.shape)
        mixed_labels.set_shape(labels.shape)
        return mixed_images, mixed_labels

    return branch


def _one_of(branches: list[Any], seeds: Any) -> Any:
    """Compute one branch, drawn at random; the others cost nothing."""
    import tensorflow as tf

    if len(branches) == 1:
        return branches[0]()
    drawn = tf.random.stateless_uniform([], seeds.next(), maxval=len(branches), dtype=tf.int32)
    return tf.switch_case(drawn, branches)


def _step_seeds(seed: int, step: Any) -> Any:
    """A Keras seed generator whose seeds are a function of (seed, step) and of how many were drawn before."""
    import keras
    import tensorflow as tf

    class StepSeeds(keras.random.SeedGenerator):
        """Stands in for the counter that Keras' layers draw from; it has no variable, hence no __init__ above."""

        def __init__(self) -> None:
            self._base = tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])
            self._drawn = 0

        def next(self, ordered: bool = True) -> Any:
            """int64 (2,), another one each time while the graph is traced."""
            self._drawn += 1
            return tf.random.experimental.stateless_fold_in(self._base, self._drawn)

    return StepSeeds()
