"""Splits: whatever the labels, every image is in one place, and every class everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlearn.config import DataConfig
from tlearn.data import Split, index_data
from tlearn.data.split import divide, limit_per_class
from tlearn.errors import DataError

CLASSES = tuple("abcdef")
labels_of = st.lists(st.integers(2, 40), min_size=1, max_size=6).map(
    lambda sizes: np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
)
fractions = st.floats(0.01, 0.45)
seeds = st.integers(0, 2**32)


def undivided(labels):
    return np.full(len(labels), Split.unused, np.int8)


def split(labels, seed=0, val=0.2, test=0.0, splits=None):
    splits = undivided(labels) if splits is None else splits
    return divide(labels, splits, CLASSES, val_fraction=val, test_fraction=test, seed=seed)


@settings(deadline=None)
@given(labels_of, fractions, seeds)
def test_train_and_val(labels, fraction, seed):
    splits = split(labels, seed, fraction)
    assert set(splits.tolist()) == {Split.train, Split.val}
    assert (split(labels, seed, fraction) == splits).all()
    for label in np.unique(labels):
        here = splits[labels == label]
        val = np.count_nonzero(here == Split.val)
        assert 1 <= val <= len(here) - 1
        assert abs(val - fraction * len(here)) < 1


@settings(deadline=None)
@given(labels_of, fractions, fractions, seeds)
def test_train_val_and_test(labels, val, test, seed):
    labels = np.concatenate([labels, labels])  # three images of each class at least
    splits = split(labels, seed, val, test)
    for label in np.unique(labels):
        here = splits[labels == label]
        for which, share in ((Split.val, val), (Split.test, test)):
            count = np.count_nonzero(here == which)
            assert count >= 1
            assert abs(count - share * len(here)) <= 1
        assert (here == Split.train).any()


def test_seeds_differ():
    labels = np.repeat(np.arange(5, dtype=np.int32), 50)
    assert (split(labels, seed=1) != split(labels, seed=2)).any()


def test_no_validation_when_none_is_asked_for():
    assert (split(np.arange(4, dtype=np.int32), val=0.0) == Split.train).all()


def test_a_class_with_one_image_is_named():
    with pytest.raises(DataError, match="too few images of 'c'"):
        split(np.array([0, 0, 1, 1, 2], np.int32))
    with pytest.raises(DataError, match=r"too few images of 'a', 'b'.*needs 3"):
        split(np.array([0, 0, 1, 1], np.int32), test=0.1)


def test_the_datas_own_val_is_never_touched():
    labels = np.repeat(np.arange(2, dtype=np.int32), 10)
    own = np.tile(np.array([Split.train, Split.val], np.int8), 10)
    assert (split(labels, splits=own, test=0.3) == own).all()


def test_val_comes_from_train_beside_a_test_of_its_own():
    labels = np.repeat(np.arange(2, dtype=np.int32), 20)
    own = np.tile(np.array([Split.train, Split.test], np.int8), 20)
    divided = split(labels, splits=own, val=0.2, test=0.5)
    assert ((divided == Split.test) == (own == Split.test)).all()
    assert np.count_nonzero(divided == Split.val) == 4


@settings(deadline=None)
@given(st.integers(20, 100), st.integers(2, 6), seeds)
def test_multi_label(count, classes, seed):
    labels = (np.random.default_rng(seed).random((count, classes)) < 0.3).astype(np.uint8)
    splits = split(labels, seed)
    assert set(splits.tolist()) == {Split.train, Split.val}
    present = labels.any(axis=0)
    assert (labels[splits == Split.train].any(axis=0) == present).all()
    assert 0.05 * count <= np.count_nonzero(splits == Split.val) <= 0.4 * count


def test_multi_label_keeps_a_rare_label_in_both():
    labels = np.zeros((200, 2), np.uint8)
    labels[:, 0] = 1
    labels[:4, 1] = 1
    for seed in range(20):
        splits = split(labels, seed)
        assert labels[splits == Split.val, 1].sum() == 1


@settings(deadline=None)
@given(labels_of, st.integers(1, 10), seeds)
def test_per_class(labels, limit, seed):
    splits = split(labels, seed)
    limited = limit_per_class(labels, splits, limit, seed)
    assert ((limited == Split.val) == (splits == Split.val)).all()
    for label in np.unique(labels):
        before = np.count_nonzero((splits == Split.train) & (labels == label))
        assert np.count_nonzero((limited == Split.train) & (labels == label)) == min(limit, before)
    fewer = limit_per_class(labels, splits, max(1, limit - 1), seed)
    assert set(np.flatnonzero(fewer == Split.train)) <= set(np.flatnonzero(limited == Split.train))


def labels_with_a_common_one():
    """Label 0 is the commonest, never alone, and not with every image of the others: no group is its own."""
    labels = np.zeros((100, 3), np.uint8)
    labels[20:90, 0] = labels[:40, 1] = labels[40:, 2] = 1
    return labels, np.full(100, Split.train, np.int8)


def test_per_class_keeps_every_one_of_several_labels():
    labels, splits = labels_with_a_common_one()
    splits[::5] = Split.val
    for seed in range(50):
        kept = [limit_per_class(labels, splits, limit, seed) for limit in (1, 2, 30)]
        for limited, more in zip(kept, [*kept[1:], splits], strict=True):
            assert ((limited == Split.val) == (splits == Split.val)).all()
            assert labels[limited == Split.train].any(axis=0).all(), seed
            assert not np.setdiff1d(np.flatnonzero(limited == Split.train), np.flatnonzero(more == Split.train)).size
        # one image of a group may have to come first; a limit of two has room for it
        assert [np.count_nonzero(limited == Split.train) for limited in kept[1:]] == [4, 60]


def test_a_run_on_few_images_learns_every_label(tmp_path):
    """Through the door that runs take, where validation may have a label that these few lack."""
    labels, _ = labels_with_a_common_one()
    rows = [
        "path,label",
        *(f"{row}.png,{'|'.join('abc'[label] for label in np.flatnonzero(each))}" for row, each in enumerate(labels)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    for seed in range(50):
        config = DataConfig(
            name="table", path=str(tmp_path / "t.csv"), label_separator="|", per_class=1, split_seed=seed
        )
        data = index_data(config, image_size=32, seed=0)
        assert data.table.counts(Split.train).all(), seed
