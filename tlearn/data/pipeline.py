"""The stream of batches.

The training stream is a function of the global step: step s belongs to epoch ``s // batches_per_epoch``, whose order
is a permutation keyed by (seed, epoch), and everything random about an image is keyed by (seed, epoch, row). So a run
that goes on at step n sees what the uninterrupted one sees, and nothing before step n is read.

tf.data runs the steps ahead on its own threads. Each step is one Python call that loads a whole batch: Pillow and
OpenCV release the interpreter lock while they work, and the call's overhead is paid per batch, not per image.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlearn.config import AugmentConfig
from tlearn.data.augment import Augmenter, changes_images
from tlearn.data.decode import Pixels
from tlearn.data.failures import recorded
from tlearn.data.loader import FirstSquares, Loader, PixelCache, Rows
from tlearn.data.mixing import Mixing
from tlearn.data.reading import Reading
from tlearn.data.source import ImageSource
from tlearn.errors import DataError, Problem

LoadStep = Callable[[int], tuple[Pixels, NDArray[Any]]]


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Steps in one pass; the last batch of an epoch holds what is left over."""
    return math.ceil(images / batch_size)


def training_batches(
    source: ImageSource,
    rows: Rows,
    reading: Reading,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    steps: int | None = None,
    augment: AugmentConfig | None = None,
    views: int | None = None,
    part: tuple[int, int] = (0, 1),
    workers: int | None = None,
    cache: PixelCache | FirstSquares | None = None,
) -> Any:
    """Shuffled, augmented batches, epoch after epoch.

    Args:
        source: where images are read from.
        rows: int (n,), the rows of ``source.table`` to train on.
        reading: how an image becomes a square.
        batch_size: images per step.
        seed: of order, augmentation and mixing.
        start_step: global step of the first batch given; step 0 begins epoch 0.
        steps: how many batches to give; None: without end.
        augment: random changes; None: none.
        views: change each image in this many ways only, those of the first epochs, in turn; None: anew in each epoch.
        part: (index, count): give this one of so many all but equal parts of each batch. A batch that is mixed is
            loaded as a whole nevertheless.
        workers: batches loaded at once; None: as many as there are processors. It has no influence on what is loaded.
        cache: decoded images kept in memory.

    Returns:
        ``tf.data.Dataset`` of (images, labels): images uint8 (b, S, S, 3), float32 with batch mixing; labels int32
        (b,), or float32 (b, k) for several labels per image or with mixed labels.

    Raises:
        DataError: there are no rows; or, while iterating and by way of ``tlearn.data.reraise``, an unreadable image.
    """
    if not len(rows):
        raise DataError(Problem("data", "there are no training images"))
    augment = augment or AugmentConfig()
    loader = Loader(source, reading, augmenter=_augmenter(augment, reading, seed), cache=cache)
    order, mixing = EpochOrder(rows, batch_size, seed), Mixing.of(augment, source.table, seed)

    def load(step: int) -> tuple[Pixels, NDArray[Any]]:
        epoch, batch_rows = order.batch(step, part if mixing is None else (0, 1))
        return loader.batch(batch_rows, epoch if views is None else epoch % views)

    end = np.iinfo(np.int64).max if steps is None else start_step + steps
    batches = _stream(start_step, end, load, source, reading.image_size, workers, mixing)
    return batches if mixing is None or part == (0, 1) else batches.map(lambda *whole: _part_of(whole, part))


def evaluation_batches(
    source: ImageSource,
    rows: Rows,
    reading: Reading,
    *,
    batch_size: int,
    workers: int | None = None,
    cache: PixelCache | FirstSquares | None = None,
) -> Any:
    """The rows once, in the order given, unchanged but for decoding and resizing.

    Arguments, result and errors are those of ``training_batches``; the dataset knows its cardinality.
    """
    rows = np.asarray(rows)
    loader = Loader(source, reading, cache=cache)

    def load(step: int) -> tuple[Pixels, NDArray[Any]]:
        return loader.batch(rows[step * batch_size : (step + 1) * batch_size])

    return _stream(0, batches_per_epoch(len(rows), batch_size), load, source, reading.image_size, workers, None)


