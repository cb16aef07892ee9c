"""Runs so small that a whole schedule takes seconds, each with a feature cache of its own."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

FRESH = ("augment.horizontal_flip.p=0.5", "augment.affine.p=0.7")
SHORT = "schedule.stages.0.epochs=2"
TWO_STAGES = (
    "schedule=two_stage",
    *("schedule.stages.0.epochs=1", "schedule.stages.0.optimizer.learning_rate=0.01"),
    *("schedule.stages.1.epochs=1", "schedule.stages.1.optimizer.learning_rate=0.1"),
)


def off(overrides: tuple[str, ...]) -> tuple[str, ...]:
    return (*overrides, "cache.mode=off")


def at_step(step: int) -> Callable[[], bool]:
    """Says stop once the newest run has recorded a global step."""

    def asked() -> bool:
        newest = max(Path().glob("run*"), key=lambda path: int(path.name[3:]), default=Path("run0"))
        lines = (newest / "metrics.jsonl").read_text() if (newest / "metrics.jsonl").is_file() else ""
        return f'"global_step": {step},' in lines

    return asked


@pytest.fixture(autouse=True, scope="module")
def plugins() -> Iterator[None]:
    """A data source ``blotches`` and a backbone ``tiny``, which builds at once; forgotten after the file."""
    from tlearn.backbones import SPECS, register_backbone
    from tlearn.data import SOURCES, ArraySource, register_source

    before = [(registry, dict(registry._added)) for registry in (SPECS, SOURCES)]

    @register_source("blotches")
    def blotches(config: Any, *, image_size: int, seed: int) -> ArraySource:
        """Pictures of 32 pixels in three classes, told apart by their colour."""
        count = config.options.get("count", 24)
        random = np.random.default_rng(7)
        labels = np.arange(count) % 3
        colour = np.eye(3)[labels][:, None, None] * 120
        pixels = random.integers(0, 136, (count, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2) + colour
        return ArraySource(pixels.astype(np.uint8), labels, ("red", "green", "blue"), name="blotches")

    @register_backbone("tiny", image_size=32, least_size=8, blocks={x: f"{x}_relu" for x in ("low", "mid", "top")})
    def tiny(images: Any, filters: int = 4, strides: int = 2) -> Any:
        from keras import layers

        x = images
        for index, name in enumerate(("low", "mid", "top")):
            x = layers.Conv2D(filters * 2**index, 3, strides=strides, padding="same", name=f"{name}_conv")(x)
            x = layers.BatchNormalization(name=f"{name}_norm")(x)
            x = layers.ReLU(name=f"{name}_relu")(x)
        return x

    yield
    for registry, added in before:
        registry._added = added


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folders are made in the working directory, features in a cache folder that nobody else has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


TINY = (
    "backbone.name=tiny",
    "backbone.weights=null",
    "backbone.alpha=null",
    "backbone.image_size=32",
    "data.name=blotches",
    "data.batch_size=8",
    "data.check=none",
    "log.tensorboard=false",
    "prefix.engine=graph",  # to compare bit by bit with what is not cached
)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """``tiny_config("seed=2")``: the config of a run over 18 training and 6 validation pictures, 3 steps an epoch.

    Hydra takes longer than such a run: it composes once for each schedule, the rest is set afterwards.
    """
    from tlearn.compose import load_config

    composed = lru_cache(maxsize=None)(lambda overrides: load_config(list(overrides)))

    def configure(*overrides: str) -> Any:
        structural = tuple(text for text in overrides if text.startswith(("schedule=", "schedule.stages=")))
        config = copy.deepcopy(composed((*TINY, *structural)))
        for override in overrides:
            if override not in structural:
                key, _, text = override.partition("=")
                _set(config, key.split("."), text)
        return config

    return configure


def _set(node: Any, path: list[str], text: str) -> None:
    """Set what a dotted key names; choices become members of their enumeration."""
    for name in path[:-1]:
        node = node[int(name)] if isinstance(node, list) else getattr(node, name)
    if isinstance(node, dict):
        node[path[-1]] = yaml.safe_load(text)
        return
    before = getattr(node, path[-1])
    setattr(node, path[-1], type(before)(text) if isinstance(before, Enum) else yaml.safe_load(text))


@dataclass(frozen=True)
class Trained:
    """What a run left: its folder, its plan, its weights by key before and after, what it printed."""

    run: Any
    plan: Any
    before: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    said: str

    def moved(self, keys: Sequence[str]) -> float:
        """How far the furthest of some weights moved."""
        return max(float(np.abs(self.weights[key] - self.before[key]).max()) for key in keys)

    def furthest_from(self, other: Trained) -> float:
        """The largest difference of any weight; printed, for docs/speed.md says what is measured."""
        assert self.weights.keys() == other.weights.keys()
        furthest = max(float(np.abs(value - other.weights[key]).max()) for key, value in self.weights.items())
        print(f"weights differ by {furthest:.1g}")
        return furthest

    @property
    def passes(self) -> int:
        """How often it went through the training images to make features."""
        return len(re.findall(r"features of [\d,]+ train images", self.said))


@pytest.fixture
def train(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    """``train("seed=2")`` trains without the evaluation and the report at the end, which take longest.

    Keywords: ``eagerly=False`` makes graphs, which takes longer than such runs do; others are those of ``Trainer``.
    """
    from tlearn.train import trainer
    from tlearn.train.api import prepare
    from tlearn.train.console import Terminal
    from tlearn.train.run import Run

    monkeypatch.setattr(trainer, "finish", lambda *args, **keywords: {"status": "finished"})
    numbers = itertools.count()

    def train(*overrides: str, eagerly: bool = True, resume: Path | None = None, **keywords: Any) -> Trained:
        import tensorflow as tf

        prepared = prepare(tiny_config(f"run_dir=run{next(numbers)}", *overrides))
        terminal = Terminal(progress=False)
        before = {key: np.asarray(variable).copy() for key, variable in prepared.classifier.variables().items()}
        run = Run.create(prepared.config) if resume is None else Run(resume)
        terminal.log_to(run.log_file)
        tf.config.run_functions_eagerly(eagerly)
        try:
            subject = trainer.Trainer(
                run, prepared.config, prepared.data, prepared.classifier, prepared.plan, terminal=terminal, **keywords
            )
            if resume is not None:
                subject.restore()
            subject.run()
        finally:
            tf.config.run_functions_eagerly(False)
        weights = {key: np.asarray(variable).copy() for key, variable in prepared.classifier.variables().items()}
        return Trained(run, prepared.plan, before, weights, " ".join(run.log_file.read_text().split()))

    return train
