"""Weights: real ones, every file format, and every way a file can be wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tlearn.backbones import (
    Backbone,
    build_backbone,
    check_weights,
    get_spec,
    load_weights,
    save_weights_npz,
    variable_keys,
    weights,
)
from tlearn.backbones.weights import imagenet_file
from tlearn.errors import UserError, WeightsError

SMALL: dict[str, Any] = {"alpha": 0.25, "image_size": 32}


@pytest.fixture(scope="module")
def source() -> Backbone:
    """A MobileNet with random weights, batch-norm statistics included."""
    backbone = build_backbone("mobilenet", **SMALL)
    random = np.random.default_rng(11)
    for variable in variable_keys(backbone.layers).values():
        variable.assign(random.normal(size=variable.shape))
    return backbone


def values(backbone: Backbone) -> dict[str, np.ndarray]:
    return {key: np.asarray(variable) for key, variable in variable_keys(backbone.layers).items()}


def assert_same(one: Backbone, other: Backbone) -> None:
    first, second = values(one), values(other)
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


# --- formats ---------------------------------------------------------------------------------------------------------


def with_head(backbone: Backbone) -> Any:
    """The whole model a run would save: preprocessing, backbone, head."""
    import keras

    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(backbone.output)
    x = keras.layers.BatchNormalization(name="head_norm_0")(keras.layers.Dense(8, name="head_dense_0")(x))
    return keras.Model(backbone.input, keras.layers.Dense(3, name="head_logits")(x))


def nested(backbone: Backbone) -> Any:
    """As most tutorials build it: the network as one layer of another."""
    import keras

    inner = keras.Model(backbone.layers[1].input, backbone.output)
    inputs = keras.Input((32, 32, 3))
    x = inner(keras.layers.Rescaling(1 / 127.5, -1)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


def plain(backbone: Backbone) -> Any:
    return backbone.model()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *((plain, name) for name in ("w.weights.h5", "w.h5", "w.keras")),
        *((with_head, name) for name in ("w.weights.h5", "w.h5", "w.keras")),
        *((nested, name) for name in ("w.weights.h5", "w.keras")),
    ],
)
def test_files_of_keras(model: Callable[[Backbone], Any], name: str, source: Backbone, tmp_path: Path) -> None:
    path = tmp_path / name
    whole = model(source)
    whole.save_weights(path) if name.endswith(".weights.h5") else whole.save(path)
    assert_same(build_backbone("mobilenet", weights=str(path), **SMALL), source)


def test_npz_round_trip(source: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    save_weights_npz(path, source.layers)
    assert_same(build_backbone("mobilenet", weights=str(path), **SMALL), source)
    assert [file.name for file in tmp_path.iterdir()] == ["w.npz"]
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays.files) == set(values(source))
        assert {"conv1/kernel", "conv1_bn/moving_variance", "conv_dw_1/kernel"} <= set(arrays.files)


def test_npz_of_a_whole_model_fits_its_backbone(source: Backbone, tmp_path: Path) -> None:
    model = with_head(source)
    layers = [layer for layer in model.layers if layer.name != "preprocessing"]
    save_weights_npz(tmp_path / "run.npz", layers)
    assert "head_logits/kernel" in np.load(tmp_path / "run.npz").files
    assert_same(build_backbone("mobilenet", weights=str(tmp_path / "run.npz"), **SMALL), source)


def test_automatic_names_fit_between_two_builds(tmp_path: Path) -> None:
    """InceptionV3's layers have no names of their own; the second network of a process is numbered on."""
    first = build_backbone("inception_v3", image_size=75)
    save_weights_npz(tmp_path / "w.npz", first.layers)
    first.model().save_weights(tmp_path / "w.weights.h5")
    second = build_backbone("inception_v3", image_size=75, weights=str(tmp_path / "w.npz"))
    assert_same(first, second)
    for variable in variable_keys(second.layers).values():
        variable.assign(variable * 0 - 1)
    load_weights(tmp_path / "w.weights.h5", second.layers)
    assert_same(first, second)


