"""Train, val and test: stratified, seeded, a pure function of labels and seed.

Each class is shuffled by itself and cut, which gives what a transfer-learning run needs and scikit-learn's
``StratifiedShuffleSplit`` does not promise: every class stands in every split however small its share, counts are
within one of the exact share for each class, and classes may outnumber the held-out images.

With several labels per image, the images are grouped by the rarest of their labels and the groups are stratified: the
first step of iterative stratification (Sechidis et al. 2011, "On the Stratification of Multi-Label Data").
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlearn.data.table import Split
from tlearn.errors import DataError, Problem


def divide(
    labels: NDArray[Any],
    splits: NDArray[np.int8],
    classes: tuple[str, ...],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> NDArray[np.int8]:
    """Complete the splits of a data set.

    Data without any split is divided in three. Where the data itself says what is train and what is test but has no
    val, val is taken from train. A split that the data has is never touched.

    Args:
        labels: int32 (n,), or uint8 (n, k) for several labels per image.
        splits: int8 (n,) of ``Split``, of all rows that may be used; all unused: the data has no split.
        classes: names, for messages.
        val_fraction: share of the divided images; 0: no validation.
        test_fraction: likewise; ignored where the data has splits of its own.
        seed: of the shuffle.

    Returns:
        int8 (n,) of ``Split``; rows that are unused beside others that are not stay so.

    Raises:
        DataError: a class has fewer images than there are splits to put it in.
    """
    divided = splits.copy()
    if (splits == Split.unused).all():
        divided[:] = Split.train
    else:
        test_fraction = 0.0
        if (splits == Split.val).any():
            val_fraction = 0.0
    shares = {Split.val: val_fraction, Split.test: test_fraction}
    wanted = {split: share for split, share in shares.items() if share > 0}
    rows = np.flatnonzero(divided == Split.train)
    if not wanted or not len(rows):
        return divided
    order, starts, groups = _shuffled_groups(labels[rows], seed)
    rare = [group for group, size in zip(groups, np.diff(starts), strict=True) if size <= len(wanted)]
    if rare and labels.ndim == 1:
        raise _too_few(classes, rare, len(wanted) + 1)
    for start, end in itertools.pairwise(starts):
        size = end - start
        # The last len(wanted) images of a class are spoken for: one for train, one for each split still to come.
        spare = max(0, size - 1 - len(wanted))
        for split, share in wanted.items():
            count = min(max(round(share * size), 1), 1 + spare) if size > len(wanted) else 0
            spare -= max(0, count - 1)
            divided[rows[order[start : start + count]]] = split
            start += count
    if labels.ndim == 2:
        _complete_train(labels, divided, rows)
    return divided


def limit_per_class(labels: NDArray[Any], splits: NDArray[np.int8], per_class: int, seed: int) -> NDArray[np.int8]:
    """Keep at most ``per_class`` training images of each class and mark the others unused.

    With several labels per image the limit is on images that share their rarest label. Where that would leave a label
    without any image, as it can with commoner labels and a small limit, some of its images come first; a limit that is
    too small for them gives way. The choice for a smaller limit is part of the choice for a larger one, so that curves
    over ``per_class`` compare.
    """
    limited = splits.copy()
    rows = np.flatnonzero(splits == Split.train)
    order, starts, _ = _shuffled_groups(labels[rows], seed)
    rows = rows[order]
    first = np.zeros(len(rows), np.bool_)
    first[starts[:-1]] = True
    if labels.ndim == 2:
        _complete_choice(labels[rows], first)
    for start, end in itertools.pairwise(starts):
        ranked = start + np.argsort(~first[start:end], kind="stable")
        limited[rows[ranked[max(per_class, np.count_nonzero(first[start:end])) :]]] = Split.unused
    return limited


def rarest_label(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The least frequent label of each image, int64 (n,); k for an image without any. Takes uint8 (n, k)."""
    frequency = labels.sum(axis=0, dtype=np.int64)
    by_rarity = np.argsort(frequency, kind="stable")
    has_label = labels.any(axis=1)
    rarest: NDArray[np.int64] = by_rarity[labels[:, by_rarity].argmax(axis=1)]
    return np.where(has_label, rarest, labels.shape[1])


def _complete_train(labels: NDArray[np.uint8], splits: NDArray[np.int8], rows: NDArray[np.int64]) -> None:
    """Move one of ``rows`` into train for each label that train lacks: groups do not see their commoner labels."""
    for label in np.flatnonzero(~labels[splits == Split.train].any(axis=0)):
        bearers = rows[labels[rows, label] > 0]
        splits[bearers[:1]] = Split.train


def _complete_choice(labels: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> None:
    """Choose one image more for each label that the chosen ones lack, bool (n,) of uint8 (n, k)."""
    lacking = labels.any(axis=0) & ~labels[chosen].any(axis=0)
    while lacking.any():
        bearer = labels[:, lacking.argmax()].argmax()
        chosen[bearer] = True
        lacking &= labels[bearer] == 0


def _shuffled_groups(labels: NDArray[Any], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Order that sorts rows by class and shuffles them within; where each class starts (and the end); the classes."""
    groups = rarest_label(labels) if labels.ndim == 2 else labels
    # Raw bits of a counter-based generator: the same for every version of NumPy, unlike Generator.shuffle.
    bits = np.random.Philox(np.random.SeedSequence(seed)).random_raw(len(groups))
    order = np.lexsort((bits, groups))
    found, starts = np.unique(groups[order], return_index=True)
    return order, np.append(starts, len(groups)), found


def _too_few(classes: tuple[str, ...], rare: list[Any], needed: int) -> DataError:
    names = [classes[group] for group in rare]
    shown = ", ".join(repr(name) for name in names[:20]) + (f" ... ({len(names)})" if len(names) > 20 else "")
    return DataError(
        Problem(
            "data",
            f"too few images of {shown}: each class needs {needed}, one for each split",
            "add images, remove the class, or provide a split of your own (split folders, data.split_column)",
        )
    )
