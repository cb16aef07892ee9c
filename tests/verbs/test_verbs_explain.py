"""``tlearn.explain``: Grad-CAM, held against the closed form it has for one dense layer over average pooling."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import tlearn
from tlearn.backbones import SPECS
from tlearn.explain import main
from tlearn.gradcam import Explanation
from tlearn.prediction import Guess


def test_the_map_is_the_class_activation_map() -> None:
    """Over average pooling and one dense layer, Grad-CAM is CAM (Selvaraju et al. 2017, section 3.1)."""
    network = tlearn.backbone("mobilenet_v2", alpha=0.35, weights=None, image_size=96, include_top=True)
    image = np.random.default_rng(5).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    features = network.features(image, "out_relu")[0]
    kernel = next(layer for layer in network.backbone.layers if layer.name == "predictions").kernel.numpy()
    mixed = 0
    for class_ in range(0, 1000, 100):
        found = network.explain(image, class_)
        support = np.maximum(features @ kernel[:, class_], 0)
        expected = support / support.max() if support.max() > 0 else support
        assert expected.shape == (3, 3)
        np.testing.assert_allclose(found.map, expected, atol=1e-4)
        mixed += 0 < (expected > 0.5).sum() < 9
    assert mixed, "maps that are the same everywhere would show nothing"


def test_a_run_explains_the_class_it_predicts(network: tlearn.Network) -> None:
    image = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = network.explain(image)
    best = network.predict(image)[0].top[0]
    assert found.guess.label == best.label
    assert found.guess.probability == pytest.approx(best.probability, abs=1e-6)


def test_pixels_that_decide_are_found(keras_home: Path, assets: Path) -> None:
    """Covering what the map points at lowers the probability more than covering what it leaves out."""
    network = tlearn.backbone("mobilenet", alpha=0.25, include_top=True)
    photo = assets / "open-photos" / "hot_dog.jpg"
    found = network.explain(str(photo), "hotdog")
    assert found.map.shape == (7, 7)
    assert found.layer == "conv_pw_13_relu"
    picture = network.reading.square(np.asarray(Image.open(photo).convert("RGB")))
    large = np.asarray(Image.fromarray(found.map).resize((224, 224)))

    def probability(covered: np.ndarray) -> float:
        return float(network(np.where(covered[..., None], 128, picture).astype(np.uint8))[0, 934])

    order = np.argsort(large, axis=None)
    share = order.size * 3 // 10
    most, least = np.zeros(order.size, bool), np.zeros(order.size, bool)
    most[order[-share:]] = least[order[:share]] = True
    assert probability(most.reshape(224, 224)) < 0.5 * probability(least.reshape(224, 224))
    assert found.guess.probability == pytest.approx(float(network(picture)[0, 934]), abs=1e-4)


@pytest.mark.parametrize(("name", "size"), [("vgg16", 32), ("mobilenet", 32), ("mobilenet_v2", 64)])
def test_every_kind_of_classifier(name: str, size: int) -> None:
    """Dense layers over a flattened map, a convolution, a dense layer; the score is taken before softmax."""
    network = tlearn.backbone(name, weights=None, image_size=size, include_top=True)
    image = np.random.default_rng(6).integers(0, 256, (size, size, 3), dtype=np.uint8)
    found = network.explain(image)
    assert found.map.shape == tuple(network.layers.feature_map.shape[1:3])
    assert found.map.max() in (0, 1)
    ((_, (scores,)),) = network.compute(tlearn.images.as_images(image), [network.logits])
    difference = np.log(network(image)[0]) - scores[0]  # a constant, if these are the scores before softmax
    assert np.ptp(difference) < 0.01 * np.ptp(scores[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SPECS))
def test_every_backbone(name: str) -> None:
    size = max(SPECS[name].least_size, 64)
    network = tlearn.backbone(name, weights=None, image_size=size, include_top=True, classes=4)
    image = np.random.default_rng(6).integers(0, 256, (size, size, 3), dtype=np.uint8)
    found = network.explain(image, 2)
    assert found.map.shape == tuple(network.layers.feature_map.shape[1:3])
    assert np.isfinite(found.map).all()
    assert found.guess.index == 2
    keras.backend.clear_session()


def test_the_picture(digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = pictures / "ant" / "0.png"
    assert main([str(digits_run), str(photo), "--class", "7", "--layer", "block_5"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["label"], said["layer"], said["output"]) == ("7", "conv_pw_5_relu", "0-gradcam.png")
    with Image.open("0-gradcam.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1.5 * picture.height
        assert np.asarray(picture.convert("L")).std() > 20, "there is nothing in it"
    assert main([str(digits_run), str(photo), "-o", "map.JPG"]) == 0
    with Image.open("map.JPG") as picture:
        assert picture.format == "JPEG"


def test_the_overlay_is_grey_but_for_the_map() -> None:
    guess = Guess(0, "a", 0.5)
    seen = np.random.default_rng(1).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    half = np.zeros((4, 4), np.float32)
    half[:, :2] = 1
    overlay = Explanation("x", guess, "layer", half, seen).overlay().astype(int)
    spread = np.ptp(overlay, axis=-1)
    assert spread[:, 336:].max() <= 1
    assert spread[:, :112].min() > 50
    assert not np.ptp(Explanation("x", guess, "layer", 0 * half, seen).overlay().astype(int), axis=-1).any()


def test_mistakes(
    digits_run: Path, pictures: Path, unreadable: Path, capsys: pytest.CaptureFixture[str], keras_home: Path
) -> None:
    photo = pictures / "ant" / "0.png"

    def refused(*arguments: str | Path, says: tuple[str, ...]) -> None:
        assert main([str(argument) for argument in arguments]) == 2, arguments
        error = capsys.readouterr().err
        missing = [text for text in says if text not in error]
        assert not missing, error

    run = digits_run
    refused(run, photo, photo, says=("one photograph",))
    refused(run, pictures, says=("is a folder",))
    refused(run, unreadable / "text.jpg", says=("is not an image",))
    refused(run, unreadable / "huge.png", says=("1024000000 pixels, more than --max-pixels 100000000", "lets larger"))
    refused(run, photo, "-o", photo, says=("the photograph itself",))
    refused(run, photo, "-o", "map.txt", says=("map.txt is called like no picture", ".png, .jpg"))
    refused(run, photo, "--class", "ten", says=("there is no class 'ten'", "one of: 0, 1"))
    refused(run, photo, "--class", "10", says=("classes 0 to 9",))
    refused(run, photo, "--layer", "head_logits", says=("has no positions",))
    refused(run, photo, "--layer", "blok_5", says=("block_5",))
    bare = ("--backbone", "mobilenet", "--alpha", "0.25", photo)
    refused(*bare, "--class", "crane", says=("2 classes", "134 (n02012849) or 517 (n03126707)"))
    refused(*bare, "--class", "egyptian cot", says=("did you mean egyptian cat",))
    assert not list(Path().glob("*.png"))
    assert main([*map(str, bare), "--class", "n02012849"]) == 0
    assert json.loads(capsys.readouterr().out)["index"] == 134
