"""The options of the config: frozen in a file, each with a meaning, each used somewhere."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from tlearn.config import Config
from tlearn.sweep.config import Objective, SweepConfig
from tlearn.typed import keys

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = Path(__file__).with_name("options.txt")


def defaults() -> dict[str, Any]:
    """Every leaf key with its default; what is in a stage stands under ``schedule.stages.0``."""
    found: dict[str, Any] = {}

    def walk(schema: type, where: str, made: Any) -> None:
        for name, kind in typing.get_type_hints(schema).items():
            path, value = f"{where}{name}", getattr(made, name)
            inside = typing.get_args(kind)[0] if typing.get_origin(kind) is list else None
            if dataclasses.is_dataclass(kind):
                walk(kind, f"{path}.", value)  # type: ignore[arg-type]
            elif dataclasses.is_dataclass(inside):
                walk(inside, f"{path}.0.", inside())  # type: ignore[arg-type, operator]
            else:
                found[path] = value.value if isinstance(value, Enum) else value

    walk(Config, "", Config())
    walk(SweepConfig, "sweep.", SweepConfig())
    return found


def schemas(schema: type) -> Iterator[type]:
    yield schema
    for kind in typing.get_type_hints(schema).values():
        inside = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
        if dataclasses.is_dataclass(inside):
            yield from schemas(inside)  # type: ignore[arg-type]


def test_the_options_are_those_of_the_file() -> None:
    """A new, changed or removed option is a decision: write it into options.txt too, and into CHANGELOG.md."""
    now = [f"{key} = {value!r}" for key, value in defaults().items()]
    kept = FILE.read_text(encoding="utf-8").splitlines()
    assert now == kept, f"added: {sorted(set(now) - set(kept))}, gone: {sorted(set(kept) - set(now))}"


def test_the_keys_that_overrides_may_name_are_these() -> None:
    assert set(defaults()) <= {*keys(), *keys(SweepConfig, "sweep")}


def test_every_option_says_what_it_means() -> None:
    for schema in {*schemas(Config), *schemas(SweepConfig)}:
        assert schema.__doc__
        for field in dataclasses.fields(schema):
            assert len(field.metadata.get("help", "")) > 3, f"{schema.__name__}.{field.name}"


def test_no_two_configs_share_a_mutable_default() -> None:
    first, second = Config(), Config()
    first.head.units.append(3)
    first.augment.affine.p = 1.0
    first.head.options["x"] = 1
    assert second == Config()
    searched = SweepConfig()
    searched.space["seed"] = searched.trial["seed"] = searched.objectives[0].metric = 1
    assert SweepConfig() != searched
    assert SweepConfig() == SweepConfig(space={}, trial={}, objectives=[Objective()])


@pytest.mark.parametrize("key", sorted({key.rpartition(".")[2] for key in defaults()}))
def test_no_option_without_effect(key: str) -> None:
    """Each option is at least read somewhere outside the schema."""
    assert re.search(rf"\b{key}\b", source()), f"nothing reads {key}"


def source() -> str:
    global _source
    if not _source:
        files = [path for path in (ROOT / "tlearn").rglob("*.py") if path.name != "config.py"]
        _source = "\n".join(re.sub(r'""".*?"""', "", file.read_text("utf-8"), flags=re.DOTALL) for file in files)
    return _source


_source = ""
