"""The scores of a classifier that may give an image any number of labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlearn.evaluate.calibration import ece_of, gaps, losses, probabilities_of
from tlearn.evaluate.intervals import Bootstrap, Score, wilson
from tlearn.evaluate.scores import ClassScores, averages, class_scores


def label_class_scores(
    probabilities: NDArray[np.float64],
    truth: NDArray[Any],
    names: tuple[str, ...],
    threshold: float,
    confidence: float,
) -> tuple[ClassScores, ...]:
    """Scores of each label: a label is given where its probability is at least ``threshold``; AP needs none."""
    from sklearn.metrics import average_precision_score

    given = (probabilities >= threshold).astype(np.int64)
    return tuple(
        replace(
            scores,
            average_precision=float(average_precision_score(truth[:, index], probabilities[:, index]))
            if scores.support
            else None,
        )
        for index, scores in enumerate(class_scores(truth, given, names, confidence))
    )


def multi_label_scores(
    logits: NDArray[np.float64], truth: NDArray[Any], threshold: float, bootstrap: Bootstrap
) -> dict[str, Score]:
    """Scores of all images.

    ``map`` is the mean average precision over the labels that some image has; ``subset_accuracy`` the share of images
    with every label right, ``accuracy`` that of single decisions. Averages are as in ``single_label_scores``; micro
    ones count all decisions together.

    Args:
        logits: (n, k).
        truth: 0 and 1, (n, k).
        threshold: probability from which on a label is given.
        bootstrap: for the intervals; that of the subset accuracy is Wilson's.
    """
    from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

    images, labels = truth.shape
    probabilities = probabilities_of(logits, True)
    given = (probabilities >= threshold).astype(np.int64)
    loss, right = losses(logits, truth), given == truth
    distances = gaps(probabilities.ravel(), truth.ravel().astype(np.float64), images)
    columns = [_SortedLabel(probabilities[:, c], truth[:, c]) for c in np.flatnonzero(truth.any(axis=0))]

    def of_sample(weights: NDArray[np.float64]) -> dict[str, float]:
        hits, support, taken = (weights @ counted for counted in (given * truth, truth, given))
        precisions = [ap for ap in (column.average_precision(weights) for column in columns) if not np.isnan(ap)]
        return {
            "map": float(np.mean(precisions)) if precisions else np.nan,
            "accuracy": float(weights @ right.mean(axis=1) / images),
            "loss": float(weights @ loss / images),
            "ece": ece_of(distances, weights),
            **averages(hits, support, taken),
            "micro_precision": float(hits.sum() / taken.sum()) if taken.any() else np.nan,
            "micro_recall": float(hits.sum() / support.sum()) if support.any() else np.nan,
            "micro_f1": float(2 * hits.sum() / (taken.sum() + support.sum())) if support.any() else np.nan,
        }

    own = {name: None if np.isnan(value) else value for name, value in of_sample(np.ones(images)).items()}
    ranked = {
        "micro_ap": float(average_precision_score(truth.ravel(), probabilities.ravel())) if columns else None,
        "ranking_ap": float(label_ranking_average_precision_score(truth, probabilities)) if labels > 1 else None,
    }
    subset = wilson(int(right.all(axis=1).sum()), images, bootstrap.confidence)
    scores = {"subset_accuracy": subset} | bootstrap.scores(own, of_sample)
    return scores | {name: Score(value) for name, value in ranked.items()}


class _SortedLabel:
    """Average precision of one label for any weights of the images: sorted once, since there are many samples.

    What scikit-learn's ``average_precision_score(..., sample_weight=...)`` computes: images of one probability count
    as one threshold.
    """

    def __init__(self, probability: NDArray[np.float64], truth: NDArray[Any]) -> None:
        self._order = np.argsort(-probability, kind="stable")
        sorted_ = probability[self._order]
        self._ends = np.append(np.flatnonzero(np.diff(sorted_)), len(sorted_) - 1)
        self._truth = truth[self._order].astype(np.float64)

    def average_precision(self, weights: NDArray[np.float64]) -> float:
        """With these weights, (n,); NaN where no image with the label has any."""
        weights = weights[self._order]
        found = np.cumsum(weights * self._truth)[self._ends]
        if not found[-1]:
            return np.nan
        seen = np.maximum(np.cumsum(weights)[self._ends], 1e-300)
        return float(np.diff(found, prepend=0) @ (found / seen) / found[-1])
