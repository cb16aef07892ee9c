"""A network to ask: what is in these images, what are their features, and what in them speaks for a class.

    network = tlearn.load("runs/flowers")                        # a finished run
    network = tlearn.backbone("mobilenet", include_top=True)     # ImageNet's own classes
    network = tlearn.backbone("vgg19", layer="block4_pool")      # features

``tlearn.opening`` makes one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from tlearn.backbones import Backbone
from tlearn.choices import choice
from tlearn.config import OnError, Pooling, PrefixEngine
from tlearn.data import Reading
from tlearn.errors import DataError, Problem, UserError
from tlearn.gradcam import SIDE, Explanation, class_support
from tlearn.images import Batch, ImageInput, Images, as_images, batches
from tlearn.layers import Layer, Layers, named_layers
from tlearn.prediction import Guess, Prediction, find_class
from tlearn.train.run import Run

if TYPE_CHECKING:
    from tlearn.evaluate.evaluation import Evaluation


class Network:
    """A network and how images are read for it. Made by ``tlearn.load`` and ``tlearn.backbone``.

    Attributes:
        model: ``keras.Model``: RGB pixels 0..255, (batch, S, S, 3), to what calling the network gives.
        classes: names of the classes in the order of the outputs; empty where it has no classifier.
        wordnet: their WordNet ids, where they are ImageNet's.
        multi_label: whether an image may have several labels: probabilities then do not add up to one.
        reading: how a file becomes pixels.
        backbone: the architecture with its layers, stable names and blocks.
        layers: tensors of the network by the names of its layers.
        run: the run it is from; None for a bare backbone.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        model: Any,
        scores: Any,
        reading: Reading,
        head_layers: Sequence[Any] = (),
        classes: tuple[str, ...] = (),
        wordnet: tuple[str, ...] | None = None,
        multi_label: bool = False,
        run: Run | None = None,
    ) -> None:
        self.model = model
        self.classes = classes
        self.wordnet = wordnet
        self.multi_label = multi_label
        self.reading = reading
        self.backbone = backbone
        self.run = run
        self.layers = Layers(backbone, head_layers)
        self._scores = scores
        self._functions: dict[tuple[Any, ...], Any] = {}

    # --- asking ------------------------------------------------------------------------------------------------------

    def __call__(self, images: ImageInput) -> Any:
        """What ``model`` gives for images: float32 (n, ...), a list of arrays where it has several outputs.

        Raises:
            DataError: an image cannot be read.
        """
        outputs = list(self.model.outputs)
        columns = _columns(self.compute(as_images(images), outputs), outputs)
        return columns if len(columns) > 1 else columns[0]

    def predict(
        self,
        images: ImageInput,
        *,
        top: int = 5,
        threshold: float = 0.0,
        batch_size: int = 32,
        on_error: OnError | str = OnError.stop,
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: paths of images and folders, or arrays, see ``tlearn.images.ImageInput``.
            top: how many classes to give for each, likeliest first.
            threshold: leave out classes with a smaller probability.
            batch_size: images per step; memory grows with it.
            on_error: ``stop`` raises at the first image that cannot be read, ``skip`` leaves such images out.

        Raises:
            DataError: an image cannot be read, with ``stop``.
            UserError: the network has no classifier, or an argument makes no sense.
        """
        skip = choice(OnError, on_error, "on_error") is OnError.skip
        asked = as_images(images)
        predictions: list[Prediction] = []
        for batch, found in self.predict_batches(asked, top=top, threshold=threshold, batch_size=batch_size):
            if batch.unreadable and not skip:
                raise _unreadable(batch, 'on_error="skip" leaves such images out')
            predictions += found
        return predictions

    def predict_batches(
        self, images: Images, *, top: int = 5, threshold: float = 0.0, batch_size: int = 32
    ) -> Iterator[tuple[Batch, list[Prediction]]]:
        """Like ``predict``, batch by batch, with what could not be read in each ``Batch``."""
        _check_counts(top=top, batch_size=batch_size)
        scores = self._classifier_output()
        for batch, (probabilities,) in self.compute(images, [scores], batch_size=batch_size):
            names = (images.name(int(row)) for row in batch.rows)
            yield (
                batch,
                [
                    Prediction(name, self.best(row, top, threshold))
                    for name, row in zip(names, probabilities, strict=True)
                ],
            )

    def best(self, probabilities: NDArray[Any], top: int, threshold: float = 0.0) -> tuple[Guess, ...]:
        """The likeliest classes of one image, (classes,) probabilities; equal ones in the order of the outputs."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        return tuple(self.guess(int(i), float(probabilities[i])) for i in order if probabilities[i] >= threshold)

    def guess(self, index: int, probability: float) -> Guess:
        """A class with its names."""
        wordnet = None if self.wordnet is None else self.wordnet[index]
        return Guess(index, self.classes[index], probability, wordnet)

    @overload
    def features(
        self,
        images: ImageInput,
        layer: Layer | None = None,
        *,
        pooling: Pooling | str | None = None,
        batch_size: int = 32,
    ) -> NDArray[np.float32]: ...

    @overload
    def features(
        self,
        images: ImageInput,
        layer: Sequence[Layer],
        *,
        pooling: Pooling | str | None = None,
        batch_size: int = 32,
    ) -> dict[str, NDArray[np.float32]]: ...

    def features(
        self,
        images: ImageInput,
        layer: Layer | Sequence[Layer] | None = None,
        *,
        pooling: Pooling | str | None = None,
        batch_size: int = 32,
    ) -> NDArray[np.float32] | dict[str, NDArray[np.float32]]:
        """What layers make of images.

        Args:
            images: paths of images and folders, or arrays.
            layer: name, block or index, or several; None: the last feature map, averaged over positions.
            pooling: of feature maps of the layers named: ``none`` keeps them whole; ``avg`` or ``max`` over positions.
            batch_size: images per step.

        Returns:
            float32 (n, ...); for several layers a dict of them by the names that were asked for.

        Raises:
            DataError: an image cannot be read.
            UserError: there is no such layer, or an argument makes no sense.
        """
        _check_counts(batch_size=batch_size)
        named, several = ([], False) if layer is None else named_layers(layer)
        outputs = self.layers.tensors(named, pooling)
        columns = _columns(self.compute(as_images(images), list(outputs.values()), batch_size), list(outputs.values()))
        return dict(zip(outputs, columns, strict=True)) if several else columns[0]

    def explain(self, image: ImageInput, class_: str | int | None = None, layer: Layer | None = None) -> Explanation:
        """What in an image speaks for a class: Grad-CAM, see ``tlearn.gradcam``.

        Args:
            image: one image: a path or an array.
            class_: name, WordNet id or index; None: the likeliest.
            layer: a feature map by name, block or index; None: the last.

        Raises:
            UserError: the image cannot be read, there is no such class, or the layer has no positions.
        """
        images = as_images(image)
        if len(images) != 1:
            raise UserError(Problem("image", f"one image is explained at a time, got {len(images)}"))
        logits = self.logits
        features = (
            self.layers.feature_map
            if layer is None
            else next(iter(self.layers.tensors(named_layers(layer)[0]).values()))
        )
        name = self.layers.name_of(features)
        if len(features.shape) != 4:
            raise UserError(Problem("layer", f"{name} has no positions: its output is {tuple(features.shape)}"))
        chosen = None if class_ is None else find_class(class_, self.classes, self.wordnet)
        pixels = images.load(0, self.reading)
        seen = self.reading.square(images.picture(0, self.reading), SIDE)
        index, support, scores = class_support(self.model.inputs, features, logits, pixels, chosen)
        if support is None:
            raise UserError(Problem("layer", f"the classes do not depend on {name}"))
        guess = self.guess(index, _probability(scores, index, self.multi_label))
        return Explanation(path=images.name(0), guess=guess, layer=name, map=support, seen=seen)

    def evaluate(
        self, data: str | os.PathLike[str] | None = None, *, against: Network | None = None, **settings: Any
    ) -> Evaluation:
        """How good the network is on labelled images.

        Args:
            data: a folder of class folders, or a table (.csv, .tsv, .parquet); None: the data of the run.
            against: another network, to be compared with on the same images (McNemar's test).
            settings: see ``tlearn.evaluate.api.Settings``: ``split="test"``, ``method="knn"``, ...

        Raises:
            UserError, DataError: everything a user can mend, such as classes that the network does not know.
        """
        from tlearn.evaluate.api import Settings, evaluate_network

        path = None if data is None else os.fspath(data)
        return evaluate_network(self, path, Settings(**settings), against=against)

    def export(self, output: str | os.PathLike[str] | None = None, **options: Any) -> dict[str, Any]:
        """Write it in other formats and check them, see ``tlearn.exporting.job.export_network``."""
        from tlearn.exporting.job import export_network

        return export_network(lambda: self, output=output, **options)

    # --- computing ---------------------------------------------------------------------------------------------------

    def compute(
        self,
        images: Images,
        outputs: list[Any],
        batch_size: int = 32,
        start: int = 0,
        engine: PrefixEngine = PrefixEngine.graph,
    ) -> Iterator[tuple[Batch, list[NDArray[np.float32]]]]:
        """Tensors of the network for images, batch by batch.

        Args:
            images: what to read.
            outputs: ``KerasTensor`` of the network's graph.
            batch_size: images per step.
            start: number of the first image.
            engine: ``folded`` for the numbers that training keeps; else the layers as they are.

        Yields:
            The batch and a float32 array (b, ...) for each output, where b images of it could be read.
        """
        import tensorflow as tf

        function = self._function(outputs, engine)
        for batch in batches(images, self.reading, batch_size=batch_size, start=start):
            if len(batch.rows):
                yield batch, [value.numpy() for value in function(tf.constant(batch.pixels, tf.float32))]
            else:  # some operations cannot take an empty batch
                yield batch, [np.empty((0, *output.shape[1:]), np.float32) for output in outputs]

    def _function(self, outputs: list[Any], engine: PrefixEngine) -> Any:
        """Pixels to the outputs, compiled once."""
        key = (engine, *(id(output) for output in outputs))
        if key not in self._functions:
            import tensorflow as tf

            from tlearn.train.engine import prefix_function

            image = self.model.inputs[0]
            if len(self.model.inputs) != 1 or tuple(image.shape[1:]) != (self.reading.image_size,) * 2 + (3,):
                what = f"the network takes {[tuple(tensor.shape) for tensor in self.model.inputs]}, not one image"
                raise UserError(Problem("input_tensor", what, "call its .model with what it takes"))
            compute = prefix_function(engine, self.model, outputs)
            pixels_of = tf.TensorSpec((None, *image.shape[1:]), tf.float32)

            @tf.function(input_signature=[pixels_of], autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
            def function(pixels: Any) -> list[Any]:
                return [tf.cast(value, tf.float32) for value in compute(tf.cast(pixels, image.dtype))]

            self._functions[key] = function.get_concrete_function()  # asked for it, TensorFlow counts no retracing
        return self._functions[key]

    @cached_property
    def logits(self) -> Any:
        """``KerasTensor`` (batch, classes): the scores before softmax or sigmoid. Raises UserError without them."""
        scores = self._classifier_output()
        last = scores._keras_history.operation
        if getattr(getattr(last, "activation", None), "__name__", "") not in ("softmax", "sigmoid"):
            return scores
        if not last.weights:
            return last.input
        import keras

        plain = keras.layers.Dense(last.units, name="logits", dtype=last.dtype_policy)
        logits = plain(last.input)
        plain.set_weights(last.get_weights())
        return logits

    def _classifier_output(self) -> Any:
        if self._scores is None:
            name = self.backbone.spec.name
            fix = f'tlearn.backbone("{name}", include_top=True) has the ImageNet classes, a run has its own'
            raise UserError(Problem(name, "has no classifier", fix))
        return self._scores


def _check_counts(**counts: int) -> None:
    problems = [Problem(name, f"must be 1 or more, got {count}") for name, count in counts.items() if count < 1]
    if problems:
        raise UserError(problems)


def _probability(scores: NDArray[np.float32], index: int, multi_label: bool) -> float:
    """Of one class, from all scores (classes,) before softmax or sigmoid."""
    others = np.array([0, scores[index]]) if multi_label else scores
    return float(np.exp(scores[index] - np.logaddexp.reduce(others)))


def _columns(computed: Iterator[tuple[Batch, list[NDArray[np.float32]]]], outputs: list[Any]) -> list[NDArray[Any]]:
    """All batches put together. Raises DataError at the first image that cannot be read."""
    parts: list[list[NDArray[np.float32]]] = [[np.empty((0, *output.shape[1:]), np.float32)] for output in outputs]
    for batch, values in computed:
        if batch.unreadable:
            raise _unreadable(batch, "leave it out")
        for part, value in zip(parts, values, strict=True):
            part.append(value)
    return [np.concatenate(part[1:] or part) for part in parts]


def _unreadable(batch: Batch, fix: str) -> DataError:
    name, reason = batch.unreadable[0]
    return DataError(Problem(name, reason, fix))
