"""What a network says about an image: classes with their probabilities, and how a person names a class."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tlearn.errors import Problem, UserError, did_you_mean


@dataclass(frozen=True)
class Guess:
    """A class and its probability, 0..1.

    Attributes:
        index: of the network's output.
        label: name of the class.
        probability: of the class; where an image may have several labels, of this one by itself.
        wordnet: WordNet id of an ImageNet class.
    """

    index: int
    label: str
    probability: float
    wordnet: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data; ``wordnet`` only where there is one."""
        plain: dict[str, Any] = {"index": self.index, "label": self.label, "probability": self.probability}
        return plain if self.wordnet is None else {"index": self.index, "wordnet": self.wordnet, **plain}


@dataclass(frozen=True)
class Prediction:
    """What a network sees in an image: the likeliest classes, likeliest first."""

    path: str
    top: tuple[Guess, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"path": self.path, "top": [guess.as_dict() for guess in self.top]}


def find_class(class_: str | int, classes: Sequence[str], wordnet: Sequence[str] | None = None) -> int:
    """Number of a class that a person named.

    Args:
        class_: name, in any case and with ``_`` for a space, WordNet id or index.
        classes: names, in the order of the outputs.
        wordnet: their WordNet ids, where they have any.

    Raises:
        UserError: there is no such class, with the nearest names; or a name stands for several, with all of them.
    """
    text = str(class_)
    if isinstance(class_, str):
        wanted = text.replace("_", " ").casefold()
        found = [index for index, name in enumerate(classes) if name == text] or [
            index for index, name in enumerate(classes) if name.replace("_", " ").casefold() == wanted
        ]
        if wordnet and text in wordnet:
            found = [wordnet.index(text)]
        if len(found) > 1:
            rows = [f"{index}{f' ({wordnet[index]})' if wordnet else ''}" for index in found]
            raise UserError(
                Problem("class", f"{text!r} is the name of {len(found)} classes", f"give {' or '.join(rows)}")
            )
        if found:
            return found[0]
    if text.isascii() and text.isdigit() and int(text) < len(classes):
        return int(text)
    if text.isascii() and text.lstrip("-").isdigit():
        raise UserError(Problem("class", f"there are classes 0 to {len(classes) - 1}, got {text}"))
    hint = did_you_mean(text, classes)
    if near := difflib.get_close_matches(text.casefold(), [name.casefold() for name in classes], n=3):
        hint = f"did you mean {' or '.join(near)}?"
    raise UserError(Problem("class", f"there is no class {text!r}", hint))
