"""Out of memory: what to try instead, in place of a page of traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# TensorFlow has one type of error for memory and for full disks
_ABOUT_MEMORY = ("oom when allocating", "out of memory", "failed to allocate", "bad_alloc", "cannot allocate memory")


class OutOfMemory(Exception):
    """The machine has not enough memory for the batches of the run. Its saved states are as they were.

    Attributes:
        advice: what to try.
        run: the folder, where there is one.
    """

    run: str | None = None

    def __init__(self, batch_size: int, *, of_features: bool) -> None:
        self.advice = _advice(batch_size, of_features)
        doing = "while features were made" if of_features else f"with data.batch_size={batch_size}"
        super().__init__(f"out of memory {doing}")


def _advice(batch_size: int, of_features: bool) -> str:
    if batch_size == 1:
        return "one image is too much already: try a smaller backbone.image_size or another backbone"
    smaller = f"data.batch_size={batch_size // 2}"
    if of_features:
        return f"try a new run with cache.mode=off {smaller}: the frozen part is computed in the steps then"
    return f"try a new run with {smaller}; with optimizer.accumulate=2 an update sees as many images as now"


@contextmanager
def memory_guard(batch_size: int, *, of_features: bool = False) -> Iterator[None]:
    """Want of memory inside the block becomes advice.

    Args:
        batch_size: images in a step of the run.
        of_features: features are made in the block, which takes batches of a size of its own.

    Raises:
        OutOfMemory: in place of ``MemoryError`` and TensorFlow's ``ResourceExhaustedError``.
    """
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(batch_size, of_features=of_features) from error
    except Exception as error:
        text = str(error).lower()
        if type(error).__name__ != "ResourceExhaustedError" or not any(words in text for words in _ABOUT_MEMORY):
            raise
        raise OutOfMemory(batch_size, of_features=of_features) from error
