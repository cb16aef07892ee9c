"""Pooled features of labelled images in the cache that training fills.

A stage of a run that trains the head alone keeps what the frozen backbone makes of each image. Here the same features,
of the same images, have the same name, so whoever needs them finds the other's: ``tlearn.extract RUN --split val``
and the probes of ``tlearn.evaluate`` after a training run, and a training run after them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlearn.config import CacheConfig, Config, Pooling, PrefixEngine
from tlearn.data import fingerprint
from tlearn.labelled import Labelled

if TYPE_CHECKING:
    from tlearn.network import Network
    from tlearn.train.feature_cache import Features


class KeptFeatures:
    """The entry of the cache for a network's pooled features of some images.

    Args:
        network: whose last feature map is averaged over positions.
        images: of a source.
        cache: where features are kept; None: nowhere.

    Attributes:
        tensor: ``KerasTensor`` (batch, channels), to compute them with.
        engine: how to compute them, so that their numbers are those of training.
    """

    def __init__(self, network: Network, images: Labelled, cache: CacheConfig | None) -> None:
        import keras

        from tlearn.heads.pooling import pool
        from tlearn.train.engine import planned_engine
        from tlearn.train.feature_cache import FeatureCache, Layout, cache_folder
        from tlearn.train.feature_key import feature_key, indescribable, prefix_hash
        from tlearn.train.frontier import Frontier

        self.tensor: Any = pool(network.layers.feature_map, Pooling.avg)
        self.engine = planned_engine(network.run.config if network.run else Config())
        self._store: FeatureCache | None = None
        self._about = f"{network.backbone.spec.name} {network.backbone.image_size} px, {images.split}: pooled"
        below = keras.Model(network.model.input, self.tensor).operations
        frontier = Frontier(network.model, (self.tensor,), tuple(below))
        known = fingerprint(images.source, images.rows[:1]) is not None and not indescribable(frontier)
        if cache is None or not known:
            return
        shape = tuple(int(side) for side in self.tensor.shape[1:])
        self._layout = Layout(len(images), (shape,), cache.dtype.value)
        self._key = feature_key(
            images.source,
            images.rows,
            network.reading,
            prefix_hash(frontier),
            self._layout,
            self.engine,
            augment=None,
            seed=0,
        )
        self._store = FeatureCache(cache_folder(cache), cache.max_gb * 1e9)

    def open(self) -> Features | None:
        """The entry, to be closed; None where there is none."""
        return None if self._store is None else self._store.open(self._key, self._layout)

    def write(self, values: NDArray[np.float32]) -> None:
        """Keep the features of all images, (n, channels), where there is room."""
        if self._store is None or self.engine is PrefixEngine.xla:  # only training compiles with XLA
            return
        with contextlib.suppress(OSError), self._store.writing(self._key, self._layout, self._about) as writer:
            if writer is not None:
                writer.append([values])
