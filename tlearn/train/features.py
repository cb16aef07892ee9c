"""Features of the part of the model that does not change in a stage: made in one pass, kept, and given to stages."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from tlearn.config import Config
from tlearn.data import Data, Reading
from tlearn.data.source import place_of
from tlearn.train.classifier import Classifier, freeze
from tlearn.train.console import Terminal
from tlearn.train.distribution import Devices
from tlearn.train.engine import Compute, Extractor, planned_engine, prefix_function
from tlearn.train.feature_arrays import Features, Writer
from tlearn.train.feature_cache import FeatureCache, cache_folder
from tlearn.train.feature_entries import FeatureEntries, Wanted
from tlearn.train.feature_key import prefix_hash
from tlearn.train.feature_plan import views_of
from tlearn.train.first_pixels import images_hash
from tlearn.train.frontier import Frontier, find_frontier
from tlearn.train.plan import StagePlan
from tlearn.train.shards import Shards
from tlearn.train.stopping import Interrupted
from tlearn.train.streams import EXTRACTION_BATCH, Streams, guarded
from tlearn.words import size_text

MADE = "made in this run"


@dataclass(frozen=True, eq=False)
class ValFeatures:
    """Features of the validation images in one stage.

    Attributes:
        frontier: where the model is cut.
        prefix: hash of what is below it, as it was when they were made.
        suffix: the model from them to logits.
        val: the features.
    """

    frontier: Frontier
    prefix: str
    suffix: keras.Model
    val: Features

    def are_current(self) -> bool:
        """Whether the model's weights below the frontier are those that made them."""
        return prefix_hash(self.frontier) == self.prefix


@dataclass(frozen=True, eq=False)
class StageFeatures(ValFeatures):
    """Features of one stage, whose ``suffix`` is what trains.

    Attributes:
        train: of the training images, one block of rows per view.
        views: number of blocks in ``train``.
    """

    train: Features
    views: int


