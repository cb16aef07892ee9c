"""Sweeps over the tiny network, and over trials that train nothing."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "train" / "plugin"
FAKE = Path(__file__).with_name("fake_worker.py")

TINY = (
    *("backbone.name=tiny", "backbone.weights=null", "backbone.alpha=null", "backbone.image_size=16"),
    *("data.name=stripes", "data.batch_size=8"),
)
RATES = "sweep.space={optimizer.learning_rate: {type: float, low: 0.0001, high: 1.0, log: true}}"
RATES_YAML = """\
name: rates
trials: 6
pruner: {startup: 2}
space:
  optimizer.learning_rate: {type: float, low: 0.0001, high: 1.0, log: true}
"""


@pytest.fixture(autouse=True, scope="module")
def tiny_plugin() -> Iterator[None]:
    from tlearn.backbones import SPECS
    from tlearn.data import SOURCES
    from tlearn.heads import HEADS

    registries = (SPECS, HEADS, SOURCES)
    before = [dict(registry._added) for registry in registries]
    runpy.run_path(str(PLUGIN / "tiny_plugin.py"))
    yield
    for registry, added in zip(registries, before, strict=True):
        registry._added = added


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rates.yaml").write_text(RATES_YAML, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plugin_env() -> dict[str, str]:
    return {"TLEARN_PLUGINS": "tiny_plugin", "PYTHONPATH": os.pathsep.join([str(ROOT), str(PLUGIN)])}


@pytest.fixture
def rates() -> tuple[str, ...]:
    """Overrides of a sweep of six trials over one learning rate."""
    return ("sweep=rates.yaml", "sweep.dir=out", *TINY)


@pytest.fixture(scope="session")
def fake() -> dict[str, Any]:
    """``fake_run``, ``open_study`` and ``work`` of fake_worker.py."""
    return runpy.run_path(str(FAKE))


@pytest.fixture
def fake_sweep(fake: dict[str, Any], rates: tuple[str, ...]) -> Callable[..., Any]:
    """``fake_sweep("sweep.trials=3", run=...)`` works on the study until the budget is met, and gives it."""
    return lambda *overrides, run=None: fake["work"]([*rates, *overrides], run or fake["fake_run"]())


@pytest.fixture
def fake_process(tmp_path: Path, plugin_env: dict[str, str], rates: tuple[str, ...]) -> Callable[..., Any]:
    """``fake_process("sweep.trials=9", hold=2)`` starts a worker in a process of its own; keywords of ``fake_run``."""

    def start(*overrides: str, **keywords: float) -> subprocess.Popen[str]:
        command = [sys.executable, str(FAKE), json.dumps(keywords), *rates, *overrides]
        environment = os.environ | plugin_env
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )

    return start
