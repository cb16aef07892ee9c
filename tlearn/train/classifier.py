"""Backbone and head joined into one model, and what of it trains in a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras

from tlearn.backbones import Backbone, build_backbone, parse_unfreeze, trainable_layers
from tlearn.backbones.naming import variable_keys
from tlearn.config import BackboneConfig, BatchNorm, HeadConfig, Output, Precision, Stage
from tlearn.errors import ConfigError, Problem
from tlearn.heads import add_scores, build_head


@dataclass(frozen=True, eq=False)
class Classifier:
    """A backbone with a head.

    Attributes:
        backbone: its layers, blocks and facts.
        model: (batch, side, side, 3) RGB in 0..255 to (batch, classes) float32 logits; what is trained.
        head_layers: the layers above the backbone.
        classes: number of outputs.
        multi_label: whether classes exclude one another (softmax) or not (sigmoid).
    """

    backbone: Backbone
    model: keras.Model
    head_layers: tuple[keras.layers.Layer, ...]
    classes: int
    multi_label: bool

    def finished(self, output: Output) -> keras.Model:
        """The model to save; it shares the variables of ``model`` and ends in what ``output`` asks for."""
        if output is Output.logits:
            return self.model
        scores = add_scores(self.model.output, multi_label=self.multi_label)
        return keras.Model(self.model.input, scores, name=self.model.name)

    def variables(self) -> dict[str, Any]:
        """The model's weights by stable key, the scheme of weight files."""
        return variable_keys(self.model.layers)


def build_classifier(
    backbone: BackboneConfig,
    head: HeadConfig,
    *,
    weights: str | None,
    classes: int,
    multi_label: bool,
    precision: Precision = Precision.float32,
    built: Backbone | None = None,
) -> Classifier:
    """Build the model of a run.

    Args:
        backbone: architecture and its options; its ``weights`` are not looked at.
        head: pooling and classifier.
        weights: what to load into the backbone: ``imagenet``, ``glyphs``, a file, or None for random weights.
        classes: number of outputs.
        multi_label: several classes may hold for one image.
        precision: Keras' dtype policy of the backbone; the head is float32.
        built: the backbone, where it has been built before; models may share it.

    Raises:
        ConfigError: options that do not fit the architecture or the head.
        WeightsError: weights that are missing, damaged or made for another network.
    """
    if built is None:
        with dtype_policy(precision):
            built = build_backbone(
                backbone.name,
                weights=weights,
                image_size=backbone.image_size,
                alpha=backbone.alpha,
                depth_multiplier=backbone.depth_multiplier,
                options=backbone.options,
            )
    logits = build_head(
        built.output,
        name=head.name,
        classes=classes,
        pooling=head.pooling,
        units=head.units,
        activation=head.activation,
        normalization=head.normalization,
        dropout=head.dropout,
        options=head.options,
    )
    model = keras.Model(built.input, logits, name=f"{backbone.name}_classifier")
    below = {id(layer) for layer in keras.Model(built.input, built.output).layers}
    above = tuple(layer for layer in model.layers if id(layer) not in below)
    return Classifier(built, model, above, classes, multi_label)


@contextmanager
def dtype_policy(precision: Precision) -> Iterator[None]:
    """Layers made inside have this policy: functions of keras.applications take none."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision.value)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def unfrozen_layers(classifier: Classifier, stage: Stage, where: str = "unfreeze") -> tuple[int, ...]:
    """Indices of the backbone layers that train in a stage, batch norms by the stage's policy.

    Raises:
        ConfigError: a selector that is malformed or matches nothing.
    """
    chosen = trainable_layers(parse_unfreeze(stage.unfreeze, where), classifier.backbone, where)
    layers = classifier.backbone.layers
    if stage.batch_norm is BatchNorm.train:
        return chosen
    training = tuple(index for index in chosen if not is_batch_norm(layers[index]))
    if chosen and not any(layers[index].weights for index in training):
        fix = "set the stage's batch_norm to train, or choose other layers"
        raise ConfigError(Problem(where, "matches batch norms only, which stay in inference mode", fix))
    return training


def is_batch_norm(layer: Any) -> bool:
    """Whether a layer keeps moving statistics that drift while it trains."""
    return isinstance(layer, keras.layers.BatchNormalization)


def freeze(classifier: Classifier, unfrozen: tuple[int, ...]) -> None:
    """Set ``trainable`` on every leaf layer: these of the backbone train, and the head.

    The flag of an outer model would not do: it overrides or resets what is set inside. Only ``trainable=False`` on a
    batch norm itself keeps its moving statistics still in ``fit``.
    """
    chosen = set(unfrozen)
    for index, layer in enumerate(classifier.backbone.layers):
        layer.trainable = index in chosen
    for layer in classifier.head_layers:
        layer.trainable = True
