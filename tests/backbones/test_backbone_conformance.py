"""Every row of the table against the network that Keras builds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from tlearn.backbones import Backbone, BackboneSpec, build_backbone, get_spec, trainable_layers, variable_keys
from tlearn.errors import ConfigError

NAMES = (
    *("xception", "vgg16", "vgg19", "resnet50", "inception_v3", "inception_resnet_v2", "mobilenet", "mobilenet_v2"),
    *("densenet121", "densenet169", "densenet201", "nasnet_mobile", "nasnet_large"),
)

# Written down a second time, from ../shared/BACKBONES.md and the networks themselves: a slip in the table is a failure.
LAST_TWO_BLOCKS = {
    "xception": ("block13_sepconv1_act", ["block13", "block14"]),
    "vgg16": ("block4_conv1", ["block4", "block5"]),
    "vgg19": ("block4_conv1", ["block4", "block5"]),
    "resnet50": ("conv5_block2_1_conv", ["conv5_block2", "conv5_block3"]),
    "inception_v3": ("conv2d_80", ["mixed9", "mixed10"]),
    "inception_resnet_v2": ("conv2d_200", ["block8_10", "conv_7b"]),
    "mobilenet": ("conv_pad_12", ["block_12", "block_13"]),
    "mobilenet_v2": ("block_16_expand", ["block_16", "conv_1"]),
    "densenet121": ("conv4_block1_0_bn", ["conv4", "conv5"]),
    "densenet169": ("conv4_block1_0_bn", ["conv4", "conv5"]),
    "densenet201": ("conv4_block1_0_bn", ["conv4", "conv5"]),
    "nasnet_mobile": ("activation_163", ["normal_11", "normal_12"]),
    "nasnet_large": ("activation_235", ["normal_17", "normal_18"]),
}


@dataclass
class Case:
    spec: BackboneSpec
    ours: Backbone  # with top, usual size
    keras_names: list[str]  # of Keras' own network without top, least size, in a session of its own
    keras_shapes: list[list[tuple[int, ...]]]


LARGE = ("inception_resnet_v2", "nasnet_large")
SIBLINGS = ("vgg19", "densenet169", "densenet201")  # of others in the quick round
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE + SIBLINGS else []) for name in NAMES]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Both networks are built once for all tests of a variant; ours second, so that automatic names differ."""
    import keras

    spec = get_spec(request.param)
    keras.backend.clear_session()
    side = spec.least_size
    function = getattr(keras.applications, spec.keras_name)
    theirs = function(weights=None, include_top=False, input_shape=(side, side, 3))
    names = [layer.name for layer in theirs.layers]
    shapes = [[tuple(weight.shape) for weight in layer.weights] for layer in theirs.layers]
    with pytest.raises(ValueError):
        function(weights=None, include_top=False, input_shape=(side - 1, side - 1, 3))
    del theirs
    gc.collect()
    yield Case(spec, build_backbone(spec.name, include_top=True), names, shapes)
    gc.collect()


def test_layers_are_those_of_keras_in_its_order(case: Case) -> None:
    count = case.spec.layers
    assert count == len(case.keras_names)
    assert case.ours.names[0] == "image"
    assert list(case.ours.names[1:count]) == case.keras_names[1:]
    assert [[tuple(w.shape) for w in layer.weights] for layer in case.ours.layers[:count]] == case.keras_shapes


def test_facts(case: Case) -> None:
    spec, ours = case.spec, case.ours
    assert sum(layer.count_params() for layer in ours.layers) == spec.parameters
    assert ours.output.shape == (None, 1000)
    assert ours.input.shape == (None, spec.image_size, spec.image_size, 3)
    assert ours.layers[spec.layers - 1].output.shape[-1] == spec.width


def test_blocks_cover_the_network_and_end_where_the_graph_narrows(case: Case) -> None:
    ours, count = case.ours, case.spec.layers
    assert [block.first for block in ours.blocks] == [0, *(block.last + 1 for block in ours.blocks[:-1])]
    assert ours.blocks[-1].last == count - 1
    first, names = LAST_TWO_BLOCKS[case.spec.name]
    assert [block.name for block in ours.blocks[-2:]] == names
    assert ours.names[ours.blocks[-2].first] == first
    for block in ours.blocks[1:]:
        assert any(layer.weights for layer in ours.layers[block.first : block.last + 1]), block


def test_no_layer_takes_its_input_from_above(case: Case) -> None:
    """Otherwise freezing the layers below one would not freeze a prefix of the graph."""
    position = {id(layer): index for index, layer in enumerate(case.ours.layers)}
    for index, layer in enumerate(case.ours.layers[1:], start=1):
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        below = [position.get(id(tensor._keras_history.operation), 0) for tensor in inputs]  # preprocessing: 0
        assert max(below) < index, layer.name


def test_preprocessing_is_that_of_keras(case: Case) -> None:
    import keras

    family = next((name for name in ("densenet", "nasnet") if case.spec.name.startswith(name)), case.spec.name)
    preprocess_input = getattr(keras.applications, family).preprocess_input
    side = case.spec.image_size
    images = np.random.default_rng(7).uniform(0, 255, (2, side, side, 3)).astype("float32")
    expected = preprocess_input(images.copy())
    first = case.ours.layers[1]
    got = keras.Model(case.ours.input, first.input)(images)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * max(1.0, float(np.abs(expected).max())))


def test_keys_of_weights_are_unique_and_the_same_in_every_process(case: Case) -> None:
    keys = variable_keys(case.ours.layers)
    assert len(keys) == sum(len(layer.weights) for layer in case.ours.layers)
    names = case.keras_names
    expected = {name for name, shapes in zip(names, case.keras_shapes, strict=True) if shapes}
    assert expected <= {key.split("/")[0] for key in keys}


def test_last_two_blocks_train(case: Case) -> None:
    first = case.ours.blocks[-2].first
    chosen = trainable_layers({"last_blocks": 2}, case.ours)
    assert chosen == tuple(range(first, len(case.ours.layers)))
    if case.spec.name == "inception_v3":
        assert first == 249  # the classic recipe: layers[:249] stay frozen


@pytest.mark.parametrize("name", NAMES)
def test_one_pixel_less_than_the_least_is_refused(name: str) -> None:
    least = get_spec(name).least_size
    with pytest.raises(ConfigError, match=f"at least {least} pixels"):
        build_backbone(name, image_size=least - 1)


@pytest.mark.parametrize(("alpha", "expected"), [(0.35, 1280), (1.0, 1280), (1.3, 1664), (1.4, 1792)])
def test_width_of_mobilenet_v2(alpha: float, expected: int) -> None:
    built = build_backbone("mobilenet_v2", alpha=alpha, image_size=32)
    assert built.output.shape[-1] == expected == built.spec.feature_width(alpha)


@pytest.mark.parametrize("alpha", [0.25, 0.3, 1.1])
def test_width_of_mobilenet(alpha: float) -> None:
    built = build_backbone("mobilenet", alpha=alpha, image_size=32, depth_multiplier=2)
    assert built.output.shape[-1] == built.spec.feature_width(alpha)
    assert built.layers[4].weights[0].shape[-1] == 2
