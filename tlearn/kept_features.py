"""Features that verbs compute, in the cache that training fills.

A stage of a run keeps what the frozen part of its network makes of each image. Here the same features, of the same
images, have the same name, so whoever needs them finds the other's: ``tlearn.extract`` and the probes of
``tlearn.evaluate`` after a training run, and a training run after them. Each layer has an entry of its own, so that
those which are there need not be computed again with others.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlearn.config import CacheConfig, CacheMode, Config, FeatureType, Pooling, PrefixEngine
from tlearn.data import fingerprint
from tlearn.data.source import place_of, sample
from tlearn.images import FileImages
from tlearn.labelled import Labelled
from tlearn.train.feature_arrays import Contents, Features, Layout
from tlearn.train.feature_cache import FeatureCache, cache_folder

if TYPE_CHECKING:
    from tlearn.network import Network


def engine_of(network: Network) -> PrefixEngine:
    """How a network's features are computed, so that their numbers are those of training."""
    from tlearn.train.engine import planned_engine

    return planned_engine(network.run.config if network.run else Config())


@dataclass(frozen=True)
class KeptFeatures:
    """The entry of the cache for what one layer of a network makes of some images.

    Attributes:
        store: the cache; None: nothing is kept.
        key, layout, about: of the entry.
        contents: of the images, as far as they were read.
        where: says where the images come from, for people; it may take a while.
        writable: whether what verbs compute may be put there.
    """

    store: FeatureCache | None = None
    key: str = ""
    layout: Layout = field(default_factory=lambda: Layout(0, (), "float32"))
    about: str = ""
    contents: Contents = field(default_factory=dict)
    where: Callable[[], str] = str
    writable: bool = True

    def open(self) -> Features | None:
        """The entry, to be closed; None where there is none."""
        return None if self.store is None else self.store.open(self.key, self.layout, self.contents)

    def write(self, values: Iterable[NDArray[np.float32]]) -> None:
        """Keep the features of all images, (..., *shape) at a time, where there is room."""
        if self.store is None or not self.writable:
            return
        writing = self.store.writing(self.key, self.layout, self.about, where=self.where(), contents=self.contents)
        with contextlib.suppress(OSError), writing as writer:
            if writer is not None:
                for chunk in values:
                    writer.append([chunk])


def kept_features(
    network: Network,
    images: FileImages | Labelled,
    tensors: Mapping[str, Any],
    cache: CacheConfig | None,
    dtype: FeatureType | None = None,
) -> dict[str, KeptFeatures]:
    """The entries of the cache for what layers of a network make of images.

    Args:
        network: whose layers they are.
        images: of a source, or files.
        tensors: ``KerasTensor`` s (batch, ...) of the network's graph, by any names.
        cache: where features are kept; None: nowhere.
        dtype: of the numbers there; None: as the cache says.
    """
    import keras

    from tlearn.train.feature_key import feature_key, indescribable, prefix_hash
    from tlearn.train.frontier import Frontier

    known = None if cache is None or cache.mode is CacheMode.off else _fingerprint(images)
    kept = dict.fromkeys(tensors, KeptFeatures())
    if cache is None or known is None:  # None: images that cannot be told from others
        return kept
    some = _sample(images)
    contents = {"sample": some} if some else {}
    store, engine = FeatureCache(cache_folder(cache), cache.max_gb * 1e9, _say), engine_of(network)
    for name, asked in tensors.items():
        tensor = _as_in_training(asked)
        frontier = Frontier(network.model, (tensor,), tuple(keras.Model(network.model.input, tensor).operations))
        if indescribable(frontier):
            continue
        shape = tuple(int(side) for side in tensor.shape[1:])
        layout = Layout(len(images), (shape,), (dtype or cache.dtype).value)
        key = feature_key(known, network.reading, prefix_hash(frontier), layout, engine, augment=None, seed=0)
        about = f"{network.backbone.spec.name} {network.backbone.image_size} px, {_about(images)}: {name}"
        writable = engine is not PrefixEngine.xla
        kept[name] = KeptFeatures(store, key, layout, about, contents, partial(_where, images), writable)
    return kept


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _fingerprint(images: FileImages | Labelled) -> str | None:
    if isinstance(images, Labelled):
        return fingerprint(images.source, images.rows)
    return images.fingerprint()


def _sample(images: FileImages | Labelled) -> str:
    return sample(images.source, images.rows) if isinstance(images, Labelled) else images.sample()


def _about(images: FileImages | Labelled) -> str:
    return images.split if isinstance(images, Labelled) else f"{len(images):,} files"


def _where(images: FileImages | Labelled) -> str:
    """A place that all of them come from."""
    if isinstance(images, Labelled):
        return place_of(images.source)
    folders = {os.path.dirname(os.path.abspath(images.name(row))) for row in range(len(images))}
    return os.path.commonpath(folders) if folders else ""


def _as_in_training(tensor: Any) -> Any:
    """The same tensor; where it is a pooled feature map, made by the layer that a head would have for it."""
    import keras

    from tlearn.heads.pooling import pool

    layer = tensor._keras_history.operation
    kinds = {keras.layers.GlobalAveragePooling2D: Pooling.avg, keras.layers.GlobalMaxPooling2D: Pooling.max}
    pooling = kinds.get(type(layer))
    return tensor if pooling is None or layer.compute_dtype != "float32" else pool(layer.input, pooling)
