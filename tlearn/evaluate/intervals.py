"""How far a score may be trusted: an interval around it that says what other images of the same kind might have given.

A proportion of images (accuracy, top-5, the recall of a class) has Wilson's interval (Wilson 1927), which holds for few
images and near 0 and 1 too. Every other score has the percentile bootstrap (Efron 1979): it is computed again for
samples of the images drawn with replacement, from a fixed seed, so that the same evaluation gives the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of all intervals, unless somebody asks for another."""

RESAMPLES = 1000
"""Samples of the bootstrap, unless somebody asks for another number."""

_SEED = 0
_CHUNK = 4_000_000  # weights held at once
_MOST_WORK = 2_000_000_000  # images times labels times samples; the least number of samples is 100 all the same


@dataclass(frozen=True)
class Score:
    """A score with its interval.

    Attributes:
        value: of the images at hand; None where it is not defined.
        low, high: ends of the interval; None where there is none.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}


def wilson(successes: int, images: int, confidence: float = CONFIDENCE) -> Score:
    """A proportion of images with Wilson's interval; of no images it is not defined."""
    from scipy.stats import binomtest

    if not images:
        return Score(None)
    interval = binomtest(int(successes), int(images)).proportion_ci(confidence, method="wilson")
    return Score(successes / images, float(interval.low), float(interval.high))


class Bootstrap:
    """Samples of images drawn with replacement, the same ones each time.

    Args:
        images: how many there are.
        resamples: how many samples are drawn.
        confidence: of the intervals.
        work: what a sample costs for each image, such as the number of labels; where everything together would take
            minutes, fewer samples are drawn, but never fewer than 100.

    Attributes:
        resamples: how many are drawn.
    """

    def __init__(
        self, images: int, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, *, work: int = 1
    ) -> None:
        self._images = images
        affordable = max(100, _MOST_WORK // max(images * work, 1))
        self.resamples = min(resamples, affordable)
        self.confidence = confidence

    def weights(self) -> Iterator[NDArray[np.float64]]:
        """How often each image is in each sample: (samples, images), a few samples at a time."""
        random = np.random.default_rng(_SEED)
        at_once = max(1, _CHUNK // self._images)
        for start in range(0, self.resamples, at_once):
            count = min(at_once, self.resamples - start)
            drawn = random.integers(0, self._images, (count, self._images))
            yield np.stack([np.bincount(row, minlength=self._images) for row in drawn]).astype(np.float64)

    def scores(
        self, values: dict[str, float | None], of_sample: Callable[[NDArray[np.float64]], dict[str, float]]
    ) -> dict[str, Score]:
        """Put an interval around each value.

        Args:
            values: the scores of the images themselves.
            of_sample: the same scores of a sample, given how often each image is in it, float64 (images,).
        """
        drawn = [of_sample(weights) for chunk in self.weights() for weights in chunk]
        return {name: self.score(value, np.array([sample[name] for sample in drawn])) for name, value in values.items()}

    def score(self, value: float | None, drawn: NDArray[np.float64]) -> Score:
        """A value with the interval that the values of the samples, (samples,), give; NaN: not defined in a sample."""
        drawn = drawn[~np.isnan(drawn)]
        if value is None or not len(drawn):
            return Score(value)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return Score(value, float(low), float(high))
