"""One pass over the images by several workers, where all of them see one cache folder.

Each worker writes its shard of the rows as an entry of its own, whose key says which of how many it is. When all are
there the chief copies them, one after the other, into the entry itself: the very one that a worker alone would have
made, for every later run to find. For that moment they take their space twice. Where workers do not share the folder,
each of them makes all features for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tlearn.train.distribution import Devices
from tlearn.train.feature_arrays import Features, Layout, Writer
from tlearn.train.feature_cache import FeatureCache
from tlearn.train.streams import EXTRACTION_BATCH

_ROWS_AT_ONCE = 256
_APPEARS_SECONDS = 60.0  # a network file system may show what others wrote with a delay


class Shards:
    """The shards of a run's workers.

    Args:
        devices: of the run.
        cache: where all of them write.
    """

    def __init__(self, devices: Devices, cache: FeatureCache) -> None:
        self._devices = devices
        self._cache = cache

    def are_used(self) -> bool:
        """Whether there are several workers, and all of them see the folder of the chief's cache."""
        if self._devices.plan.workers == 1:
            return False
        name = self._devices.chief_says(self._leave_mark)
        mark = self._cache.folder / (name or "nothing")
        seen = mark.is_file()
        shared = not self._devices.any(not seen)
        if self._devices.is_chief:
            with contextlib.suppress(OSError):
                mark.unlink()
        return shared

    def _leave_mark(self) -> str | None:
        name = f".seen-by-all-{secrets.token_hex(8)}"
        try:
            self._cache.folder.mkdir(parents=True, exist_ok=True)
            (self._cache.folder / name).touch()
        except OSError:
            return None
        return name

    def bounds(self, rows: int) -> list[tuple[int, int]]:
        """First and last but one row of each worker's shard: whole batches, so that they are those of one worker."""
        workers = self._devices.plan.workers
        batches = -(-rows // EXTRACTION_BATCH)
        ends = [min(rows, EXTRACTION_BATCH * (index * batches // workers)) for index in range(workers)]
        return list(zip(ends, [*ends[1:], rows], strict=True))

    def shard(self, key: str, layout: Layout, rows: int, index: int) -> tuple[str, Layout]:
        """Key and layout of a worker's shard of an entry over so many images."""
        first, stop = self.bounds(rows)[index]
        named = f"{key} {index} of {self._devices.plan.workers}"
        part = replace(layout, rows=layout.rows // rows * (stop - first))
        return hashlib.sha256(named.encode()).hexdigest()[:32], part

    def join(self, key: str, layout: Layout, rows: int, writer: Writer) -> None:
        """Write an entry from its shards, and delete them. Raises OSError when one is missing or damaged."""
        bounds = self.bounds(rows)
        with contextlib.ExitStack() as stack:
            opened = []
            for index, (first, stop) in enumerate(bounds):
                if stop > first:
                    features = self._appearing(*self.shard(key, layout, rows, index))
                    opened.append((stack.enter_context(contextlib.closing(features)), stop - first))
            for view in range(layout.rows // rows):
                for features, count in opened:
                    for taken in _slices(view * count, (view + 1) * count):
                        writer.append(features.take(taken))
        for index in range(len(bounds)):
            self._cache.delete(self.shard(key, layout, rows, index)[0])

    def _appearing(self, key: str, layout: Layout) -> Features:
        give_up = time.monotonic() + _APPEARS_SECONDS
        while (features := self._cache.open(key, layout)) is None:
            if time.monotonic() > give_up:
                raise OSError("a worker's share of them does not appear")
            time.sleep(0.2)
        return features


def _slices(start: int, stop: int) -> Iterator[np.ndarray]:
    for first in range(start, stop, _ROWS_AT_ONCE):
        yield np.arange(first, min(first + _ROWS_AT_ONCE, stop))
