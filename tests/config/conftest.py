"""Every test composes in a folder of its own: experiments are looked for in the working directory."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parent.parent / "train" / "plugin" / "tiny_plugin.py"


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[[str, str], Path]:
    """``experiment("mine", text)`` writes experiments/mine.yaml in the working directory."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / "experiments" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def tiny_plugin() -> Iterator[Path]:
    """The backbone ``tiny``, the head ``cosine`` and the data ``stripes``, forgotten after the file."""
    from tlearn.backbones import SPECS
    from tlearn.data import SOURCES
    from tlearn.heads import HEADS

    registries = (SPECS, HEADS, SOURCES)
    before = [dict(registry._added) for registry in registries]
    runpy.run_path(str(PLUGIN))
    yield PLUGIN
    for registry, added in zip(registries, before, strict=True):
        registry._added = added
