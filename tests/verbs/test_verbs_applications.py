"""The five examples of https://keras.io/api/applications with tlearn and with plain Keras: the same numbers.

Where there are no real weights the two networks share random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tlearn
from tlearn.imagenet import imagenet_classes


@pytest.fixture(autouse=True)
def same_random_weights() -> None:
    keras.utils.set_random_seed(1)


def share_weights(network: tlearn.Network, plain: Any) -> None:
    """Random weights, also for batch norms, from plain Keras's model to ours, layer by layer."""
    random = np.random.default_rng(0)
    layers = network.backbone.layers
    for ours, theirs in zip(layers, plain.layers[: len(layers)], strict=True):
        assert type(ours) is type(theirs)
        if isinstance(theirs, keras.layers.BatchNormalization):
            theirs.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in theirs.get_weights()])
        ours.set_weights(theirs.get_weights())


def photographs(size: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3)).astype(np.float32)


def close(found: Any, expected: Any) -> None:
    """Equal but for rounding: the preprocessing is folded into one multiplication and one addition."""
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_classify_imagenet_classes(assets: Path, keras_home: Path) -> None:
    """``decode_predictions`` included: Keras reads our table of classes as its own, for its checksum is right."""
    import json

    table = {str(i): [row.wordnet, row.name.replace(" ", "_")] for i, row in enumerate(imagenet_classes())}
    (keras_home / "models" / "imagenet_class_index.json").write_text(json.dumps(table))
    application = keras.applications.mobilenet
    model = application.MobileNet(alpha=0.25, weights="imagenet")
    image = keras.utils.load_img(assets / "open-photos" / "cat_720p.jpg", target_size=(224, 224))
    x = np.expand_dims(keras.utils.img_to_array(image), axis=0)
    expected = application.decode_predictions(model.predict(application.preprocess_input(x.copy()), verbose=0), top=3)

    network = tlearn.backbone("mobilenet", alpha=0.25, include_top=True)
    (prediction,) = network.predict(x, top=3)
    assert [(guess.wordnet, guess.label.replace(" ", "_")) for guess in prediction.top] == [
        (wordnet, name) for wordnet, name, _ in expected[0]
    ]
    close([guess.probability for guess in prediction.top], [float(score) for *_, score in expected[0]])


def test_classify_with_resnet50() -> None:
    network = tlearn.backbone("resnet50", weights=None, image_size=32, include_top=True)
    plain = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), include_top=True)
    share_weights(network, plain)
    x = photographs(32)
    expected = plain(keras.applications.resnet50.preprocess_input(x.copy()), training=False).numpy()
    close(network(x), expected)


def test_extract_features_with_vgg16() -> None:
    network = tlearn.backbone("vgg16", weights=None, image_size=48)
    plain = keras.applications.VGG16(weights=None, include_top=False, input_shape=(48, 48, 3))
    share_weights(network, plain)
    x = photographs(48)
    expected = plain(keras.applications.vgg16.preprocess_input(x.copy()), training=False).numpy()
    assert expected.shape == (2, 1, 1, 512)
    close(network(x), expected)
    close(network.model(x), expected)


def test_extract_features_from_an_arbitrary_layer_with_vgg19() -> None:
    network = tlearn.backbone("vgg19", layer="block4_pool", weights=None, image_size=48)
    base = keras.applications.VGG19(weights=None, include_top=False, input_shape=(48, 48, 3))
    share_weights(network, base)
    plain = keras.Model(inputs=base.input, outputs=base.get_layer("block4_pool").output)
    x = photographs(48)
    expected = plain(keras.applications.vgg19.preprocess_input(x.copy()), training=False).numpy()
    assert expected.shape == (2, 3, 3, 512)
    close(network(x), expected)
    close(network.features(x, "block4"), expected)
    close(network.features(x, 16), expected)


