"""One decoding for the check and for the first pass over the images.

The check before training decodes every image; where features must be made, the next thing that happens is that all of
them are decoded again. So the check keeps the squares of as many as fit a bound, and whoever reads first takes them.
"""

from __future__ import annotations

import hashlib

import numpy as np

from tlearn.config import Config, DataCache
from tlearn.data import Data, FileSource, FirstSquares, Reading, fingerprint
from tlearn.train.feature_cache import FeatureCache, cache_folder


def first_squares(config: Config, data: Data, image_size: int) -> FirstSquares | None:
    """What the check keeps; None where it would be of no use, and the check had better decode at an eighth.

    That is so for random crops, which need whole images, for sources that do not read files, and where the cache has
    features of these images already: they are likely to be those of this run. Nothing but time depends on it.
    """
    whole, kept = config.augment.random_resized_crop.p > 0, config.data.cache is DataCache.memory
    if whole or kept or not isinstance(data.source, FileSource):
        return None
    reading = Reading.of(config.data, image_size)
    if FeatureCache(cache_folder(config.cache)).has_features_of(images_hash(data, reading)):
        return None
    return FirstSquares(reading, np.concatenate([data.train, data.val]))


def images_hash(data: Data, reading: Reading) -> str:
    """Of the training images, and how they are read; empty where the source cannot tell."""
    images = fingerprint(data.source, data.train)
    return "" if images is None else hashlib.sha256(f"{images} {reading}".encode()).hexdigest()[:32]
