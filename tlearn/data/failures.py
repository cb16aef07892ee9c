"""Carry an exception of ours through TensorFlow.

What a Python function raises inside tf.data arrives as a ``tf.errors`` exception whose message holds a traceback as
text; type, problems and path are lost. Here the original is kept under a number that the text carries along.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_MARK = "tlearn-failure-"
_numbers = itertools.count()
# Batches loaded ahead may fail too and never be asked for: only the latest are kept.
_kept: OrderedDict[int, Exception] = OrderedDict()
_KEEP = 64


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose exceptions ``reraise`` can find again after they went through TensorFlow."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            number = next(_numbers)
            _kept[number] = error
            while len(_kept) > _KEEP:
                _kept.popitem(last=False)
            raise RuntimeError(f"{_MARK}{number}: {error}") from error

    return call


def reraise(error: BaseException) -> NoReturn:
    """Raise what our code raised, given what TensorFlow made of it; any other exception is raised as it is.

    Use it around whatever iterates a dataset of ours::

        try:
            model.fit(batches)
        except tf.errors.OpError as error:
            reraise(error)  # DataError with the image's path
    """
    found = re.search(_MARK + r"(\d+)", str(error))
    original = _kept.pop(int(found[1]), None) if found else None
    if original is None:
        raise error
    raise original from None
