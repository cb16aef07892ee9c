"""Write docs/config.md, every key of a config with its default and meaning: python tools/config_reference.py."""

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from tlearn.config import Config
from tlearn.sweep.config import SweepConfig

TARGET = Path(__file__).resolve().parent.parent / "docs" / "config.md"
HEADER = """\
# Every key of a config

Made by `python tools/config_reference.py` from `tlearn/config.py` and `tlearn/sweep/config.py`. `null` means what the
meaning says it means. The values that a config group sets are in `configs/`. Keys that begin with `sweep.` are for
`tlearn.sweep` and its plan alone.
"""


def main() -> None:
    """Write the page."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as Markdown."""
    lines = [HEADER]
    for title, schema in itertools.chain(sections(Config, ""), sections(SweepConfig, "sweep")):
        lines += [
            f"## {title or 'run'}",
            "",
            inspect.cleandoc(schema.__doc__ or ""),
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for field in dataclasses.fields(schema):
            kind = typing.get_type_hints(schema)[field.name]
            if dataclasses.is_dataclass(kind):
                continue
            key = f"{title}.{field.name}" if title else field.name
            meaning = field.metadata["help"].replace("|", "\\|")
            lines.append(f"| `{key}` | `{shown(default(field))}` | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def sections(schema: Any, title: str) -> Iterator[tuple[str, Any]]:
    """The dataclasses of the tree, each after the one that holds it; items of a list as ``stages.N``."""
    yield title, schema
    for name, kind in typing.get_type_hints(schema).items():
        path = f"{title}.{name}" if title else name
        if typing.get_origin(kind) is list:
            kind, path = typing.get_args(kind)[0], f"{path}.N"
        if dataclasses.is_dataclass(kind):
            yield from sections(kind, path)


def default(field: Any) -> Any:
    """What a key is when nothing sets it."""
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if dataclasses.is_dataclass(value):
        given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return f"{{{', '.join(f'{name}: {shown(item)}' for name, item in given.items() if item is not None)}}}"
    return str(value)


if __name__ == "__main__":
    main()
