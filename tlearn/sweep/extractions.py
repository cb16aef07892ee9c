"""How often a sweep will put its images through the frozen part of the network, before it begins.

Whether two trials share features is no matter of names: it is asked of the plan and of the key of the feature cache,
for each searched key by itself, with all others as they are in the first trial.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tlearn.compose import load_config
from tlearn.quiet import hidden_output, import_tensorflow
from tlearn.sweep.load import Sweep, direction_of
from tlearn.sweep.space import Parameter, Scalar, config_value
from tlearn.sweep.values import override_text
from tlearn.words import counted, size_text

if TYPE_CHECKING:
    from tlearn.backbones import Backbone
    from tlearn.train.api import Prepared


@dataclass(frozen=True)
class Extractions:
    """What a sweep computes of frozen layers.

    Attributes:
        trials: that the budget allows.
        shared: passes over the images whose features several trials may share; at most.
        own: passes over the images that each trial makes for itself: stages above trained layers, and stages that
            keep no features, in which every epoch is one.
        deciding: the searched keys that change the features, each with the number of different ones; None: every
            value has its own.
        bytes: of the features of one pass.
    """

    trials: int
    shared: int
    own: int
    deciding: Mapping[str, int | None]
    bytes: int

    def __str__(self) -> str:
        if not self.shared:
            text = "no features are shared: in no trial the first stage keeps any"
        else:
            at_most = "at most " if self.deciding else ""
            text = f"{at_most}{self.shared:,} for {counted(self.trials, 'trial')}, {size_text(self.bytes)} each"
            which = [key if count is None else f"{key} ({count})" for key, count in self.deciding.items()]
            text += f"; another one for each value of {', '.join(which)}" if which else "; all trials share it"
        return text + (f"; besides, {self.own:,} passes over the images in each trial" if self.own else "")


def count_extractions(sweep: Sweep) -> Extractions:
    """Count, by building the model of every corner of the space. Imports TensorFlow."""
    import_tensorflow()
    models = _Models(sweep)
    first = _first_values(sweep)
    keys, own, size = models.features(first)
    deciding: dict[str, int | None] = {}
    total = 1
    for parameter in sweep.space.parameters:
        found = {models.features(first | values)[0] for values in _variants(sweep, parameter)} | {keys}
        if len(found) > 1:
            count = deciding[parameter.key] = _different(parameter, len(found))
            total = sweep.most_trials if count is None else total * count
    shared = min(total, sweep.most_trials) if keys else 0
    return Extractions(sweep.most_trials, shared, own, deciding, size)


def _first_values(sweep: Sweep) -> dict[str, Scalar]:
    values: dict[str, Scalar] = {}
    for parameter in sweep.space.parameters:
        if parameter.applies(values):
            values[parameter.key] = parameter.corners()[0]
    return values


def _variants(sweep: Sweep, wanted: Parameter) -> Iterable[dict[str, Scalar]]:
    return [values for parameter, values in sweep.space.corners() if parameter is wanted]


def _different(parameter: Parameter, found: int) -> int | None:
    """How many different features the values of a key give, at most: of a number only the bounds were looked at."""
    if parameter.type == "categorical":
        return found
    values = parameter.values()
    return None if values is None else len(values)


class _Models:
    """The models of trials. Those with the same backbone share it: building it is what takes long."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._backbones: dict[str, Backbone] = {}

    def features(self, values: Mapping[str, Scalar]) -> tuple[tuple[str, ...], int, int]:
        """Keys of the features made from untouched weights, passes that others cannot share, and bytes."""
        from tlearn.train.feature_entries import FeatureEntries

        prepared = self._prepare(values)
        stages = prepared.plan.stages
        entries = FeatureEntries(prepared.config, prepared.data, prepared.classifier)
        first = [stage for stage in stages if stage.features.cached and stage.features.made_in == 0]
        keys = tuple(entry.key for stage in first for entry in entries.of_stage(stage))
        later = {stage.features.made_in for stage in stages if stage.features.cached} - {0}
        own = sum(max(1, stages[index].features.views) for index in later if index is not None)
        own += sum(stage.epochs for stage in stages if not stage.features.cached)
        return keys, own, sum(stage.features.bytes for stage in first)

    def _prepare(self, values: Mapping[str, Scalar]) -> Prepared:
        from tlearn.train.api import prepare

        given = dict(self._sweep.settings.trial) | {key: config_value(value) for key, value in values.items()}
        config = load_config([*self._sweep.base, *(override_text(key, value) for key, value in given.items())])
        same = repr((config.backbone, config.precision, config.seed))  # the seed decides weights that are random
        with hidden_output(2, python=False):
            prepared = prepare(config, check_images=False, backbone=self._backbones.get(same))
        self._backbones[same] = prepared.classifier.backbone
        return prepared


def print_plan(sweep: Sweep, *, as_json: bool = False) -> None:
    """The plan of a sweep on standard output."""
    extractions = count_extractions(sweep)
    if as_json:
        print(json.dumps(plan_data(sweep, extractions), indent=1))
    else:
        Console(highlight=False, markup=False).print(plan_table(sweep, extractions))


def plan_data(sweep: Sweep, extractions: Extractions) -> dict[str, Any]:
    """For programs: the space, how it is searched, and what that costs in passes over the images."""
    settings = sweep.settings
    return {
        "study": settings.name,
        "space": {parameter.key: str(parameter) for parameter in sweep.space.parameters},
        "objectives": [[direction_of(objective), objective.metric] for objective in settings.objectives],
        "sampler": settings.sampler.name.value,
        "seed": settings.seed,
        "pruner": settings.pruner.name.value,
        "trials": sweep.most_trials,
        "minutes": settings.minutes,
        "extractions": asdict(extractions),
    }


def plan_table(sweep: Sweep, extractions: Extractions) -> RenderableType:
    """For people: the space, how it is searched, and what that costs in passes over the images."""
    settings = sweep.settings
    space = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    space.add_column("key", overflow="fold", no_wrap=True)
    space.add_column("values", overflow="fold")
    for parameter in sweep.space.parameters:
        space.add_row(parameter.key, str(parameter))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    objectives = [f"{direction_of(objective)} {objective.metric}" for objective in settings.objectives]
    budget = [counted(sweep.most_trials, "trial")] if settings.trials else []
    budget += [f"{settings.minutes:g} minutes of trials"] if settings.minutes else []
    facts.add_row("objective", ", ".join(objectives))
    facts.add_row("sampler", f"{settings.sampler.name.value}, seed {settings.seed}")
    facts.add_row("pruner", settings.pruner.name.value)
    facts.add_row("budget", " or ".join(budget) or f"{sweep.most_trials:,} points of the grid")
    facts.add_row("extractions", Text(str(extractions)))
    return Group(space, "", facts)
