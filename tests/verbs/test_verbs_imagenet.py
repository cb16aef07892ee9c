"""The thousand class names, held against Keras' own checksum of its table and against an independent list."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tlearn.imagenet import imagenet_classes


def keras_json() -> str:
    """The table as Keras' ``imagenet_class_index.json`` writes it."""
    return json.dumps({str(i): [row.wordnet, row.name.replace(" ", "_")] for i, row in enumerate(imagenet_classes())})


def test_the_table_is_keras_own_to_the_byte() -> None:
    from keras.src.applications import imagenet_utils

    checksum = hashlib.md5(keras_json().encode()).hexdigest()
    assert checksum in Path(imagenet_utils.__file__).read_text(encoding="utf-8")


def test_classes_are_sorted_by_wordnet_id() -> None:
    ids = [row.wordnet for row in imagenet_classes()]
    assert len(ids) == len(set(ids)) == 1000
    assert ids == sorted(ids)
    assert imagenet_classes()[285] == ("n02124075", "Egyptian cat")


def test_names_are_those_of_the_list_of_an_independent_model(assets: Path) -> None:
    synsets = (assets / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()[1:]  # 0 is background there
    assert [row.name for row in imagenet_classes()] == [synset.split(",")[0].strip() for synset in synsets]
