"""``tlearn.extract`` and the cache that training fills: what is there is not computed again, and is never of others."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlearn
from tests.verbs.conftest import train
from tlearn.config import CacheConfig
from tlearn.extract import extract_features, main
from tlearn.feature_file import Partial
from tlearn.images import FileImages, find_images
from tlearn.train.feature_cache import FeatureCache, cache_folder


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"))


def entries(cache: CacheConfig) -> list[str]:
    """What is in the cache: the layers, by the last words about them."""
    return sorted(entry.about.rpartition(" ")[2] for entry in FeatureCache(cache_folder(cache)).entries())


def test_each_layer_is_computed_once(
    network: tlearn.Network, pictures: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(output: str, *layers: str, cached: bool, **options: Any) -> Any:
        settings: dict[str, Any] = {"layers": layers, "cache": cache, "progress": False, "batch_size": 3, **options}
        said = extract_features(network, find_images([pictures]), output, **settings)
        assert said["cached"] is cached, output
        return np.load(output)

    both = extract("both.npz", "conv_pw_3", "conv_pw_3_bn", cached=False)
    assert entries(cache) == ["conv_pw_3", "conv_pw_3_bn"]
    assert {entry.where for entry in FeatureCache(cache_folder(cache)).entries()} == {str(pictures)}
    with monkeypatch.context() as patch:
        patch.setattr(FileImages, "load", lambda *_: pytest.fail("an image was opened"))
        alone = extract("alone.npz", "conv_pw_3_bn", cached=True)
        half = extract("half.npz", "conv_pw_3", cached=True, dtype="float16")
    np.testing.assert_array_equal(alone["conv_pw_3_bn"], both["conv_pw_3_bn"])
    np.testing.assert_array_equal(half["conv_pw_3"], both["conv_pw_3"].astype(np.float16))
    mixed = extract("mixed.npz", "conv_pw_3", "pooled", "conv_pw_3_bn", cached=False)
    fresh = extract("fresh.npz", "conv_pw_3", "pooled", cached=False, keep_features=False)
    assert entries(cache) == ["conv_pw_3", "conv_pw_3_bn", "pooled"]
    for name in ("conv_pw_3", "pooled"):
        np.testing.assert_allclose(mixed[name], fresh[name], rtol=1e-4, atol=1e-5 * fresh[name].max())
    extract("avg.npz", "conv_pw_3", cached=False, pooling="avg")
    extract("max.npz", "conv_pw_3", cached=False, pooling="max")
    assert len(entries(cache)) == 5

    other = tlearn.backbone("mobilenet", alpha=0.25, weights=None, image_size=32)
    said = extract_features(other, find_images([pictures]), "other.npz", layers=["conv_pw_3"], cache=cache)
    assert not said["cached"], "other weights give other features"
    os.utime(pictures / "ant" / "3.png", ns=(1, 1))
    extract("changed.npz", "conv_pw_3", cached=False)


def test_other_images_of_the_same_names_sizes_and_times(
    network: tlearn.Network, cache: CacheConfig, tmp_path: Path
) -> None:
    """As archives and build systems leave them, which give all files one time."""
    random = np.random.default_rng(1)

    def extract(output: str) -> np.ndarray:
        for index in range(3):
            file = tmp_path / f"{index}.bmp"
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
            os.utime(file, (1, 1))
        said = extract_features(network, find_images([tmp_path]), output, cache=cache, progress=False)
        assert not said["cached"]
        features: np.ndarray = np.load(output)
        return features

    assert (extract("one.npy") != extract("other.npy")).any()
    assert len(FeatureCache(cache_folder(cache)).entries()) == 1, "what was of other images is gone"


def test_what_is_kept_has_its_bounds(network: tlearn.Network, pictures: Path, cache: CacheConfig) -> None:
    """Of the features used longest ago some make room; what is larger than the cache takes the room of none."""

    def extract(*layers: str, gigabytes: float) -> None:
        bounded = replace(cache, max_gb=gigabytes)
        extract_features(network, find_images([pictures]), "f.npz", layers=layers, cache=bounded, overwrite=True)

    extract("block_11", gigabytes=1)
    size = 10 * 2 * 2 * 128 * 4 / 1e9
    extract("block_5", gigabytes=1.5 * size)  # 4 x 4 x 64: twice as much
    assert entries(cache) == ["block_11"]
    extract("block_10", gigabytes=1.5 * size)
    assert entries(cache) == ["block_10"]
    (pictures / "ant" / "bad.png").write_text("no image")
    extract("block_9", gigabytes=1)
    assert entries(cache) == ["block_10"], "there are not features of all images"


def test_features_of_a_stopped_extraction_are_kept_too(
    network: tlearn.Network, pictures: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(output: str, **options: Any) -> dict[str, Any]:
        images = find_images([pictures])
        settings: dict[str, Any] = {"cache": cache, "batch_size": 4, "progress": False, **options}
        return extract_features(network, images, output, layers=["block_11"], **settings)

    append, batches = Partial.append, []

    def stopped(self: Partial, *arguments: Any) -> None:
        batches.append(arguments)
        if len(batches) == 3:
            raise KeyboardInterrupt
        append(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "append", stopped)
        with pytest.raises(KeyboardInterrupt):
            extract("f.npz")
    assert entries(cache) == []
    assert (extract("f.npz")["resumed"], entries(cache)) == (8, ["block_11"])
    assert extract("kept.npz")["cached"]
    extract("whole.npz", keep_features=False)
    np.testing.assert_array_equal(np.load("kept.npz")["block_11"], np.load("whole.npz")["block_11"])


@pytest.mark.slow
def test_a_layer_of_a_run_comes_from_the_cache_of_its_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later stage keeps a feature map; after it the layers above have other weights."""
    run = train(
        tmp_path / "run",
        *("data=digits", "data.per_class=5", "schedule=two_stage"),
        *("schedule.stages.0.epochs=1", "schedule.stages.1.epochs=1"),
    )
    for layer, cached in (("conv_pw_11_relu", True), ("conv_pw_13_relu", False)):
        assert main([str(run), "--split", "val", "--layer", layer, "-o", f"{layer}.npz"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["cached"] is cached
    arguments = [str(run), "--split", "val", "--layer", "block_13", "-o", "again.npz"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["cached"], "it is that layer by another name"
    assert main([*arguments, "--no-cache", "--overwrite"]) == 0
    assert not json.loads(capsys.readouterr().out)["cached"]
    assert main([*arguments, "--cache-dir", "elsewhere", "--overwrite"]) == 0
    assert len(list(Path("elsewhere").iterdir())) == 1
