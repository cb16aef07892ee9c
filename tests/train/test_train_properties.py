"""Random plans, stopped and killed at random moments: resumed, each ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.test_train_faults import same
from tlearn.train.api import fit, resume
from tlearn.train.stopping import Stopped

Make = Callable[..., Any]


def random_plan(draw: random.Random) -> list[str]:
    """Overrides of a run: one or two stages, every kind of state that a run can have."""
    stages = [random_stage(draw, index) for index in range(draw.choice((1, 2, 2)))]
    accumulate = draw.choice((None, None, 2, 3))
    augment = draw.choice(("none", "none", "light", "medium"))
    plan = {
        "seed": draw.randrange(100),
        "schedule.stages": stages,
        "data.options": {"count": draw.choice((20, 30))},
        "data.workers": draw.choice((None, 1, 3)),
        "data.cache": draw.choice(("none", "memory")) if augment == "none" else "none",
        "augment": augment,
        "cache.views": draw.choice((None, 2)) if augment != "none" else None,
        "cache.mode": draw.choice(("auto", "auto", "off")),
        "head": draw.choice(("linear", "mlp")),
        "loss.label_smoothing": draw.choice((0.0, 0.1)),
        "loss.class_weights": draw.choice(("none", "balanced")),
        "optimizer": draw.choice(("adam", "sgd", "rmsprop", "adamw", "nadam")),
        "optimizer.ema": draw.choice((None, 0.9)),
        "optimizer.accumulate": accumulate,
        "optimizer.clip_global_norm": draw.choice((None, 1.0)) if accumulate is None else None,
        "checkpoint.every": {"steps": draw.choice((1, 2, 3, 5)), "minutes": None},
        "checkpoint.keep": 1,
        "checkpoint.final": draw.choice(("best", "last")),
        "checkpoint.monitor": draw.choice((None, "val_loss", "val_accuracy")),
        "log.every": draw.choice((1, 2, 3)),
        "xla": "off",
    }
    if plan["head"] == "mlp":
        plan |= {"head.units": [8], "head.dropout": draw.choice((0.0, 0.4))}
    return [f"{key}={flow(value)}" for key, value in plan.items()]


def random_stage(draw: random.Random, index: int) -> dict[str, Any]:
    unfreeze = draw.choice(("none", "none", {"last_blocks": 1}, {"last_blocks": 2}, "all"))
    stage: dict[str, Any] = {"name": f"s{index}", "unfreeze": unfreeze, "carry_slots": draw.choice((True, False))}
    stage |= draw.choice(({"epochs": 1}, {"epochs": 1.5}, {"epochs": 2}, {"steps": 4}, {"examples": 20}))
    if unfreeze != "none":
        stage["batch_norm"] = draw.choice(("inference", "train"))
    if draw.random() < 0.3:
        stage["early_stopping"] = {"patience": 1}
    optimizer: dict[str, Any] = {"learning_rate": draw.choice((0.001, 0.01))}
    if index and draw.random() < 0.4:
        optimizer |= {"name": "sgd", "momentum": 0.9}
    if draw.random() < 0.4:
        optimizer["schedule"] = {"name": "cosine", "warmup": {"steps": 2}}
    return stage | {"optimizer": optimizer}


def flow(value: Any) -> str:
    """As Hydra's grammar writes it on a command line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


class Killed(BaseException):
    """Ends a run at once: nothing of it is caught, saved or tidied up."""


class Interruption:
    """Asked between any two pieces of work; answers yes, or kills, the ``at``-th time."""

    def __init__(self, at: int | None = None, *, kills: bool = False) -> None:
        self.asked = 0
        self._at = at
        self._kills = kills

    def __call__(self) -> bool:
        self.asked += 1
        if self._at is not None and self.asked >= self._at:
            if self._kills:
                raise Killed
            return True
        return False


def interrupted_anywhere(seed: int, tiny_config: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a plan undisturbed, and once more with an interruption and a resumption: they end alike."""
    draw = random.Random(seed)
    plan, watch = random_plan(draw), Interruption()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    whole = fit(tiny_config(*plan, f"run_dir={folder / 'whole'}"), should_stop=watch)
    at, kills = draw.randrange(1, watch.asked + 1), draw.random() < 0.5
    print(f"seed {seed}, {'killed' if kills else 'stopped'} at {at} of {watch.asked}: {' '.join(plan)}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "another"))
    with pytest.raises(Killed if kills else Stopped):
        fit(tiny_config(*plan, f"run_dir={folder / 'run'}"), should_stop=Interruption(at, kills=kills))
    begun = (folder / "run" / "config.yaml").is_file()
    same(resume(folder / "run") if begun else fit(tiny_config(*plan, f"run_dir={folder / 'run'}")), whole)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_plan(seed: int, tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_anywhere(seed, tiny_config, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_forty_random_plans(seed: int, tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_anywhere(seed, tiny_config, tmp_path, monkeypatch)
