"""Opening a network: a pretrained backbone by its name, or the classifier of a finished run.

No file is ever unpickled and no model deserialised: a network is built from its name or its run's config, and weights
are read as arrays.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tlearn.backbones import build_backbone, check_backbone, get_spec, load_weights
from tlearn.choices import choice
from tlearn.config import Config, Interpolation, Output, Pooling, Resize
from tlearn.data import Reading
from tlearn.errors import ConfigError, Problem, UserError
from tlearn.heads import HEADS
from tlearn.imagenet import imagenet_classes
from tlearn.layers import Layer, named_layers, pool, poolings
from tlearn.network import Network
from tlearn.quiet import import_tensorflow
from tlearn.train.run import Run, resolve_weights

IMAGENET_READING = Reading(image_size=224, crop_fraction=0.875)
"""How images are read for a bare backbone: the centre square of 0.875 of the shorter side, bilinear."""


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
        resize, crop_fraction, interpolation, max_pixels: how image files are read, see ``tlearn.data.Reading``.

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
    way, kernel = choice(Resize, resize, "resize"), choice(Interpolation, interpolation, "interpolation")
    _check_reading(crop_fraction, max_pixels)
    import_tensorflow()
    import keras

    with contextlib.redirect_stdout(sys.stderr):  # Keras prints what it downloads; standard output is for results
        built = build_backbone(name, input_tensor=input_tensor, **chosen)
    sources = keras.utils.get_source_inputs(built.input)
    sources = sources[0] if len(sources) == 1 else sources
    imagenet = imagenet_classes() if include_top and classes == 1000 else None
    reading = Reading(built.image_size, way, crop_fraction, kernel, max_pixels)
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
    return Network(
        backbone=classifier.backbone,
        model=model,
        scores=model.output,
        head_layers=(*classifier.head_layers, model.layers[-1]),
        reading=Reading.of(config.data, config.backbone.image_size or get_spec(config.backbone.name).image_size),
        classes=(*classes, *(f"output {index}" for index in range(len(classes), classifier.classes))),
        multi_label=multi_label,
        run=opened,
    )


def check_run(run: str | os.PathLike[str]) -> None:
    """Raise UserError now for what ``load`` would raise before it builds anything."""
    _facts(Run.open(os.fspath(run)))


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
        fix = f"the run is from tlearn {run.made_by}: use that version; modules of your own are named in TLEARN_PLUGINS"
        problems = [Problem(f"{run.config_file}: {problem.where}", problem.what, fix) for problem in error.problems]
        raise UserError(problems) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())[:300]
        raise UserError(Problem(str(run.path), f"this run folder is damaged: {words}")) from error
    return config, classes, multi_label


def _chosen_outputs(network: Network, layer: Layer | Sequence[Layer] | None, pooling: Pooling | str | None) -> Any:
    if layer is None:
        return pool(network.layers.feature_map, poolings(pooling))
    named, several = named_layers(layer)
    outputs = list(network.layers.tensors(named, pooling).values())
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
