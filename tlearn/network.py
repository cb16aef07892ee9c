"""A network to ask: what is in these images, what are their features, and what in them speaks for a class.

    network = tlearn.load("runs/flowers")                        # a finished run
    network = tlearn.backbone("mobilenet", include_top=True)     # ImageNet's own classes
    network = tlearn.backbone("vgg19", layer="block4_pool")      # features

No file is ever unpickled and no model deserialised: a network is built from its name or its run's config, and weights
are read as arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import yaml
from numpy.typing import NDArray

from tlearn.backbones import Backbone, build_backbone, check_backbone, get_spec, load_weights, stable_names
from tlearn.config import Config, Interpolation, OnError, Output, Pooling, Resize
from tlearn.errors import ConfigError, DataError, Problem, UserError, did_you_mean
from tlearn.heads import HEADS
from tlearn.imagenet import imagenet_classes
from tlearn.images import Batch, ImageInput, Images, Reading, as_images, batches
from tlearn.quiet import import_tensorflow
from tlearn.train.run import Run, resolve_weights

if TYPE_CHECKING:
    from tlearn.explain import Explanation

Layer = str | int
"""A layer by stable name, by block, or by index in the order of ``python -m tlearn.backbones NAME``."""

POOLED = "pooled"
"""Name of the default features: the last feature map, averaged over positions."""

IMAGENET_READING = Reading(image_size=224, crop_fraction=0.875)
"""How images are read for a bare backbone: the centre square of 0.875 of the shorter side, bilinear."""


@dataclass(frozen=True)
class Guess:
    """A class and its probability, 0..1.

    Attributes:
        index: of the network's output.
        label: name of the class.
        probability: of the class; where an image may have several labels, of this one by itself.
        wordnet: WordNet id of an ImageNet class.
    """

    index: int
    label: str
    probability: float
    wordnet: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data; ``wordnet`` only where there is one."""
        plain: dict[str, Any] = {"index": self.index, "label": self.label, "probability": self.probability}
        return plain if self.wordnet is None else {"index": self.index, "wordnet": self.wordnet, **plain}


@dataclass(frozen=True)
class Prediction:
    """What a network sees in an image: the likeliest classes, likeliest first."""

    path: str
    top: tuple[Guess, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"path": self.path, "top": [guess.as_dict() for guess in self.top]}


