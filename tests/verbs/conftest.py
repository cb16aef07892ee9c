"""Two tiny finished runs, and a few pictures."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlearn

SMALL = (
    "backbone.name=mobilenet",
    "backbone.alpha=0.25",
    "backbone.weights=null",
    "backbone.image_size=32",
    "schedule=frozen",
    "schedule.stages.0.epochs=1",
    "log.tensorboard=false",
    "log.progress=false",
)


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(folder: Path, *overrides: str) -> Path:
    from tlearn.compose import load_config
    from tlearn.train.api import fit

    config = load_config([*SMALL, f"run_dir={folder}", f"cache.dir={folder.parent / 'features'}", *overrides])
    return fit(config).path


@contextlib.contextmanager
def shared_folder(name: str, factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that all worker processes of a test run share, held by one at a time."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"verbs-{name}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the digits: ten classes, one epoch."""
    with shared_folder("digits", tmp_path_factory) as folder:
        if not (folder / "run").exists():
            train(folder / "run", "data=digits", "data.per_class=20")
        return folder / "run"


@pytest.fixture(scope="session")
def labels_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on photographs with several labels each, with every choice unlike the default's."""
    with shared_folder("labels", tmp_path_factory) as folder:
        if not (folder / "run").exists():
            train_labels(folder)
        return folder / "run"


def train_labels(folder: Path) -> None:
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for index in range(12):
            draw_picture(folder / f"{index}.png", index, (40, 60))
            writer.writerow([f"{index}.png", ("red|green", "green", "")[index % 3]])
    train(
        folder / "run",
        "data=table",
        f"data.path={folder / 'table.csv'}",
        "data.label_separator='|'",
        "data.resize=pad",
        "data.interpolation=bicubic",
        "head.pooling=gem",
        "head.output=logits",
        "checkpoint.final=last",
    )


def draw_picture(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """A picture of its own, (height, width) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(name="draw")
def draw_fixture() -> Callable[..., Path]:
    """``draw(path, seed, (height, width))`` draws a picture of its own."""
    return draw_picture


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two class folders with five pictures each."""
    for index in range(10):
        draw_picture(tmp_path / "pictures" / ("ant" if index < 5 else "bee") / f"{index}.png", index)
    return tmp_path / "pictures"


@pytest.fixture
def altered(digits_run: Path, tmp_path: Path) -> Callable[[str, Any], Path]:
    """``altered("summary.json", None)``: the run without that file; or with this text, or these keys, in it."""

    def make(name: str, content: Any) -> Path:
        copy = tmp_path / "altered"
        shutil.copytree(digits_run, copy, dirs_exist_ok=True)
        if content is None:
            (copy / name).unlink()
        elif isinstance(content, dict):
            (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | content))
        else:
            (copy / name).write_bytes(content)
        return copy

    return make


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """A file whose header speaks of a billion pixels."""
    path, side = tmp_path / "huge.png", 32_000

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    return path


@pytest.fixture
def unreadable(tmp_path: Path, huge: Path) -> Path:
    """A folder of one good picture among bad ones."""
    folder = tmp_path / "mixed"
    draw_picture(folder / "good.png", 1)
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:60])
    huge.rename(folder / "huge.png")
    return folder


@pytest.fixture(scope="module")
def network(digits_run: Path) -> tlearn.Network:
    """The digits run, loaded."""
    return tlearn.load(digits_run)
