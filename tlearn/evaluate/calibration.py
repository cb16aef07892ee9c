"""Whether probabilities mean what they say, and the one number that mends most of it.

Of the images that a network is 80 % sure of, 80 % should be right. The expected calibration error (ECE) is the mean
distance from that, over bins of confidence (Guo et al. 2017, arXiv 1706.04599, equation 3). Temperature scaling divides
all logits by one number, fitted to the validation images (section 4.2 there): no image changes its class.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Bins of equal width, as in the paper."""

TEMPERATURES = (0.02, 50.0)
"""Between which the best one is looked for."""


@dataclass(frozen=True)
class Bin:
    """Decisions of about the same confidence.

    Attributes:
        low, high: confidence is above ``low``, and at most ``high``.
        count: of decisions.
        confidence: their mean; None without any.
        accuracy: the share of them that is right; None without any.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How well probabilities are calibrated.

    Attributes:
        ece: expected calibration error, 0..1.
        mce: the largest distance of any bin, 0..1.
        brier: mean squared distance of the probabilities from the truth, summed over the classes (Brier 1950).
        loss: mean cross-entropy.
        bins: the reliability diagram.
    """

    ece: float
    mce: float
    brier: float
    loss: float
    bins: tuple[Bin, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def calibration(logits: NDArray[np.float64], truth: NDArray[Any], temperature: float = 1.0) -> Calibration:
    """Calibration of logits divided by a temperature.

    Args:
        logits: (n, k).
        truth: int (n,), the class; or 0 and 1 (n, k) where an image may have several labels. Then each label of each
            image is a decision of its own: its confidence is the label's probability, and it is right where the label
            holds.
        temperature: above 0.
    """
    several = truth.ndim == 2
    scaled = logits / temperature
    probabilities = probabilities_of(scaled, several)
    confidence, correct = decisions(probabilities, truth)
    bins = reliability(confidence, correct)
    distances = [abs(each.confidence - each.accuracy) for each in bins if each.count]  # type: ignore[operator]
    counts = [each.count for each in bins if each.count]
    return Calibration(
        ece=float(np.average(distances, weights=counts)),
        mce=float(max(distances)),
        brier=float(_squared_distances(probabilities, truth).mean()),
        loss=float(losses(scaled, truth).mean()),
        bins=bins,
    )


def _squared_distances(probabilities: NDArray[np.float64], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Of the probabilities of each image from the truth, (n,)."""
    if truth.ndim == 2:
        return np.asarray(((probabilities - truth) ** 2).sum(axis=1))
    of_truth = probabilities[np.arange(len(truth)), truth]
    return np.asarray(np.einsum("nk,nk->n", probabilities, probabilities) - 2 * of_truth + 1)


def probabilities_of(logits: NDArray[np.float64], several: bool) -> NDArray[np.float64]:
    """Softmax over the classes, or with several labels per image the sigmoid of each: (n, k)."""
    from scipy.special import expit, softmax

    return np.asarray(expit(logits) if several else softmax(logits, axis=1))


def losses(logits: NDArray[np.float64], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Cross-entropy of each image, (n,); with several labels the mean of theirs."""
    from scipy.special import log_softmax

    if truth.ndim == 2:
        return np.asarray((np.logaddexp(0, logits) - truth * logits).mean(axis=1))
    return np.asarray(-log_softmax(logits, axis=1)[np.arange(len(truth)), truth])


def decisions(
    probabilities: NDArray[np.float64], truth: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Confidence and correctness (0 or 1) of every decision: one an image, or one a label of each image."""
    if truth.ndim == 2:
        return probabilities.ravel(), truth.ravel().astype(np.float64)
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == truth).astype(np.float64)


def reliability(confidence: NDArray[np.float64], correct: NDArray[np.float64], bins: int = BINS) -> tuple[Bin, ...]:
    """The reliability diagram of decisions.

    Args:
        confidence: (m,), 0..1.
        correct: (m,), 0 or 1.
        bins: of equal width.
    """
    where = bin_of(confidence, bins)
    count = np.bincount(where, minlength=bins)
    sure, right = (np.bincount(where, weights=values, minlength=bins) for values in (confidence, correct))
    return tuple(
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            count=int(count[index]),
            confidence=float(sure[index] / count[index]) if count[index] else None,
            accuracy=float(right[index] / count[index]) if count[index] else None,
        )
        for index in range(bins)
    )


def bin_of(confidence: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """Number of the bin of each decision; the bins are open below and closed above, the first has 0 as well."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def gaps(confidence: NDArray[np.float64], correct: NDArray[np.float64], images: int) -> NDArray[np.float64]:
    """What each image adds to the distance between confidence and accuracy in each bin, (images, bins).

    Args:
        confidence, correct: as for ``reliability``; the decisions of an image follow one another.
        images: how many; each has the same number of decisions.
    """
    each = len(confidence) // images
    cell = np.repeat(np.arange(images), each) * BINS + bin_of(confidence)
    summed = np.bincount(cell, weights=(confidence - correct) / each, minlength=images * BINS)
    return np.asarray(summed.reshape(images, BINS), np.float64)


def ece_of(gaps: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """ECE of images that count as often as their weights, (images,), say."""
    return float(np.abs(weights @ gaps).sum() / weights.sum())


def fit_temperature(logits: NDArray[np.float64], truth: NDArray[Any]) -> float:
    """The temperature with the smallest loss; arguments as for ``calibration``. 1 is no change, more is less sure."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda logarithm: losses(logits / np.exp(logarithm), truth).mean(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))
