"""What the check decodes is not decoded again by whoever reads first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlearn.data import FirstSquares, Reading, check_images, checked_meanwhile, index_data
from tlearn.data.check import CheckGivenUp
from tlearn.data.loader import Loader
from tlearn.data.source import FileSource
from tlearn.errors import DataError


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """24 JPEGs of noise in two classes, of all shapes."""
    random = np.random.default_rng(5)
    for index in range(24):
        path = tmp_path / "photographs" / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, (40 + index, 70 - index, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photographs"


@pytest.fixture
def configure(tiny_config: Callable[..., Any], photographs: Path) -> Callable[..., Any]:
    def configure(*overrides: str) -> Any:
        folder = ("data.name=folder", f"data.path={photographs}", "data.check=decode", "schedule.stages.0.epochs=2")
        return tiny_config(*folder, *overrides)

    return configure


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows whose files were decoded after the check."""
    rows: list[int] = []
    really = FileSource.open
    monkeypatch.setattr(FileSource, "open", lambda self, row, *a: rows.append(row) or really(self, row, *a))
    return rows


@pytest.mark.parametrize("overrides", [(), ("data.decode=scaled",), ("data.resize=pad", "data.crop_fraction=1.0")])
def test_squares_are_those_that_would_be_read(configure: Callable[..., Any], overrides: tuple[str, ...]) -> None:
    config = configure(*overrides)
    data = index_data(config.data, image_size=16, seed=1)
    reading, rows = Reading.of(config.data, 16), np.arange(24)
    squares = FirstSquares(reading, rows)
    check_images(data.source, rows, mode=config.data.check, keep=squares)
    expected = Loader(data.source, reading).batch(rows)[0]
    np.testing.assert_array_equal(np.stack([squares.get(row) for row in range(24)]), expected)
    assert squares.get(3) is None, "each is given once"


def test_only_as_many_as_the_bound_allows(configure: Callable[..., Any]) -> None:
    config = configure()
    data = index_data(config.data, image_size=16, seed=1)
    squares = FirstSquares(Reading.of(config.data, 16), np.array([9, 2, 5]), most_bytes=2 * 16 * 16 * 3 + 1)
    check_images(data.source, np.arange(24), mode=config.data.check, keep=squares)
    assert [row for row in range(24) if squares.get(row) is not None] == [2, 9]


def test_features_need_no_second_decoding(
    configure: Callable[..., Any], opened: list[int], trained: Callable[[Any], Any]
) -> None:
    first = trained(configure("run_dir=a"))
    assert opened == []
    again = trained(configure("run_dir=b", "schedule.stages.0.epochs=1"))
    assert again.squares is None, "features are there: the check decodes at an eighth"
    other = trained(configure("run_dir=c", "data.crop_fraction=0.5"))
    assert other.squares is not None
    assert opened == []
    assert first.squares is not None


def test_an_epoch_that_streams_takes_them_too(
    configure: Callable[..., Any], opened: list[int], trained: Callable[[Any], Any]
) -> None:
    trained(configure("run_dir=a", "cache.mode=off", "schedule.stages.0.epochs=1"))
    assert opened == []
    trained(configure("run_dir=b", "cache.mode=off"))
    assert len(opened) == 24  # the second epoch


def test_random_crops_need_whole_images(configure: Callable[..., Any], trained: Callable[[Any], Any]) -> None:
    assert trained(configure("run_dir=a", "augment.random_resized_crop.p=1")).squares is None


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Trains without graphs, and without the evaluation at the end; gives what was prepared."""
    import tensorflow as tf

    from tlearn.train import api, trainer

    prepared: list[Any] = []
    prepare = api.prepare
    monkeypatch.setattr(trainer, "finish", lambda *args, **keywords: {"status": "finished"})
    monkeypatch.setattr(
        api, "prepare", lambda config, **keywords: prepared.append(prepare(config, **keywords)) or prepared[-1]
    )

    def train(config: Any) -> Any:
        tf.config.run_functions_eagerly(True)
        try:
            api.fit(config)
        finally:
            tf.config.run_functions_eagerly(False)
        return prepared[-1]

    return train


# --- in threads ------------------------------------------------------------------------------------------------------


def test_what_the_check_finds_is_raised_where_it_is_asked_for(configure: Callable[..., Any], photographs: Path) -> None:
    (photographs / "a" / "0.jpg").write_bytes(b"no image")
    config = configure()
    data = index_data(config.data, image_size=16, seed=1)
    with checked_meanwhile(data, config.data) as checked, pytest.raises(DataError, match="is not an image"):
        checked()


def test_who_leaves_gives_it_up(configure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    import tlearn.data.check as check

    begun, left = threading.Event(), threading.Event()
    looked_at: list[int] = []

    def slow(*args: Any, **keywords: Any) -> None:
        looked_at.append(1)
        begun.set()
        left.wait(10)

    monkeypatch.setattr(check, "decode", slow)
    config = configure()
    data = index_data(config.data, image_size=16, seed=1)
    threading.Timer(0.2, left.set).start()
    with checked_meanwhile(data, config.data) as checked:
        begun.wait(10)
    with pytest.raises(CheckGivenUp):
        checked()
    assert len(looked_at) == 1
