"""Read a YAML file that a stranger may have written: small, finite, and nothing but plain data.

PyYAML's safe loader makes no objects. What it lets pass is refused here: files of any size, aliases that unfold to
billions of nodes or never end, nesting that exhausts the stack, a key given twice, and values that JSON does not know.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tlearn.errors import ConfigError, Problem

LARGEST_BYTES = 256 * 1024
"""A file with more is no config: the largest that is written here has some kilobytes."""

_DEEPEST = 40  # levels of nesting; the schema has seven
_MOST_NODES = 20_000  # with every alias unfolded
_LARGEST_NUMBER = 2**64


def read_yaml(path: Path) -> Any:
    """The content of a YAML file: dict, list, str, int, float, bool and None.

    Raises:
        ConfigError: it cannot be read, is larger than ``LARGEST_BYTES``, or holds what is not plain data.
    """
    text = _read_text(path)
    try:
        _check_nesting(text)
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        _unfolded_size(node, {})
        _check_keys(node)
        data = yaml.safe_load(text)
        _check_plain(data)
    # Besides its own errors the loader passes on those of int() and datetime().
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(Problem(str(path), f"cannot be read as YAML: {' '.join(str(error).split())}")) from None
    return data


def _read_text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ConfigError(Problem(str(path), "is not a regular file"))
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise ConfigError(Problem(str(path), f"is no config: it has more than {LARGEST_BYTES:,} bytes"))
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem(str(path), f"cannot be read: {error}")) from None


def _check_nesting(text: str) -> None:
    """Events come one by one, without recursion: what is too deep never reaches the recursive composer."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} levels deep")


def _unfolded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Nodes below a node, counting an aliased one wherever it stands; each is visited once."""
    if id(node) in sizes:
        if not sizes[id(node)]:  # still being counted: it holds itself
            raise ValueError(f"an alias inside what it stands for, line {node.start_mark.line + 1}")
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1 + sum(_unfolded_size(child, sizes) for child in _children(node))
    if size > _MOST_NODES:
        raise ValueError(f"more than {_MOST_NODES:,} values once its aliases are unfolded")
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.Node) -> None:
    """YAML forbids a key twice in a mapping; PyYAML silently takes the last."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"a key that is no text, line {key.start_mark.line + 1}")
            if key.value in seen:
                raise ValueError(f"the key {key.value!r} twice in one mapping, line {key.start_mark.line + 1}")
            seen.add(key.value)
    for child in _children(node):
        _check_keys(child)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_plain(data: Any) -> None:
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is no text; quote it")
            _check_plain(value)
    elif isinstance(data, list):
        for value in data:
            _check_plain(value)
    elif isinstance(data, int) and abs(data) > _LARGEST_NUMBER:
        raise ValueError("a whole number above 2^64")
    elif not isinstance(data, str | int | float | None):
        raise ValueError(f"{data!r} is a {type(data).__name__}; a config holds text, numbers, true, false and null")
