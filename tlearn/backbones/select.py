"""Which layers of a backbone train in a stage: the ``unfreeze`` of the schedule.

==============================  ======================================================================
``none``                        nothing: only the head trains
``all``                         everything
``{last_blocks: 2}``            the top two blocks (for inception_v3 ``mixed9`` and ``mixed10``)
``{from_block: mixed9}``        that block and all above it
``{from_layer: 249}``           that layer and all above it, in the order of Keras' ``model.layers``
``{from_layer: conv4_pool}``    the same by name (see ``python -m tlearn.backbones NAME``)
``{layers: "_bn$"}``            the layers with this regular expression in their name
==============================  ======================================================================

The head trains in every stage. A selector that selects nothing with weights is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from tlearn.backbones.specs import BackboneSpec
from tlearn.errors import ConfigError, Problem, did_you_mean

if TYPE_CHECKING:
    from tlearn.backbones.build import Backbone

WHERE = "unfreeze"

# Layer names have some 40 characters: a pattern that needs more than this is a list in disguise, and one that repeats
# what repeats, or repeats often, can keep Python's matcher busy for years.
_LONGEST_PATTERN = 200
_MOST_REPETITIONS = 4


class Kind(Enum):
    """The forms of a selector; the values are the keys in YAML."""

    none = "none"
    all = "all"
    last_blocks = "last_blocks"
    from_block = "from_block"
    from_layer = "from_layer"
    layers = "layers"


_KEYS = [kind.value for kind in Kind if kind not in (Kind.none, Kind.all)]
_FORMS = f"none, all, or one of {', '.join(_KEYS)} with its value"


@dataclass(frozen=True)
class Unfreeze:
    """A selector: its form and its argument (a count, an index, a name or a pattern; None for none and all)."""

    kind: Kind
    value: int | str | None = None

    def __str__(self) -> str:
        return self.kind.value if self.value is None else f"{self.kind.value}: {self.value}"


def parse_unfreeze(value: Any, where: str = WHERE) -> Unfreeze:
    """Read a selector as it stands in a config.

    Args:
        value: text, a mapping with one key, or an ``Unfreeze``.
        where: config key for messages.

    Raises:
        ConfigError: it is none of the forms above.
    """
    if isinstance(value, Unfreeze):
        return value
    if isinstance(value, str):
        if value in (Kind.none.value, Kind.all.value):
            return Unfreeze(Kind(value))
        fix = f"write {{{value}: ...}}" if value in _KEYS else f"allowed: {_FORMS}"
        raise ConfigError(Problem(where, f"{value!r} is not a selector", fix))
    if not isinstance(value, Mapping):
        raise ConfigError(Problem(where, f"{value!r} is not a selector", f"allowed: {_FORMS}"))
    if unknown := [str(key) for key in value if key not in _KEYS]:
        raise ConfigError([Problem(f"{where}.{key}", "unknown selector", did_you_mean(key, _KEYS)) for key in unknown])
    if len(value) != 1:
        got = " and ".join(value) or "none"
        raise ConfigError(Problem(where, f"takes exactly one selector, got {got}", f"allowed: {_FORMS}"))
    ((key, argument),) = value.items()
    return _with_argument(Kind(key), argument, f"{where}.{key}")


def _with_argument(kind: Kind, argument: Any, where: str) -> Unfreeze:
    """Check the type of the argument, and a pattern as far as it can be without names."""
    wanted = {
        Kind.last_blocks: ("a whole number", (int,)),
        Kind.from_layer: ("a layer's index or name", (int, str)),
        Kind.from_block: ("the name of a block", (str,)),
        Kind.layers: ("a regular expression", (str,)),
    }
    words, types = wanted[kind]
    if type(argument) not in types:  # not isinstance: true is not a number
        raise ConfigError(Problem(where, f"must be {words}, got {argument!r}"))
    if kind is Kind.layers:
        _check_pattern(argument, where)
    return Unfreeze(kind, argument)


def _check_pattern(pattern: str, where: str) -> None:
    if len(pattern) > _LONGEST_PATTERN:
        raise ConfigError(Problem(where, f"the pattern is longer than {_LONGEST_PATTERN} characters"))
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(Problem(where, f"{pattern!r} is not a regular expression: {error}")) from error
    if _may_take_for_ever(pattern):
        fix = f"repeat single characters and sets only, at most {_MOST_REPETITIONS} times: [ab]+, not (a|b)+ or (a+)+"
        raise ConfigError(Problem(where, f"matching {pattern!r} could take for ever", fix))


def _may_take_for_ever(pattern: str) -> bool:
    """Whether a valid pattern repeats a group that can match one text in several ways, or repeats too often."""
    plain = re.sub(r"\\.", "_", pattern, flags=re.DOTALL)  # escaped characters
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "_", plain)  # sets
    plain = re.sub(r"\(\?(?:P?<[^>]*>|P=\w+|[a-zA-Z-]*:|<?[=!])?", "(", plain)  # the ? of (?:...) repeats nothing
    ambiguous = [False]  # for each open group, and around them all: does it hold a repetition or an alternative?
    repetitions = 0
    for character, following in zip(plain, f"{plain[1:]} ", strict=True):
        if character == "(":
            ambiguous.append(False)
        elif character == ")":
            inner = ambiguous.pop()
            if inner and following in "*+{":
                return True
            ambiguous[-1] |= inner
        elif character in "*+{?|":
            ambiguous[-1] = True
            repetitions += character in "*+{"
    return repetitions > _MOST_REPETITIONS


def check_unfreeze(value: Any, spec: BackboneSpec, where: str = WHERE) -> list[Problem]:
    """Everything wrong with a selector for an architecture, as far as its row tells; TensorFlow is not imported.

    Layer names and patterns need the built network: ``trainable_layers`` checks those.

    Args:
        value: as in the config.
        spec: the architecture.
        where: config key for messages.
    """
    try:
        unfreeze = parse_unfreeze(value, where)
    except ConfigError as error:
        return list(error.problems)
    where = f"{where}.{unfreeze.kind.value}"
    blocks = spec.block_names()
    if unfreeze.kind in (Kind.last_blocks, Kind.from_block) and not blocks:
        fix = "use from_layer or layers, or name its blocks in register_backbone(..., blocks=...)"
        return [Problem(where, f"{spec.name} has no named blocks", fix)]
    if unfreeze.kind is Kind.last_blocks and not 1 <= int(unfreeze.value or 0) <= len(blocks):
        fix = "for no block write unfreeze: none" if unfreeze.value == 0 else "for every layer write unfreeze: all"
        return [Problem(where, f"{spec.name} has blocks 1 to {len(blocks)}, got {unfreeze.value}", fix)]
    if unfreeze.kind is Kind.from_block and unfreeze.value not in blocks:
        return [
            Problem(where, f"{spec.name} has no block {unfreeze.value!r}", did_you_mean(str(unfreeze.value), blocks))
        ]
    if isinstance(unfreeze.value, int) and unfreeze.kind is Kind.from_layer and spec.layers is not None:
        return _check_index(unfreeze.value, spec.name, spec.layers, where)
    return []


def _check_index(index: int, name: str, count: int, where: str) -> list[Problem]:
    if 0 <= index < count:
        return []
    fix = f"python -m tlearn.backbones {name} lists them"
    return [Problem(where, f"{name} has layers 0 to {count - 1}, got {index}", fix)]


def trainable_layers(unfreeze: Unfreeze | Any, backbone: Backbone, where: str = WHERE) -> tuple[int, ...]:
    """Indices into ``backbone.layers`` that a selector makes trainable, in order.

    Layers without weights are among them where a selector covers them; there is at least one with weights, unless the
    selector is ``none``.

    Args:
        unfreeze: a selector, parsed or as in the config.
        backbone: the built network.
        where: config key for messages.

    Raises:
        ConfigError: the selector does not fit the network, or selects nothing that could train.
    """
    unfreeze = parse_unfreeze(unfreeze, where)
    if problems := check_unfreeze(unfreeze, backbone.spec, where):
        raise ConfigError(problems)
    if unfreeze.kind is Kind.none:
        return ()
    where = f"{where}.{unfreeze.kind.value}"
    if unfreeze.kind is Kind.layers:
        pattern = re.compile(str(unfreeze.value))
        chosen = tuple(index for index, name in enumerate(backbone.names) if pattern.search(name))
    else:
        chosen = tuple(range(_first_layer(unfreeze, backbone, where), len(backbone.layers)))
    if not any(backbone.layers[index].weights for index in chosen):
        found = (
            f"only layers without weights ({', '.join(backbone.names[i] for i in chosen[:5])})" if chosen else "none"
        )
        fix = f"python -m tlearn.backbones {backbone.spec.name} lists the layers"
        raise ConfigError(Problem(where, f"{unfreeze.value!r} selects nothing that could train: {found}", fix))
    return chosen


def _first_layer(unfreeze: Unfreeze, backbone: Backbone, where: str) -> int:
    """Where a selector of the form "from here up" starts."""
    if unfreeze.kind is Kind.all:
        return 0
    if unfreeze.kind is Kind.last_blocks:
        return backbone.blocks[-int(unfreeze.value or 0)].first
    if unfreeze.kind is Kind.from_block:
        return next(block.first for block in backbone.blocks if block.name == unfreeze.value)
    if isinstance(unfreeze.value, int):
        if problems := _check_index(unfreeze.value, backbone.spec.name, len(backbone.layers), where):
            raise ConfigError(problems)
        return unfreeze.value
    if unfreeze.value not in backbone.names:
        fix = did_you_mean(str(unfreeze.value), backbone.names)
        raise ConfigError(Problem(where, f"{backbone.spec.name} has no layer {unfreeze.value!r}", fix))
    return backbone.names.index(str(unfreeze.value))