class Network:
    """A network and how images are read for it. Made by ``load`` and ``backbone``.

    Attributes:
        model: ``keras.Model``: RGB pixels 0..255, (batch, S, S, 3), to what calling the network gives.
        classes: names of the classes in the order of the outputs; empty where it has no classifier.
        wordnet: their WordNet ids, where they are ImageNet's.
        multi_label: whether an image may have several labels: probabilities then do not add up to one.
        reading: how a file becomes pixels.
        backbone: the architecture with its layers, stable names and blocks.
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
        self._scores = scores
        self._head_layers = tuple(head_layers)
        self._tensors: dict[tuple[Layer, Pooling], Any] = {}
        self._functions: dict[tuple[int, ...], Any] = {}

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
            UserError: the network has no classifier.
        """
        skip = OnError(on_error) is OnError.skip
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
            UserError: there is no such layer.
        """
        several = not (layer is None or isinstance(layer, str | int))
        outputs = self.tensors(layer if several else [layer] if layer is not None else [], pooling)  # type: ignore[arg-type, list-item]
        columns = _columns(self.compute(as_images(images), list(outputs.values()), batch_size), list(outputs.values()))
        return dict(zip(outputs, columns, strict=True)) if several else columns[0]

    def explain(self, image: ImageInput, class_: str | int | None = None, layer: Layer | None = None) -> Explanation:
        """What in an image speaks for a class, see ``tlearn.explain.grad_cam``."""
        from tlearn.explain import grad_cam

        return grad_cam(self, image, class_=class_, layer=layer)

    def export(self, output: str | os.PathLike[str] | None = None, **options: Any) -> dict[str, Any]:
        """Write it in other formats and check them, see ``tlearn.exporting.job.export_network``."""
        from tlearn.exporting.job import export_network

        return export_network(lambda: self, output=output, **options)

    # --- computing ---------------------------------------------------------------------------------------------------

    def compute(
        self, images: Images, outputs: list[Any], batch_size: int = 32, start: int = 0
    ) -> Iterator[tuple[Batch, list[NDArray[np.float32]]]]:
        """Tensors of the network for images, batch by batch.

        Args:
            images: what to read.
            outputs: ``KerasTensor`` of the network's graph.
            batch_size: images per step.
            start: number of the first image.

        Yields:
            The batch and a float32 array (b, ...) for each output, where b images of it could be read.
        """
        function = self._function(outputs)
        for batch in batches(images, self.reading, batch_size=batch_size, start=start):
            if len(batch.rows):
                yield batch, [value.numpy() for value in function(batch.pixels.astype(np.float32))]
            else:  # some operations cannot take an empty batch
                yield batch, [np.empty((0, *output.shape[1:]), np.float32) for output in outputs]

    def _function(self, outputs: list[Any]) -> Any:
        """Pixels to the outputs, compiled once."""
        key = tuple(id(output) for output in outputs)
        if key not in self._functions:
            import keras
            import tensorflow as tf

            image = self.model.inputs[0]
            if len(self.model.inputs) != 1 or tuple(image.shape[1:]) != (self.reading.image_size,) * 2 + (3,):
                what = f"the network takes {[tuple(tensor.shape) for tensor in self.model.inputs]}, not one image"
                raise UserError(Problem("input_tensor", what, "call its .model with what it takes"))
            model = keras.Model(image, outputs)

            pixels_of = tf.TensorSpec((None, *image.shape[1:]), tf.float32)

            @tf.function(input_signature=[pixels_of], autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
            def function(pixels: Any) -> list[Any]:
                values = model(tf.cast(pixels, image.dtype), training=False)
                return [tf.cast(value, tf.float32) for value in tf.nest.flatten(values)]

            self._functions[key] = function
        return self._functions[key]

    # --- layers by name ----------------------------------------------------------------------------------------------

    @cached_property
    def feature_map(self) -> Any:
        """``KerasTensor`` (batch, h, w, channels): the last one of the backbone."""
        backbone = self.backbone
        has_top = len(backbone.output.shape) != 4
        return backbone.layers[backbone.blocks[-1].last].output if has_top else backbone.output

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

    def tensors(self, layers: Sequence[Layer], pooling: Pooling | str | None = None) -> dict[str, Any]:
        """``KerasTensor`` of each layer, by the names given; of none: ``pooled`` alone.

        Raises:
            UserError: with every name that is no layer of this network, and the nearest ones.
        """
        found: dict[str, Any] = {}
        problems: list[Problem] = []
        for layer in layers or [POOLED]:
            try:
                found[str(layer)] = self._tensor(layer, _poolings(pooling))
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
        return found

    def _tensor(self, layer: Layer, pooling: Pooling) -> Any:
        """The same object each time: functions are compiled for it."""
        key = (layer, pooling)
        if key not in self._tensors:
            pooled = layer == POOLED
            tensor = self.feature_map if pooled else self._layer(layer).output
            self._tensors[key] = _pool(tensor, Pooling.avg if pooled else pooling)
        return self._tensors[key]

    def _layer(self, layer: Layer) -> Any:
        """A layer by index, by name, or by block: its last one. A name goes before a block of the same name."""
        backbone = self.backbone
        own = dict(zip(backbone.names, backbone.layers, strict=True))
        head = dict(zip(stable_names(self._head_layers), self._head_layers, strict=True))
        blocks = {block.name: backbone.layers[block.last] for block in backbone.blocks}
        if isinstance(layer, str) and layer.isascii() and layer.lstrip("-").isdigit():
            layer = int(layer)
        if isinstance(layer, int):
            if 0 <= layer < len(backbone.layers):
                return backbone.layers[layer]
            what, fix = f"{backbone.spec.name} has layers 0 to {len(backbone.layers) - 1}, got {layer}", ""
        else:
            named = blocks | head | own
            if layer in named:
                return named[layer]
            if layer.removeprefix("block:") in blocks:
                return blocks[layer.removeprefix("block:")]
            near = did_you_mean(layer, named)
            what, fix = f"{backbone.spec.name} has no layer or block {layer!r}", near if "did you" in near else ""
            fix += "\n    " if fix else ""
        raise UserError(Problem("layer", what, f"{fix}python -m tlearn.backbones {backbone.spec.name} lists them"))

    def _classifier_output(self) -> Any:
        if self._scores is None:
            name = self.backbone.spec.name
            fix = f'tlearn.backbone("{name}", include_top=True) has the ImageNet classes, a run has its own'
            raise UserError(Problem(name, "has no classifier", fix))
        return self._scores


def _poolings(pooling: Pooling | str | None) -> Pooling:
    """Those that need no weights. Raises UserError for others."""
    known = {kind.value: kind for kind in (Pooling.none, Pooling.avg, Pooling.max)}
    name = pooling.value if isinstance(pooling, Pooling) else pooling or "none"
    if name not in known:
        raise UserError(Problem("pooling", f"is {name!r}", did_you_mean(name, known)))
    return known[name]


def _pool(tensor: Any, pooling: Pooling) -> Any:
    """A feature map pooled over positions; anything else as it is."""
    if pooling is Pooling.none or len(tensor.shape) != 4:
        return tensor
    import keras

    average, largest = keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D
    return (average if pooling is Pooling.avg else largest)(dtype="float32")(tensor)


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


# --- making one ------------------------------------------------------------------------------------------------------


def backbone(
    name: str,
    *,
    layer: Layer | Sequence[Layer] | None = None,
    weights: str | None = "imagenet",
    image_size: int | None = None,
    alpha: float | None = None,
    depth_multiplier: int | None = None,
    dropout: float | None = None,
    include_top: bool = False,
    classes: int = 1000,
    pooling: Pooling | str | None = None,
    input_tensor: Any = None,
    options: Mapping[str, Any] | None = None,
    resize: Resize | str = Resize.crop,
    crop_fraction: float = IMAGENET_READING.crop_fraction,
    interpolation: Interpolation | str = Interpolation.bilinear,
    max_pixels: int = IMAGENET_READING.max_pixels,
) -> Network:
    """A pretrained network, to classify with or to take features from.

    Args:
        name: architecture, see ``python -m tlearn.backbones``.
        layer: what calling the network gives: a layer or block by name or index, or several; None: the last feature
            map, with ``include_top`` probabilities.
        weights: ``imagenet``, ``glyphs``, a weights file, a run folder, or None: random.
        image_size: side of the square input, pixels; None: the architecture's own.
        alpha, depth_multiplier, dropout: options of a MobileNet.
        include_top: with the network's own classifier.
        classes: its outputs; the names are known for ImageNet's 1000.
        pooling: of feature maps: None or ``none`` keeps them whole; ``avg`` or ``max`` over positions. Probabilities
            are not pooled.
        input_tensor: a ``KerasTensor`` of yours to build on, (batch, S, S, 3), RGB 0..255. ``model`` then starts where
            your tensor does.
        options: of a registered backbone.
        resize, crop_fraction, interpolation, max_pixels: how image files are read, see ``tlearn.images.Reading``.

    Raises:
        ConfigError, WeightsError: as ``tlearn.build_backbone`` does.
        UserError: there is no such layer.
    """
    weights = resolve_weights(weights)
    chosen: dict[str, Any] = {
        "weights": weights,
        "image_size": image_size,
        "alpha": alpha,
        "depth_multiplier": depth_multiplier,
        "dropout": dropout,
        "include_top": include_top,
        "classes": classes,
        "options": options,
    }
    if input_tensor is None:
        _raise_any(check_backbone(name, **chosen))  # before TensorFlow is imported
    _check_reading(crop_fraction, max_pixels)
    import_tensorflow()
    import keras

    with contextlib.redirect_stdout(sys.stderr):  # Keras prints what it downloads; standard output is for results
        built = build_backbone(name, input_tensor=input_tensor, **chosen)
    sources = keras.utils.get_source_inputs(built.input)
    sources = sources[0] if len(sources) == 1 else sources
    imagenet = imagenet_classes() if include_top and classes == 1000 else None
    reading = Reading(built.image_size, Resize(resize), crop_fraction, Interpolation(interpolation), max_pixels)
    network = Network(
        backbone=built,
        model=keras.Model(sources, built.output, name=name),
        scores=built.output if include_top else None,
        reading=reading,
        classes=_class_names(imagenet, classes) if include_top else (),
        wordnet=tuple(row.wordnet for row in imagenet) if imagenet else None,
    )
    if layer is not None or (pooling is not None and not include_top):
        outputs = _chosen_outputs(network, layer, pooling)
        network.model = keras.Model(sources, outputs, name=name)
    return network


def load(run: str | os.PathLike[str] | Run) -> Network:
    """The network of a finished run, with its final weights, its classes, and its way of reading images.

    The model is built from the run's config; of ``model.keras`` only the arrays are read. A backbone or head of your
    own is found as in training: through an entry point or ``TLEARN_PLUGINS``.

    Raises:
        UserError: the folder is no run, has not finished, or is from a version that knew other options.
        WeightsError: the model file is missing or damaged.
    """
    opened = run if isinstance(run, Run) else Run.open(os.fspath(run))
    config, classes, multi_label = _facts(opened)
    import_tensorflow()
    from tlearn.train.classifier import build_classifier

    classifier = build_classifier(
        config.backbone,
        config.head,
        weights=None,
        classes=config.head.classes or len(classes),
        multi_label=multi_label,
        precision=config.precision,
    )
    load_weights(
        opened.model_file, classifier.model.layers, network=f"the run {opened.path.name}", where=str(opened.path)
    )
    model = classifier.finished(Output.probabilities)
    data = config.data
    return Network(
        backbone=classifier.backbone,
        model=model,
        scores=model.output,
        head_layers=(*classifier.head_layers, model.layers[-1]),
        reading=Reading(
            config.backbone.image_size or get_spec(config.backbone.name).image_size,
            data.resize,
            data.crop_fraction,
            data.interpolation,
            data.max_pixels,
        ),
        classes=(*classes, *(f"output {index}" for index in range(len(classes), classifier.classes))),
        multi_label=multi_label,
        run=opened,
    )


def _facts(run: Run) -> tuple[Config, tuple[str, ...], bool]:
    """Config, classes and kind of labels of a finished run. Raises UserError when it is not one this version knows."""
    if not run.summary_file.is_file():
        fix = f"go on with it: python -m tlearn.train resume={run.path}"
        raise UserError(Problem(str(run.path), "this run has not finished", fix))
    try:
        config, manifest = run.config, run.manifest
        get_spec(config.backbone.name), HEADS[config.head.name]  # a plugin's that is not there is found now
        classes, multi_label = tuple(manifest["classes"]), manifest["multi_label"]
        if not classes or not all(isinstance(name, str) for name in classes) or not isinstance(multi_label, bool):
            raise ValueError("manifest.json: its classes make no sense")
    except ConfigError as error:
        fix = (
            f"the run is from tlearn {_version(run)}: use that version; modules of your own are named in TLEARN_PLUGINS"
        )
        problems = [Problem(f"{run.config_file}: {problem.where}", problem.what, fix) for problem in error.problems]
        raise UserError(problems) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())[:300]
        raise UserError(Problem(str(run.path), f"this run folder is damaged: {words}")) from error
    return config, classes, multi_label


def _version(run: Run) -> str:
    """The version of tlearn that made a run, as far as its folder says."""
    try:
        return str(json.loads(run.environment_file.read_text(encoding="utf-8"))["packages"]["tlearn"])
    except (OSError, ValueError, KeyError, TypeError):
        return "of an unknown version"


def _chosen_outputs(network: Network, layer: Layer | Sequence[Layer] | None, pooling: Pooling | str | None) -> Any:
    if layer is None:
        return _pool(network.feature_map, _poolings(pooling))
    several = not isinstance(layer, str | int)
    outputs = list(network.tensors(layer if several else [layer], pooling).values())  # type: ignore[arg-type, list-item]
    return outputs if several else outputs[0]


def _class_names(imagenet: Any, classes: int) -> tuple[str, ...]:
    return tuple(row.name for row in imagenet) if imagenet else tuple(map(str, range(classes)))


def _check_reading(crop_fraction: float, max_pixels: int) -> None:
    if not 0 < crop_fraction <= 1:
        raise ConfigError(Problem("crop_fraction", f"must be above 0 and at most 1, got {crop_fraction}"))
    if max_pixels < 1:
        raise ConfigError(Problem("max_pixels", f"must be 1 or more, got {max_pixels}"))


def _raise_any(problems: list[Problem]) -> None:
    if problems:
        raise ConfigError(problems)
