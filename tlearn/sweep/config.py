"""The settings of a sweep, as plain typed data: what is searched, how, for how long. Kept apart from those of a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from tlearn.config import option


class Sampler(Enum):
    """How the values of the next trial are chosen."""

    tpe = "tpe"
    random = "random"
    grid = "grid"
    cmaes = "cmaes"
    nsgaii = "nsgaii"


class Pruner(Enum):
    """Which trials are given up before their end."""

    none = "none"
    median = "median"
    asha = "asha"
    hyperband = "hyperband"


class Direction(Enum):
    """Which values of an objective are better."""

    minimize = "minimize"
    maximize = "maximize"


@dataclass
class SamplerConfig:
    """The sampler.

    TPE: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"; CMA-ES: Hansen and Ostermeier 2001;
    NSGA-II: Deb et al. 2002.
    """

    name: Sampler = option(Sampler.tpe, "tpe | random | grid | cmaes | nsgaii")
    startup: int = option(10, "tpe, cmaes: trials drawn at random before the sampler learns from them")
    population: int | None = option(None, "cmaes, nsgaii: trials in a generation; null: Optuna's own")


@dataclass
class PrunerConfig:
    """The pruner; it is told of every epoch, across all stages.

    ASHA: Li et al. 2020, arXiv 1810.05934; Hyperband: Li et al. 2018, arXiv 1603.06560.
    """

    name: Pruner = option(Pruner.median, "none | median | asha | hyperband")
    startup: int = option(5, "median: trials that must be complete before one is pruned")
    warmup: int = option(1, "median: epochs of a trial in which it is never pruned")
    min_epochs: int = option(1, "asha, hyperband: epochs that every trial gets")
    reduction: int = option(3, "asha, hyperband: one in so many goes on at each rung")


@dataclass
class Objective:
    """What is to become small or large."""

    metric: str = option(
        "val_accuracy",
        "a metric that runs record, or seconds | parameters | model_mb (of the saved model, 10^6 bytes)",
    )
    direction: Direction | None = option(None, "minimize | maximize; null: what is better for this metric")


@dataclass
class SweepConfig:
    """One sweep."""

    name: str = option("sweep", "of the study; several in one storage are told apart by it")
    dir: str | None = option(None, "folder of the trials and the report; null: sweeps/<name>")
    storage: str | None = option(
        None,
        "null: study.db in the folder | FILE.journal, for network file systems | an Optuna storage URL",
    )
    trials: int | None = option(20, "budget in trials, of all workers and invocations together; null: no limit")
    minutes: float | None = option(None, "budget in minutes of trials, of all workers together; null: no limit")
    seed: int = option(0, "of the sampler; trials keep the run's own seed unless the space holds it")
    sampler: SamplerConfig = option(SamplerConfig(), "how values are chosen")
    pruner: PrunerConfig = option(PrunerConfig(), "which trials are given up early")
    objectives: list[Objective] = option([Objective()], "one, or several for a Pareto front")
    space: dict[str, Any] = option({}, "what is searched: config key: {type: float | int | categorical, ...}")
    trial: dict[str, Any] = option({}, "config keys for trials alone, such as fewer epochs; not for retraining")
    retries: int = option(2, "how often a trial is tried again when its worker was lost")
    failures: int = option(3, "so many failed trials in a row end the sweep")
    retrain: bool = option(False, "train the best once more without what trial sets, and write experiments/<name>.yaml")
