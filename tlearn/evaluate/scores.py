"""The scores of a classifier that gives each image one class: of all images, and of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlearn.evaluate.calibration import decisions, ece_of, gaps, losses, probabilities_of
from tlearn.evaluate.intervals import Bootstrap, Score, wilson

TOP_K = 5
_AVERAGED = ("precision", "recall", "f1")


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class; None where a score is not defined.

    Attributes:
        name: of the class.
        support: images of the class.
        predicted: images that are taken for it.
        precision: share of those that are of the class.
        recall: share of the class that is found; with its interval.
        f1: harmonic mean of both.
        average_precision: area under the curve of precision over recall; where images may have several labels.
    """

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: Score
    f1: float | None
    average_precision: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {
            "recall": self.recall.value,
            "recall_low": self.recall.low,
            "recall_high": self.recall.high,
        }


def class_scores(
    truth: NDArray[Any], predicted: NDArray[Any], names: tuple[str, ...], confidence: float
) -> tuple[ClassScores, ...]:
    """Scores of each class, by scikit-learn.

    Args:
        truth, predicted: int (n,), index of a class; or 0 and 1 (n, k) where an image may have several labels.
        names: of the k classes.
        confidence: of the intervals.
    """
    numbers = range(len(names))
    if truth.ndim == 2:
        columns = [_precision_recall_f1(truth[:, c], predicted[:, c], [1]) for c in numbers]
        precision, recall, f1, support = (np.concatenate(part) for part in zip(*columns, strict=True))
        counts = predicted.sum(axis=0)
    else:
        precision, recall, f1, support = _precision_recall_f1(truth, predicted, numbers)
        counts = np.bincount(predicted, minlength=len(names))
    return tuple(
        ClassScores(
            name=name,
            support=int(support[index]),
            predicted=int(counts[index]),
            precision=_defined(precision[index]),
            recall=wilson(round(recall[index] * support[index]) if support[index] else 0, support[index], confidence),
            f1=_defined(f1[index]) if support[index] else None,
        )
        for index, name in enumerate(names)
    )


def _precision_recall_f1(truth: NDArray[Any], predicted: NDArray[Any], labels: Sequence[int]) -> Any:
    """Precision, recall, F1 and support of labels, each (labels,); NaN where a score is not defined."""
    from sklearn.metrics import precision_recall_fscore_support

    return precision_recall_fscore_support(truth, predicted, labels=labels, average=None, zero_division=np.nan)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def single_label_scores(
    logits: NDArray[np.float64], truth: NDArray[np.int64], bootstrap: Bootstrap
) -> dict[str, Score]:
    """Scores of all images.

    Macro averages are over the classes that have images, weighted ones weight them by their images. A class that is
    never predicted has the precision 0 in an average.

    Args:
        logits: (n, k).
        truth: (n,).
        bootstrap: for the intervals; those of accuracy and top-5 are Wilson's.
    """
    from sklearn.metrics import precision_recall_fscore_support

    images, classes = logits.shape
    predicted = logits.argmax(axis=1)
    present = np.unique(truth)
    loss = losses(logits, truth)
    confidence, correct = decisions(probabilities_of(logits, False), truth)
    distances = gaps(confidence, correct, images)
    values: dict[str, float | None] = {"loss": float(loss.mean())}
    for average in ("macro", "weighted"):
        found = precision_recall_fscore_support(truth, predicted, labels=present, average=average, zero_division=0)
        values |= {f"{average}_{name}": float(value) for name, value in zip(_AVERAGED, found, strict=False)}
    values["ece"] = ece_of(distances, np.ones(images))

    def of_sample(weights: NDArray[np.float64]) -> dict[str, float]:
        counted = ((truth, weights * correct), (truth, weights), (predicted, weights))
        hits, support, taken = (np.bincount(of, weights=by, minlength=classes).astype(float) for of, by in counted)
        return {
            "loss": float(weights @ loss / images),
            **averages(hits, support, taken),
            "ece": ece_of(distances, weights),
        }

    scores = {"accuracy": wilson(int(correct.sum()), images, bootstrap.confidence)}
    if classes > TOP_K:
        scores["top5"] = wilson(int(in_top(logits, truth, TOP_K).sum()), images, bootstrap.confidence)
    return scores | bootstrap.scores(values, of_sample)


def in_top(logits: NDArray[np.float64], truth: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Whether the truth is among the k likeliest classes, (n,); equal ones in the order of the outputs."""
    own = logits[np.arange(len(truth)), truth][:, None]
    before = (logits == own) & (np.arange(logits.shape[1]) < truth[:, None])
    return np.asarray(((logits > own) | before).sum(axis=1) < k)


def averages(
    hits: NDArray[np.float64], support: NDArray[np.float64], predicted: NDArray[np.float64]
) -> dict[str, float]:
    """Macro and weighted averages from counts of each class, (k,): right, of the class, taken for it."""
    present = support > 0
    hits, support, predicted = hits[present], support[present], predicted[present]
    each = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / support,
        "f1": 2 * hits / (predicted + support),
    }
    macro = {f"macro_{name}": float(values.mean()) if len(values) else np.nan for name, values in each.items()}
    total = support.sum()
    return macro | {
        f"weighted_{name}": float(values @ support / total) if total else np.nan for name, values in each.items()
    }


def confusion_counts(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts (k, k): row the true class, column the predicted one."""
    from sklearn.metrics import confusion_matrix

    return np.asarray(confusion_matrix(truth, predicted, labels=range(classes)))


def worst_confusions(matrix: NDArray[np.int64], most: int = 10) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images) of the commonest confusions, commonest first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, matrix.shape), strict=True)
    return [(int(row), int(column), int(wrong[row, column])) for row, column in pairs if wrong[row, column]]