def test_fine_tune_inception_v3_on_new_classes() -> None:
    """Head first, then everything from layer 249 on: the same layers train, by the same gradients."""
    from tlearn.config import BackboneConfig, BatchNorm, HeadConfig, Stage
    from tlearn.train.classifier import build_classifier, freeze, unfrozen_layers

    backbone = BackboneConfig(name="inception_v3", image_size=75)
    head = HeadConfig(name="mlp", units=[1024])
    ours = build_classifier(backbone, head, weights=None, classes=20, multi_label=False)

    base = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(75, 75, 3))
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    x = keras.layers.Dense(1024, activation="relu")(x)
    plain = keras.Model(inputs=base.input, outputs=keras.layers.Dense(20, activation="softmax")(x))
    for ours_layer, base_layer in zip(ours.backbone.layers, base.layers, strict=True):
        ours_layer.set_weights(base_layer.get_weights())
    dense = [layer for layer in ours.head_layers if layer.weights]
    for ours_layer, plain_layer in zip(dense, [layer for layer in plain.layers[311:] if layer.weights], strict=True):
        ours_layer.set_weights(plain_layer.get_weights())

    def trained(layers: Sequence[Any]) -> list[int]:
        return [index for index, layer in enumerate(layers) if layer.trainable and layer.weights]

    # These values are prepared without rounding, ours and Keras' alike: batch norms over four images would magnify it.
    images = np.random.default_rng(3).choice(np.array([0, 127.5, 255], np.float32), (4, 75, 75, 3))
    labels = np.eye(20, dtype=np.float32)[[0, 5, 5, 19]]
    prepared = keras.applications.inception_v3.preprocess_input(images.copy())

    def same_step() -> None:
        """The same loss and the same gradients, so the same step of any optimizer."""
        loss, gradients = step(ours.model, images, labels, from_logits=True)
        expected_loss, expected = step(plain, prepared, labels, from_logits=False)
        close(loss, expected_loss)
        assert len(gradients) == len(expected)
        for gradient, other in zip(gradients, expected, strict=True):
            close(gradient, other)

    for layer in base.layers:
        layer.trainable = False
    freeze(ours, unfrozen_layers(ours, Stage(unfreeze="none")))
    assert trained(ours.backbone.layers) == trained(base.layers) == []
    assert len(ours.model.trainable_variables) == len(plain.trainable_variables) == 4
    same_step()

    for layer in plain.layers[:249]:
        layer.trainable = False
    for layer in plain.layers[249:]:
        layer.trainable = True
    stage = Stage(unfreeze={"from_layer": 249}, batch_norm=BatchNorm.train)  # as the page has it
    freeze(ours, unfrozen_layers(ours, stage))
    assert trained(ours.backbone.layers) == trained(base.layers)
    same_step()
    top_two_blocks = Stage(unfreeze={"last_blocks": 2}, batch_norm=BatchNorm.train)
    assert unfrozen_layers(ours, top_two_blocks) == tuple(range(249, 311)), "as the page says: the top 2 blocks"


def step(model: Any, images: np.ndarray, labels: np.ndarray, *, from_logits: bool) -> tuple[float, list[np.ndarray]]:
    """Loss and gradients of a training step."""
    with tf.GradientTape() as tape:
        scores = model(images, training=True)
        loss = keras.losses.CategoricalCrossentropy(from_logits=from_logits)(labels, scores)
    return float(loss), [gradient.numpy() for gradient in tape.gradient(loss, model.trainable_variables)]


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")  # plain Keras about its own model
def test_build_inception_v3_on_an_input_tensor_of_ones_own() -> None:
    own = keras.Input(shape=(80, 80, 3))
    network = tlearn.backbone("inception_v3", input_tensor=own, weights=None, include_top=True)
    pixels = keras.Input(shape=(80, 80, 3))
    plain = keras.applications.InceptionV3(input_tensor=pixels, weights=None, include_top=True)
    share_weights(network, plain)
    x = photographs(80)
    expected = plain(keras.applications.inception_v3.preprocess_input(x.copy()), training=False).numpy()
    assert network.model.inputs[0] is own
    close(network(x), expected)


def test_a_tensor_in_the_middle_of_a_graph() -> None:
    """The model starts where the tensor does, so what was done before it is done."""
    own = keras.Input(shape=(40, 40, 3))
    network = tlearn.backbone("vgg16", input_tensor=keras.layers.Cropping2D(4)(own), layer="block1_conv1", weights=None)
    x = photographs(40)
    assert network.model.input_shape == (None, 40, 40, 3)
    found = network.model(x).numpy()
    kernel, bias = (weight.numpy() for weight in network.backbone.layers[1].weights)
    middle = keras.applications.vgg16.preprocess_input(x[:, 4:-4, 4:-4].copy())[:, :3, :3]
    expected = np.maximum(np.tensordot(middle, kernel, 3) + bias, 0)
    close(found[:, 1, 1], expected)
    with pytest.raises(tlearn.UserError, match="input_tensor"):
        network(x)