def test_failed_save_leaves_the_old_file(source: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.npz"
    path.write_bytes(b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save_weights_npz(path, source.layers)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# --- files that are wrong --------------------------------------------------------------------------------------------


def refused(path: Path | str, name: str = "mobilenet", **options: Any) -> str:
    """The message of the one WeightsError a file leads to."""
    with pytest.raises(WeightsError) as caught:
        build_backbone(name, weights=str(path), **(options or SMALL))
    (problem,) = caught.value.problems
    assert problem.where == "backbone.weights"
    return str(problem)


@pytest.fixture(scope="module")
def files(source: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    source.model().save_weights(folder / "w.weights.h5")
    source.model().save(folder / "w.h5")
    source.model().save(folder / "w.keras")
    save_weights_npz(folder / "w.npz", source.layers)
    return folder


@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5", "w.keras", "w.npz"])
def test_weights_of_another_width(name: str, files: Path) -> None:
    message = refused(files / name, alpha=0.5, image_size=32)
    assert "does not fit MobileNet, alpha 0.5, 32 pixels" in message
    assert "conv1/kernel: (3, 3, 3, 8) in the file, the network has (3, 3, 3, 16)" in message
    assert "more" in message


@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5", "w.keras", "w.npz"])
def test_weights_of_another_architecture(name: str, files: Path) -> None:
    assert "does not fit VGG16" in refused(files / name, "vgg16", image_size=32)


@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5", "w.keras", "w.npz"])
def test_truncated_file(name: str, files: Path, tmp_path: Path) -> None:
    content = (files / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    assert "cannot be read as weights" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5", "w.keras", "w.npz"])
def test_file_of_another_kind(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("not found")
    assert "cannot be read as weights" in refused(tmp_path / name)


def test_nothing_changes_when_the_last_layer_does_not_fit(files: Path, source: Backbone, tmp_path: Path) -> None:
    with np.load(files / "w.npz") as arrays:
        changed = dict(arrays) | {"conv_pw_13_bn/beta": np.zeros(3)}
    np.savez(tmp_path / "w.npz", **changed)
    network = build_backbone("mobilenet", **SMALL)
    before = values(network)
    with pytest.raises(WeightsError, match="conv_pw_13_bn/beta"):
        load_weights(tmp_path / "w.npz", network.layers)
    for key, value in values(network).items():
        np.testing.assert_array_equal(value, before[key])


def test_npz_with_a_missing_layer(files: Path, tmp_path: Path) -> None:
    with np.load(files / "w.npz") as arrays:
        kept = {key: array for key, array in arrays.items() if key != "conv1/kernel"}
    np.savez(tmp_path / "w.npz", **kept)
    assert "conv1/kernel: not in the file" in refused(tmp_path / "w.npz")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


def test_npz_is_never_unpickled(files: Path, tmp_path: Path) -> None:
    with np.load(files / "w.npz") as arrays:
        changed: dict[str, Any] = dict(arrays)
    changed["conv1/kernel"] = np.array([Bomb()], dtype=object)
    np.savez(tmp_path / "w.npz", **changed)
    assert "cannot be read as weights" in refused(tmp_path / "w.npz")
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Bomb()))
    assert "cannot be read as weights" in refused(tmp_path / "p.npz")


def test_keras_config_is_never_read(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.keras"
    with zipfile.ZipFile(files / "w.keras") as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("config.json", '{"module": "os", "class_name": "system"}')
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    assert build_backbone("mobilenet", weights=str(path), **SMALL).names[1] == "conv1"


@pytest.mark.parametrize("link", ["group", "dataset", "soft"])
def test_links_to_other_files_are_refused(link: str, files: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.weights.h5"
    path.write_bytes((files / "w.weights.h5").read_bytes())
    other = str(files / "w.weights.h5")
    with h5py.File(path, "a") as file:
        kernel = file["layers/conv2d/vars/0"]
        shape, dtype = kernel.shape, kernel.dtype
        if link == "group":
            del file["layers/conv2d"]
            file["layers/conv2d"] = h5py.ExternalLink(other, "layers/conv2d")
        elif link == "soft":
            del file["layers/conv2d/vars/0"]
            file["layers/conv2d/vars/0"] = h5py.SoftLink("/layers/batch_normalization/vars/0")
        else:
            del file["layers/conv2d/vars/0"]
            file["layers/conv2d/vars"].create_dataset("0", shape, dtype, external=[(other, 0, h5py.h5f.UNLIMITED)])
    assert "cannot be read as weights" in refused(path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("imagenett", "no such file"),
        ("missing.h5", "no such file"),
        (".", "is a folder"),
        (__file__, "unknown kind of weights file '.py'"),
    ],
)
def test_weights_that_are_no_file(given: str, says: str) -> None:
    (problem,) = check_weights(given, get_spec("resnet50"))
    assert says in str(problem)
    assert "imagenet, glyphs, null" in str(problem)


@pytest.mark.parametrize(
    ("name", "options", "where"),
    [
        ("mobilenet", {"alpha": 0.3}, "backbone.alpha"),
        ("mobilenet_v2", {"alpha": 0.25}, "backbone.alpha"),
        ("mobilenet", {"depth_multiplier": 2}, "backbone.depth_multiplier"),
        ("vgg16", {"include_top": True, "classes": 10}, "backbone.classes"),
        ("vgg16", {"include_top": True, "image_size": 96}, "backbone.image_size"),
        ("vgg16", {"classes": 10}, "backbone.classes"),
    ],
)
def test_imagenet_weights_that_do_not_exist(name: str, options: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as caught:
        build_backbone(name, weights="imagenet", **options)
    assert [problem.where for problem in caught.value.problems] == [where]


# --- the embedded file -----------------------------------------------------------------------------------------------


@pytest.fixture
def embedded(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mobilenet_0.25_glyphs.npz"
    path.write_bytes((files / "w.npz").read_bytes())
    facts = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "architecture": "mobilenet", "alpha": 0.25}
    path.with_suffix(".json").write_text(json.dumps(facts))
    monkeypatch.setattr(weights, "EMBEDDED", path)
    return path


def test_embedded_weights(embedded: Path, source: Backbone) -> None:
    assert_same(build_backbone("mobilenet", weights="glyphs", alpha=0.25, image_size=64), source)


def test_embedded_weights_are_compared_with_their_hash(embedded: Path) -> None:
    embedded.write_bytes(embedded.read_bytes()[:-1] + b"x")
    assert "sha256 differs" in refused("glyphs")
    embedded.unlink()
    assert "missing from this installation" in refused("glyphs")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenet", {}),
        ("mobilenet", {"alpha": 0.5}),
        ("mobilenet_v2", {"alpha": 0.25}),
        ("resnet50", {}),
        ("mobilenet", {"alpha": 0.25, "include_top": True}),
    ],
)
def test_embedded_weights_fit_one_network_only(name: str, options: dict[str, Any]) -> None:
    (problem,) = check_weights("glyphs", get_spec(name), **options)
    assert "MobileNet alpha 0.25 without top" in str(problem)


# --- ImageNet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "top", "file"),
    [
        ("mobilenet", {"alpha": 0.5, "image_size": 160}, False, "mobilenet_5_0_160_tf_no_top.h5"),
        ("mobilenet", {"image_size": 96}, True, "mobilenet_1_0_224_tf.h5"),
        ("mobilenet_v2", {"alpha": 1, "image_size": 96}, False, None),
        ("nasnet_large", {"image_size": 224}, False, "nasnet_large_no_top.h5"),
        ("densenet201", {}, False, "densenet201_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("resnet50", {}, True, "resnet50_weights_tf_dim_ordering_tf_kernels.h5"),
    ],
)
def test_name_of_the_file_in_keras_cache(name: str, options: dict[str, Any], top: bool, file: str | None) -> None:
    file = file or "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5"
    assert imagenet_file(get_spec(name), include_top=top, **options) == file


@pytest.mark.parametrize(
    ("name", "top"), [("vgg16", False), ("resnet50", True), ("mobilenet", True), ("mobilenet_v2", False)]
)
def test_keras_asks_for_the_file_that_we_name(name: str, top: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    from keras.src.utils import file_utils

    asked = []

    def get_file(fname: str, *_: Any, **__: Any) -> str:
        asked.append(fname)
        raise ConnectionError("stop here")

    monkeypatch.setattr(file_utils, "get_file", get_file)
    spec = get_spec(name)
    function = getattr(keras.applications, spec.keras_name)
    with pytest.raises(ConnectionError):
        function(weights="imagenet", include_top=top, input_shape=(spec.image_size, spec.image_size, 3))
    assert asked == [imagenet_file(spec, include_top=top)]


def test_offline_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from keras.src.utils import file_utils

    def get_file(fname: str, origin: str, **_: Any) -> str:
        raise Exception(f"URL fetch failure on {origin}: None -- name or service not known")

    monkeypatch.setattr(file_utils, "get_file", get_file)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    near = tmp_path / "models" / "mobilenet_2_5_224_tf_no_top.h5"
    near.touch()
    (tmp_path / "models" / "mobilenet_5_0_224_tf_no_top.h5").touch()
    message = refused("imagenet", alpha=0.25, image_size=128)
    for part in (
        str(tmp_path / "models" / "mobilenet_2_5_128_tf_no_top.h5"),
        "storage.googleapis.com",
        f"backbone.weights={near}",
        "backbone.weights=null",
        "backbone.weights=glyphs",
    ):
        assert part in message
    assert "5_0" not in message


def test_damaged_file_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mobilenet_2_5_224_tf_no_top.h5").write_bytes(b"half a download")
    assert "cannot be read as weights" in refused("imagenet", alpha=0.25)


def photographs(assets: Path) -> tuple[np.ndarray, list[set[int]]]:
    """The photographs with a sure answer as uint8 (n, 224, 224, 3), and the ImageNet classes right for each."""
    from PIL import Image

    with (assets / "open-photos" / "labels.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    images, classes = [], []
    for row in rows:
        image = Image.open(assets / "open-photos" / row["file"]).convert("RGB")
        side = 0.875 * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        images.append(np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=box)))
        accepted: set[int] = set()
        for part in row["accepted_imagenet_indices"].split(","):  # numbers and ranges: 281,282 or 151-268
            first, _, last = part.partition("-")
            accepted |= set(range(int(first), int(last or first) + 1))
        classes.append(accepted)
    return np.stack(images), classes


@pytest.mark.parametrize(("name", "alpha"), [("mobilenet", 0.25), ("mobilenet_v2", 0.35), ("mobilenet_v2", 1.0)])
def test_features_are_those_of_keras(name: str, alpha: float, assets: Path, keras_home: Path) -> None:
    import keras

    images = photographs(assets)[0][:4]
    ours = build_backbone(name, alpha=alpha, weights="imagenet")
    function = getattr(keras.applications, ours.spec.keras_name)
    theirs = function(alpha=alpha, include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    expected = np.asarray(theirs(keras.applications.mobilenet.preprocess_input(images.astype("float32"))))
    assert expected.std() > 0.1
    np.testing.assert_allclose(ours.model()(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "alpha", "right"), [("mobilenet", 0.25, 14), ("mobilenet_v2", 1.0, 15)])
def test_imagenet_classes(name: str, alpha: float, right: int, assets: Path, keras_home: Path) -> None:
    images, classes = photographs(assets)
    classifier = build_backbone(name, alpha=alpha, weights="imagenet", include_top=True)
    assert len(classifier.layers) > classifier.blocks[-1].last + 1
    answers = np.asarray(classifier.model()(images)).argmax(axis=1)
    assert sum(int(answer) in accepted for answer, accepted in zip(answers, classes, strict=True)) == right


def test_file_with_top_fits_without_top(assets: Path, keras_home: Path) -> None:
    path = keras_home / "models" / "mobilenet_2_5_224_tf.h5"
    with_top = build_backbone("mobilenet", alpha=0.25, image_size=96, weights=str(path))
    assert_same(with_top, build_backbone("mobilenet", alpha=0.25, image_size=96, weights="imagenet"))
