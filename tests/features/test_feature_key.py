"""Features are used again exactly where nothing they are made from has changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlearn.train.api import prepare
from tlearn.train.feature_entries import FeatureEntries

FRESH = ("augment.horizontal_flip.p=0.5",)
VIEWS = (*FRESH, "cache.views=2")


@pytest.fixture
def keys(tiny_config: Callable[..., Any]) -> Callable[..., tuple[str, ...]]:
    """``keys("seed=2")``: names of the entries for training and validation images that the first stage wants."""

    def keys(*overrides: str) -> tuple[str, ...]:
        prepared = prepare(tiny_config(*overrides))
        entries = FeatureEntries(prepared.config, prepared.data, prepared.classifier)
        return tuple(entry.key for entry in entries.of_stage(prepared.plan.stages[0]))

    return keys


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A weight file, so that builds do not differ by their random weights."""
    return f"backbone.weights={save_weights(tmp_path / 'weights.npz', seed=1)}"


def save_weights(path: Path, seed: int, **options: Any) -> Path:
    import keras

    from tlearn.backbones import build_backbone, save_weights_npz

    keras.utils.set_random_seed(seed)
    save_weights_npz(path, build_backbone("tiny", weights=None, image_size=32, options=options).layers)
    return path


def both_differ(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    return not set(first) & set(second)


@pytest.mark.parametrize(
    "overrides",
    [
        ["head.name=mlp", "head.units=[7]"],
        ["head.dropout=0.3"],
        ["head.classes=9"],
        ["schedule=gradual"],
        ["optimizer.name=sgd", "schedule.stages.0.epochs=3"],
        ["data.batch_size=5"],
        ["data.workers=1"],
        ["data.cache=memory"],
        ["seed=2"],
        ["loss.label_smoothing=0.1"],
        ["cache.max_gb=1", "cache.dir=elsewhere"],
        ["cache.views=3"],  # without augmentation all views are one
        ["augment.name=none2"],
        ["log.every=1", "name=other"],
    ],
    ids=" ".join,
)
def test_other_runs_with_the_same_prefix_share_features(
    keys: Callable[..., Any], weights: str, overrides: list[str]
) -> None:
    assert keys(weights) == keys(weights, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.resize=stretch"],
        ["data.crop_fraction=0.9"],
        ["data.interpolation=nearest"],
        ["data.decode=scaled"],
        ["prefix.engine=folded"],
        ["backbone.image_size=24"],
        ["schedule.stages.0.unfreeze={last_blocks: 1}"],
        ["schedule.stages.0.unfreeze={from_layer: 5}"],
        ["head.pooling=max"],  # same names, same shapes, no weights: only the graph tells
        ["cache.dtype=float16"],
        ["precision=mixed_bfloat16"],
        ["data.options.count=30"],
        ["data.split_seed=5"],
        ["data.per_class=4"],
        ["backbone.options.strides=1"],  # the same weights and shapes at the frontier
    ],
    ids=" ".join,
)
def test_what_changes_features_changes_their_name(keys: Callable[..., Any], weights: str, overrides: list[str]) -> None:
    before, after = keys(weights), keys(weights, *overrides)
    if overrides == ["data.per_class=4"]:
        assert before[0] != after[0]
        assert before[1] == after[1], "validation images are the same"
    else:
        assert both_differ(before, after)


def test_a_weight(keys: Callable[..., Any], weights: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    before = keys(weights)
    arrays = dict(np.load(path))
    arrays["mid_norm/moving_variance"][1] *= 1.001
    np.savez(path, **arrays)
    assert both_differ(before, keys(weights))


def test_a_weight_above_the_frontier_does_not_matter(keys: Callable[..., Any], weights: str, tmp_path: Path) -> None:
    path, top = tmp_path / "weights.npz", "schedule.stages.0.unfreeze={last_blocks: 1}"
    before = keys(weights, top)
    arrays = dict(np.load(path))
    arrays["top_conv/kernel"][0] += 1
    np.savez(path, **arrays)
    assert before == keys(weights, top)


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["cache.views=3"],
        ["seed=2"],
        ["augment.horizontal_flip.p=0.6"],
        ["augment.affine.p=0.1"],
        ["augment.random_resized_crop.p=1"],
    ],
    ids=" ".join,
)
def test_what_changes_views_changes_their_name(keys: Callable[..., Any], weights: str, overrides: list[str]) -> None:
    before, after = keys(weights, *VIEWS), keys(weights, *VIEWS, *overrides)
    assert before[0] != after[0]
    assert before[1] == after[1], "validation images are not augmented"


