"""What stages keep of the frozen part: at which frontier, under which name in the cache, and how it is made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlearn.backbones.naming import stable_names, variable_keys
from tlearn.config import CacheConfig, CacheMode, Config
from tlearn.data import Data, fingerprint
from tlearn.train.classifier import Classifier, freeze
from tlearn.train.console import Terminal
from tlearn.train.feature_cache import FeatureCache, Features, Layout, Writer
from tlearn.train.frontier import Frontier, find_frontier
from tlearn.train.streams import EXTRACTION_BATCH, Streams, guarded

# what decides how a file becomes pixels and pixels become features, besides the config
_VERSIONS = ("tensorflow", "keras", "pillow", "albumentations", "opencv-python-headless")


@dataclass(frozen=True)
class FeaturePlan:
    """What a stage does about the part of the model that does not change in it.

    Attributes:
        tensors: the frontier, as ``layer 8x8x1280``.
        shapes: of the tensors, for one image.
        cached: whether features are kept on disk; else every image goes through the whole model in every epoch.
        reason: why, in a few words.
        bytes_per_image: of one version of one image.
        bytes: of all that is kept for the stage.
    """

    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    cached: bool
    reason: str
    bytes_per_image: int
    bytes: int


def plan_features(config: Config, data: Data, classifier: Classifier) -> FeaturePlan:
    """Decide for a stage; the model is frozen as in it."""
    frontier = find_frontier(classifier.model)
    train, val = _layouts(config, data, frontier)
    reason = _reason_to_stream(config, data, frontier, train, val)
    return FeaturePlan(
        tensors=tensor_names(classifier, frontier),
        shapes=train.shapes,
        cached=not reason,
        reason=reason or f"{_views(config)} version{'s' if _views(config) > 1 else ''} of each image",
        bytes_per_image=train.bytes_per_row,
        bytes=train.bytes + val.bytes,
    )


def _reason_to_stream(config: Config, data: Data, frontier: Frontier, train: Layout, val: Layout) -> str:
    """Why features cannot be kept; empty when they can."""
    cache, augment = config.cache, config.augment
    if cache.mode is CacheMode.off:
        return "cache.mode=off"
    if not frontier.is_worthwhile:
        return "no layer is frozen"
    if augment.mixup or augment.cutmix or augment.rand_augment.p:
        return "batches are mixed as pixels"
    if is_augmented(config) and cache.views is None:
        return "fresh augmentation (cache.views=null)"
    if fingerprint(data.source, data.train) is None:
        return f"data.name={config.data.name} cannot tell whether its images changed"
    if train.bytes + val.bytes > cache.max_gb * 1e9:
        return f"{(train.bytes + val.bytes) / 1e9:.1f} GB are more than cache.max_gb"
    return ""


def is_augmented(config: Config) -> bool:
    """Whether training images are changed at random, each by itself."""
    transforms = {name: value for name, value in vars(config.augment).items() if name != "rand_augment"}
    return any(getattr(transform, "p", 0) > 0 for transform in transforms.values())


def tensor_names(classifier: Classifier, frontier: Frontier) -> tuple[str, ...]:
    """The tensors by the layers that make them, the same in every process."""
    names = dict(zip(map(id, classifier.model.layers), stable_names(classifier.model.layers), strict=True))
    return tuple(
        f"{names[id(tensor._keras_history.operation)]} {'x'.join(map(str, tensor.shape[1:]))}"
        for tensor in frontier.tensors
    )


def _views(config: Config) -> int:
    return (config.cache.views or 1) if is_augmented(config) else 1


def _layouts(config: Config, data: Data, frontier: Frontier) -> tuple[Layout, Layout]:
    """Of the training images in all their views, and of the validation images."""
    shapes = tuple(tuple(int(side) for side in tensor.shape[1:]) for tensor in frontier.tensors)
    dtype = config.cache.dtype.value
    return Layout(len(data.train) * _views(config), shapes, dtype), Layout(len(data.val), shapes, dtype)


def cache_folder(config: CacheConfig) -> Path:
    """Where features are kept."""
    if config.dir is not None:
        return Path(config.dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tlearn" / "features"


@dataclass(frozen=True, eq=False)
class StageFeatures:
    """Features of one stage.

    Attributes:
        suffix: the model from them to logits, which is what trains.
        train: of the training images, one block of rows per view.
        val: of the validation images.
        views: number of blocks in ``train``.
    """

    suffix: keras.Model
    train: Features
    val: Features
    views: int


@dataclass(frozen=True, eq=False)
class _Wanted:
    """An entry of the cache that a stage needs."""

    key: str
    layout: Layout
    tensors: tuple[Any, ...]
    split: str


class FeatureMaker:
    """Makes the features of a run's stages, several stages' in one pass where their frozen parts allow it."""

    def __init__(
        self,
        config: Config,
        data: Data,
        classifier: Classifier,
        stages: Sequence[Any],
        streams: Streams,
        terminal: Terminal,
    ) -> None:
        self._config = config
        self._data = data
        self._classifier = classifier
        self._stages = stages
        self._streams = streams
        self._terminal = terminal
        self._cache = FeatureCache(cache_folder(config.cache), int(config.cache.max_gb * 1e9))

    def stage(self, index: int) -> StageFeatures | None:
        """Features of a stage, made now unless they are there; None where the stage streams.

        The model is left frozen as in that stage.
        """
        freeze(self._classifier, self._stages[index].layers)
        if not self._stages[index].features.cached:
            return None
        frontier = find_frontier(self._classifier.model)
        try:
            train, val = self._wanted(frontier)
            kept = [self._cache.open(wanted.key, wanted.layout) for wanted in (train, val)]
            if None in kept:
                self._make(index, frontier)
                kept = [self._cache.open(wanted.key, wanted.layout) for wanted in (train, val)]
        except OSError as error:
            self._terminal.print(f"features cannot be kept in {self._cache.folder}: {error}; the stage streams")
            return None
        if kept[0] is None or kept[1] is None:
            self._terminal.print(f"features did not stay in {self._cache.folder}; the stage streams")
            return None
        return StageFeatures(frontier.suffix(), kept[0], kept[1], _views(self._config))

    def _make(self, index: int, frontier: Frontier) -> None:
        """One pass over the images of each split, for this stage and the later ones that can share it."""
        wanted = [*self._wanted(frontier), *self._later(index)]
        freeze(self._classifier, self._stages[index].layers)
        for split in ("train", "val"):
            missing = {entry.key: entry for entry in wanted if entry.split == split and not self._is_there(entry)}
            if missing:
                self._extract(split, list(missing.values()))

    def _later(self, index: int) -> Iterator[_Wanted]:
        """What later cached stages need, where no stage before them changes the variables it is made from."""
        changed = set(self._stages[index].variables)
        for stage in self._stages[index + 1 :]:
            freeze(self._classifier, stage.layers)
            if stage.features.cached:
                frontier = find_frontier(self._classifier.model)
                below = variable_keys(frontier.prefix().layers) if stage.layers else {}
                if stage.layers and not changed & set(self._keys_of(below.values())):
                    yield from self._wanted(frontier)
            changed |= set(stage.variables)

    def _keys_of(self, variables: Any) -> list[str]:
        keys = {id(variable): key for key, variable in self._classifier.variables().items()}
        return [keys[id(variable)] for variable in variables]

    def _is_there(self, entry: _Wanted) -> bool:
        features = self._cache.open(entry.key, entry.layout)
        return features is not None

    def _extract(self, split: str, entries: list[_Wanted]) -> None:
        """One pass over the images of a split that writes all entries."""
        rows = self._data.train if split == "train" else self._data.val
        views = _views(self._config) if split == "train" and is_augmented(self._config) else 0
        tensors = {id(tensor): tensor for entry in entries for tensor in entry.tensors}
        infer = _inference(self._classifier.model, list(tensors.values()))
        size = sum(entry.layout.bytes for entry in entries) / 1e6
        self._terminal.print(f"features of {len(rows):,} {split} images: {size:,.1f} MB in one pass")
        passes = math.ceil(len(rows) / EXTRACTION_BATCH) * max(views, 1)
        with self._writers(entries) as writers:
            self._terminal.start_epoch(f"features of {split} images", passes, 0)
            for done, (images, _) in enumerate(guarded(self._streams.extraction(rows, views)), start=1):
                values = dict(zip(tensors, infer(images), strict=True))
                for entry, writer in writers:
                    writer.append([values[id(tensor)].numpy() for tensor in entry.tensors])
                self._terminal.step(done, "")

    @contextlib.contextmanager
    def _writers(self, entries: list[_Wanted]) -> Iterator[list[tuple[_Wanted, Writer]]]:
        """Open the entries for writing, in one order in all processes, so that none waits for another in a circle."""

        def waits() -> None:
            self._terminal.print("waiting for another process that makes the same features")

        with contextlib.ExitStack() as stack:
            writers = []
            for entry in sorted(entries, key=lambda entry: entry.key):
                writer = stack.enter_context(self._cache.writing(entry.key, entry.layout, waits))
                if writer is not None:
                    writers.append((entry, writer))
            try:
                yield writers
            finally:
                self._terminal.end_epoch()

    def _wanted(self, frontier: Frontier) -> tuple[_Wanted, _Wanted]:
        train, val = _layouts(self._config, self._data, frontier)
        return (
            _Wanted(self._key(frontier, "train", train), train, frontier.tensors, "train"),
            _Wanted(self._key(frontier, "val", val), val, frontier.tensors, "val"),
        )

    def _key(self, frontier: Frontier, split: str, layout: Layout) -> str:
        """A hash of everything the features depend on."""
        config, data = self._config, self._config.data
        rows = self._data.train if split == "train" else self._data.val
        ingredients: dict[str, Any] = {
            "images": fingerprint(self._data.source, rows),
            "image_size": self._classifier.backbone.image_size,
            "reading": [data.resize.value, data.crop_fraction, data.interpolation.value],
            "frontier": tensor_names(self._classifier, frontier),
            "prefix": _weights_hash(frontier.prefix()),
            "backbone": self._classifier.backbone.spec.name,
            "layout": asdict(layout),
            "precision": config.precision.value,
            "versions": {name: version(name) for name in _VERSIONS},
        }
        if split == "train" and is_augmented(config):
            ingredients |= {"augment": asdict(config.augment), "seed": config.seed, "views": _views(config)}
        text = json.dumps(ingredients, sort_keys=True, default=lambda value: value.value)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _inference(model: keras.Model, tensors: list[Any]) -> Any:
    """A graph from images to tensors of the model, in inference mode."""
    prefix = keras.Model(model.input, tensors)
    return tf.function(lambda images: tf.nest.flatten(prefix(images, training=False)), reduce_retracing=True)


def _weights_hash(prefix: keras.Model) -> str:
    digest = hashlib.sha256()
    for key, variable in variable_keys(prefix.layers).items():
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(variable).tobytes())
    return digest.hexdigest()
