"""What stages do about the part of the model that does not change in them: decided for all of them beforehand."""

from __future__ import annotations

from dataclasses import dataclass

from tlearn.backbones.naming import stable_names
from tlearn.config import CacheMode, Config
from tlearn.data import Data, changes_images, fingerprint
from tlearn.train.classifier import Classifier
from tlearn.train.engine import planned_engine
from tlearn.train.feature_arrays import Layout
from tlearn.train.feature_key import indescribable
from tlearn.train.frontier import Frontier, find_frontier
from tlearn.words import counted


@dataclass(frozen=True)
class FeaturePlan:
    """What a stage does about its frozen part.

    Attributes:
        tensors: the frontier, as ``layer 8x8x1280``.
        shapes: of the tensors, for one image.
        cached: whether features are kept on disk; else every training image goes through the whole model in every
            epoch.
        keeps_val: whether those of the validation images are kept all the same: nothing changes them.
        reason: why, in a few words.
        bytes_per_image: of one version of one image.
        bytes: of all that is kept for the stage.
        dtype: that they are kept in.
        engine: how they are computed; ``auto``: it will be measured.
        views: how many versions of each training image there are.
        made_in: index of the stage in whose pass over the images the features are made; None where none are kept.
    """

    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    cached: bool
    keeps_val: bool
    reason: str
    bytes_per_image: int
    bytes: int
    dtype: str
    engine: str
    views: int
    made_in: int | None


@dataclass
class _Pass:
    """A pass over the images that writes the features of several stages.

    Attributes:
        stage: index of the first of them.
        still: operations that were cold in every stage since, by id.
        sizes: bytes for each frontier, by the ids of its tensors.
    """

    stage: int
    still: set[int]
    sizes: dict[tuple[int, ...], int]


class FeaturePlanner:
    """Decides for one stage after the other, in their order."""

    def __init__(self, config: Config, data: Data, classifier: Classifier, workers: int = 1) -> None:
        self._config = config
        self._alone = workers == 1  # of several, all have a share in every pass
        self._data = data
        self._classifier = classifier
        self._stages = 0
        self._passes: list[_Pass] = []
        self._knows_images = fingerprint(data.source, data.train[:1]) is not None

    def next_stage(self) -> FeaturePlan:
        """Decide for the next stage; the model is frozen as in it."""
        frontier = find_frontier(self._classifier.model)
        train, val = layouts_of(self._config, self._data, frontier)
        reason = self._reason_to_stream(frontier, train.bytes + val.bytes)
        views = views_of(self._config)
        plan = FeaturePlan(
            tensors=tensor_names(self._classifier, frontier),
            shapes=train.shapes,
            cached=not reason,
            keeps_val=bool(reason) and self._alone and not self._reason_to_keep_none(frontier, val.bytes),
            reason=reason or f"{counted(views, 'version')} of each training image",
            bytes_per_image=train.bytes_per_row,
            bytes=train.bytes + val.bytes,
            dtype=train.dtype,
            engine=planned_engine(self._config).value,
            views=views,
            made_in=None if reason else self._join(frontier, train.bytes + val.bytes),
        )
        cold = set(map(id, frontier.cold))
        for pass_ in self._passes:
            pass_.still &= cold
        self._stages += 1
        return plan

    def _join(self, frontier: Frontier, size: int) -> int:
        """The stage in whose pass these features are made: an earlier one, where nothing below changes from it on."""
        cold, tensors = set(map(id, frontier.cold)), tuple(map(id, frontier.tensors))
        for pass_ in self._passes:
            sizes = pass_.sizes | {tensors: size}
            if cold <= pass_.still and sum(sizes.values()) <= self._max_bytes:
                pass_.sizes = sizes
                return pass_.stage
        self._passes.append(_Pass(self._stages, cold, {tensors: size}))
        return self._stages

    def _reason_to_stream(self, frontier: Frontier, size: int) -> str:
        """Why features of the training images cannot be kept; empty when they can."""
        augment = self._config.augment
        if self._config.cache.mode is not CacheMode.off and frontier.is_worthwhile:
            if augment.mixup or augment.cutmix or augment.rand_augment.p:
                return "batches are mixed as pixels"
            if is_augmented(self._config) and self._config.cache.views is None:
                return "fresh augmentation (cache.views=null)"
        return self._reason_to_keep_none(frontier, size)

    def _reason_to_keep_none(self, frontier: Frontier, size: int) -> str:
        """Why features of images that nothing changes cannot be kept; empty when they can."""
        cache = self._config.cache
        if cache.mode is CacheMode.off:
            return "cache.mode=off"
        if not frontier.is_worthwhile:
            return "no layer is frozen"
        if not self._knows_images:
            return f"data.name={self._config.data.name} cannot tell whether its images changed"
        if layer := indescribable(frontier):
            return f"layer {layer} has no get_config or no source to know it by"
        if size > self._max_bytes:
            return f"{size / 1e9:.3g} GB are more than cache.max_gb={cache.max_gb:g}"
        return ""

    @property
    def _max_bytes(self) -> float:
        return self._config.cache.max_gb * 1e9


def is_augmented(config: Config) -> bool:
    """Whether training images are changed at random, each by itself."""
    return changes_images(config.augment)


def tensor_names(classifier: Classifier, frontier: Frontier) -> tuple[str, ...]:
    """The tensors by the layers that make them, the same in every process."""
    names = dict(zip(map(id, classifier.model.layers), stable_names(classifier.model.layers), strict=True))
    return tuple(
        f"{names.get(id(maker), maker.name)} {'x'.join(map(str, tensor.shape[1:]))}"
        for tensor in frontier.tensors
        for maker in [tensor._keras_history.operation]
    )


def views_of(config: Config) -> int:
    """How many versions of each training image are kept."""
    return (config.cache.views or 1) if is_augmented(config) else 1


def layouts_of(config: Config, data: Data, frontier: Frontier) -> tuple[Layout, Layout]:
    """Of the training images in all their views, and of the validation images."""
    shapes = tuple(tuple(int(side) for side in tensor.shape[1:]) for tensor in frontier.tensors)
    dtype = config.cache.dtype.value
    return Layout(len(data.train) * views_of(config), shapes, dtype), Layout(len(data.val), shapes, dtype)
