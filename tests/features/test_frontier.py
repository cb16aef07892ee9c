"""Where models are cut, and that both parts together are the whole."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlearn.backbones import SPECS
from tlearn.config import BackboneConfig, BatchNorm, HeadConfig, Pooling, Stage
from tlearn.train.classifier import Classifier, build_classifier, freeze, unfrozen_layers
from tlearn.train.frontier import Frontier, find_frontier

QUICK = ("vgg16", "resnet50", "inception_v3", "mobilenet", "mobilenet_v2")
VARIANTS = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in SPECS]
PLUGIN = "tiny"  # a user's backbone, see conftest.py


@lru_cache(maxsize=1)
def built(name: str) -> Classifier:
    spec = SPECS[name]
    backbone = BackboneConfig(name=name, weights=None, image_size=spec.least_size, alpha=None)
    if name.startswith("mobilenet"):
        backbone.alpha = 0.5
    return build_classifier(backbone, HeadConfig(), weights=None, classes=3, multi_label=False)


def cut(classifier: Classifier, unfreeze: Any, batch_norm: BatchNorm = BatchNorm.inference) -> Frontier:
    freeze(classifier, unfrozen_layers(classifier, Stage(unfreeze=unfreeze, batch_norm=batch_norm)))
    return find_frontier(classifier.model)


def makers(frontier: Frontier) -> list[str]:
    return [tensor._keras_history.operation.name for tensor in frontier.tensors]


def some_images(classifier: Classifier, count: int = 2) -> np.ndarray:
    side = classifier.backbone.image_size
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.float32)


def inside_a_block(classifier: Classifier) -> dict[str, int]:
    """A layer with weights in the middle of the block before the last."""
    block = classifier.backbone.blocks[-2]
    middle = (block.first + block.last + 1) // 2
    return {"from_layer": next(i for i in range(middle, 0, -1) if classifier.backbone.layers[i].weights)}


def gradients(model: keras.Model, inputs: Any, variables: list[Any]) -> dict[int, np.ndarray]:
    """By the ids of variables, of a loss whose slope does not vanish where random networks give nearly nothing."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((model(inputs, training=True) - 1.0) ** 2)
    values = tape.gradient(loss, [variable.value for variable in variables])
    return {id(variable): value.numpy() for variable, value in zip(variables, values, strict=True)}


