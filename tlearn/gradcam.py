"""Grad-CAM: the channels of a feature map, weighted by how much each raises the score of a class.

Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2: the weight of a channel is the gradient of the class's
score, before softmax, averaged over positions; the map is the positive part of the weighted sum.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlearn.prediction import Guess

SIDE = 448
"""Pixels of each of the two pictures of an explanation."""

PICTURES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
"""Formats of the picture of an explanation, by the end of a file's name."""

_STRONGEST = 0.7  # opacity of the map where it is 1


def class_support(
    inputs: list[Any], features: Any, logits: Any, pixels: NDArray[Any], class_: int | None = None
) -> tuple[int, NDArray[np.float32] | None, NDArray[np.float32]]:
    """Where one image supports a class.

    Args:
        inputs: ``KerasTensor`` that the graph starts from.
        features: ``KerasTensor`` (batch, h, w, channels) of that graph.
        logits: ``KerasTensor`` (batch, classes): the scores before softmax or sigmoid.
        pixels: (S, S, 3), RGB in 0..255.
        class_: its index; None: the likeliest.

    Returns:
        The class; float32 (h, w), 0..1, 1 where support is strongest, all 0 where there is none, None where the class
        does not depend on the feature map; and float32 (classes,), all scores.
    """
    import keras
    import tensorflow as tf

    model = keras.Model(inputs, [features, logits])
    with tf.GradientTape() as tape:
        watched = tf.constant(pixels[None].astype(np.float32))
        tape.watch(watched)
        maps, scores = model(watched, training=False)
        scores = tf.cast(scores, tf.float32)
        index = int(tf.argmax(scores[0])) if class_ is None else class_
        score = scores[0, index]
    gradient = tape.gradient(score, maps)
    if gradient is None:
        return index, None, scores[0].numpy()
    weights = tf.reduce_mean(tf.cast(gradient, tf.float32), axis=(1, 2), keepdims=True)
    support = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), axis=-1))[0].numpy()
    largest = support.max()
    return index, support / largest if largest > 0 else support, scores[0].numpy()


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where an image supports a class.

    Attributes:
        path: of the image.
        guess: the class, and its probability.
        layer: of the feature map.
        map: float32 (h, w) of that layer's size, 0..1, 1 where support is strongest; all 0 where there is none.
        seen: uint8 (448, 448, 3), what the network sees of the image, in more detail than it does.
    """

    path: str
    guess: Guess
    layer: str
    map: NDArray[np.float32]
    seen: NDArray[np.uint8]

    def overlay(self) -> NDArray[np.uint8]:
        """The map in colours over the image in grey, uint8 (448, 448, 3): all colour in it is the map's."""
        from matplotlib import colormaps

        height, width = self.seen.shape[:2]
        # One value stands for the middle of its cell, as Pillow takes it: the map is not shifted by half a cell.
        large = np.asarray(Image.fromarray(self.map).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
        colours = colormaps["inferno"](large)[..., :3] * 255
        grey = np.asarray(Image.fromarray(self.seen).convert("L"), np.float32)[..., None]
        opacity = _STRONGEST * large[..., None]
        return np.asarray((1 - opacity) * grey + opacity * colours).round().astype(np.uint8)

    def png(self) -> bytes:
        """The ``picture`` as PNG."""
        return self.picture("png")

    def picture(self, format: str) -> bytes:
        """Input and overlay side by side, with class and probability, as one of ``PICTURES``."""
        from matplotlib.figure import Figure  # without pyplot: no global state, no display

        figure = Figure(figsize=(8.4, 4.7), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2)
        name = os.path.basename(self.path)
        left.imshow(self.seen)
        left.set_title(_short(name), fontsize=10, parse_math=False)
        right.imshow(self.overlay())
        wordnet = f" ({self.guess.wordnet})" if self.guess.wordnet else ""
        title = f"{_short(self.guess.label)}{wordnet}: {self.guess.probability:.3f}"
        right.set_title(title, fontsize=10, parse_math=False)
        support = f"Grad-CAM at {self.layer}, {self.map.shape[0]} x {self.map.shape[1]}; yellow: most support"
        right.set_xlabel(
            support if self.map.any() else f"Grad-CAM at {self.layer}: nothing supports this class", fontsize=8
        )
        left.set_xlabel("what the network sees", fontsize=8)
        for axes in (left, right):
            axes.set_xticks([])
            axes.set_yticks([])
        buffer = io.BytesIO()
        figure.savefig(buffer, format=format)
        return buffer.getvalue()


def _short(text: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 48 else f"{text[:47]}…"
