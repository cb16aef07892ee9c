"""tlearn: transfer learning for images, from a small config to a folder from which everything can be repeated.

    import tlearn

    config = tlearn.Config(
        backbone=tlearn.preset("backbone", "mobilenet_v2"),
        data=tlearn.DataConfig(name="folder", path="flowers"),
        schedule=tlearn.preset("schedule", "two_stage"),
    )
    print(tlearn.make_plan(config))
    run = tlearn.fit(config)
    print(run.summary["val_accuracy"])
    model = run.model()

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tlearn.config import (
    AugmentConfig,
    BackboneConfig,
    CacheConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    HeadConfig,
    LogConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    Stage,
)
from tlearn.errors import ConfigError, DataError, Problem, UserError, WeightsError

if TYPE_CHECKING:
    from tlearn.backbones import build_backbone, register_backbone
    from tlearn.compose import load_config, preset
    from tlearn.data import register_source
    from tlearn.heads import register_head
    from tlearn.network import Network
    from tlearn.opening import backbone, load
    from tlearn.train.api import fit, make_plan, open_run, resume
    from tlearn.train.reproduction import reproduce
    from tlearn.train.run import Run

__version__ = "0.1.0"

_LAZY = {
    "Network": "tlearn.network",
    "Run": "tlearn.train.run",
    "backbone": "tlearn.opening",
    "build_backbone": "tlearn.backbones",
    "fit": "tlearn.train.api",
    "load": "tlearn.opening",
    "load_config": "tlearn.compose",
    "make_plan": "tlearn.train.api",
    "open_run": "tlearn.train.api",
    "preset": "tlearn.compose",
    "register_backbone": "tlearn.backbones",
    "register_head": "tlearn.heads",
    "register_source": "tlearn.data",
    "reproduce": "tlearn.train.reproduction",
    "resume": "tlearn.train.api",
}

__all__ = [
    "AugmentConfig",
    "BackboneConfig",
    "CacheConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "HeadConfig",
    "LogConfig",
    "LossConfig",
    "Network",
    "OptimizerConfig",
    "Problem",
    "Run",
    "ScheduleConfig",
    "Stage",
    "UserError",
    "WeightsError",
    "backbone",
    "build_backbone",
    "fit",
    "load",
    "load_config",
    "make_plan",
    "open_run",
    "preset",
    "register_backbone",
    "register_head",
    "register_source",
    "reproduce",
    "resume",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tlearn' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
