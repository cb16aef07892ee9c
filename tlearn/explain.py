"""``python -m tlearn.explain``: what in a photograph speaks for a class, as a picture beside the input (Grad-CAM)."""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlearn.arguments import check_writable, network_and_paths, network_parser, run_command
from tlearn.errors import Problem, UserError, did_you_mean
from tlearn.train.checkpoint import write_atomic
from tlearn.train.command import OK

if TYPE_CHECKING:
    from tlearn.images import ImageInput
    from tlearn.network import Guess, Layer, Network

_HELP = """\
Show what in a photograph speaks for a class: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

    python -m tlearn.explain runs/flowers photo.jpg                                  the likeliest class
    python -m tlearn.explain --backbone mobilenet --alpha 0.25 photo.jpg --class tabby -o tabby.png

Writes a PNG: on the left what the network sees, on the right the same in grey under a map that goes from dark over
red to yellow where the class finds most support. The map has the resolution of the last feature map, or of an earlier
one with --layer.
"""

_SIDE = 448  # pixels of each of the two pictures
_STRONGEST = 0.7  # opacity of the map where it is 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = network_parser("explain", _HELP, "PHOTO")
    parser.add_argument("--class", dest="class_", metavar="NAME|INDEX", help="default: the likeliest")
    parser.add_argument("--layer", metavar="L", help="name, block or index of a feature map; default: the last")
    parser.add_argument("--output", "-o", metavar="FILE", help="PNG to write; default: PHOTO-gradcam.png, here")
    return run_command(_command, parser, argv)


def _command(arguments: argparse.Namespace) -> int:
    open_network, paths = network_and_paths(arguments, include_top=True)
    if len(paths) != 1:
        raise UserError(Problem("arguments", f"one photograph is explained at a time, got {len(paths)}"))
    output = arguments.output or f"{Path(paths[0]).stem}-gradcam.png"
    check_writable(output)
    made = explain_file(open_network, paths[0], output, class_=arguments.class_, layer=arguments.layer)
    print(json.dumps({"path": paths[0], "output": output, "layer": made.layer, **made.guess.as_dict()}))
    return OK


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
        """Input and overlay side by side, with class and probability."""
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
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


def explain_file(
    open_network: Callable[[], Network], path: str, output: str, *, class_: str | int | None, layer: Layer | None
) -> Explanation:
    """Explain a photograph and write the picture, PNG.

    Raises:
        UserError: the photograph cannot be read, there is no such class or layer, or the output is the photograph.
    """
    if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
        raise UserError(Problem("--output", f"{output} is the photograph itself", "choose another name"))
    if os.path.isdir(path):
        raise UserError(Problem(path, "is a folder", "name one photograph"))
    made = grad_cam(open_network(), path, class_=class_, layer=layer)
    try:
        write_atomic(Path(output), made.png())
    except OSError as error:
        raise UserError(Problem("--output", f"{output} cannot be written: {error.strerror or error}")) from error
    return made


def grad_cam(
    network: Network, image: ImageInput, *, class_: str | int | None = None, layer: Layer | None = None
) -> Explanation:
    """Grad-CAM: the channels of a feature map, weighted by how much each raises the score of a class.

    Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2: the weight of a channel is the gradient of the class's
    score, before softmax, averaged over positions; the map is the positive part of the weighted sum.

    Args:
        network: with a classifier.
        image: one image: a path or an array.
        class_: name, WordNet id or index; None: the likeliest.
        layer: a feature map by name, block or index; None: the last.

    Raises:
        UserError: the image cannot be read, there is no such class, or the layer has no positions.
    """
    import keras
    import tensorflow as tf

    from tlearn.images import as_images

    images = as_images(image)
    if len(images) != 1:
        raise UserError(Problem("image", f"one image is explained at a time, got {len(images)}"))
    logits = network.logits
    features = network.feature_map if layer is None else network.tensors([layer])[str(layer)]
    name = _layer_name(network, features)
    if len(features.shape) != 4:
        raise UserError(Problem("layer", f"{name} has no positions: its output is {tuple(features.shape)}"))
    chosen = None if class_ is None else _class_index(network, class_)
    seen = network.reading.square(images.picture(0, network.reading), _SIDE)
    pixels = images.load(0, network.reading)[None].astype(np.float32)

    model = keras.Model(network.model.inputs, [features, logits])
    with tf.GradientTape() as tape:
        watched = tf.constant(pixels)
        tape.watch(watched)
        maps, scores = model(watched, training=False)
        scores = tf.cast(scores, tf.float32)
        index = int(tf.argmax(scores[0])) if chosen is None else chosen
        score = scores[0, index]
    gradient = tape.gradient(score, maps)
    if gradient is None:
        raise UserError(Problem("layer", f"the classes do not depend on {name}"))
    weights = tf.reduce_mean(tf.cast(gradient, tf.float32), axis=(1, 2), keepdims=True)
    support = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), axis=-1))[0].numpy()
    largest = support.max()
    probabilities = tf.sigmoid(scores[0]) if network.multi_label else tf.nn.softmax(scores[0])
    return Explanation(
        path=images.name(0),
        guess=network.guess(index, float(probabilities[index])),
        layer=name,
        map=support / largest if largest > 0 else support,
        seen=seen,
    )


def _layer_name(network: Network, tensor: Any) -> str:
    """Stable name of the layer that makes a tensor."""
    layer = tensor._keras_history.operation
    own = str(layer.name)
    names = {id(known): name for known, name in zip(network.backbone.layers, network.backbone.names, strict=True)}
    return names.get(id(layer), own)


def _class_index(network: Network, class_: str | int) -> int:
    """Number of a class. Raises UserError with the nearest names, or with all where a name stands for several."""
    text = str(class_)
    if isinstance(class_, str):
        wanted = text.replace("_", " ").casefold()
        found = [index for index, name in enumerate(network.classes) if name == text] or [
            index for index, name in enumerate(network.classes) if name.replace("_", " ").casefold() == wanted
        ]
        if network.wordnet and text in network.wordnet:
            found = [network.wordnet.index(text)]
        if len(found) > 1:
            rows = [f"{index}{f' ({network.wordnet[index]})' if network.wordnet else ''}" for index in found]
            raise UserError(
                Problem("class", f"{text!r} is the name of {len(found)} classes", f"give {' or '.join(rows)}")
            )
        if found:
            return found[0]
    if text.isascii() and text.isdigit() and int(text) < len(network.classes):
        return int(text)
    if text.isascii() and text.lstrip("-").isdigit():
        raise UserError(Problem("class", f"there are classes 0 to {len(network.classes) - 1}, got {text}"))
    hint = did_you_mean(text, network.classes)
    if near := difflib.get_close_matches(text.casefold(), [name.casefold() for name in network.classes], n=3):
        hint = f"did you mean {' or '.join(near)}?"
    raise UserError(Problem("class", f"there is no class {text!r}", hint))


def _short(text: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 48 else f"{text[:47]}…"


if __name__ == "__main__":
    sys.exit(main())
