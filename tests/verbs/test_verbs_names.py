"""Classes and stages called what matplotlib takes for a formula, and what is no UTF-8: their names are names."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.verbs.conftest import draw_picture, train
from tlearn.evaluate.command import main as evaluate
from tlearn.train import report
from tlearn.train.run import Run

NAMES = ("$5_$", os.fsdecode(b"\xff-class"), "a|b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in each of the classes."""
    root = tmp_path_factory.mktemp("odd")
    try:
        for index in range(18):
            draw_picture(root / "pictures" / NAMES[index % 3] / f"{index}.png", index)
    except OSError:
        pytest.skip("this file system takes no such names")
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run(train(folder / "run", *options(folder)))


def options(folder: Path) -> tuple[str, ...]:
    return ("data=folder", f"data.path={folder / 'pictures'}", "data.batch_size=4", "data.val_fraction=0.34")


def test_a_run_ends_with_its_report(run: Run) -> None:
    assert run.summary["status"] == "finished"
    page = run.report_file.read_text(encoding="utf-8")
    for row in ("| $5_$ | 2 |", "| \\udcff-class | 2 |", "| a/b | 2 |"):
        assert row in page
    for file in (run.curves_file, run.confusion_file):
        with Image.open(file) as picture:
            assert np.asarray(picture.convert("L")).std() > 20


def test_its_evaluation_is_written(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate([str(run.path), "-o", "found", "--resamples", "100", "--format", "json"]) == 0
    assert {each["name"] for each in json.loads(capsys.readouterr().out)["classes"]} == set(NAMES)
    assert r"\udcff-class" in Path("found/report.html").read_text(encoding="utf-8")
    assert Path("found/confusion_matrix.png").stat().st_size > 5000
    with open("found/classes.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {row["name"] for row in csv.DictReader(file)} == set(NAMES)


def test_stages_are_marked_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    to_png = report._png
    monkeypatch.setattr(report, "_png", lambda figure: drawn.append(figure) or to_png(figure))
    stages = ("$5_$", r"$\frac$", "\udcff\x1b")
    places = enumerate(stages, 1)
    report.draw_curves([{"stage": name, "epoch": epoch, "loss": 1 / epoch, "accuracy": 0.5} for epoch, name in places])
    assert [text.get_text() for text in drawn[0].axes[0].texts] == [r"$\frac$", r"\udcff\x1b"]


def test_a_picture_that_cannot_be_drawn_costs_no_summary(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*drawn: Any) -> bytes:
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(report, "draw_curves", fail)
    found = Run(train(tmp_path / "run", *options(folder)))
    assert found.summary["status"] == "finished"
    said = "curves.png cannot be drawn: RuntimeError: no font"
    assert said in found.report_file.read_text(encoding="utf-8").splitlines()
    assert said in capsys.readouterr().err
    assert not found.curves_file.exists()
    assert found.confusion_file.exists()
