"""Build a backbone: raw pixels in, feature map out, one flat graph.

The architectures themselves are Keras' (``keras.applications``); what is added is the preprocessing in front, names
that stay the same, and the blocks.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tlearn.backbones.check import check_backbone
from tlearn.backbones.naming import stable_names
from tlearn.backbones.preprocess import preprocess
from tlearn.backbones.specs import BackboneSpec, get_spec
from tlearn.backbones.weight_files import load_weights
from tlearn.backbones.weights import IMAGENET, describe, download_problems, locate_weights
from tlearn.errors import ConfigError, Problem


class LayerRange(NamedTuple):
    """A block in a built backbone: ``layers[first]`` to ``layers[last]``, both included."""

    name: str
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Backbone:
    """A built network.

    Attributes:
        spec: its row.
        input: ``KerasTensor`` (batch, S, S, 3), float32, RGB pixels 0..255; uint8 may be fed.
        output: ``KerasTensor`` (batch, h, w, channels), the feature map; with top (batch, classes), probabilities.
        layers: the architecture's layers in the order and with the indices of Keras' own ``model.layers``:
            ``layers[0]`` is the input layer, preprocessing is not counted.
        names: a name for each layer that is the same in every process (see ``naming.stable_names``).
        blocks: from the image to the feature map; with top, its layers come after the last block.
    """

    spec: BackboneSpec
    input: Any
    output: Any
    layers: tuple[Any, ...]
    names: tuple[str, ...]
    blocks: tuple[LayerRange, ...]

    @property
    def image_size(self) -> int:
        """Side of the square input, pixels."""
        return int(self.input.shape[1])

    def model(self) -> Any:
        """``keras.Model`` from pixels to feature map, sharing the layers."""
        import keras

        return keras.Model(self.input, self.output, name=self.spec.name)


def build_backbone(
    name: str,
    *,
    weights: str | None = None,
    image_size: int | None = None,
    alpha: float | None = None,
    depth_multiplier: int | None = None,
    dropout: float | None = None,
    include_top: bool = False,
    classes: int = 1000,
    input_tensor: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a network and load its weights.

    Args:
        name: architecture, see ``python -m tlearn.backbones``.
        weights: ``imagenet``, ``glyphs`` (embedded, MobileNet 0.25), a file (``.h5``, ``.weights.h5``, ``.keras``,
            ``.npz``), or None: random.
        image_size: side of the square input, pixels; None: the architecture's own.
        alpha: width multiplier of a MobileNet, as a share of the paper's widths.
        depth_multiplier: depthwise channels per input channel of a MobileNet.
        dropout: rate before MobileNet's own classifier.
        include_top: keep the network's own classifier, for plain ImageNet classification.
        classes: outputs of that classifier.
        input_tensor: a ``KerasTensor`` of yours to build on, (batch, S, S, 3), RGB 0..255; None: a new input.
        options: of a registered backbone.

    Raises:
        ConfigError: an argument is impossible for this architecture (everything wrong at once).
        WeightsError: weights are missing, damaged, or made for another network.
    """
    if input_tensor is not None:
        image_size = _side(input_tensor, image_size)
    chosen: dict[str, Any] = {
        "image_size": image_size,
        "alpha": alpha,
        "depth_multiplier": depth_multiplier,
        "include_top": include_top,
    }
    problems = check_backbone(name, weights=weights, dropout=dropout, classes=classes, options=options, **chosen)
    if problems:
        raise ConfigError(problems)

    spec = get_spec(name)
    given = {"alpha": alpha, "depth_multiplier": depth_multiplier, "dropout": dropout}
    arguments = {key: value for key, value in given.items() if value is not None}

    def build(keras_weights: str | None) -> Backbone:
        return _build(spec, image_size, input_tensor, arguments, include_top, classes, options or {}, keras_weights)

    file = locate_weights(weights, spec, **chosen)
    if file is not None and not file.exists():  # only ImageNet weights get here: Keras knows where they come from
        # Keras prints what it downloads; standard output is for results.
        with download_problems(file, spec), contextlib.redirect_stdout(sys.stderr):
            return build(IMAGENET)
    backbone = build(None)
    if file is not None:
        load_weights(file, backbone.layers, network=describe(spec, **chosen))
    return backbone


