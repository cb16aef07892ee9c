"""The pictures of a study, as SVG to stand inside a page.

Drawn with matplotlib, which the reports of runs use too: Optuna's own pictures are either plotly's, whose script of
four megabytes a page would have to hold or fetch, or go through pyplot's global state. Text stays text: it can be read
out, searched for and copied.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tlearn.errors import visible
from tlearn.sweep.display import short_names
from tlearn.sweep.load import Sweep
from tlearn.sweep.space import Parameter
from tlearn.sweep.study import SharedStudy
from tlearn.sweep.values import shown

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_ENOUGH = 4  # complete trials, to tell keys apart by
_BLUE, _RED, _GREY = "#4878a8", "#d65f5f", "#999999"


@dataclass(frozen=True)
class Chart:
    """A picture.

    Attributes:
        title: heading of its section.
        svg: the element.
        caption: how to read it.
    """

    title: str
    svg: str
    caption: str


def charts(sweep: Sweep, study: SharedStudy) -> list[Chart]:
    """All pictures that the trials so far are enough for."""
    trials = study.trials()
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        return []
    found = [_history(sweep, trials)]
    if len(sweep.directions) > 1:
        found.append(_pareto(sweep, complete, study.front()))
    if any(trial.intermediate_values for trial in trials):
        found.append(_curves(sweep, trials))
    found += _importance(sweep, study, complete)
    found.append(_parallel(sweep, complete))
    return found


# --- over the trials -------------------------------------------------------------------------------------------------


def _history(sweep: Sweep, trials: Sequence[FrozenTrial]) -> Chart:
    objectives = sweep.settings.objectives
    figure = _figure(7.6, 2.6 * len(objectives))
    panels = figure.subplots(len(objectives), squeeze=False)[:, 0]
    for index, (axes, objective) in enumerate(zip(panels, objectives, strict=True)):
        complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
        numbers, values = [trial.number for trial in complete], [trial.values[index] for trial in complete]
        best = (np.minimum if sweep.directions[index] == "minimize" else np.maximum).accumulate(values)
        axes.scatter(numbers, values, s=22, color=_BLUE, label="complete", zorder=3)
        until, reached_best = [*numbers, trials[-1].number], [*best, best[-1]]
        axes.step(until, reached_best, where="post", color=_RED, linewidth=1.2, label="best so far")
        pruned = [trial for trial in trials if trial.state.name == "PRUNED" and trial.last_step is not None]
        if pruned and index == 0:
            reached = [trial.intermediate_values[trial.last_step] for trial in pruned]
            axes.scatter([trial.number for trial in pruned], reached, s=22, color=_GREY, marker="x", label="pruned")
        axes.set_ylabel(objective.metric)
        axes.legend(fontsize=8, loc="best")
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("trial")
    return Chart("History", _svg(figure, "history"), "What each trial reached, in the order in which they began.")


def _curves(sweep: Sweep, trials: Sequence[FrozenTrial]) -> Chart:
    figure = _figure(7.6, 3.2)
    axes = figure.subplots()
    for trial in trials:
        epochs = sorted(trial.intermediate_values)
        pruned = trial.state.name == "PRUNED"
        values = [trial.intermediate_values[epoch] for epoch in epochs]
        axes.plot(epochs, values, color=_GREY if pruned else _BLUE, linewidth=1, alpha=0.8)
        if epochs:
            axes.plot(epochs[-1], values[-1], "x" if pruned else "o", color=_GREY if pruned else _BLUE, markersize=4)
    axes.set(xlabel="epoch, over all stages", ylabel=sweep.settings.objectives[0].metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    said = "What the pruner saw: a cross ends a trial that was given up."
    return Chart("Learning curves", _svg(figure, "curves"), said)


def _pareto(sweep: Sweep, complete: Sequence[FrozenTrial], front: Sequence[FrozenTrial]) -> Chart:
    first, second = (objective.metric for objective in sweep.settings.objectives[:2])
    figure = _figure(7.6, 4.0)
    axes = figure.subplots()
    axes.scatter(*zip(*(trial.values[:2] for trial in complete), strict=True), s=22, color=_GREY, label="dominated")
    best = sorted(front, key=lambda trial: trial.values[0])
    axes.plot(
        *zip(*(trial.values[:2] for trial in best), strict=True), "o-", color=_RED, label="Pareto front", linewidth=1
    )
    for trial in best:
        axes.annotate(str(trial.number), trial.values[:2], xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel=first, ylabel=second)
    axes.legend(fontsize=8)
    said = "Trials on the front: no other is better in one objective without being worse in another."
    return Chart("Pareto front", _svg(figure, "pareto"), said)


# --- over the keys ---------------------------------------------------------------------------------------------------


def _importance(sweep: Sweep, study: SharedStudy, complete: Sequence[FrozenTrial]) -> list[Chart]:
    """Left out where there is nothing to tell keys apart by."""
    if len(complete) < _ENOUGH:
        return [Chart("Parameter importance", "", f"Is not told from less than {_ENOUGH} complete trials.")]
    objectives = sweep.settings.objectives
    keys = [parameter.key for parameter in sweep.space.parameters]
    labels = dict(zip(keys, short_names(keys), strict=True))
    figure = _figure(7.6, (0.9 + 0.34 * len(keys)) * len(objectives))
    for index, axes in enumerate(figure.subplots(len(objectives), squeeze=False)[:, 0]):
        found = _importances(study, index, sign=1 if sweep.directions[index] == "minimize" else -1)
        names = list(reversed(found))
        bars = axes.barh([labels[name] for name in names], [found[name] for name in names], color=_BLUE)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.set(xlim=(0, 1.1), xlabel=f"importance for {objectives[index].metric}")
    said = "Share of the differences that each key explains, by PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255)."
    return [Chart("Parameter importance", _svg(figure, "importance"), f"{said} From {len(complete)} complete trials.")]


def _importances(study: SharedStudy, index: int, sign: int) -> dict[str, float]:
    """By key, the most important first; the evaluator asks what makes a value low."""
    import optuna

    def target(trial: FrozenTrial) -> float:
        return sign * float(trial.values[index])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about low values, which are what is asked for
        found: dict[str, float] = optuna.importance.get_param_importances(study.optuna, target=target)
    return found


def _parallel(sweep: Sweep, complete: Sequence[FrozenTrial]) -> Chart:
    from matplotlib import colormaps, colors

    objective, parameters = sweep.settings.objectives[0].metric, sweep.space.parameters
    values = np.array([trial.values[0] for trial in complete])
    scale = colors.Normalize(values.min(), values.max() if values.max() > values.min() else values.min() + 1e-9)
    best_is_low = sweep.directions[0] == "minimize"
    shades = colormaps["viridis_r" if best_is_low else "viridis"]
    figure = _figure(max(7.6, 1.5 * (len(parameters) + 1)), 4.2)
    axes = figure.subplots()
    order = np.argsort(-values if best_is_low else values)  # the best on top
    for row in order:
        trial = complete[row]
        heights = [_height(parameter, trial.params.get(parameter.key)) for parameter in parameters]
        axes.plot(range(len(heights) + 1), [*heights, scale(values[row])], color=shades(scale(values[row])), alpha=0.8)
    for place, parameter in enumerate(parameters):
        axes.axvline(place, color="#cccccc", linewidth=0.8, zorder=0)
        for height, label in _ticks(parameter):
            at, style = (place, height), {"fontsize": 7, "va": "center", "parse_math": False}
            axes.annotate(visible(label), at, xytext=(3, 0), textcoords="offset points", **style)
    for height, value in ((0, float(values.min())), (1, float(values.max()))):
        end = (len(parameters), height)
        axes.annotate(shown(value), end, xytext=(3, 0), textcoords="offset points", fontsize=7)
    names = [visible(name) for name in short_names([parameter.key for parameter in parameters])]
    ends = [*names, objective]
    axes.set_xticks(range(len(ends)), ends, fontsize=8, rotation=20, ha="right", parse_math=False)
    axes.set(ylim=(-0.15, 1.08), xlim=(-0.1, len(parameters) + 0.35))
    axes.yaxis.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)
    said = f"A line is a trial, the brighter the better its {objective}. At its foot: the trial has no such key."
    return Chart("Parallel coordinates", _svg(figure, "parallel"), said)


def _height(parameter: Parameter, value: Any) -> float:
    """Where a value stands on the axis of its key: 0 to 1; below it where the trial has none."""
    if value is None and None not in parameter.choices:
        return -0.12
    if parameter.type == "categorical":
        return parameter.choices.index(value) / max(1, len(parameter.choices) - 1)
    low, high, at = parameter.low, parameter.high, float(value)
    if parameter.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low) if high > low else 0.5


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    if parameter.type == "categorical":
        return [(_height(parameter, choice), shown(choice)) for choice in parameter.choices]
    return [(0.0, f"{parameter.low:g}"), (1.0, f"{parameter.high:g}")]


# --- SVG -------------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any, name: str) -> str:
    """The ``svg`` element alone; the name keeps its identifiers apart from those of other pictures of a page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{name}" id="{name}" ', 1)
