"""What a person sees of a sweep: a table that is drawn anew on a terminal, plain lines elsewhere; on standard error."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tlearn.sweep.load import Sweep
from tlearn.sweep.study import Claim, SharedStudy
from tlearn.sweep.values import shown
from tlearn.words import counted

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_ROWS = 12  # trials in the table: the latest, and the best
_HEADER, _WIDEST = 12, 24  # columns: of a line of a header, of values
_ANY_WIDTH = 10_000


class Display:
    """The trials of a study, and how far this worker's is.

    Args:
        sweep: what is searched.
        study: whose trials are shown, those of other workers too.
        console: where; by default standard error.
    """

    def __init__(self, sweep: Sweep, study: SharedStudy, console: Console | None = None) -> None:
        self._sweep = sweep
        self._study = study
        self._console = console or Console(stderr=True, highlight=False, markup=False)
        self._epochs: dict[int, int] = {}
        self._live: Live | None = None

    def __enter__(self) -> Display:
        settings = self._sweep.settings
        budget = [counted(self._sweep.most_trials, "trial")] if settings.trials or settings.minutes is None else []
        budget += [f"{settings.minutes:g} minutes"] if settings.minutes else []
        pruner = f", pruner {settings.pruner.name.value}" if self._sweep.prunes else ""
        self.say(f"sweep {settings.name}: {' or '.join(budget)}, sampler {settings.sampler.name.value}{pruner}")
        self.say(f"trials in {self._study.trials_folder}")
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(Text(text), soft_wrap=True)

    def started(self, claim: Claim, retry_of: int | None) -> None:
        """A trial of this worker begins."""
        again = "" if retry_of is None else f" (trial {retry_of} again)"
        self._event(f"trial {claim.number}{again}  {_values(claim.values)}")

    def epoch(self, number: int, epoch: int) -> None:
        """A trial of this worker ended an epoch."""
        self._epochs[number] = epoch
        self._event(None)

    def ended(self, number: int, state: str, values: Sequence[float] | None, seconds: float, said: str = "") -> None:
        """A trial of this worker ended."""
        result = "  ".join(
            f"{objective.metric} {shown(value)}"
            for objective, value in zip(self._sweep.settings.objectives, values or [], strict=False)
        )
        epochs = f" after {self._epochs[number]} epochs" if state == "pruned" and number in self._epochs else ""
        parts = [f"trial {number} {state}{epochs}", result, said, f"{seconds:.1f} s"]
        self._event("  ".join(part for part in parts if part))

    def _event(self, line: str | None) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif line is not None:
            self.say(line)

    def _table(self) -> Group:
        trials, front = self._study.trials(), [trial.number for trial in self._study.front()]
        latest = trials[-_ROWS:]
        rows = [each for each in trials if each.number in front[:3] and each not in latest] + latest
        keys = [parameter.key for parameter in self._sweep.space.parameters]
        labels = short_names(keys)
        wide = self._console.options.update_width(_ANY_WIDTH)
        for fitting in range(len(keys), -1, -1):
            table = self._table_of(rows, front, dict(zip(keys[:fitting], labels, strict=False)))
            if Measurement.get(self._console, wide, table).maximum <= self._console.width:
                break
        counts = self._study.counted()
        text = f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed, {counts.running} running"
        left_out = f"; no room for {', '.join(labels[fitting:])}" if fitting < len(keys) else ""
        return Group(table, Text(text + left_out))

    def _table_of(self, trials: Iterable[FrozenTrial], front: Sequence[int], keys: Mapping[str, str]) -> Table:
        """Trials with the values of some keys, each under its label."""
        table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
        for name in ("trial", "state", "epoch", *(each.metric for each in self._sweep.settings.objectives), "s"):
            table.add_column(_broken(name), justify="left" if name == "state" else "right", no_wrap=True)
        for label in keys.values():
            table.add_column(_broken(label), justify="right", no_wrap=True, max_width=_WIDEST)
        for trial in trials:
            style = "bold green" if trial.number in front else "dim" if trial.state.name in ("PRUNED", "FAIL") else ""
            table.add_row(*self._row(trial, list(keys)), style=style)
        return table

    def _row(self, trial: FrozenTrial, names: Sequence[str]) -> list[str]:
        epoch = self._epochs.get(trial.number, trial.last_step)
        values = trial.values if trial.state.name == "COMPLETE" else _intermediate(trial)
        seconds = trial.duration.total_seconds() if trial.duration else _since(trial)
        results = [shown(value) for value in values or []]
        results += [""] * (len(self._sweep.settings.objectives) - len(results))
        settings = [shown(trial.params[name]) if name in trial.params else "" for name in names]
        state = trial.state.name.lower().replace("fail", "failed")
        return [str(trial.number), state, str(epoch or ""), *results, f"{seconds:.0f}", *settings]


def short_names(keys: Sequence[str]) -> list[str]:
    """Each key by as few of its last parts as tell it from the others; a stage keeps its number."""
    found = []
    for key in keys:
        parts = key.split(".")
        length = next(
            n
            for n in range(1, len(parts) + 1)
            if n == len(parts) or not any(other != key and other.split(".")[-n:] == parts[-n:] for other in keys)
        )
        found.append(".".join(parts[-length:]).removeprefix("schedule."))
    return found


def _broken(name: str) -> str:
    """A name in lines that end after a dot or an underscore."""
    lines = [""]
    for part in re.findall(r"[^._]*[._]?", name):
        if lines[-1] and len(lines[-1] + part) > _HEADER:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _values(values: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name} {shown(value)}" for name, value in zip(short_names(list(values)), values.values(), strict=True)
    )


def _intermediate(trial: FrozenTrial) -> list[float]:
    return [trial.intermediate_values[trial.last_step]] if trial.last_step is not None else []


def _since(trial: FrozenTrial) -> float:
    return time.time() - trial.datetime_start.timestamp() if trial.datetime_start else 0.0