def view_batches(
    source: ImageSource,
    rows: Rows,
    reading: Reading,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    augment: AugmentConfig,
    workers: int | None = None,
    cache: PixelCache | FirstSquares | None = None,
) -> Any:
    """The rows once, in the order given, each changed just as the training stream changes it in one epoch.

    What happens to whole batches there (RandAugment, mixup, CutMix) is left out. Other arguments, result and errors
    are those of ``training_batches``.
    """
    rows = np.asarray(rows)
    loader = Loader(source, reading, augmenter=_augmenter(augment, reading, seed), cache=cache)

    def load(step: int) -> tuple[Pixels, NDArray[Any]]:
        return loader.batch(rows[step * batch_size : (step + 1) * batch_size], epoch)

    return _stream(0, batches_per_epoch(len(rows), batch_size), load, source, reading.image_size, workers, None)


class EpochOrder:
    """Which rows each step of the training stream holds.

    Args:
        rows: int (n,).
        batch_size: images per step; no batch crosses the end of an epoch, so the last of each may be smaller.
        seed: of the shuffling.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int) -> None:
        self._rows = np.asarray(rows)
        self._batch_size = batch_size
        self._seed = seed
        self._steps = batches_per_epoch(len(self._rows), batch_size)
        # Around the end of an epoch, threads ask for two of them in turn.
        self._permutation = lru_cache(maxsize=2)(self._permute)
        self._lock = threading.Lock()

    def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> tuple[int, Rows]:
        """(epoch, rows) of a global step; of the rows, one of several all but equal parts: (index, count)."""
        epoch, index = divmod(int(step), self._steps)
        with self._lock:  # lru_cache alone would let two threads shuffle the same epoch
            permutation = self._permutation(epoch)
        rows = permutation[index * self._batch_size : (index + 1) * self._batch_size]
        first, stop = part_bounds(len(rows), *part)
        return epoch, rows[first:stop]

    def _permute(self, epoch: int) -> Rows:
        # Raw bits of a counter-based generator, sorted: the same order with every version of NumPy.
        bits = np.random.Philox(np.random.SeedSequence([self._seed, epoch])).random_raw(len(self._rows))
        return self._rows[np.argsort(bits, kind="stable")]


def part_bounds(images: Any, index: Any, count: int) -> tuple[Any, Any]:
    """Where one of ``count`` all but equal parts of a batch begins, and where it stops; numbers or tensors."""
    return index * images // count, (index + 1) * images // count


def _part_of(batch: tuple[Any, ...], part: tuple[int, int]) -> tuple[Any, ...]:
    import tensorflow as tf

    first, stop = part_bounds(tf.shape(batch[0])[0], *part)
    return tuple(tensor[first:stop] for tensor in batch)


def _augmenter(augment: AugmentConfig, reading: Reading, seed: int) -> Augmenter | None:
    """None where nothing changes: importing albumentations takes half a second."""
    if not changes_images(augment):
        return None
    return Augmenter(augment, image_size=reading.image_size, seed=seed, interpolation=reading.interpolation)


def _stream(
    start: int,
    end: int,
    load: LoadStep,
    source: ImageSource,
    image_size: int,
    workers: int | None,
    mixing: Mixing | None,
) -> Any:
    """A dataset of ``load(step)`` for the steps start..end-1, in this order whatever the number of workers."""
    import tensorflow as tf

    table = source.table
    label_dtype, label_shape = (tf.float32, [None, len(table.classes)]) if table.multi_label else (tf.int32, [None])
    load_recorded = recorded(load)

    @tf.autograph.experimental.do_not_convert
    def load_tensors(step: Any) -> tuple[Any, Any]:
        images, labels = tf.numpy_function(load_recorded, [step], [tf.uint8, label_dtype], stateful=False)
        images.set_shape([None, image_size, image_size, 3])
        labels.set_shape(label_shape)
        return (images, labels) if mixing is None else mixing(images, labels, step)

    calls = _processors() if workers is None else workers
    steps = tf.data.Dataset.range(start, end)
    return untuned(steps.map(load_tensors, num_parallel_calls=calls, deterministic=True).prefetch(_AHEAD))


_AHEAD = 2
"""Steps that wait, loaded, for whoever takes them, besides those that are being loaded."""


def _processors() -> int:
    """How many of them this process may use; macOS does not tell, and has no such limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def untuned(dataset: Any) -> Any:
    """A ``tf.data.Dataset`` without the thread that tunes it: whoever drops an iterator waits until that one wakes up.

    Seen with TensorFlow 2.21: up to three seconds.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