def test_augmented_images_are_others(keys: Callable[..., Any], weights: str) -> None:
    plain, augmented = keys(weights), keys(weights, *VIEWS)
    assert plain[0] != augmented[0]
    assert plain[1] == augmented[1]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    for name in ("ant", "bee"):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for index in range(8):
            pixels = random.integers(0, 256, (40, 36, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photographs" / name / f"{index}.bmp")
    return tmp_path / "photographs"


def test_a_pixel_of_one_file(keys: Callable[..., Any], weights: str, photographs: Path) -> None:
    folder = (weights, "data.name=folder", f"data.path={photographs}")
    before = keys(*folder)
    assert keys(*folder) == before
    for file in sorted(photographs.rglob("*.bmp")):  # one of them in each split, at least
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)  # of the same size, a little later
        after = keys(*folder)
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
        before = after


def test_size_and_time_of_a_file(keys: Callable[..., Any], weights: str, photographs: Path) -> None:
    folder = (weights, "data.name=folder", f"data.path={photographs}")
    before = keys(*folder)
    files = sorted(photographs.rglob("*.bmp"))
    stamps = [file.stat() for file in files]
    for file in files:
        os.utime(file, ns=(0, 10**18))
    touched = keys(*folder)
    assert both_differ(before, touched)
    for file, stamp in zip(files, stamps, strict=True):
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert keys(*folder) == before
    for file, stamp in zip(files, stamps, strict=True):
        with file.open("ab") as end:
            end.write(b"\0")
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert both_differ(before, keys(*folder))


def test_a_folder_may_move(keys: Callable[..., Any], weights: str, photographs: Path) -> None:
    before = keys(weights, "data.name=folder", f"data.path={photographs}")
    moved = photographs.rename(photographs.with_name("moved"))
    assert keys(weights, "data.name=folder", f"data.path={moved}") == before


# --- programs --------------------------------------------------------------------------------------------------------


def test_other_versions_of_the_programs(
    keys: Callable[..., Any], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlearn.train import feature_key

    before = keys(weights)
    for package in ("tensorflow", "keras", "pillow", "tlearn"):
        monkeypatch.setattr(feature_key, "_version", lambda name, changed=package: "0" if name == changed else "1")
        after = keys(weights)
        assert both_differ(before, after)
        before = after


def test_a_prefix_has_one_name_whatever_was_built_before() -> None:
    """Keras numbers unnamed layers through the whole process; Xception has some."""
    import keras

    from tlearn.config import BackboneConfig, HeadConfig
    from tlearn.train.classifier import build_classifier, freeze
    from tlearn.train.feature_key import prefix_hash
    from tlearn.train.frontier import find_frontier

    hashes = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        config = BackboneConfig(name="xception", image_size=71)
        classifier = build_classifier(config, HeadConfig(), weights=None, classes=2, multi_label=False)
        freeze(classifier, ())
        hashes.append(prefix_hash(find_frontier(classifier.model)))
    assert hashes[0] == hashes[1]


def test_the_code_of_a_users_layer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import linecache

    import keras

    from tlearn.config import BackboneConfig, HeadConfig
    from tlearn.heads import HEADS
    from tlearn.train.classifier import build_classifier, freeze
    from tlearn.train.feature_key import indescribable, prefix_hash
    from tlearn.train.frontier import find_frontier

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(HEADS, "_added", dict(HEADS._added))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    hashes = []
    for number, code in enumerate(("inputs * 2.0", "inputs * 3.0")):
        text = f"import keras\nclass Users(keras.layers.Layer):\n    def call(self, inputs):\n        return {code}\n"
        (tmp_path / "users.py").write_text(text)
        sys.modules.pop("users", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        layer = importlib.import_module("users").Users

        @HEADS.register(f"users{number}")
        def head(features: Any, classes: int, layer: Any = layer) -> Any:
            x = keras.layers.Flatten(name="flat")(layer(name="users")(features))
            return keras.layers.Dense(classes, name="logits")(x)

        keras.utils.set_random_seed(1)
        settings = HeadConfig(name=f"users{number}")
        backbone = BackboneConfig(name="tiny", image_size=32)
        classifier = build_classifier(backbone, settings, weights=None, classes=2, multi_label=False)
        freeze(classifier, ())
        frontier = find_frontier(classifier.model)
        assert not indescribable(frontier)
        hashes.append(prefix_hash(frontier))
    assert hashes[0] != hashes[1]


def test_a_layer_that_cannot_be_described_is_not_cached(tiny_config: Callable[..., Any]) -> None:
    import keras

    from tlearn.heads import HEADS

    class Opaque(keras.layers.Layer):
        def __init__(self, function: Any, **keywords: Any) -> None:
            super().__init__(**keywords)
            self.function = function

        def call(self, inputs: Any) -> Any:
            return self.function(inputs)

    before = dict(HEADS._added)

    @HEADS.register("opaque")
    def head(features: Any, classes: int) -> Any:
        x = keras.layers.Flatten(name="flat")(Opaque(lambda x: x * 2, name="users")(features))
        return keras.layers.Dense(classes, name="logits")(x)

    try:
        plan = prepare(tiny_config("head.name=opaque")).plan.stages[0].features
    finally:
        HEADS._added = before
    assert not plan.cached
    assert plan.reason == "layer users has no get_config or no source to know it by"
