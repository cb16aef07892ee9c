"""Two networks on the same images: is one of them better, or was it chance?

McNemar's test (McNemar 1947) looks only at the images that one network gets right and the other wrong: were the two
equally good, each such image would fall to either side like a coin.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlearn.evaluate.intervals import Bootstrap, Score

_FEW = 25  # discordant images below which the chi-square approximation is not good enough


@dataclass(frozen=True)
class Comparison:
    """Two networks, compared image by image.

    Attributes:
        first, second: what they are called.
        images: that both could read.
        both, only_first, only_second, neither: how many of them are right.
        difference: accuracy of the first less that of the second, with its interval (bootstrap over the images);
            where images may have several labels, an image is right with all of them.
        p_value: probability of a difference at least as large were both equally good.
        test: ``exact`` (binomial, fewer than 25 images that tell them apart) or ``chi-square`` (with Edwards' 1948
            correction for continuity).
        statistic: chi-square; None for the exact test.
    """

    first: str
    second: str
    images: int
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: Score
    p_value: float
    test: str
    statistic: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def verdict(self) -> str:
        """In words, at the 5 % level."""
        if self.p_value >= 0.05:
            return f"no difference beyond chance (p = {self.p_value:.3g})"
        better = self.first if self.only_first > self.only_second else self.second
        return f"{better} is better (p = {self.p_value:.3g})"


def mcnemar(only_first: int, only_second: int) -> tuple[float, str, float | None]:
    """McNemar's test, two-sided: p-value, name of the test, chi-square."""
    from scipy.stats import binomtest, chi2

    discordant = only_first + only_second
    if not discordant:
        return 1.0, "exact", None
    if discordant < _FEW:
        return float(binomtest(only_first, discordant).pvalue), "exact", None
    statistic = max(abs(only_first - only_second) - 1, 0) ** 2 / discordant
    return float(chi2.sf(statistic, 1)), "chi-square", float(statistic)


def compare(
    first: str, right_first: NDArray[np.bool_], second: str, right_second: NDArray[np.bool_], bootstrap: Bootstrap
) -> Comparison:
    """Compare two networks.

    Args:
        first, second: what they are called.
        right_first, right_second: which images each gets right, (n,), in the same order.
        bootstrap: for the interval of the difference.
    """
    counts = {
        "both": right_first & right_second,
        "only_first": right_first & ~right_second,
        "only_second": ~right_first & right_second,
        "neither": ~right_first & ~right_second,
    }
    counted = {name: int(images.sum()) for name, images in counts.items()}
    gain = right_first.astype(np.float64) - right_second
    drawn = np.concatenate([weights @ gain for weights in bootstrap.weights()]) / len(gain)
    p_value, test, statistic = mcnemar(counted["only_first"], counted["only_second"])
    return Comparison(
        first=first,
        second=second,
        images=len(gain),
        **counted,
        difference=bootstrap.score(float(gain.mean()), drawn),
        p_value=p_value,
        test=test,
        statistic=statistic,
    )
