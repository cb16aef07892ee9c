"""Which features of a plan lie in the cache already: said before a run, without computing or reading any.

An entry is known by its name and its size. Whether its bytes are still those that were written shows when a run opens
it; one that was damaged is made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tlearn.config import Config
from tlearn.data import Data
from tlearn.train.classifier import Classifier, freeze
from tlearn.train.feature_cache import FeatureCache, cache_folder
from tlearn.train.feature_entries import FeatureEntries
from tlearn.train.frontier import find_frontier
from tlearn.train.plan import Plan, StagePlan


@dataclass(frozen=True)
class StageForesight:
    """What a stage that keeps features will find.

    Attributes:
        stage: its name.
        train, val: whether the cache has the features of the training and validation images; None: it depends on
            weights that an earlier stage trains.
        made_in: index of the stage in whose pass over the images the missing ones are made; None: nothing is missing.
        passes: over the training images that this stage makes for itself and for those that are made with it. Where
            the weights are not there yet, at most so many.
    """

    stage: str
    train: bool | None
    val: bool | None
    made_in: int | None
    passes: int


@dataclass(frozen=True)
class Foresight:
    """What a run will find in its cache.

    Attributes:
        folder: of the cache.
        stages: those that keep features.
        bytes: of the entries that are there, of this run and of others.
        missing_bytes: of the features that the run will make, at most.
    """

    folder: Path
    stages: tuple[StageForesight, ...]
    bytes: int
    missing_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"folder": str(self.folder)}


def foresee(config: Config, data: Data, classifier: Classifier, plan: Plan) -> Foresight:
    """Look for the features of all stages. Nothing in the cache is locked, read or counted as used.

    The classifier has its starting weights; it is left frozen as in the last stage.
    """
    folder = cache_folder(config.cache)
    cache, entries = FeatureCache(folder), FeatureEntries(config, data, classifier)
    there = cache.entries()  # if nothing is, nothing needs to be hashed
    found: dict[int, tuple[bool | None, bool | None]] = {}
    untouched: set[int] | None = None  # operations that no earlier stage changes; None: there is no earlier one
    for index, stage in enumerate(plan.stages):
        freeze(classifier, stage.layers)
        cold = set(map(id, find_frontier(classifier.model).cold))
        if stage.features.cached:
            found[index] = (None, None)
            if untouched is None or cold <= untouched:
                wanted = entries.of_stage(stage) if there else ()
                train, val = [cache.seems_to_hold(entry.key, entry.layout) for entry in wanted] or (False, False)
                found[index] = (train, val)
        untouched = cold if untouched is None else untouched & cold
    # stages of one frontier share their features
    missing = {plan.stages[number].features for number, held in found.items() if held != (True, True)}
    stages = tuple(_with_passes(plan.stages, found))
    return Foresight(folder, stages, sum(entry.bytes for entry in there), sum(features.bytes for features in missing))


def _with_passes(
    stages: Sequence[StagePlan], found: dict[int, tuple[bool | None, bool | None]]
) -> list[StageForesight]:
    """A stage that misses something makes all that is missing and planned into the same pass."""
    told: list[StageForesight] = []
    begun: dict[int | None, int] = {}  # a pass of the plan, and the stage that makes it
    for index, (train, val) in found.items():
        plan, passes, made_in = stages[index].features, 0, None
        if not (train and val):
            made_in = begun.setdefault(plan.made_in, index)
        if made_in == index:
            together = [
                number for number in found if number >= index and stages[number].features.made_in == plan.made_in
            ]
            passes = 0 if all(found[number][0] for number in together) else plan.views
        told.append(StageForesight(stages[index].name, train, val, made_in, passes))
    return told
