"""What ``tlearn.evaluate`` prints: everything in 80 columns, names shortened, numbers whole."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tlearn.data import ArraySource, Reading
from tlearn.evaluate.evaluation import Evaluation, Outputs, compared, score
from tlearn.evaluate.page import evaluation_page
from tlearn.evaluate.tables import evaluation_tables
from tlearn.labelled import Labelled

LONG = "mobilenet-20261127-145136"


def outputs(truth: np.ndarray[Any, Any], classes: int, seed: int = 0) -> Outputs:
    """Of a network that is right about some of the images; classes have long names."""
    names = tuple(f"a rather long name of a species, number {index}" for index in range(classes))
    several = truth.ndim == 2
    held = truth if several else np.eye(classes)[truth]
    logits = np.random.default_rng(seed).normal(size=held.shape) + 4 * held - 2
    source = ArraySource(np.zeros((len(truth), 8, 8, 3), np.uint8), np.zeros(len(truth), np.int32), ("a", "b"))
    images = Labelled(source, np.arange(len(truth)), truth, names, "test")
    return Outputs(LONG, names, images, truth, logits, (), Reading(8))


def printed(evaluation: Evaluation) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(evaluation_tables(evaluation))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"\d…", text), text
    return text


def test_numbers_are_whole_beside_long_names() -> None:
    """Ten classes of 2,000 images each; and several labels, whose table has a column more."""
    text = printed(score(outputs(np.arange(20_000) % 10, 10), resamples=100))
    assert "true class" in text
    diagonal = [re.search(rf"^{index + 1} a.*…", text, re.MULTILINE) for index in range(10)]
    assert all(diagonal), "no room is left for names"
    held = (np.random.default_rng(1).random((2_000, 3)) < 0.5).astype(np.int64)
    found = score(outputs(held, 3), resamples=100)
    text = printed(found)
    assert re.search(r"class +precision +recall +F1 +images +predicted +AP", text)
    for each in found.classes:
        assert re.search(
            rf"number {each.name[-1]} .* {each.predicted} +{each.average_precision:.3f}$", text, re.MULTILINE
        )


def test_a_matrix_of_too_large_numbers_is_left_out() -> None:
    found = score(outputs(np.arange(20) % 10, 10), resamples=100)
    assert found.matrix is not None
    text = printed(replace(found, matrix=found.matrix + 1_000_000))
    assert "taken for" in text
    assert "1000000" in text


@pytest.mark.parametrize("several", [False, True])
def test_a_comparison_can_be_read_whatever_the_runs_are_called(several: bool) -> None:
    truth = np.arange(400) % 2
    truth = np.stack([truth, 1 - truth], axis=1) if several else truth
    found = compared(score(outputs(truth, 2), resamples=100), outputs(truth, 2, seed=1))
    text = printed(found)
    assert f"first: {LONG}\nsecond: {LONG} (2)\n" in text
    of = found.comparison
    assert of is not None
    assert re.search(r"^ +second right +second wrong$", text, re.MULTILINE)
    assert re.search(rf"^first right +{of.both} +{of.only_first}$", text, re.MULTILINE)
    assert re.search(rf"^first wrong +{of.only_second} +{of.neither}$", text, re.MULTILINE)
    name = "images with all labels right, share" if several else "accuracy"
    assert f"{name} of the first less that of the second: {of.difference.value:.3f} (" in " ".join(text.split())
    page = evaluation_page(replace(found, mistakes=()), {})
    assert f"{name[0].upper()}{name[1:]} of {LONG} less that of {LONG} (2): " in page
