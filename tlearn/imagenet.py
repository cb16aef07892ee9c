"""The thousand classes of ImageNet 2012, in the order of the outputs of Keras' pretrained networks.

``imagenet_classes.tsv`` states them as facts, a line each: WordNet id and the first word of its synset. They are
sorted by WordNet id, which is the order the networks were trained in. Written out as Keras writes its
``imagenet_class_index.json``, the table has the MD5 sum that Keras checks its own download against (see the test).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).with_name("imagenet_classes.tsv")


class ImagenetClass(NamedTuple):
    """A class: its WordNet id (``n02124075``) and name (``Egyptian cat``); crane and maillot are names of two each."""

    wordnet: str
    name: str


@cache
def imagenet_classes() -> tuple[ImagenetClass, ...]:
    """All thousand, by index."""
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    return tuple(ImagenetClass(*line.split("\t")) for line in lines)
