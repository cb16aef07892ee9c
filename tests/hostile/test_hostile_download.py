"""What SECURITY.md says about the only download there is."""

from __future__ import annotations

import inspect
import re
import sys

import pytest

from tlearn.backbones import SPECS, get_spec

WITHOUT_CHECKSUM = {"mobilenet", "mobilenet_v2"}
NAMES = sorted(name for name, spec in SPECS._builtin.items() if spec.weights_file is not None)


@pytest.mark.parametrize("name", NAMES)
def test_keras_fetches_over_https_and_compares_a_checksum(name: str) -> None:
    import keras

    module = sys.modules[inspect.unwrap(getattr(keras.applications, get_spec(name).keras_name)).__module__]
    source = inspect.getsource(module)
    assert "https://storage.googleapis.com/tensorflow/" in source
    assert "http://storage" not in source
    downloads, checksums = len(re.findall(r"get_file\(", source)), len(re.findall(r"file_hash=", source))
    assert downloads
    assert checksums == (0 if name in WITHOUT_CHECKSUM else downloads), "then SECURITY.md must say something else"
