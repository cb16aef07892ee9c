"""What a stage needs of the feature cache: an entry for its training images, and one for the validation images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tlearn.config import Config
from tlearn.data import Data, Reading, fingerprint
from tlearn.data.source import sample
from tlearn.train.classifier import Classifier, freeze
from tlearn.train.engine import planned_engine
from tlearn.train.feature_arrays import Contents, Layout
from tlearn.train.feature_key import feature_key, prefix_hash
from tlearn.train.feature_plan import is_augmented, layouts_of, tensor_names
from tlearn.train.frontier import Frontier, find_frontier
from tlearn.train.plan import StagePlan


@dataclass(frozen=True, eq=False)
class Wanted:
    """An entry of the cache that a stage needs.

    Attributes:
        split: whose images it is about, ``train`` or ``val``.
        key, layout, about: of the entry.
        tensors: the frontier, which it holds.
        contents: of the images' files, as far as they were read.
    """

    split: str
    key: str
    layout: Layout
    tensors: tuple[Any, ...]
    about: str
    contents: Contents


class FeatureEntries:
    """Names what stages need; looks at no file and no image.

    Args:
        config, data, classifier: of the run.
    """

    def __init__(self, config: Config, data: Data, classifier: Classifier) -> None:
        self._config = config
        self._data = data
        self._classifier = classifier

    def of_stage(self, stage: StagePlan) -> tuple[Wanted, Wanted]:
        """Of the training and validation images, given that the variables below the frontier are what they will be.

        The model is left frozen as in that stage.
        """
        freeze(self._classifier, stage.layers)
        frontier = find_frontier(self._classifier.model)
        return self.of(frontier, prefix_hash(frontier))

    def of(self, frontier: Frontier, prefix: str) -> tuple[Wanted, Wanted]:
        """Of the training and validation images, for a frontier and the hash of what is below it."""
        train, val = layouts_of(self._config, self._data, frontier)
        return self._entry("train", frontier, prefix, train), self._entry("val", frontier, prefix, val)

    def rows(self, split: str) -> Any:
        """Row numbers of a split."""
        return self._data.train if split == "train" else self._data.val

    def is_changed(self, split: str) -> bool:
        """Whether the images of a split are changed at random."""
        return split == "train" and is_augmented(self._config)

    def _entry(self, split: str, frontier: Frontier, prefix: str, layout: Layout) -> Wanted:
        config, backbone = self._config, self._classifier.backbone
        key = feature_key(
            self._fingerprints[split],
            Reading.of(config.data, backbone.image_size),
            prefix,
            layout,
            planned_engine(config),
            augment=config.augment if self.is_changed(split) else None,
            seed=config.seed,
        )
        tensors = ", ".join(tensor_names(self._classifier, frontier))
        about = f"{backbone.spec.name} {backbone.image_size} px, {config.data.name} {split}: {tensors}"
        return Wanted(split, key, layout, frontier.tensors, about, self._contents[split])

    @cached_property
    def _fingerprints(self) -> dict[str, str | None]:
        """Of the images of both splits: where these are in memory, or in millions of files, that takes a while."""
        return {split: fingerprint(self._data.source, self.rows(split)) for split in ("train", "val")}

    @cached_property
    def _contents(self) -> dict[str, Contents]:
        """Of the files of both splits: names, sizes and times alone can deceive."""
        return {split: self._contents_of(self.rows(split)) for split in ("train", "val")}

    def _contents_of(self, rows: Any) -> Contents:
        found = {"sample": sample(self._data.source, rows), "whole": self._data.report.contents_hash(rows)}
        return {kind: value for kind, value in found.items() if value}
