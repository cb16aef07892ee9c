"""The stream of batches is a function of the global step, and of nothing else."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tlearn.config import AugmentConfig, ColorJitter, DataConfig, Flip, RandAugment, RandomResizedCrop
from tlearn.data import (
    ArraySource,
    PixelCache,
    Reading,
    UnreadableImage,
    batches_per_epoch,
    evaluation_batches,
    load_data,
    reraise,
    training_batches,
    view_batches,
)
from tlearn.data.augment import transforms
from tlearn.data.pipeline import EpochOrder
from tlearn.errors import DataError

AUGMENT = AugmentConfig(
    random_resized_crop=RandomResizedCrop(p=0.5), horizontal_flip=Flip(p=0.5), color_jitter=ColorJitter(p=0.5)
)
MIXED = AugmentConfig(horizontal_flip=Flip(p=0.5), rand_augment=RandAugment(p=0.7, operations=1), mixup=0.3, cutmix=1.0)


class Counting(ArraySource):
    """Image i is filled with i + 1; remembers which rows were read."""

    def __init__(self, count: int, size: int = 4) -> None:
        images = np.tile(np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None], (1, size, size, 3))
        super().__init__(images, np.arange(count) % 3, ("a", "b", "c"))
        self.reads: list[int] = []

    def read(self, row):
        self.reads.append(row)
        return super().read(row)


def noise(count=20, size=24):
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return ArraySource(images, np.arange(count) % 3, ("a", "b", "c"))


def taken(dataset, steps=None):
    return [(x.numpy(), y.numpy()) for x, y in (dataset if steps is None else itertools.islice(dataset, steps))]


def assert_same(first, second):
    assert len(first) == len(second)
    for (x1, y1), (x2, y2) in zip(first, second, strict=True):
        assert x1.dtype == x2.dtype
        assert np.array_equal(x1, x2)
        assert np.array_equal(y1, y2)


def numbers(batches):
    """Rows that a stream of Counting images gave."""
    return [(x[:, 0, 0, 0].astype(int) - 1).tolist() for x, _ in batches]


def test_each_epoch_is_another_permutation():
    source = Counting(10)
    stream = training_batches(source, np.arange(10), Reading(4), batch_size=4, seed=0, steps=9)
    rows = numbers(taken(stream))
    assert [len(batch) for batch in rows] == [4, 4, 2] * 3
    epochs = [[*rows[start], *rows[start + 1], *rows[start + 2]] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(10))


def test_labels_belong_to_their_images():
    stream = training_batches(Counting(30), np.arange(5, 30), Reading(4), batch_size=7, seed=3, steps=8)
    for images, labels in taken(stream):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert ((images[:, 0, 0, 0] - 1) % 3 == labels).all()
        assert images.min() > 5


def test_the_static_shapes_are_those_of_the_batches():
    images, labels = training_batches(Counting(5), np.arange(5), Reading(8), batch_size=2, seed=0).element_spec
    assert images == tf.TensorSpec((None, 8, 8, 3), tf.uint8)
    assert labels == tf.TensorSpec((None,), tf.int32)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 100), st.integers(0, 2**40))
def test_order_is_a_partition_of_each_epoch(count, batch_size, epoch, seed):
    rows = np.arange(count) * 3
    order = EpochOrder(rows, batch_size, seed)
    steps = batches_per_epoch(count, batch_size)
    batches = [order.batch(epoch * steps + index) for index in range(steps)]
    assert {number for number, _ in batches} == {epoch}
    assert sorted(np.concatenate([batch for _, batch in batches])) == rows.tolist()
    assert all(len(batch) == batch_size for _, batch in batches[:-1])


def stream(augment, **options):
    options = {"seed": 5, "steps": 14} | options
    return training_batches(noise(), np.arange(20), Reading(16), batch_size=6, augment=augment, **options)


@pytest.fixture(scope="module", params=[None, AUGMENT, MIXED], ids=["plain", "augmented", "mixed"])
def whole(request):
    """A way to augment, and 14 steps of the stream with it."""
    return request.param, taken(stream(request.param, workers=1))


@pytest.mark.parametrize("start", [1, 4, 11])
def test_starting_at_a_step_gives_the_rest_of_the_stream(whole, start):
    augment, batches = whole
    assert_same(taken(stream(augment, start_step=start, steps=14 - start)), batches[start:])


@pytest.mark.parametrize("workers", [5, None])
def test_workers_make_no_difference(whole, workers):
    augment, batches = whole
    assert_same(taken(stream(augment, workers=workers)), batches)


def test_seeds_do(whole):
    augment, batches = whole
    assert not np.array_equal(taken(stream(augment, seed=6, steps=1))[0][0], batches[0][0])


def test_nothing_is_read_before_the_first_step():
    source = Counting(12)
    stream = training_batches(source, np.arange(12), Reading(4), batch_size=4, seed=0, start_step=301, steps=1)
    rows = numbers(taken(stream))
    assert sorted(source.reads) == sorted(rows[0])


def test_a_stream_without_end():
    stream = training_batches(Counting(3), np.arange(3), Reading(4), batch_size=2, seed=0, workers=1)
    assert len(taken(stream, 25)) == 25


def test_a_view_is_what_the_training_stream_shows_in_that_epoch():
    options = {"reading": Reading(16), "batch_size": 6, "seed": 5, "augment": AUGMENT}
    trained = taken(training_batches(noise(), np.arange(20), start_step=8, steps=4, **options))  # epoch 2
    order = np.concatenate([EpochOrder(np.arange(20), 6, 5).batch(step)[1] for step in range(8, 12)])
    assert_same(taken(view_batches(noise(), order, epoch=2, **options)), trained)
    other = taken(view_batches(noise(), order, epoch=1, **options))
    assert not np.array_equal(other[0][0], trained[0][0])


def test_a_worker_makes_its_transforms_once(monkeypatch):
    """To Python, a thread of tf.data is a new one in each batch: what is kept by thread is made in each batch."""
    made = []

    def counted(config):
        made.append(config)
        return transforms(config)

    monkeypatch.setattr("tlearn.data.augment.transforms", counted)
    taken(stream(AUGMENT, workers=1))
    assert len(made) == 1


def test_evaluation_is_in_order_and_once():
    rows = np.array([7, 1, 4, 0, 9])
    stream = evaluation_batches(Counting(10), rows, Reading(4), batch_size=2, workers=3)
    assert stream.cardinality() == 3
    assert numbers(taken(stream)) == [[7, 1], [4, 0], [9]]
    assert taken(evaluation_batches(Counting(3), rows[:0], Reading(4), batch_size=2)) == []


def test_nothing_tunes_a_stream_in_the_background(whole):
    """Whoever drops a stream would wait for the thread that does, for seconds."""
    augment, _ = whole
    order = view_batches(noise(), np.arange(20), Reading(16), batch_size=6, seed=5, epoch=0, augment=augment or AUGMENT)
    once = evaluation_batches(Counting(3), np.arange(3), Reading(4), batch_size=2)
    for dataset in (stream(augment), order, once):
        assert dataset.map(lambda *batch: batch).options().autotune.enabled is False


def test_no_training_images():
    with pytest.raises(DataError, match="no training images"):
        training_batches(Counting(3), np.arange(0), Reading(4), batch_size=2, seed=0)


class TestPixelCache:
    def test_each_image_is_read_once(self):
        source = Counting(10)
        cache = PixelCache(10, 4)
        options = {"reading": Reading(4), "batch_size": 3, "cache": cache, "workers": 1}
        plain = training_batches(Counting(10), np.arange(8), Reading(4), batch_size=3, seed=0, steps=9)
        assert_same(taken(training_batches(source, np.arange(8), seed=0, steps=9, **options)), taken(plain))
        assert sorted(source.reads) == list(range(8))
        assert numbers(taken(evaluation_batches(source, np.arange(10), **options)))[-1] == [9]
        assert sorted(source.reads) == list(range(10))

    def test_augmentation_comes_after_it(self):
        augment = AugmentConfig(horizontal_flip=Flip(p=0.5), color_jitter=ColorJitter(p=1.0))
        options = {"reading": Reading(16), "batch_size": 6, "seed": 5, "steps": 12, "augment": augment}
        cached = training_batches(noise(), np.arange(20), cache=PixelCache(20, 16), workers=4, **options)
        assert_same(taken(cached), taken(training_batches(noise(), np.arange(20), **options)))

    def test_more_than_the_machine_has(self):
        with pytest.raises(DataError, match=r"data\.cache=none"):
            PixelCache(10**9, 224)


def test_a_random_crop_sees_the_whole_image():
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, :40], wide[:, 80:] = 100, 200
    source = ArraySource(np.stack([wide] * 20), np.arange(20) % 2, ("a", "b"))
    augment = AugmentConfig(random_resized_crop=RandomResizedCrop(p=1.0, scale_min=0.1, scale_max=0.3))
    stream = training_batches(
        source, np.arange(20), Reading(16), batch_size=20, seed=0, steps=1, augment=augment, cache=PixelCache(20, 16)
    )
    seen = set(np.unique(taken(stream)[0][0]).tolist())
    assert {100, 200} <= seen  # a centre crop would show black only


class TestMixing:
    def batch(self, **options):
        images = np.zeros((64, 32, 32, 3), np.uint8)
        images[32:] = 240
        source = ArraySource(images, np.repeat([0, 1], 32), ("dark", "bright"))
        stream = training_batches(
            source, np.arange(64), Reading(32), batch_size=64, seed=0, steps=1, augment=AugmentConfig(**options)
        )
        return taken(stream)[0]

    def test_mixup_mixes_labels_as_it_mixes_pixels(self):
        images, labels = self.batch(mixup=1.0)
        assert images.dtype == labels.dtype == np.float32
        assert labels.shape == (64, 2)
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3)) / 240, labels[:, 1], atol=1e-5)
        assert len(np.unique(labels[:, 1].round(3))) > 10

    def test_cutmix_mixes_labels_by_area(self):
        images, labels = self.batch(cutmix=1.0)
        assert set(np.unique(images)) == {0, 240}
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
        assert abs(images.mean(axis=(1, 2, 3)) / 240 - labels[:, 1]).max() < 0.15  # whole pixels
        assert 0.1 < np.mean((labels > 0.05) & (labels < 0.95)) < 0.9

    def test_cutmix_boxes_lie_anywhere(self):
        """Keras draws left and top edges from one seed if it is given one, and boxes stay on the diagonal."""
        images, _ = self.batch(cutmix=1.0)
        cut = (images != np.median(images, axis=(1, 2, 3), keepdims=True)).any(axis=3)
        centres = [np.argwhere(mask).mean(axis=0) for mask in cut if 20 < mask.sum() < 400]
        across, down = np.transpose(centres)
        assert len(centres) > 10
        assert abs(np.corrcoef(across, down)[0, 1]) < 0.8

    def test_rand_augment_keeps_labels_and_range(self):
        images, labels = self.batch(rand_augment=RandAugment(p=1.0, operations=2, magnitude=1.0))
        assert labels.tolist().count(1) == 32
        assert images.dtype == np.float32
        assert images.min() >= 0
        assert images.max() <= 255

    def test_rand_augment_spares_the_share_it_should(self):
        options = {"reading": Reading(24), "batch_size": 40, "seed": 0, "steps": 30}
        augment = AugmentConfig(rand_augment=RandAugment(p=0.25, operations=1, magnitude=1.0))
        operated = taken(training_batches(noise(40), np.arange(40), augment=augment, **options))
        plain = taken(training_batches(noise(40), np.arange(40), **options))
        changed = [
            (abs(after - before) > 0.5).any(axis=(1, 2, 3)).mean()
            for (after, _), (before, _) in zip(operated, plain, strict=True)
        ]
        assert 0.1 < np.mean(changed) < 0.4

    def test_the_operations_are_those_of_keras(self):
        import keras

        from tlearn.data.mixing import OPERATIONS

        assert tuple(keras.layers.RandAugment._AUGMENT_LAYERS) == OPERATIONS

    def test_a_half_precision_policy_does_not_reach_the_pixels(self):
        import keras

        before = self.batch(mixup=1.0)
        keras.config.set_dtype_policy("mixed_float16")
        try:
            assert_same([self.batch(mixup=1.0)], [before])
        finally:
            keras.config.set_dtype_policy("float32")


class Failing(Counting):
    def read(self, row):
        if row == 3:
            raise UnreadableImage("some/path.jpg", "is on a disk that went away")
        return super().read(row)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_failure_while_reading_comes_out_as_our_error(workers):
    stream = training_batches(
        Failing(8), np.arange(8), Reading(4), batch_size=2, seed=0, workers=workers, augment=AUGMENT
    )
    with pytest.raises(tf.errors.OpError) as from_tensorflow:
        taken(stream)
    with pytest.raises(UnreadableImage) as caught:
        reraise(from_tensorflow.value)
    assert caught.value.path == "some/path.jpg"


def test_a_failure_inside_fit_comes_out_as_our_error():
    import keras

    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    stream = evaluation_batches(Failing(8), np.arange(8), Reading(4), batch_size=2)
    with pytest.raises(tf.errors.OpError) as from_tensorflow:
        model.fit(stream, verbose=0, shuffle=False)
    with pytest.raises(UnreadableImage, match="went away"):
        reraise(from_tensorflow.value)


def test_other_errors_are_raised_as_they_are():
    with pytest.raises(KeyError, match="x"):
        reraise(KeyError("x"))


def test_flowers_stream_is_what_pillow_says(assets):
    from PIL import Image

    data = load_data(DataConfig(name="folder", path=str(assets / "flowers"), check="none"), image_size=64, seed=0)
    images, labels = taken(evaluation_batches(data.source, data.val[:3], Reading(64), batch_size=3))[0]
    for image, label, row in zip(images, labels, data.val, strict=False):
        path = Path(data.source.file(row))
        assert path.parent.name == data.classes[label]
        photo = Image.open(path)
        side, (width, height) = min(photo.size), photo.size
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        expected = np.asarray(photo.resize((64, 64), Image.Resampling.BILINEAR, box=box))
        assert np.array_equal(image, expected)


def test_multi_label_batches():
    source = Counting(6)
    hot = np.eye(3, dtype=np.uint8)[np.arange(6) % 3]
    source.table = dataclasses.replace(source.table, labels=hot, multi_label=True)
    for augment, dtype in ((None, np.uint8), (AugmentConfig(mixup=0.3), np.float32)):
        stream = training_batches(source, np.arange(6), Reading(4), batch_size=6, seed=0, steps=1, augment=augment)
        images, labels = taken(stream)[0]
        assert images.dtype == dtype
        assert labels.dtype == np.float32
        assert labels.shape == (6, 3)
        assert stream.element_spec[1].shape.as_list() == [None, 3]
