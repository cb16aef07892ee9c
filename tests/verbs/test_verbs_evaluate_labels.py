"""``tlearn.evaluate`` where images may have several labels: what is judged, and what it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tlearn
from tests.verbs.conftest import train
from tlearn.evaluate.command import main
from tlearn.train.run import Run


@pytest.fixture(scope="module")
def wide_run(labels_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two labels whose head has six outputs."""
    table = f"data.path={labels_run.parent / 'table.csv'}"
    folder = tmp_path_factory.mktemp("wide") / "run"
    return train(folder, "data=table", table, "data.label_separator='|'", "data.val_fraction=0.5", "head.classes=6")


def test_outputs_above_the_labels_of_the_data_are_not_judged(wide_run: Path) -> None:
    """The metrics of the run, which Keras computed over the labels alone, and the same decisions everywhere else."""
    summary = Run.open(wide_run).summary
    found = tlearn.load(wide_run).evaluate(resamples=100)
    assert found["accuracy"] == pytest.approx(summary["val_accuracy"], abs=1e-6)
    assert [each.name for each in found.classes] == ["green", "red"]
    assert found.wrong == round((1 - summary["val_accuracy"]) * 2 * len(found.outputs.images))
    assert not any("output" in f"{mistake.truth} {mistake.predicted}" for mistake in found.mistakes)
    right = found.outputs.given(0.5)[:, :2] == found.outputs.truth[:, :2]
    assert found["subset_accuracy"] == pytest.approx(right.all(axis=1).mean())
    assert any("4 outputs without a label in the run's data: not scored" in notice for notice in found.notices)
    assert not any("no image of" in notice for notice in found.notices)


def test_what_is_said_of_a_label_without_images(labels_run: Path, draw: Callable[..., Path]) -> None:
    Path("table.csv").write_text("path,label\n0.png,green\n1.png,\n")
    for index in range(2):
        draw(Path(f"{index}.png"), index)
    found = tlearn.load(labels_run).evaluate("table.csv", resamples=100, allow_missing=True)
    notice = next(notice for notice in found.notices if "no image of 'red'" in notice)
    assert "macro averages are over the other classes; scores of single decisions count them" in notice


def test_a_probe_is_told_of_several_labels(digits_run: Path, capsys: Any, draw: Callable[..., Path]) -> None:
    """Else each combination of labels would be a class."""
    rows = [f"{draw(Path(f'{index}.png'), index)},{('odd|big', 'big')[index % 2]}" for index in range(8)]
    Path("table.csv").write_text("\n".join(["path,label", *rows]))
    arguments = [str(digits_run), "--data", "table.csv", "--label-separator", "|", "--method", "knn"]
    assert main(arguments) == 2
    assert "one class per image" in capsys.readouterr().err