def _build(
    spec: BackboneSpec,
    image_size: int | None,
    input_tensor: Any,
    arguments: Mapping[str, float],
    include_top: bool,
    classes: int,
    options: Mapping[str, Any],
    keras_weights: str | None,
) -> Backbone:
    """The network on its input; ``keras_weights`` is what Keras' own function is to load."""
    import keras

    if keras.config.image_data_format() != "channels_last":
        raise ConfigError(
            Problem(
                "image_data_format",
                "channels_first is not supported: on the CPU TensorFlow trains channels-last images only",
                'set "image_data_format": "channels_last" in keras.json, or call '
                'keras.config.set_image_data_format("channels_last")',
            )
        )
    side = image_size or spec.image_size
    images = keras.Input((side, side, 3), name="image") if input_tensor is None else input_tensor
    pixels = preprocess(images, spec.preprocess)
    if spec.builder is not None:
        model = _build_registered(spec, pixels, options)
    else:
        # MobileNetV2 takes the option for the sake of one interface; Keras 3's function does not have it.
        given = {key: value for key, value in arguments.items() if (spec.name, key) not in _NOT_IN_KERAS}
        top = {"classes": classes} if include_top else {}
        with warnings.catch_warnings():
            # Keras warns that sizes without a MobileNet file of their own use the 224 file; the documentation says so.
            warnings.simplefilter("ignore")
            model = getattr(keras.applications, spec.keras_name)(
                include_top=include_top,
                weights=keras_weights,
                input_tensor=pixels,
                input_shape=(side, side, 3),
                **top,
                **given,
            )
    return _assemble(spec, images, pixels, model)


_NOT_IN_KERAS = {("mobilenet_v2", "depth_multiplier")}


def _assemble(spec: BackboneSpec, images: Any, pixels: Any, model: Any) -> Backbone:
    """Leave out what stands before the architecture, name the layers, find the blocks."""
    import keras

    sources = keras.utils.get_source_inputs(pixels)
    before = {id(layer) for layer in keras.Model(sources, pixels).layers}
    start = sources[0]._keras_history.operation
    layers = (start, *(layer for layer in model.layers if id(layer) not in before))
    names = stable_names(layers)
    return Backbone(
        spec=spec,
        input=images,
        output=model.output,
        layers=layers,
        names=names,
        blocks=_resolve_blocks(spec, names),
    )


def _resolve_blocks(spec: BackboneSpec, names: tuple[str, ...]) -> tuple[LayerRange, ...]:
    blocks, first = [], 0
    for block in spec.blocks:
        if isinstance(block.last, str) and block.last not in names:
            raise ConfigError(Problem("backbone.name", f"{spec.name}: block {block.name}: no layer {block.last!r}"))
        last = names.index(block.last) if isinstance(block.last, str) else block.last
        if not first <= last < len(names):
            raise ConfigError(Problem("backbone.name", f"{spec.name}: block {block.name} ends before it starts"))
        blocks.append(LayerRange(block.name, first, last))
        first = last + 1
    return tuple(blocks)


def _build_registered(spec: BackboneSpec, pixels: Any, options: Mapping[str, Any]) -> Any:
    """A user's own network, with what freezing and caching rely on said before it goes wrong."""
    import keras

    assert spec.builder is not None
    sources = keras.utils.get_source_inputs(pixels)
    made = spec.builder(pixels, **options)
    model = keras.Model(sources, made) if keras.backend.is_keras_tensor(made) else made
    wrong = ""
    if not isinstance(model, keras.Model):
        wrong = f"its function must return a feature map, got {type(made).__name__}"
    elif [id(tensor) for tensor in model.inputs] != [id(tensor) for tensor in sources]:
        # keras.Model(images, ...) from a tensor in the middle of a graph copies the graph, without what is before.
        wrong = "its model does not start at the source of the tensor it was given: return the feature map instead"
    elif nested := [layer.name for layer in model.layers if isinstance(layer, keras.Model)]:
        wrong = f"it must be flat, but holds the models {', '.join(nested)}"
    elif len(model.outputs) != 1 or len(model.output.shape) != 4:
        wrong = f"its output must be one feature map (batch, h, w, channels), got {model.output_shape}"
    if wrong:
        raise ConfigError(Problem("backbone.name", f"registered backbone {spec.name!r}: {wrong}"))
    return model


def _side(input_tensor: Any, image_size: int | None) -> int:
    """Side of a user's own input tensor."""
    shape = tuple(getattr(input_tensor, "shape", ()))
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] != 3:
        raise ConfigError(
            Problem("input_tensor", f"must have a static shape (batch, S, S, 3), got {shape}", "RGB pixels, 0..255")
        )
    if image_size is not None and image_size != shape[1]:
        raise ConfigError(
            Problem("backbone.image_size", f"is {image_size}, but input_tensor is {shape[1]} pixels wide")
        )
    return int(shape[1])
