"""The numbers of ``tlearn.evaluate``: against cases made by hand, against scikit-learn, and what always holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from tlearn.evaluate.calibration import (
    calibration,
    decisions,
    ece_of,
    fit_temperature,
    gaps,
    losses,
    probabilities_of,
    reliability,
)
from tlearn.evaluate.comparison import compare, mcnemar
from tlearn.evaluate.intervals import Bootstrap, wilson
from tlearn.evaluate.label_scores import _SortedLabel, label_class_scores, multi_label_scores
from tlearn.evaluate.scores import (
    averages,
    class_scores,
    confusion_counts,
    in_top,
    single_label_scores,
    worst_confusions,
)

BOOTSTRAP = 200


def random_case(seed: int, images: int = 60, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, images)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), truth] += random.normal(1.5, 1, images)
    return logits, truth


# --- single label ----------------------------------------------------------------------------------------------------


def test_a_case_made_by_hand() -> None:
    """Three classes, of which the last has no image and the second is never predicted."""
    logits = np.log([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.1, 0.2, 0.7]])
    truth = np.array([0, 0, 1, 1])
    scores = single_label_scores(logits, truth, Bootstrap(4, BOOTSTRAP))
    assert scores["accuracy"].value == 0.5
    assert "top5" not in scores
    assert scores["loss"].value == pytest.approx(-np.log([0.7, 0.6, 0.1, 0.2]).mean())
    assert scores["macro_precision"].value == pytest.approx((2 / 3 + 0) / 2)
    assert scores["macro_recall"].value == pytest.approx((1 + 0) / 2)
    assert scores["macro_f1"].value == pytest.approx((0.8 + 0) / 2)
    first, second, third = class_scores(truth, logits.argmax(axis=1), ("a", "b", "c"), 0.95)
    assert (first.precision, first.recall.value, first.f1) == pytest.approx((2 / 3, 1.0, 0.8))
    assert (second.precision, second.recall.value, second.f1, second.support) == (None, 0.0, 0.0, 2)
    assert (third.precision, third.recall.value, third.f1, third.predicted) == (0.0, None, None, 1)
    matrix = confusion_counts(truth, logits.argmax(axis=1), 3)
    assert matrix.tolist() == [[2, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert worst_confusions(matrix) == [(1, 0, 1), (1, 2, 1)]


@given(st.integers(0, 10_000))
def test_the_scores_are_scikit_learns(seed: int) -> None:
    logits, truth = random_case(seed)
    predicted = logits.argmax(axis=1)
    scores = single_label_scores(logits, truth, Bootstrap(len(truth), 100))
    assert scores["accuracy"].value == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert scores["loss"].value == pytest.approx(
        metrics.log_loss(truth, probabilities_of(logits, False), labels=range(7))
    )
    assert scores["top5"].value == pytest.approx(metrics.top_k_accuracy_score(truth, logits, k=5, labels=range(7)))
    assert scores["macro_recall"].value == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    for average in ("macro", "weighted"):
        expected = metrics.f1_score(truth, predicted, labels=np.unique(truth), average=average, zero_division=0)
        assert scores[f"{average}_f1"].value == pytest.approx(expected)
    # What the bootstrap counts for itself, because it does so a thousand times, is the same.
    counts = (np.bincount(which, minlength=7).astype(float) for which in (truth[predicted == truth], truth, predicted))
    for name, value in averages(*counts).items():
        assert scores[name].value == pytest.approx(value), name
    assert all(score.low <= score.high for score in scores.values())  # type: ignore[operator]


def test_equal_scores_are_taken_in_the_order_of_the_outputs() -> None:
    logits = np.zeros((2, 8))
    assert in_top(logits, np.array([4, 5]), 5).tolist() == [True, False]


# --- calibration -----------------------------------------------------------------------------------------------------


def test_the_calibration_error_of_a_case_made_by_hand() -> None:
    """Two images 0.9 sure, one of them right; two images 0.6 sure, both right."""
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    found = calibration(logits, np.array([0, 1, 0, 0]))
    assert found.ece == pytest.approx((0.4 + 0.4) / 2)
    assert found.mce == pytest.approx(0.4)
    assert found.brier == pytest.approx((0.02 + 1.62 + 0.32 + 0.32) / 4)
    filled = [(round(each.low, 3), each.count, each.accuracy) for each in found.bins if each.count]
    assert filled == [(0.533, 2, 1.0), (0.867, 2, 0.5)]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_calibration_errors_are_bounded(drawn: list[tuple[float, bool]]) -> None:
    confidence, correct = (np.array(part, float) for part in zip(*drawn, strict=True))
    bins = reliability(confidence, correct)
    assert sum(each.count for each in bins) == len(drawn)
    ece = ece_of(gaps(confidence, correct, len(drawn)), np.ones(len(drawn)))
    assert abs(confidence.mean() - correct.mean()) - 1e-9 <= ece <= 1 + 1e-9
    assert ece == pytest.approx(
        sum(each.count * abs(each.confidence - each.accuracy) for each in bins if each.count) / len(drawn)  # type: ignore[operator]
    )
    for each in bins:
        if each.confidence is not None:
            assert each.low - 1e-9 <= each.confidence <= each.high + 1e-9


@pytest.mark.parametrize("several", [False, True])
def test_temperature_scaling_undoes_what_was_multiplied(several: bool) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(4000, 3))
    probabilities = probabilities_of(logits, several)
    if several:
        truth = (random.random(logits.shape) < probabilities).astype(np.int64)
    else:
        truth = (random.random((len(logits), 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    temperature = fit_temperature(3 * logits, truth)
    assert temperature == pytest.approx(3, rel=0.1)
    before, after = calibration(3 * logits, truth), calibration(3 * logits, truth, temperature)
    assert after.ece < 0.03 < before.ece
    assert after.loss < before.loss
    assert after.brier < before.brier


def test_losses_of_huge_logits_are_finite() -> None:
    assert losses(np.array([[1e4, -1e4]]), np.array([1])).tolist() == [2e4]
    assert losses(np.array([[1e4, -1e4]]), np.array([[0, 1]])).tolist() == [1e4]


# --- intervals -------------------------------------------------------------------------------------------------------


def test_wilsons_interval() -> None:
    """81 of 263: the example of Newcombe 1998, table I."""
    score = wilson(81, 263)
    assert (round(score.low, 4), round(score.high, 4)) == (0.2553, 0.3662)  # type: ignore[arg-type]
    assert wilson(0, 0).value is None
    assert wilson(0, 10).low == 0


def test_the_bootstrap_is_the_same_each_time_and_covers() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = Bootstrap(400).scores(
        {"mean": float(values.mean())}, lambda weights: {"mean": float(weights @ values / 400)}
    )
    again = Bootstrap(400).scores(
        {"mean": float(values.mean())}, lambda weights: {"mean": float(weights @ values / 400)}
    )
    assert found == again
    error = values.std() / math.sqrt(400)
    assert found["mean"].high - found["mean"].low == pytest.approx(2 * 1.96 * error, rel=0.1)  # type: ignore[operator]
    assert sum(len(chunk) for chunk in Bootstrap(400).weights()) == 1000
    assert all((chunk.sum(axis=1) == 400).all() for chunk in Bootstrap(400).weights())
    assert Bootstrap(50_000_000, 1000).resamples == 100


# --- McNemar ---------------------------------------------------------------------------------------------------------


def test_mcnemars_test() -> None:
    """The exact test by the binomial distribution, the other as in Edwards 1948."""
    p_value, test, statistic = mcnemar(1, 7)
    assert (p_value, test, statistic) == (pytest.approx(2 * (1 + 8) / 2**8), "exact", None)
    p_value, test, statistic = mcnemar(10, 30)
    assert (test, statistic) == ("chi-square", pytest.approx(19**2 / 40))
    assert p_value == pytest.approx(math.erfc(math.sqrt(19**2 / 40 / 2)))
    assert mcnemar(0, 0)[0] == 1


@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemars_test_knows_no_first_and_second(first: int, second: int) -> None:
    p_value = mcnemar(first, second)[0]
    assert p_value == pytest.approx(mcnemar(second, first)[0])
    assert 0 < p_value <= 1 + 1e-9
    if first == second:
        assert p_value == pytest.approx(1)


def test_a_comparison_counts_every_image_once() -> None:
    right = np.array([1, 1, 1, 0, 0, 1, 1, 1], bool)
    other = np.array([1, 0, 0, 1, 0, 1, 0, 0], bool)
    found = compare("a", right, "b", other, Bootstrap(8))
    assert (found.both, found.only_first, found.only_second, found.neither) == (2, 4, 1, 1)
    assert found.difference.value == pytest.approx(3 / 8)
    assert found.p_value == pytest.approx(2 * (1 + 5) / 2**5)
    assert "no difference beyond chance" in found.verdict
    assert "b is better" in compare("a", np.zeros(30, bool), "b", np.ones(30, bool), Bootstrap(30)).verdict


# --- several labels --------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_scores_of_several_labels_are_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = (random.random((40, 4)) < 0.4).astype(np.int64)
    truth[:, 3] = 0  # a label that no image has
    logits = np.round(random.normal(size=truth.shape) + 2 * truth - 1, 1)  # some of them equal
    probabilities, held = probabilities_of(logits, True), truth[:, :3]
    given_labels = (probabilities >= 0.5).astype(int)
    scores = multi_label_scores(logits, truth, 0.5, Bootstrap(40, 100))
    aps = [metrics.average_precision_score(held[:, c], probabilities[:, c]) for c in range(3)]
    assert scores["map"].value == pytest.approx(np.mean(aps))
    assert scores["subset_accuracy"].value == pytest.approx(metrics.accuracy_score(truth, given_labels))
    assert scores["accuracy"].value == pytest.approx(1 - metrics.hamming_loss(truth, given_labels))
    for average in ("macro", "weighted"):
        expected = metrics.f1_score(held, given_labels[:, :3], average=average, zero_division=0)
        assert scores[f"{average}_f1"].value == pytest.approx(expected)
    classes = label_class_scores(probabilities, truth, ("a", "b", "c", "d"), 0.5, 0.95)
    assert [each.average_precision for each in classes] == [*map(pytest.approx, aps), None]
    assert (classes[3].recall.value, classes[3].f1) == (None, None)


@given(st.integers(0, 10_000))
def test_average_precision_with_weights_is_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, probability = random.integers(0, 2, 30), np.round(random.random(30), 1)
    weights = random.integers(0, 4, 30).astype(float)
    found = _SortedLabel(probability, truth).average_precision(weights)
    if not (weights * truth).any():
        assert math.isnan(found)
    else:
        assert found == pytest.approx(metrics.average_precision_score(truth, probability, sample_weight=weights))


def test_one_label_that_images_have_or_not() -> None:
    truth, logits = np.array([[1], [0], [1]]), np.array([[2.0], [1.0], [-1.0]])
    scores = multi_label_scores(logits, truth, 0.5, Bootstrap(3, 100))
    assert scores["subset_accuracy"].value == pytest.approx(1 / 3)
    assert scores["ranking_ap"].value is None
    (only,) = label_class_scores(probabilities_of(logits, True), truth, ("a",), 0.5, 0.95)
    assert (only.precision, only.recall.value, only.support, only.predicted) == (0.5, 0.5, 2, 2)


def test_decisions_of_several_labels_are_one_a_label() -> None:
    confidence, correct = decisions(np.array([[0.9, 0.2]]), np.array([[1, 0]]))
    assert (confidence.tolist(), correct.tolist()) == ([0.9, 0.2], [1.0, 0.0])
