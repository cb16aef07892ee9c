"""Names that users register: a cell run again, a name that is taken, a plugin that fails half-way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tlearn
from tlearn.backbones import SPECS
from tlearn.data import SOURCES
from tlearn.errors import ConfigError
from tlearn.heads import HEADS
from tlearn.registry import Registry, load_plugins

REGISTRIES = {"head": HEADS, "backbone": SPECS, "source": SOURCES}


@pytest.fixture(autouse=True)
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers or loads is gone after it."""
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_added", dict(registry._added))
    yield
    load_plugins.cache_clear()


def run_cell(kind: str, function: str, returns: int) -> Any:
    """Run a notebook's cell that registers a function under the name wide; gives the function."""
    names: dict[str, Any] = {"tlearn": tlearn, "__name__": "__main__"}
    exec(f"@tlearn.register_{kind}('wide')\ndef {function}(*given):\n    return {returns}\n", names)
    return names[function]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_cell_run_again_replaces_what_it_registered(kind: str) -> None:
    registry: Registry[Any] = REGISTRIES[kind]
    run_cell(kind, "wide", 1)
    again = run_cell(kind, "wide", 2)
    assert getattr(registry["wide"], "builder", registry["wide"]) is again


@pytest.mark.parametrize("kind", REGISTRIES)
def test_another_function_takes_no_name_that_is_taken(kind: str) -> None:
    run_cell(kind, "wide", 1)
    with pytest.raises(ValueError, match="'wide' is registered already"):
        run_cell(kind, "other", 1)


def test_a_plugin_that_fails_half_way_says_why_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = "import tlearn\n\n@tlearn.register_head('half_way')\ndef half_way(features, classes): ...\n\n"
    (tmp_path / "half_way_plugin.py").write_text(cell + "import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TLEARN_PLUGINS", "half_way_plugin")
    load_plugins.cache_clear()
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"half_way_plugin: could not be imported.*no_such_module"):
            HEADS["wide"]
