"""Names in a config resolve through registries: literal tables of ours, and what a user's own module adds.

A config file never causes an import. A user's module is loaded because it was installed with an entry point in the
group ``tlearn.plugins``, or because its name stands in the environment variable ``TLEARN_PLUGINS`` (separated by
commas).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from tlearn.errors import ConfigError, Problem, did_you_mean
from tlearn.quiet import hidden_output

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name: a literal table, and what plugins register.

    Args:
        key: config key that holds such a name, for messages.
        builtin: entries that come with tlearn.
    """

    def __init__(self, key: str, builtin: Mapping[str, T]) -> None:
        self._key = key
        self._builtin = builtin
        self._added: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an entry. Raises ValueError when the name is taken.

        The same definition, run once more, takes the place of the one before: a cell of a notebook, or a plugin that
        failed when it was imported first.
        """

        def add(entry: T) -> T:
            if name in self._builtin or _definition(self._added.get(name, entry)) != _definition(entry):
                raise ValueError(f"{self._key}: {name!r} is registered already")
            self._added[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """The entry. Raises ConfigError with the nearest names when there is none."""
        if name in self._builtin:
            return self._builtin[name]
        load_plugins()
        if name in self._added:
            return self._added[name]
        raise ConfigError(Problem(self._key, f"unknown name {name!r}", did_you_mean(name, self)))

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._builtin or name in self._added

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        yield from self._builtin
        yield from self._added


def _definition(entry: object) -> object:
    """Where an entry, or the function in a row of data, is defined; the entry itself where it does not say."""
    function = getattr(entry, "builder", None) or entry
    place = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return place if all(place) else entry


@cache
def load_plugins() -> None:
    """Import the user's own modules, once per process. Raises ConfigError when one cannot be imported."""
    named = [name.strip() for name in os.environ.get("TLEARN_PLUGINS", "").split(",") if name.strip()]
    loaders: dict[str, Callable[[], object]] = {
        f"entry point {point.name!r}": point.load for point in entry_points(group="tlearn.plugins")
    }
    loaders |= {f"TLEARN_PLUGINS: {name}": partial(importlib.import_module, name) for name in named}
    for where, load in loaders.items():
        try:
            with hidden_output(2, python=False):  # a module that defines layers imports TensorFlow
                load()
        except Exception as error:
            raise ConfigError(Problem(where, f"could not be imported: {error!r}")) from error
