"""How the frozen part of a model is computed: three ways to the same numbers, and a choice among them.

``graph`` is TensorFlow's graph of the layers as they are. ``xla`` is the same compiled; on a CPU that may be much
slower. ``folded`` is the graph with batch norms worked into the layers before them, whose numbers differ from those of
``graph`` in rounding.

What is fastest depends on the architecture, the image size and the machine, so it is measured; but two runs that must
end in the same weights, bit for bit, cannot depend on a clock. Where operations are deterministic the choice is
therefore fixed: folded, which saves work on every network and was slower on none that was measured (docs/speed.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tlearn.config import Config, PrefixEngine
from tlearn.train.environment import is_deterministic
from tlearn.train.folding import fold_batch_norms
from tlearn.train.graphs import for_any_batch
from tlearn.words import counted

Compute = Callable[[Any], list[Any]]
"""Images (n, side, side, 3) to one tensor (n, ...) for each that is asked for."""

# A trial pays when what is left to do lasts so many times as long as the first call, which made the graph.
_WORTH_FOLDING = 5
_WORTH_COMPILING = 30  # XLA takes several times as long as that to compile


def planned_engine(config: Config) -> PrefixEngine:
    """The engine of a run as far as the config decides it: ``auto`` is left where it will be measured."""
    asked = config.prefix.engine
    return PrefixEngine.folded if asked is PrefixEngine.auto and is_deterministic(config) else asked


def prefix_function(engine: PrefixEngine, model: keras.Model, tensors: Sequence[Any]) -> Compute:
    """Computes tensors of a model in inference mode, to be traced as a part of something larger.

    Args:
        engine: ``folded``, with the weights as they are; all others mean the layers as they are.
        model: flat, of one input.
        tensors: ``KerasTensor`` s of the model.
    """
    prefix = keras.Model(model.input, list(tensors))
    if engine is PrefixEngine.folded:
        folding = fold_batch_norms(prefix)
        return lambda images: tf.nest.flatten(folding(prefix, images))
    return lambda images: tf.nest.flatten(prefix(images, training=False))


def make_engine(engine: PrefixEngine, model: keras.Model, tensors: Sequence[Any], batch_size: int) -> Compute:
    """``prefix_function`` as a graph of its own.

    Args:
        engine: not ``auto``.
        model, tensors: as there.
        batch_size: no batch has more images.
    """
    function = prefix_function(engine, model, tensors)
    if engine is PrefixEngine.xla:
        return _whole_batches(tf.function(function, jit_compile=True, autograph=False), batch_size)
    return for_any_batch(function)


def _whole_batches(compiled: Compute, batch_size: int) -> Compute:
    """XLA compiles for one size of batch: a smaller one is filled up rather than compiled for."""

    def compute(images: Any) -> list[Any]:
        count = len(images)
        filled = tf.pad(images, [[0, batch_size - count], [0, 0], [0, 0], [0, 0]])
        return [values[:count] for values in compiled(filled)]

    return compute


class Extractor:
    """Computes tensors of a model for many batches, by the engine asked for or the fastest.

    Args:
        engine: of the config; ``auto`` is decided on the first batch, for all of them.
        model, tensors, batch_size: see ``make_engine``.
        batches: how many there will be.
        say: told in a line what was measured and chosen.
    """

    def __init__(
        self,
        engine: PrefixEngine,
        model: keras.Model,
        tensors: Sequence[Any],
        *,
        batch_size: int,
        batches: int,
        say: Callable[[str], None],
    ) -> None:
        self._make: Callable[[PrefixEngine], Compute] = lambda kind: make_engine(kind, model, tensors, batch_size)
        self._batches = batches
        self._say = say
        self._compute: Compute | None = None if engine is PrefixEngine.auto else self._make(engine)

    def __call__(self, images: Any) -> list[Any]:
        """The tensors for some images."""
        if self._compute is None:
            self._compute = self._fastest(images)
        return self._compute(images)

    def _fastest(self, images: Any) -> Compute:
        """Try what may repay the trial, on the first batch."""
        graph = self._make(PrefixEngine.graph)
        first, usual = _seconds(graph, images)
        engines, seconds = {PrefixEngine.graph: graph}, {PrefixEngine.graph: usual}
        for engine, worth in ((PrefixEngine.folded, _WORTH_FOLDING), (PrefixEngine.xla, _WORTH_COMPILING)):
            if self._batches * min(seconds.values()) >= worth * first:
                engines[engine] = self._make(engine)
                seconds[engine] = _seconds(engines[engine], images)[1]
        chosen = min(seconds, key=lambda engine: seconds[engine])
        self._say(_report(chosen, seconds, len(images)))
        return engines[chosen]


def _report(chosen: PrefixEngine, seconds: dict[PrefixEngine, float], images: int) -> str:
    """What was tried: ``folded: 0.0221 s for 32 images; graph 0.0412 s, xla 0.465 s``."""
    if len(seconds) == 1:
        return "graph: too few images to try others"
    others = ", ".join(f"{engine.value} {took:.3g} s" for engine, took in seconds.items() if engine is not chosen)
    return f"{chosen.value}: {seconds[chosen]:.3g} s for {counted(images, 'image')}; {others}"


def _seconds(compute: Compute, images: Any) -> tuple[float, float]:
    """Of the first call, which makes the graph, and of the one after it."""
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        for values in compute(images):
            values.numpy()  # it is computed when it is here
        times.append(time.perf_counter() - begin)
    return times[0], times[1]
