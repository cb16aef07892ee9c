"""A network and pictures so small that a whole run takes seconds, for tests of what training does."""

from __future__ import annotations

import copy
import io
import os
import runpy
import signal
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(autouse=True, scope="module")
def tiny_plugin() -> Iterator[None]:
    """The names of plugin/tiny_plugin.py, in this process; forgotten after the file."""
    from tlearn.backbones import SPECS
    from tlearn.data import SOURCES
    from tlearn.heads import HEADS

    registries = (SPECS, HEADS, SOURCES)
    before = [dict(registry._added) for registry in registries]
    runpy.run_path(str(PLUGIN / "tiny_plugin.py"))
    yield
    for registry, added in zip(registries, before, strict=True):
        registry._added = added


@pytest.fixture(autouse=True, scope="module")
def quick_pictures() -> Iterator[None]:
    """The report's figures take as long to draw as the network to train; they are written all the same."""
    from tlearn.train import report

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_png", lambda figure: file.getvalue())
        yield


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run folders are made in the working directory; the command takes over the signals of its process."""
    monkeypatch.chdir(tmp_path)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def plugin_env() -> dict[str, str | None]:
    """Environment of a subprocess that knows the names of the plugin."""
    root = PLUGIN.parent.parent.parent
    return {"TLEARN_PLUGINS": "tiny_plugin", "PYTHONPATH": os.pathsep.join([str(root), str(PLUGIN)])}


TINY = (
    "backbone.name=tiny",
    "backbone.weights=null",
    "backbone.alpha=null",
    "backbone.image_size=16",
    "data.name=stripes",
    "data.batch_size=8",
    "log.tensorboard=false",
)


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides of a run over 48 training and 12 validation pictures in 6 steps an epoch."""
    return TINY


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """``tiny_config("seed=2")``: that run's config, with more overrides.

    Hydra composes runs once that are the same but for their folder.
    """
    from tlearn.compose import load_config

    composed = lru_cache(maxsize=None)(lambda overrides: load_config([*TINY, *overrides]))

    def configure(*overrides: str) -> Any:
        folder = [text for text in overrides if text.startswith("run_dir=")]
        config = copy.deepcopy(composed(tuple(text for text in overrides if text not in folder)))
        if folder:
            config.run_dir = folder[-1].removeprefix("run_dir=")
        return config

    return configure


@pytest.fixture(scope="session")
def tiny_fit(tiny_config: Callable[..., Any]) -> Callable[..., Any]:
    """``tiny_fit("seed=2")`` trains it and gives the run."""
    from tlearn.train.api import fit

    return lambda *overrides, **keywords: fit(tiny_config(*overrides), **keywords)


def draw_folder(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 6, side: int = 16) -> Path:
    """A folder of class folders with small pictures, each its own."""
    random = np.random.default_rng(3)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(each):
            pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three classes with six pictures each."""
    return draw_folder(tmp_path / "pictures")


def everything(folder: Path) -> dict[str, int]:
    """Every file and folder with its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused("seed=x", says=("seed",))``: runs the command and gives what it says, once all is as it should be."""

    from tlearn.train.command import main

    def run(*overrides: str, says: tuple[str, ...] = ()) -> str:
        before = everything(tmp_path)
        status = main(list(overrides))
        out, err = capsys.readouterr()
        assert status == 2, err
        assert out == ""
        assert "Traceback" not in err
        assert err.startswith("error: ")
        for text in says:
            assert text in err
        assert everything(tmp_path) == before, "something was written"
        return err

    return run
