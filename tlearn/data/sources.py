"""Names of data sources, and what each takes from ``DataConfig``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tlearn.config import DataConfig
from tlearn.data.source import ImageSource
from tlearn.errors import ConfigError, Problem
from tlearn.registry import Registry


class SourceFactory(Protocol):
    """Makes a source from the config; a plugin's own options are in ``config.options``."""

    def __call__(self, config: DataConfig, *, image_size: int, seed: int) -> ImageSource:
        """The source. Raises ConfigError or DataError with what the user can mend."""


def _digits(config: DataConfig, *, image_size: int, seed: int) -> ImageSource:
    from tlearn.data.embedded import digits

    return digits()


def _glyphs(config: DataConfig, *, image_size: int, seed: int) -> ImageSource:
    from tlearn.data.embedded import GLYPHS, Glyphs

    return Glyphs(count=config.count or GLYPHS, image_size=image_size, seed=seed)


def _folder(config: DataConfig, *, image_size: int, seed: int) -> ImageSource:
    from tlearn.data.folder import index_folder

    return index_folder(_path(config), max_pixels=config.max_pixels)


def _table(config: DataConfig, *, image_size: int, seed: int) -> ImageSource:
    from tlearn.data.tabular import index_table

    return index_table(
        _path(config),
        root=config.root,
        image_column=config.image_column,
        label_column=config.label_column,
        split_column=config.split_column,
        label_separator=config.label_separator,
        allow_outside_root=config.allow_outside_root,
        max_pixels=config.max_pixels,
    )


SOURCES: Registry[SourceFactory] = Registry(
    "data.name", {"digits": _digits, "glyphs": _glyphs, "folder": _folder, "table": _table}
)
"""Every data source by its name in a config."""


def register_source(name: str) -> Callable[[SourceFactory], SourceFactory]:
    """Decorator that makes a user's own source usable as ``data.name=NAME`` with ``data.options``.

    It goes on a function ``(config, *, image_size, seed) -> ImageSource``. Raises ValueError when the name is taken by
    another function.
    """
    return SOURCES.register(name)


def _path(config: DataConfig) -> str:
    if config.path is None:
        raise ConfigError(Problem("data.path", f"missing: data.name={config.name} needs it"))
    return config.path
