"""An evaluation as people read it in a terminal, 80 columns wide.

Names are shortened where there is no room for them, numbers never: half of a number is another number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tlearn.errors import visible
from tlearn.evaluate.comparison import Comparison
from tlearn.evaluate.evaluation import Evaluation
from tlearn.evaluate.intervals import Score
from tlearn.evaluate.scores import ClassScores

TITLES = {
    "accuracy": "accuracy (top-1)",
    "top5": "top-5",
    "subset_accuracy": "all labels right",
    "map": "mean average precision",
    "micro_ap": "micro average precision",
    "ranking_ap": "label ranking AP",
    "loss": "loss (cross-entropy)",
    "ece": "calibration error (ECE)",
}
_ALL_CLASSES = 20  # up to so many are all shown
_WORST = 10  # of more, these
_MATRIX = 10  # classes whose confusion matrix is shown, where its numbers leave room for names
WIDTH = 80
"""Columns that all tables fit in."""

_NAME = 30  # columns of a name, where there is room
_LEAST = 14  # and where there is not


def title_of(name: str, *, several: bool) -> str:
    """A score's name for people."""
    if several and name == "accuracy":
        return "single decisions right"
    if name in TITLES:
        return TITLES[name]
    average, _, score = name.partition("_")
    return f"{average} {score}".replace("f1", "F1")


def number(value: float | None, digits: int = 3) -> str:
    """A score, or ``-`` where it is not defined."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(score: Score) -> str:
    """``0.71 .. 0.85``."""
    return "" if score.low is None else f"{number(score.low)} .. {number(score.high)}"


def evaluation_tables(evaluation: Evaluation) -> RenderableType:
    """Everything but the pictures."""
    images = evaluation.outputs.images
    several = evaluation.outputs.several
    head = f"{evaluation.outputs.network} on {len(images):,} images ({images.split}) of {_near(images.source.where)}"
    parts: list[RenderableType] = [Text(visible(head), style="bold"), ""]
    parts += [_scores(evaluation), "", _classes(evaluation.classes, several)]
    if evaluation.matrix is not None and _fits(evaluation.matrix):
        parts += ["", _matrix(evaluation)]
    elif evaluation.confusions:
        parts += ["", _confusions(evaluation)]
    if evaluation.temperature is not None:
        parts += ["", _temperature(evaluation)]
    if evaluation.mistakes:
        parts += ["", _mistakes(evaluation)]
    if evaluation.comparison is not None:
        parts += ["", _comparison(evaluation.comparison, several)]
    parts += [Text(visible(f"note: {notice}")) for notice in evaluation.notices]
    return Group(*parts)


def _near(path: str) -> str:
    """A path as one would type it here."""
    here = f"{os.getcwd()}{os.sep}"
    return path.removeprefix(here) or path


def _short(name: str, width: int) -> str:
    """A name in so many characters: its beginning and its end, since long names often differ in the end alone."""
    shown = visible(name)
    half = width // 2
    return shown if len(shown) <= width else f"{shown[: width - half - 1]}…{shown[-half:]}"


@dataclass(frozen=True)
class _Name:
    """A name in a table, in the room that the numbers beside it leave."""

    text: str
    most: int = _NAME

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = cell_len(visible(self.text))
        return Measurement(min(width, _LEAST), min(width, self.most)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(_short(self.text, min(self.most, options.max_width)), no_wrap=True, overflow="ellipsis")


def _table(*columns: str, left: Iterable[int] = (0,)) -> Table:
    """A table with names in the columns ``left``, as ``_Name``; only these may be made narrower."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        of_names = index in left
        justify: Literal["left", "right"] = "left" if of_names else "right"
        table.add_column(Text(column, no_wrap=True), justify=justify, no_wrap=not of_names, overflow="ellipsis")
    return table


def _scores(evaluation: Evaluation) -> Table:
    table = _table("score", "value", f"{evaluation.confidence:.0%} interval")
    for name, score in evaluation.scores.items():
        table.add_row(title_of(name, several=evaluation.outputs.several), number(score.value), interval(score))
    return table


