"""Pooling, heads and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.errors import ConfigError
from tlearn.heads import HEADS, add_scores, build_head, check_head, register_head
from tlearn.heads.pooling import pool
from tlearn.registry import Registry

MAP = np.random.default_rng(5).gamma(2.0, 1.0, (3, 4, 5, 6)).astype("float32")


def run(build: Any, array: np.ndarray = MAP, dtype: str = "float32") -> Any:
    """A one-input model from a function of a KerasTensor, and its answer for an array."""
    import keras

    features = keras.Input(array.shape[1:], dtype=dtype)
    model = keras.Model(features, build(features))
    return model, np.asarray(model(array.astype(dtype)))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("none", MAP.reshape(3, -1)),
        ("avg", MAP.mean((1, 2))),
        ("max", MAP.max((1, 2))),
        ("gem", (MAP.astype("float64") ** 3).mean((1, 2)) ** (1 / 3)),
        ("avg_max", np.concatenate([MAP.mean((1, 2)), MAP.max((1, 2))], axis=1)),
    ],
)
def test_pooling(pooling: str, expected: np.ndarray) -> None:
    _, got = run(lambda features: pool(features, pooling))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gem_learns_its_exponent_and_survives_large_and_zero_features(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    array = np.concatenate([MAP * 1e12, MAP * 0])
    model, got = run(lambda features: pool(features, "gem"), array)
    np.testing.assert_allclose(got[:3], 1e12 * (MAP.astype("float64") ** 3).mean((1, 2)) ** (1 / 3), rtol=1e-4)
    np.testing.assert_allclose(got[3:], 1e-6, rtol=1e-4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(MAP))
    (gradient,) = tape.gradient(loss, model.trainable_variables)
    step = 1e-2
    exponents = [(MAP.astype("float64") ** p).mean((1, 2)) ** (1 / p) for p in (3 - step, 3 + step)]
    np.testing.assert_allclose(gradient, (exponents[1] - exponents[0]).sum() / (2 * step), rtol=1e-2)

    model.save(tmp_path / "gem.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "gem.keras")(array), got)


def test_mlp_layers_in_order() -> None:
    model, got = run(
        lambda features: build_head(
            features, name="mlp", classes=4, units=[8, 7], activation="gelu", normalization="batch", dropout=0.5
        )
    )
    assert [layer.name for layer in model.layers[1:]] == [
        "head_pool",
        *("head_dropout_0", "head_dense_0", "head_norm_0", "head_act_0"),
        *("head_dropout_1", "head_dense_1", "head_norm_1", "head_act_1"),
        *("head_dropout", "head_logits"),
    ]
    assert got.shape == (3, 4)
    assert model.get_layer("head_act_0").activation.__name__ == "gelu"
    assert model.get_layer("head_dropout_1").rate == 0.5


def test_layer_normalization() -> None:
    model, _ = run(lambda features: build_head(features, name="mlp", classes=4, units=[8], normalization="layer"))
    assert type(model.get_layer("head_norm_0")).__name__ == "LayerNormalization"


def test_linear_is_pooling_and_a_matrix() -> None:
    model, got = run(lambda features: build_head(features, classes=2, pooling="max"))
    kernel, bias = model.get_layer("head_logits").get_weights()
    np.testing.assert_allclose(got, MAP.max((1, 2)) @ kernel + bias, rtol=1e-4, atol=1e-5)
    assert (got < 0).any() or (got > 1).any()  # logits, not probabilities


@pytest.mark.parametrize("pooling", ["none", "avg", "max", "gem", "avg_max"])
def test_heads_compute_in_float32_under_mixed_precision(pooling: str) -> None:
    import keras

    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, got = run(
            lambda features: add_scores(
                build_head(features, name="mlp", classes=4, pooling=pooling, units=[8], dropout=0.1), False
            ),
            dtype="float16",
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert got.dtype == np.float32
    assert {layer.compute_dtype for layer in model.layers[1:]} == {"float32"}


def test_scores() -> None:
    _, one = run(lambda features: add_scores(build_head(features, classes=4), multi_label=False))
    np.testing.assert_allclose(one.sum(axis=1), 1, rtol=1e-5)
    model, _ = run(lambda features: build_head(features, classes=4))
    import keras

    many = keras.Model(model.input, add_scores(model.output, multi_label=True))
    np.testing.assert_allclose(many(MAP), 1 / (1 + np.exp(-np.asarray(model(MAP)))), rtol=1e-5)
    assert many.layers[-1].name == "scores"


@pytest.mark.parametrize(
    ("arguments", "where", "says"),
    [
        ({"name": "linaer"}, "head.name", "did you mean linear"),
        ({"classes": 0}, "head.classes", "from 1"),
        ({"classes": 2.5}, "head.classes", "whole number"),
        ({"pooling": "mean"}, "head.pooling", "avg"),
        ({"activation": "rleu"}, "head.activation", "relu"),
        ({"normalization": "group"}, "head.normalization", "batch"),
        ({"units": [8]}, "head.units", "head.name=mlp"),
        ({"name": "mlp"}, "head.units", "needs hidden layers"),
        ({"name": "mlp", "units": [8, 0]}, "head.units", "from 1, got 0"),
        ({"dropout": 1.0}, "head.dropout", "below 1"),
        ({"dropout": -0.1}, "head.dropout", "0 or more"),
        ({"options": {"scale": 2}}, "head.options", "takes none"),
        ({"activation": "gelu"}, "head.activation", "no hidden layers"),
        ({"normalization": "batch"}, "head.normalization", "no hidden layers"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], where: str, says: str) -> None:
    (problem,) = check_head(**arguments)
    assert problem.where == where
    assert says in str(problem)
    with pytest.raises(ConfigError):
        build_head(None, **{"classes": 3, **arguments})


def test_all_problems_at_once() -> None:
    assert len(check_head(name="mlp", classes=-1, pooling="x", dropout=2.0)) == 4


# --- a head of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(HEADS, "_added", dict(HEADS._added))
    return HEADS


def test_registered_head(registry: Registry[Any]) -> None:
    import keras

    @register_head("scaled")
    def scaled(features: Any, classes: int, scale: float = 1.0) -> Any:
        pooled = keras.layers.GlobalAveragePooling2D(name="head_pool")(features)
        return keras.layers.Dense(classes, name="head_logits", kernel_initializer="ones")(scale * pooled)

    _, got = run(lambda features: build_head(features, name="scaled", classes=3, options={"scale": 2.0}))
    np.testing.assert_allclose(got, np.repeat(2 * MAP.mean((1, 2)).sum(1, keepdims=True), 3, axis=1), rtol=1e-5)
    (problem,) = check_head(name="scaled", options={"sclae": 1})
    assert "did you mean scale" in str(problem)
    assert check_head(name="scaled", units=[3])
    unused = check_head(name="scaled", pooling="gem", activation="gelu", normalization="layer", dropout=0.5)
    assert [problem.where for problem in unused] == [
        f"head.{key}" for key in ("pooling", "activation", "normalization", "dropout")
    ]
    assert all("head.options" in str(problem) for problem in unused)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        _, half = run(lambda features: build_head(features, name="scaled", classes=3), dtype="float16")
    finally:
        keras.config.set_dtype_policy("float32")
    assert half.dtype == np.float32


def test_registered_head_must_return_logits(registry: Registry[Any]) -> None:
    register_head("features")(lambda features, classes: features)
    with pytest.raises(ConfigError, match="must return logits"):
        run(lambda features: build_head(features, name="features", classes=3))
