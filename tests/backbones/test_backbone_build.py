"""The built network as users meet it: what it eats, saves, refuses; names; a backbone of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.backbones import SPECS, Preprocess, build_backbone, register_backbone, trainable_layers
from tlearn.errors import ConfigError
from tlearn.registry import Registry


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def test_uint8_and_float_pixels_give_the_same(images: np.ndarray) -> None:
    model = build_backbone("mobilenet", alpha=0.25, image_size=32).model()
    expected = np.asarray(model(images.astype("float32")))
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(model(images), expected)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-5)


def test_uint8_pixels_train(images: np.ndarray) -> None:
    import keras

    backbone = build_backbone("mobilenet", alpha=0.25, image_size=32)
    scores = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(backbone.output))
    model = keras.Model(backbone.input, scores)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = np.asarray(backbone.layers[1].weights[0]).copy()
    assert np.isfinite(model.train_on_batch(images, np.array([0, 1, 0, 1])))
    assert not np.array_equal(before, backbone.layers[1].weights[0])


def test_pixels_stay_float32_under_mixed_precision() -> None:
    import keras

    keras.config.set_dtype_policy("mixed_float16")
    try:
        backbone = build_backbone("mobilenet", alpha=0.25, image_size=32)
    finally:
        keras.config.set_dtype_policy("float32")
    assert backbone.input.dtype == "float32"
    assert backbone.layers[1].input.dtype == "float32"  # the preprocessed pixels
    assert backbone.output.dtype == "float16"


def test_built_twice_the_names_are_the_same() -> None:
    first = build_backbone("xception", image_size=71)
    second = build_backbone("xception", image_size=71)
    assert first.names == second.names
    assert {"conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "add_11"} <= set(first.names)
    assert [layer.name for layer in first.layers] != [layer.name for layer in second.layers]


def test_input_tensor_of_ones_own(images: np.ndarray) -> None:
    import keras

    source = keras.Input((32, 32, 3), dtype="uint8")
    flipped = keras.ops.flip(source, axis=2)
    backbone = build_backbone("mobilenet", alpha=0.25, input_tensor=flipped)
    assert backbone.image_size == 32
    assert backbone.layers[0].output is source
    assert len(backbone.layers) == backbone.spec.layers
    whole = keras.Model(source, backbone.output)
    np.testing.assert_allclose(whole(images), backbone.model()(images[:, :, ::-1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(None, None, 3), (32, 48, 3), (32, 32, 1), (32, 32)])
def test_input_tensor_must_be_a_square_of_rgb(shape: tuple[int | None, ...]) -> None:
    import keras

    with pytest.raises(ConfigError, match="input_tensor"):
        build_backbone("mobilenet", input_tensor=keras.Input(shape))


def test_input_tensor_of_another_size_than_asked() -> None:
    import keras

    with pytest.raises(ConfigError, match="image_size"):
        build_backbone("mobilenet", input_tensor=keras.Input((64, 64, 3)), image_size=96)


def test_top_with_classes_of_ones_own(images: np.ndarray) -> None:
    top = build_backbone("mobilenet", alpha=0.25, image_size=32, include_top=True, classes=7, dropout=0.5)
    scores = np.asarray(top.model()(images))
    assert scores.shape == (4, 7)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    assert [layer.rate for layer in top.layers if layer.name == "dropout"] == [0.5]


def test_depth_multiplier_one_is_accepted_for_mobilenet_v2() -> None:
    assert build_backbone("mobilenet_v2", alpha=0.35, depth_multiplier=1, image_size=32).names[1] == "Conv1"


def test_channels_first_is_refused() -> None:
    import keras

    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ConfigError, match="channels_last"):
            build_backbone("mobilenet", image_size=32)
    finally:
        keras.config.set_image_data_format("channels_last")


# --- a backbone of one's own -----------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(SPECS, "_added", dict(SPECS._added))
    return SPECS


def tiny(images: Any, filters: int = 4) -> Any:
    import keras

    x = keras.layers.Conv2D(filters, 3, strides=2, name="stem_conv")(images)
    x = keras.layers.Conv2D(2 * filters, 3, strides=2, name="body_conv")(keras.layers.ReLU(name="stem_relu")(x))
    return keras.layers.ReLU(name="body_relu")(x)


def test_registered_backbone(registry: Registry[Any], images: np.ndarray) -> None:
    register_backbone("tiny", image_size=32, least_size=16, blocks={"stem": "stem_relu", "body": 4})(tiny)
    backbone = build_backbone("tiny", options={"filters": 8})
    assert backbone.names == ("image", "stem_conv", "stem_relu", "body_conv", "body_relu")
    assert [tuple(block) for block in backbone.blocks] == [("stem", 0, 2), ("body", 3, 4)]
    assert backbone.output.shape == (None, 7, 7, 16)
    assert trainable_layers({"from_block": "body"}, backbone) == (3, 4)
    with pytest.raises(ConfigError, match="filtres") as caught:
        build_backbone("tiny", options={"filtres": 8})
    assert "did you mean filters" in str(caught.value)
    with pytest.raises(ValueError, match="registered already"):
        register_backbone("tiny")(lambda images: images)


def test_registered_backbone_takes_no_name_of_ours(registry: Registry[Any]) -> None:
    with pytest.raises(ValueError, match="registered already"):
        register_backbone("resnet50")(tiny)


def test_saved_networks_load_in_plain_keras(registry: Registry[Any], images: np.ndarray, tmp_path: Path) -> None:
    """In a process that has never heard of tlearn, with safe mode on, for each kind of preprocessing."""
    names = tuple(mode.value for mode in Preprocess)
    for name in names:
        register_backbone(name, image_size=32, preprocess=name)(tiny)
        model = build_backbone(name).model()
        model.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", model(images))
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np, keras\n"
        f"for name in {names}:\n"
        "    got = keras.models.load_model(f'{name}.keras')(np.load('images.npy'))\n"
        "    np.testing.assert_allclose(got, np.load(f'{name}.npy'), rtol=1e-4, atol=1e-5)\n"
        "assert not any(name.startswith('tlearn') for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_keras_applications_function_as_a_backbone(registry: Registry[Any]) -> None:
    import keras

    @register_backbone("mobilenet_v3", image_size=32, preprocess="none")
    def mobilenet_v3(images: Any) -> Any:
        function = keras.applications.MobileNetV3Small
        return function(input_tensor=images, input_shape=(32, 32, 3), weights=None, include_top=False)

    backbone = build_backbone("mobilenet_v3")
    assert backbone.output.shape == (None, 1, 1, 576)
    with pytest.raises(ConfigError, match="no named blocks"):
        trainable_layers({"last_blocks": 1}, backbone)
    with pytest.raises(ConfigError, match="layers 0 to"):
        trainable_layers({"from_layer": 9999}, backbone)


def nested(images: Any) -> Any:
    import keras

    inner = keras.Sequential([keras.layers.Conv2D(4, 3, name="conv")], name="inner")
    return inner(images)


def detached(images: Any) -> Any:
    import keras

    return keras.Model(images, keras.layers.Conv2D(4, 3)(images))


def flat_vector(images: Any) -> Any:
    import keras

    return keras.layers.Flatten()(images)


@pytest.mark.parametrize(
    ("builder", "says"),
    [(nested, "inner"), (flat_vector, "feature map"), (detached, "return the feature map"), (lambda x: 3, "got int")],
)
def test_registered_backbone_that_is_none(registry: Registry[Any], builder: Any, says: str) -> None:
    register_backbone("broken")(builder)
    with pytest.raises(ConfigError, match=says):
        build_backbone("broken", image_size=32)


def test_registered_backbone_with_a_block_that_is_not_there(registry: Registry[Any]) -> None:
    register_backbone("gap", blocks={"stem": "no_such_layer"})(tiny)
    with pytest.raises(ConfigError, match="no_such_layer"):
        build_backbone("gap", image_size=32)
