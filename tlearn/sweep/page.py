"""A study as one HTML page that needs nothing beside it: no script, no other file, no network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tlearn.sweep.display import short_names
from tlearn.sweep.load import Sweep
from tlearn.sweep.plots import Chart, charts
from tlearn.sweep.study import SharedStudy
from tlearn.sweep.values import shown
from tlearn.train.checkpoint import write_atomic
from tlearn.words import counted

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; } th { border-bottom: 1px solid #999; }
tr:nth-child(even) td { background: #f6f6f6; } tr.best td { font-weight: 600; } tr.given-up td { color: #777; }
.wide { overflow-x: auto; } figure { margin: 0; } figure svg { max-width: 100%; height: auto; background: #fff; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; } tr:nth-child(even) td { background: #242424; } a { color: #8cb4ff; }
}
"""


def write_page(sweep: Sweep, study: SharedStudy) -> Path:
    """Write ``report.html`` into the folder of a sweep. Returns its path."""
    path = sweep.folder / "report.html"
    write_atomic(path, page(sweep, study).encode("utf-8", "backslashreplace"))
    return path


def page(sweep: Sweep, study: SharedStudy) -> str:
    """The page."""
    trials, front = study.trials(), study.front()
    title = f"Sweep {sweep.settings.name}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(_summary(sweep, study))}</p>",
        *_best(sweep, front),
        *(_figure(chart) for chart in charts(sweep, study)),
        "<h2>Trials</h2>",
        _trials_table(sweep, trials, {trial.number for trial in front}),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _summary(sweep: Sweep, study: SharedStudy) -> str:
    counts, settings = study.counted(), sweep.settings
    what = [f"{counts.complete} complete", f"{counts.pruned} pruned", f"{counts.failed} failed"]
    what += [f"{number} {name}" for name in ("running", "waiting") if (number := getattr(counts, name))]
    method = f"sampler {settings.sampler.name.value}, pruner {settings.pruner.name.value}, seed {settings.seed}"
    ended = counted(counts.ended, "trial")
    return f"{ended}: {', '.join(what)}. {counts.seconds / 60:.1f} minutes of trials; {method}."


def _best(sweep: Sweep, front: Sequence[FrozenTrial]) -> list[str]:
    if not front:
        return ["<p>No trial is complete yet.</p>"]
    several = len(sweep.settings.objectives) > 1
    trial = front[0]
    names = short_names(list(trial.params))
    values = ", ".join(f"{name} {shown(value)}" for name, value in zip(names, trial.params.values(), strict=True))
    on_front = counted(len(front), "trial is", "trials are")
    which = f"{on_front} on the Pareto front; the first of them" if several else "The best"
    return [f"<p>{which} is {_link(sweep, trial)}: {_text(values)}</p>"]


def _figure(chart: Chart) -> str:
    return f"<h2>{_text(chart.title)}</h2>\n<figure>{chart.svg}<figcaption>{_text(chart.caption)}</figcaption></figure>"


def _trials_table(sweep: Sweep, trials: Iterable[FrozenTrial], front: set[int]) -> str:
    keys = [parameter.key for parameter in sweep.space.parameters]
    metrics = [objective.metric for objective in sweep.settings.objectives]
    header = ["trial", "state", *metrics, "epochs", "seconds", *short_names(keys), "note"]
    rows = []
    for trial in trials:
        done = trial.state.name == "COMPLETE"
        kind = ' class="best"' if trial.number in front else "" if done else ' class="given-up"'
        values = [shown(value) for value in trial.values] if done else [""] * len(metrics)
        if not done and trial.last_step is not None:
            values[0] = f"({shown(trial.intermediate_values[trial.last_step])})"
        seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
        cells = [trial.state.name.lower().replace("fail", "failed"), *values, str(trial.last_step or ""), seconds]
        cells += [shown(trial.params[key]) if key in trial.params else "" for key in keys]
        row = "".join(f"<td>{_text(cell)}</td>" for cell in [*cells, _note(trial)])
        rows.append(f"<tr{kind}><td>{_link(sweep, trial)}</td>{row}</tr>")
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    return f'<div class="wide"><table id="trials"><tr>{head}</tr>\n' + "\n".join(rows) + "</table></div>"


def _note(trial: FrozenTrial) -> str:
    said = trial.user_attrs.get("error") or trial.user_attrs.get("diverged") or ""
    again = trial.user_attrs.get("retry_of")
    return ", ".join(str(part) for part in (said, "" if again is None else f"trial {again} again") if part)


def _link(sweep: Sweep, trial: FrozenTrial) -> str:
    """To the run: its report, or its folder where there is none. Runs of other machines are named only."""
    name, run = f"trial {trial.number}", Path(str(trial.user_attrs.get("run", "")))
    target = next((path for path in (run / "report.md", run) if run.name and path.exists()), None)
    if target is None:
        return _text(name)
    return f'<a href="{_text(os.path.relpath(target, sweep.folder))}">{_text(name)}</a>'


def _text(text: str) -> str:
    return escape(text.encode("utf-8", "backslashreplace").decode())