def _classes(classes: tuple[ClassScores, ...], several: bool) -> RenderableType:
    shown, rest = list(classes), ""
    if len(classes) > _ALL_CLASSES:
        by_f1 = sorted((each for each in classes if each.support), key=lambda each: each.f1 or 0.0)
        shown = by_f1[:_WORST]
        rest = f"the {len(shown)} with the smallest F1 of {len(classes)} classes; --output FOLDER writes all"
    columns = ["class", "precision", "recall", "F1", "images", "predicted"]
    table = _table(*columns, *(["AP"] if several else []))
    for each in shown:
        values = (number(each.precision), number(each.recall.value), number(each.f1))
        precision = [number(each.average_precision)] if several else []
        table.add_row(_Name(each.name), *values, str(each.support), str(each.predicted), *precision)
    return Group(table, Text(rest, style="dim")) if rest else table


def _fits(matrix: NDArray[np.int64]) -> bool:
    """Whether a confusion matrix is worth its room, and its names have some left."""
    numbers = sum(len(str(count)) + 2 for count in matrix.max(axis=0))
    return len(matrix) <= _MATRIX and numbers + _LEAST + 2 <= WIDTH


def _matrix(evaluation: Evaluation) -> Table:
    """Rows the true classes; columns by number, since names would not fit."""
    assert evaluation.matrix is not None
    names = evaluation.outputs.classes
    table = _table("true class", *(str(index + 1) for index in range(len(names))))
    for index, (name, row) in enumerate(zip(names, evaluation.matrix, strict=True)):
        counts = [str(count) if count else "." for count in row]
        table.add_row(_Name(f"{index + 1} {name}"), *counts)
    return table


def _confusions(evaluation: Evaluation) -> Table:
    table = _table("true class", "taken for", "images", left=(0, 1))
    for truth, predicted, count in evaluation.confusions:
        table.add_row(_Name(truth), _Name(predicted), str(count))
    return table


def _temperature(evaluation: Evaluation) -> Table:
    assert evaluation.temperature is not None
    before, after = evaluation.calibration, evaluation.temperature.after
    table = _table("calibration", "as it is", f"temperature {evaluation.temperature.value:.3g}")
    for title, attribute in (("ECE", "ece"), ("largest gap", "mce"), ("loss", "loss"), ("Brier score", "brier")):
        table.add_row(title, number(getattr(before, attribute)), number(getattr(after, attribute)))
    return table


def _mistakes(evaluation: Evaluation) -> RenderableType:
    table = _table("true", "predicted", "probability", "image", left=(0, 1, 3))
    for mistake in evaluation.mistakes[:5]:
        path = visible(_near(mistake.path))
        end = path if len(path) <= 30 else f"…{path[-29:]}"  # the end of a path tells more than its beginning
        names = _Name(mistake.truth, 16), _Name(mistake.predicted, 16)
        table.add_row(*names, number(mistake.probability), Text(end, no_wrap=True))
    what = "decisions" if evaluation.outputs.several else "images"
    return Group(Text(f"most confident of {evaluation.wrong:,} wrong {what}"), table)


def difference_of(first: str, second: str, *, several: bool) -> str:
    """What a comparison's difference is one of."""
    if several:
        return f"images with all labels right, share of {first} less that of {second}"
    return f"accuracy of {first} less that of {second}"


def _comparison(comparison: Comparison, several: bool) -> RenderableType:
    """The networks by number, since their names may be longer than a line."""
    table = _table("", "second right", "second wrong")
    table.add_row("first right", str(comparison.both), str(comparison.only_first))
    table.add_row("first wrong", str(comparison.only_second), str(comparison.neither))
    difference = f"{number(comparison.difference.value)} ({interval(comparison.difference)})"
    legend = (f"first: {visible(comparison.first)}", f"second: {visible(comparison.second)}")
    lines = (
        f"{difference_of('the first', 'the second', several=several)}: {difference}",
        f"McNemar's test, {comparison.test}: {visible(comparison.verdict)}",
    )
    right = ["right: all labels of the image"] if several else []
    return Group(*map(Text, (*legend, *right)), table, *map(Text, lines))