class FeatureMaker:
    """Gives each stage its features: from the cache, or made in one pass with those of later stages.

    Args:
        config, data, classifier: of the run.
        stages: what is planned.
        streams: where images come from.
        terminal: where to say what is done.
        should_stop: asked between batches of images.
        devices: whose workers share the passes over the images, where they share the cache.

    Attributes:
        trial: of prefix engines, and which was chosen; empty where none was made.
        outcome: what came of keeping the features of the last stage; empty where that was not planned.
    """

    trial = ""
    outcome = ""

    def __init__(
        self,
        config: Config,
        data: Data,
        classifier: Classifier,
        stages: Sequence[StagePlan],
        streams: Streams,
        terminal: Terminal,
        should_stop: Callable[[], bool] = lambda: False,
        devices: Devices | None = None,
    ) -> None:
        self._config = config
        self._data = data
        self._classifier = classifier
        self._stages = stages
        self._streams = streams
        self._terminal = terminal
        self._should_stop = should_stop
        self._entries = FeatureEntries(config, data, classifier)
        self._cache = FeatureCache(cache_folder(config.cache), config.cache.max_gb * 1e9, self._say)
        self._open: dict[str, Features] = {}
        self._made: set[str] = set()
        self._devices = devices or Devices()
        self._shards = Shards(self._devices, self._cache)

    def stage(self, index: int) -> StageFeatures | None:
        """Features of a stage; None where it streams. Those of other stages are let go.

        The variables of the model must be those that the stage begins with; it is left frozen as in that stage.

        Raises:
            Interrupted: ``should_stop`` said so.
            DataError: an image cannot be read.
        """
        freeze(self._classifier, self._stages[index].layers)
        self.outcome = ""
        if not self._stages[index].features.cached:
            self.close()
            return None
        frontier = find_frontier(self._classifier.model)
        prefix = prefix_hash(frontier)
        train, val = wanted = self._entries.of(frontier, prefix)
        self._close_all_but({train.key, val.key})
        try:
            if not self._devices.any(not self._open_all(wanted)):
                self._say(f"features are in the cache: {_size(wanted)}")
            else:
                if self._made & {train.key, val.key}:
                    self._say(f"features of stage {self._stages[index].name} are gone from {self._cache.folder}")
                self._make(index, wanted)
                if not self._open_all(wanted):
                    raise OSError("they do not stay there")
        except OSError as error:
            self._say(f"features cannot be kept in {self._cache.folder}: {error.strerror or error}")
            self._say(f"stage {self._stages[index].name} computes all images in each epoch instead")
            self.give_up(str(error.strerror or error))
            return None
        self.outcome = self._came_of({train.key, val.key})
        views = views_of(self._config)
        kept = self._open[val.key], self._open[train.key]
        return StageFeatures(frontier, prefix, frontier.suffix(), *kept, views)

    def validation(self, index: int) -> ValFeatures | None:
        """Features of the validation images for a stage whose training images stream; None where none are planned.

        Arguments, the state of the model, and what is raised are those of ``stage``.
        """
        if not self._stages[index].features.keeps_val:
            return None
        freeze(self._classifier, self._stages[index].layers)
        frontier = find_frontier(self._classifier.model)
        prefix = prefix_hash(frontier)
        _, val = self._entries.of(frontier, prefix)
        self._close_all_but({val.key})
        try:
            if self._open_all([val]):
                self._say(f"features of the val images are in the cache: {_size([val])}")
            else:
                self._pass_over_images([val], shared=False)
                if not self._open_all([val]):
                    raise OSError("they do not stay there")
        except OSError as error:
            self._say(f"features cannot be kept in {self._cache.folder}: {error.strerror or error}")
            self._say(f"stage {self._stages[index].name} computes all validation images in each epoch")
            self._give_up(str(error.strerror or error), "validation images")
            return None
        self.outcome = self._came_of({val.key})
        return ValFeatures(frontier, prefix, frontier.suffix(), self._open[val.key])

    def streamed(self, index: int) -> tuple[keras.Model | None, Compute | None]:
        """What trains in a stage that streams, and what computes its inputs in each step; None: the whole model.

        The variables of the model must be those that the stage begins with; it is left frozen as in that stage.
        """
        freeze(self._classifier, self._stages[index].layers)
        frontier = find_frontier(self._classifier.model)
        if not frontier.is_worthwhile:
            return None, None
        function = prefix_function(planned_engine(self._config), self._classifier.model, frontier.tensors)
        return frontier.suffix(), function

    def give_up(self, why: str) -> None:
        """Let go of the features of a stage that will stream after all."""
        self._give_up(why, "images")

    def _give_up(self, why: str, images: str) -> None:
        self.outcome = f"could not be kept ({why}): all {images} were computed in each epoch"
        self.close()

    def _came_of(self, keys: set[str]) -> str:
        return MADE if self._made & keys else "found in the cache"

    def close(self) -> None:
        """Let others delete what was in use."""
        self._close_all_but(set())

    def _open_all(self, wanted: Sequence[Wanted]) -> bool:
        """Open what is not open yet; whether everything is open now."""
        for entry in wanted:
            if entry.key not in self._open:
                features = self._cache.open(entry.key, entry.layout, entry.contents)
                if features is not None:
                    self._open[entry.key] = features
        return all(entry.key in self._open for entry in wanted)

    def _close_all_but(self, keys: set[str]) -> None:
        for key in self._open.keys() - keys:
            self._open.pop(key).close()

    def _make(self, index: int, wanted: tuple[Wanted, Wanted]) -> None:
        """Write what is missing for a stage, and for the later ones that are planned into the same pass."""
        made_in = self._stages[index].features.made_in
        together = [wanted]
        together += [
            self._entries.of_stage(self._stages[number])
            for number in range(index + 1, len(self._stages))
            if self._stages[number].features.made_in == made_in
        ]
        freeze(self._classifier, self._stages[index].layers)
        for entry in itertools.chain.from_iterable(together[1:]):
            if features := self._cache.open(entry.key, entry.layout, entry.contents):
                features.close()  # it is sound; what is not is gone now, and made in this pass
        shared = self._shards.are_used()
        try:
            self._pass_over_images([entry for stage in together for entry in stage], shared=shared)
        except OSError as error:  # no room for all: for this stage alone there may be some
            if len(together) == 1:
                raise
            self._say(f"features of all stages cannot be kept: {error.strerror or error}; those of this one may")
            self._pass_over_images(wanted, shared=shared)

    def _pass_over_images(self, wanted: Sequence[Wanted], *, shared: bool) -> None:
        """Write what is missing of some entries; all workers do it together where they share the cache."""
        extractor = self._extractor(wanted)
        for split in ("train", "val"):
            missing = {entry.key: entry for entry in wanted if entry.split == split and not self._cache.has(entry.key)}
            if shared:
                keys = self._devices.chief_says(lambda: list(missing))  # noqa: B023, called at once
                entries = {entry.key: entry for entry in wanted if entry.key in keys}
                if entries:
                    self._extract_shards(split, list(entries.values()), extractor)
            elif missing:
                with self._writers(list(missing.values())) as writers:
                    self._extract(split, writers, extractor)
            elif any(entry.split == split for entry in wanted):
                self._say(f"features of the {split} images are in the cache")

    def _extract_shards(self, split: str, entries: list[Wanted], extractor: Callable[[Any], dict[int, Any]]) -> None:
        """One pass over the images of a split by all workers; what one of them cannot do, none of them has done."""
        rows, index = self._entries.rows(split), self._devices.plan.index
        first, stop = self._shards.bounds(len(rows))[index]
        shards = []
        for entry in entries:
            key, layout = self._shards.shard(entry.key, entry.layout, len(rows), index)
            about = f"share {index + 1} of {self._devices.plan.workers}: {entry.about}"
            shards.append(replace(entry, key=key, layout=layout, about=about))

        def write() -> None:
            if stop > first:
                with self._writers(shards) as writers:
                    self._extract(split, writers, extractor, rows[first:stop])

        def join() -> None:
            with self._writers(entries) as writers:
                for entry, writer in writers:
                    self._shards.join(entry.key, entry.layout, len(rows), writer)
                self._made |= {entry.key for entry, _ in writers}

        self._together(write)
        self._together(join if self._devices.is_chief else lambda: None)

    def _together(self, work: Callable[[], None]) -> None:
        """Do something on all workers. Raises OSError or Interrupted on all of them when one of them does."""
        failed: OSError | Interrupted | None = None
        try:
            work()
        except (OSError, Interrupted) as error:
            failed = error
        if self._devices.any(isinstance(failed, Interrupted)):
            raise Interrupted
        if self._devices.any(failed is not None):
            raise failed or OSError("another worker cannot keep its share")

    @contextlib.contextmanager
    def _writers(self, entries: list[Wanted]) -> Iterator[list[tuple[Wanted, Writer]]]:
        """Open entries for writing, in one order in all processes, so that none waits for another in a circle."""
        waits = False

        def while_waiting() -> None:
            nonlocal waits
            if not waits:
                self._say("another process is making the same features: waiting for them")
            waits = True
            self._stop_if_asked()

        images = images_hash(self._data, Reading.of(self._config.data, self._classifier.backbone.image_size))
        with contextlib.ExitStack() as stack:
            writers = []
            for entry in sorted(entries, key=lambda entry: entry.key):
                writing = self._cache.writing(
                    entry.key,
                    entry.layout,
                    entry.about,
                    while_waiting,
                    images=images,
                    where=place_of(self._data.source),
                    contents=entry.contents,
                )
                writer = stack.enter_context(writing)
                if writer is not None:
                    writers.append((entry, writer))
            yield writers

    def _extractor(self, wanted: Sequence[Wanted]) -> Callable[[Any], dict[int, Any]]:
        """Images to the tensors of all entries, by their ids; its graph is made once for both splits."""
        tensors = {id(tensor): tensor for entry in wanted for tensor in entry.tensors}
        compute = Extractor(
            planned_engine(self._config),
            self._classifier.model,
            list(tensors.values()),
            batch_size=EXTRACTION_BATCH,
            batches=math.ceil(max(entry.layout.rows for entry in wanted) / EXTRACTION_BATCH),
            say=self._take_trial,
        )
        return lambda images: dict(zip(tensors, compute(images), strict=True))

    def _extract(
        self,
        split: str,
        writers: list[tuple[Wanted, Writer]],
        extractor: Callable[[Any], dict[int, Any]],
        rows: Any = None,
    ) -> None:
        """One pass over the images of a split, or some rows of it, that writes all entries."""
        if not writers:
            return
        rows = self._entries.rows(split) if rows is None else rows
        views = views_of(self._config) if self._entries.is_changed(split) else 0
        size, passes = _size([entry for entry, _ in writers]), f"{views} passes" if views > 1 else "one pass"
        self._say(f"features of {len(rows):,} {split} images: {size}, {passes}")
        steps = math.ceil(len(rows) / EXTRACTION_BATCH) * max(views, 1)
        self._terminal.start_epoch(f"features of {split} images", steps, 0)
        try:
            for done, (images, _) in enumerate(guarded(self._streams.extraction(rows, views)), start=1):
                self._stop_if_asked()
                values = extractor(images)
                for entry, writer in writers:
                    writer.append([values[id(tensor)].numpy() for tensor in entry.tensors])
                self._terminal.step(done, "")
            self._made |= {entry.key for entry, _ in writers}
        finally:
            self._terminal.end_epoch()

    def _take_trial(self, text: str) -> None:
        self.trial = text
        self._say(f"prefix engine {text}")

    def _say(self, text: str) -> None:
        self._terminal.print(text)

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise Interrupted


def _size(entries: Sequence[Wanted]) -> str:
    return size_text(sum(entry.layout.bytes for entry in entries))
