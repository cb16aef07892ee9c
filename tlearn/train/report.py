"""What a finished run looks like: curves, the confusion matrix, and one page that names what is in the folder.

Classes and stages are called what folders and configs say: their names are shown with ``visible`` and are no markup.
"""

from __future__ import annotations

import io
import itertools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlearn.errors import visible
from tlearn.train.checkpoint import write_atomic
from tlearn.train.console import feature_texts, passes_text
from tlearn.train.run import Run
from tlearn.words import counted

if TYPE_CHECKING:
    from tlearn.train.plan import Plan

_MOST_NAMES = 40  # classes whose names still fit beside a confusion matrix


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): row the true class, column the predicted one."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def draw_confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> bytes:
    """A picture of the matrix, each row as shares of its class; PNG."""
    figure, axes = _figure(7.0, 6.2)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= _MOST_NAMES:
        names, turned = [visible(name) for name in classes], 90 if len(classes) > 10 else 45
        axes.set_xticks(range(len(classes)), names, rotation=turned, ha="right", parse_math=False)
        axes.set_yticks(range(len(classes)), names, parse_math=False)
    if len(classes) <= 15:
        for row, column in np.ndindex(matrix.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            if matrix[row, column]:
                axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    return _png(figure)


def draw_curves(epochs: Sequence[dict[str, Any]], model_epoch: int | None = None) -> bytes:
    """Loss and accuracy over the epochs, training and validation, with the stages and the model's epoch marked; PNG."""
    figure, axes = _figure(10.0, 3.8, columns=2)
    for panel, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for name, style in ((metric, "--"), (f"val_{metric}", "-")):
            points = [(record["epoch"], record[name]) for record in epochs if name in record]
            if points:
                panel.plot(*zip(*points, strict=True), style, marker=".", label=name)
        for before, after in itertools.pairwise(epochs):
            if before["stage"] != after["stage"]:
                panel.axvline(before["epoch"] + 0.5, color="grey", linewidth=0.8)
                at, name = (before["epoch"] + 0.6, panel.get_ylim()[0]), visible(after["stage"])
                panel.text(*at, name, va="bottom", fontsize=8, parse_math=False)
        if model_epoch is not None:
            panel.axvline(model_epoch, color="green", linestyle=":", label=f"model: epoch {model_epoch}")
        panel.set(xlabel="epoch", title=metric)
        panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # there is no half epoch
        if panel.lines:
            panel.legend()
    return _png(figure)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a run, as far as its folder does not tell yet.

    Attributes:
        summary: as it will be written.
        confusion: of the validation images (classes, classes); None: there is no such matrix.
        weights: which the model has, in words.
        model_epoch: which epoch they were the best of; None: they are the last, or that epoch has no record any more.
        features: what came of keeping them, by the names of stages.
    """

    summary: Mapping[str, Any]
    confusion: np.ndarray | None
    weights: str
    model_epoch: int | None
    features: Mapping[str, str]


def write_report(run: Run, plan: Plan, outcome: Outcome, say: Callable[[str], None]) -> dict[str, bytes]:
    """Write ``report.md`` and its pictures.

    Args:
        run, plan, outcome: of the run.
        say: is told of a picture that cannot be drawn: the page goes without it.

    Returns:
        The pictures by title, PNG.
    """
    epochs, classes = run.epochs(), plan.classes
    pictures: dict[str, bytes] = {}

    def picture(title: str, file: Path, draw: Callable[[], bytes]) -> str:
        try:
            pictures[title] = draw()
        except Exception as error:  # whatever it is, a trained model is worth more than a picture of it
            missing = (
                f"{file.name} cannot be drawn: {type(error).__name__}: {visible(str(error).partition(chr(10))[0])}"
            )
            say(missing)
            return missing
        write_atomic(file, pictures[title])
        return f"![{title}]({file.name})"

    curves = picture("curves", run.curves_file, lambda: draw_curves(epochs, outcome.model_epoch))
    lines = [
        f"# {visible(run.path.name)}",
        "",
        curves,
        "",
        f"The model has {visible(outcome.weights)}.",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {key} | {_cell(value)} |" for key, value in outcome.summary.items() if key != "run"]
    lines += _left_out(run.manifest.get("left_out") or [])
    lines += ["", *_stage_rows(epochs), "", *_passes(plan, outcome.features)]
    matrix = outcome.confusion
    if matrix is not None:
        drawn = picture("confusion matrix", run.confusion_file, lambda: draw_confusion_matrix(matrix, classes))
        lines += ["", "## Validation", "", drawn, "", *_class_rows(matrix, classes)]
    lines += ["", "## Repeat", "", "```", _command(run), "```", ""]
    write_atomic(run.report_file, "\n".join(lines).encode("utf-8", "backslashreplace"))
    return pictures


_MOST_LEFT_OUT = 20


def _left_out(images: Sequence[Sequence[str]]) -> list[str]:
    """Which images could not be read, and why."""
    if not images:
        return []
    lines = [f"- `{visible(path)}`: {reason}" for path, reason in images[:_MOST_LEFT_OUT]]
    more = len(images) - len(lines)
    left_out = counted(len(images), "image was", "images were")
    return ["", f"{left_out} left out:", "", *lines, *([f"- and {more:,} more"] if more else [])]


def _stage_rows(epochs: Sequence[dict[str, Any]]) -> list[str]:
    rows = ["| stage | epochs | loss | accuracy | val_loss | val_accuracy |", "|---|---|---|---|---|---|"]
    last = {record["stage"]: record for record in epochs}
    for stage, record in last.items():
        count = sum(other["stage"] == stage for other in epochs)
        values = (_cell(record.get(name, "")) for name in ("loss", "accuracy", "val_loss", "val_accuracy"))
        rows.append(f"| {_name(stage)} | {count} | {' | '.join(values)} |")
    return rows


def _passes(plan: Plan, outcomes: Mapping[str, str]) -> list[str]:
    """What was planned to be computed once and kept, what in each epoch and why; and what came of it."""
    lines = ["Planned before a look at what the cache had, and what came of it:", ""]
    for stage, text in feature_texts(plan):
        outcome = f"; {visible(outcomes[stage])}" if outcomes.get(stage) else ""
        lines.append(f"- `{visible(stage)}` {text}{outcome}")
    return [*lines, f"- planned {passes_text(plan)}"]


def _class_rows(matrix: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Recall and precision of each class."""
    rows = ["| class | images | recall | precision |", "|---|---|---|---|"]
    for index, name in enumerate(classes):
        right, images, predicted = matrix[index, index], matrix[index].sum(), matrix[:, index].sum()
        recall = f"{right / images:.3f}" if images else "-"
        precision = f"{right / predicted:.3f}" if predicted else "-"
        rows.append(f"| {_name(name)} | {images} | {recall} | {precision} |")
    return rows


def _command(run: Run) -> str:
    """What makes another run like this one."""
    overrides = run.overrides
    if overrides is None:  # it was made from Python
        return f"tlearn.fit(dataclasses.replace(tlearn.open_run({str(run.path)!r}).config, run_dir=None))"
    kept = [shlex.quote(text) for text in overrides if not text.startswith("run_dir=")]
    return " ".join(["python -m tlearn.train", *kept])


def _name(text: str) -> str:
    """A name in a table."""
    return visible(text).replace("|", "/")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, figure.subplots(1, columns)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()
