"""An evaluation as files: all numbers for machines, tables, pictures, and a page for people."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tlearn.errors import Problem, UserError
from tlearn.evaluate.evaluation import Evaluation
from tlearn.evaluate.page import evaluation_page
from tlearn.evaluate.plots import draw_confusions, draw_mistakes, draw_reliability
from tlearn.exporting.publish import temporary_folder
from tlearn.train.checkpoint import write_atomic

_OWN = "evaluation.json"
_ALL = {_OWN, "report.html", "predictions.csv", "classes.csv", "confusion_matrix.csv"}
_ALL |= {"confusion_matrix.png", "reliability_diagram.png", "mistakes.png"}


def check_output(output: str, *, overwrite: bool) -> None:
    """Raise UserError when an output cannot be written, now rather than at the end."""
    path = _absolute(output)
    if path.is_dir():
        _check_folder(path, overwrite)
    elif path.is_file() and not overwrite:
        raise UserError(Problem("--output", f"{path} exists", "--overwrite replaces it"))
    elif os.path.lexists(path) and not (path.is_file() and _is_one_file(path)):
        raise UserError(Problem("--output", f"{path} is no folder", "name a folder, or a file .json or .html"))
    elif not path.parent.is_dir():
        raise UserError(Problem("--output", f"there is no folder {path.parent}", "make it first"))
    written = path if path.is_dir() else path.parent
    if not os.access(written, os.W_OK | os.X_OK):
        raise UserError(Problem("--output", f"{written} may not be written to"))


def _check_folder(path: Path, overwrite: bool) -> None:
    if _is_one_file(path):
        raise UserError(Problem("--output", f"{path} is a folder", "name a file, or a folder without such an ending"))
    found = {entry.name for entry in path.iterdir()}
    others = sorted(found - _ALL)  # what is not ours is never deleted
    if others:
        what = f"{path} holds other things, such as {others[0]}"
        raise UserError(Problem("--output", what, "name a folder that is not there yet"))
    if found and not overwrite:
        raise UserError(Problem("--output", f"{path} holds an evaluation", "--overwrite replaces it"))


def _absolute(output: str) -> Path:
    """``.`` has no name to be found beside."""
    return Path(output).expanduser().absolute()


def _is_one_file(path: Path) -> bool:
    return path.suffix.lower() in (".json", ".html")


def write_evaluation(evaluation: Evaluation, output: str) -> None:
    """Write what the name asks for: ``.json``, ``.html``, or else a folder of everything.

    Raises:
        UserError: it cannot be written.
    """
    path = _absolute(output)
    try:
        if path.suffix.lower() == ".json":
            write_atomic(path, as_json(evaluation).encode())
        elif path.suffix.lower() == ".html":
            write_atomic(path, evaluation_page(evaluation, _plots(evaluation)).encode())
        else:
            _write_folder(evaluation, path)
    except OSError as error:
        raise UserError(Problem("--output", f"{path} cannot be written: {error.strerror or error}")) from error


def as_json(evaluation: Evaluation, output: str | None = None) -> str:
    """One JSON document in one line."""
    return json.dumps(evaluation.as_dict() | ({"output": output} if output else {})) + "\n"


def _plots(evaluation: Evaluation) -> dict[str, bytes]:
    """PNG by title."""
    drawn = {"confusion matrix": draw_confusions(evaluation), "reliability diagram": draw_reliability(evaluation)}
    return {title: png for title, png in drawn.items() if png is not None}


def _write_folder(evaluation: Evaluation, path: Path) -> None:
    """A new folder appears under its name when it is complete; one that is there is filled when all is written."""
    plots = _plots(evaluation)
    mistakes = draw_mistakes(evaluation)
    files = {
        _OWN: as_json(evaluation).encode(),
        "report.html": evaluation_page(evaluation, plots).encode(),
        "predictions.csv": _predictions(evaluation),
        "classes.csv": _classes(evaluation),
        **{f"{title.replace(' ', '_')}.png": png for title, png in plots.items()},
    }
    if evaluation.matrix is not None:
        files["confusion_matrix.csv"] = _matrix(evaluation)
    if mistakes is not None:
        files["mistakes.png"] = mistakes
    there = path.is_dir()  # and stays the folder that it is: a shell may stand in it
    with temporary_folder(path / _OWN if there else path) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        if not there:
            temporary.rename(path)
            return
        for name in _ALL - files.keys():
            (path / name).unlink(missing_ok=True)
        for name in files:
            (temporary / name).replace(path / name)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _predictions(evaluation: Evaluation) -> bytes:
    """A line for each image; several labels are separated by ``|``."""
    outputs = evaluation.outputs
    given, right = outputs.given(evaluation.threshold), outputs.right(evaluation.threshold)
    names, probabilities = outputs.classes, outputs.probabilities
    rows: list[list[Any]] = []
    for image in range(len(right)):
        own = [outputs.images.name(image), int(right[image])]
        if outputs.several:
            labels = (
                "|".join(name for name, holds in zip(names, row, strict=True) if holds)
                for row in (outputs.truth[image], given[image])
            )
            rows.append([*own, *labels, *(f"{value:.6g}" for value in probabilities[image])])
        else:
            truth, best = int(outputs.truth[image]), int(given[image])
            of_both = (probabilities[image, best], probabilities[image, truth])
            rank = int((probabilities[image] > of_both[1]).sum()) + 1
            rows.append([*own, names[truth], names[best], *(f"{value:.6g}" for value in of_both), rank])
    header = ["path", "right", "truth", "predicted"]
    header += list(names) if outputs.several else ["probability", "truth_probability", "truth_rank"]
    return _csv(header, rows)


def _classes(evaluation: Evaluation) -> bytes:
    rows = [each.as_dict() for each in evaluation.classes]
    return _csv(list(rows[0]), (list(row.values()) for row in rows))


def _matrix(evaluation: Evaluation) -> bytes:
    assert evaluation.matrix is not None
    names = evaluation.outputs.classes
    rows = ([name, *map(int, row)] for name, row in zip(names, evaluation.matrix, strict=True))
    return _csv(["true class", *names], rows)