def furthest(values: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> float:
    """The largest difference, each as a share of the largest number of its variable."""
    shares = [np.abs(value - expected[key]).max() / np.abs(expected[key]).max() for key, value in values.items()]
    return float(np.max(shares))


KNOWN = {"inception_v3": ({"from_layer": 249}, ["mixed8"])}  # Keras' own example trains layers[249:]


@pytest.mark.parametrize("name", [*VARIANTS, PLUGIN])
def test_prefix_and_suffix_are_the_whole_model(name: str) -> None:
    """Bit-equal outputs; the suffix trains the model's own variables, in the model's order, by the same gradients.

    Gradients: relative difference at most 1e-5; docs/speed.md has what was measured.
    """
    classifier = built(name)
    images = some_images(classifier)
    selectors = ["none", {"last_blocks": 1}, {"last_blocks": 2}, inside_a_block(classifier), "all"]
    frontiers = [cut(classifier, unfreeze) for unfreeze in selectors]
    cuts = [tensor for frontier in frontiers for tensor in frontier.tensors]
    *values, expected = keras.Model(classifier.model.input, [*cuts, classifier.model.output])(images, training=False)
    known = dict(zip(map(id, cuts), values, strict=True))
    assert np.isfinite(expected).all()
    # of all variables at once: which of them are frozen changes none of the others' gradients
    whole = gradients(classifier.model, images, classifier.model.trainable_variables)
    for unfreeze, frontier in zip(selectors, frontiers, strict=True):
        cut(classifier, unfreeze)
        suffix, features = frontier.suffix(), [known[id(tensor)] for tensor in frontier.tensors]
        np.testing.assert_array_equal(suffix(features, training=False), expected)
        assert frontier.is_worthwhile is (unfreeze != "all")
        # optimizers number their slots by this order: a run may go on cached after streaming, or the other way
        trained = suffix.trainable_variables
        assert list(map(id, trained)) == list(map(id, classifier.model.trainable_variables))
        if frontier.is_worthwhile:
            assert all(whole[id(variable)].any() for variable in trained), "the comparison would find nothing"
            difference = furthest(gradients(suffix, features, trained), whole)
            print(f"{name}, {unfreeze}: gradients of {len(trained)} variables differ by {difference:.1g}")
            assert difference <= 1e-5
    assert makers(frontiers[0]) == ["head_pool"]
    if name in KNOWN:
        unfreeze, expected_makers = KNOWN[name]
        assert makers(cut(classifier, unfreeze)) == expected_makers


def test_the_prefix_alone_gives_the_frontier() -> None:
    classifier = built("mobilenet")
    images = some_images(classifier)
    frontier = cut(classifier, {"last_blocks": 2})
    features = frontier.prefix()(images, training=True)  # nothing in it knows that it trains
    expected = classifier.model(images, training=False)
    np.testing.assert_array_equal(frontier.suffix()(features, training=False), expected)


def test_moving_batch_norms_are_not_cold() -> None:
    classifier = built("mobilenet")
    still = cut(classifier, {"last_blocks": 1})
    moving = cut(classifier, {"last_blocks": 1}, BatchNorm.train)
    norms = [operation for operation in still.cold if isinstance(operation, keras.layers.BatchNormalization)]
    assert norms
    assert all(not norm.trainable for norm in norms)
    assert makers(still) == makers(moving) == ["conv_pw_12_relu"]
    # of layers above the frontier alone the norms may train: the convolutions below them are still computed once
    freeze(classifier, tuple(i for i, layer in enumerate(classifier.backbone.layers) if layer.name == "conv_pw_13_bn"))
    assert makers(find_frontier(classifier.model)) == ["conv_pw_13"]


def head_on_tiny(head: Any, **settings: Any) -> Classifier:
    """The plugin's backbone with a head: settings of ours, or a function."""
    from tlearn.heads import HEADS

    backbone = BackboneConfig(name=PLUGIN, weights=None, image_size=32)
    if head is None:
        return build_classifier(backbone, HeadConfig(**settings), weights=None, classes=3, multi_label=False)
    before = dict(HEADS._added)
    try:
        HEADS.register("ours")(head)
        return build_classifier(backbone, HeadConfig(name="ours"), weights=None, classes=3, multi_label=False)
    finally:
        HEADS._added = before


def test_dropout_stops_the_frontier() -> None:
    assert makers(cut(head_on_tiny(None, dropout=0.5), "none")) == ["head_pool"]
    mlp = {"name": "mlp", "units": [8, 8], "dropout": 0.5}
    classifier = head_on_tiny(None, **mlp)
    freeze(classifier, ())
    for layer in classifier.head_layers:  # even where nothing above it trains
        layer.trainable = False
    assert makers(find_frontier(classifier.model)) == ["head_pool"]


@pytest.mark.parametrize("pooling", [Pooling.none, Pooling.avg, Pooling.max, Pooling.avg_max])
def test_pooling_is_cold(pooling: Pooling) -> None:
    """Whatever there is between the backbone and the first weights of the head."""
    classifier = head_on_tiny(None, pooling=pooling)
    frontier = cut(classifier, "none")
    (logits,) = frontier.suffix().operations[-1:]
    assert [layer for layer in frontier.suffix().layers if layer.weights] == [logits]
    assert [tuple(tensor.shape) for tensor in frontier.tensors] == [tuple(logits.input.shape)]


def test_a_frozen_part_of_the_head_is_cold() -> None:
    classifier = head_on_tiny(None, pooling=Pooling.gem)
    assert makers(cut(classifier, "none")) == ["top_relu"]  # its exponent trains
    classifier.head_layers[0].trainable = False
    assert makers(find_frontier(classifier.model)) == ["head_pool"]

    classifier = head_on_tiny(None, name="mlp", units=[8])
    freeze(classifier, ())
    for layer in classifier.head_layers[:-1]:
        layer.trainable = False
    frontier = find_frontier(classifier.model)
    assert makers(frontier) == ["head_act_0"]
    assert [variable.path for variable in frontier.suffix().trainable_variables] == [
        "head_logits/kernel",
        "head_logits/bias",
    ]


class Plain(keras.layers.Layer):
    """Does in training what it does in inference."""

    def call(self, inputs):
        return inputs * 2.0


class Asking(keras.layers.Layer):
    """May not: it can see that it trains."""

    def call(self, inputs, training=False):
        return inputs * (2.0 if training else 1.0)


class Counting(keras.layers.Layer):
    """Keeps a number that may move."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), trainable=False, initializer="zeros")

    def call(self, inputs):
        self.calls.assign(self.calls + 1.0)
        return inputs + self.calls


MOVING = (Counting, keras.layers.BatchNormalization)


class Noisy(keras.layers.Layer):
    """Draws random numbers."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)


@pytest.mark.parametrize(
    ("layer", "is_cold"),
    [
        (Plain, True),
        (Asking, False),
        (Counting, False),
        (Noisy, False),
        (lambda name: keras.layers.Rescaling(2.0, name=name), True),
        (lambda name: keras.layers.MultiHeadAttention(1, 2, name=name), True),
        (lambda name: keras.layers.GaussianNoise(0.1, name=name), False),
        (lambda name: keras.layers.Dropout(0.1, name=name), False),
        (lambda name: keras.layers.ActivityRegularization(0.1, name=name), False),
        (lambda name: keras.layers.BatchNormalization(center=False, scale=False, name=name), False),
        (lambda name: keras.layers.SpectralNormalization(keras.layers.Dense(4), name=name), False),
    ],
)
def test_layers_are_trusted_as_far_as_they_can_be(layer: Any, is_cold: bool) -> None:
    """All of them frozen, but for two that have nothing to train and move numbers all the same."""

    def head(features: Any, classes: int) -> Any:
        x = keras.layers.Reshape((1, 16), name="reshaped")(keras.layers.GlobalAveragePooling2D(name="pool")(features))
        users = layer(name="users")
        x = users(x, x) if isinstance(users, keras.layers.MultiHeadAttention) else users(x)
        return keras.layers.Dense(classes, name="logits")(keras.layers.Flatten(name="flat")(x))

    classifier = head_on_tiny(head)
    freeze(classifier, ())
    for frozen in classifier.head_layers:
        frozen.trainable = frozen.name == "logits" or isinstance(frozen, MOVING)
    cold = {operation.name for operation in find_frontier(classifier.model).cold}
    assert ("users" in cold) is is_cold
    assert "top_relu" in cold


def test_what_can_be_made_again_is_not_kept() -> None:
    """Padding makes tensors larger, and a pooling branch is another look at a tensor that is kept already."""
    frontier = cut(built("mobilenet_v2"), {"last_blocks": 1})
    assert sum(np.prod(tensor.shape[1:]) for tensor in frontier.tensors) == frontier.values
    classifier = built("mobilenet")
    index = classifier.backbone.names.index("conv_dw_12")  # comes after a padding
    assert makers(cut(classifier, {"from_layer": index})) == ["conv_pw_11_relu"]


def test_no_gradient_is_built_below_the_frontier() -> None:
    """Keras' own step builds one for frozen layers too: the tape watches what was once made to be trained."""
    from tlearn.train.loop import make_train_step

    classifier = built("mobilenet")
    frontier = cut(classifier, {"last_blocks": 1})
    suffix, prefix = frontier.suffix(), frontier.prefix()
    for model in (suffix, classifier.model):
        model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    batch = some_images(classifier), tf.one_hot([0, 1], 3)

    def gradients_of_kernels(step: Any) -> int:
        nodes = step.get_concrete_function(batch).graph.as_graph_def().node
        return sum(node.op.endswith("BackpropFilter") for node in nodes)

    trained = sum(layer.trainable for layer in classifier.backbone.layers if "Conv2D" in type(layer).__name__)
    assert gradients_of_kernels(make_train_step(suffix, prefix=prefix)) == trained
    assert gradients_of_kernels(make_train_step(classifier.model)) > trained


def test_moving_statistics_stop_the_frontier() -> None:
    """A stage that trains batch norms of the lower blocks must compute all above them in each epoch."""
    classifier = built("mobilenet")
    everything = {"from_layer": classifier.backbone.names.index("conv_dw_1")}
    assert makers(cut(classifier, everything)) == ["conv1_relu"]
    freeze(classifier, tuple(i for i, layer in enumerate(classifier.backbone.layers) if layer.name == "conv1_bn"))
    assert makers(find_frontier(classifier.model)) == ["conv1"]
