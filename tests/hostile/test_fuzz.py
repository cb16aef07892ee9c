"""Random bytes and random configs: an answer or a message of ours, never another exception.

A few hundred examples in every round, the same each time; a minute of new ones in the slow round, whose seed is
printed. ``python -m tools.fuzz`` goes on for as long as one likes.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.hostile import images
from tests.hostile.test_hostile_yaml import CASES as CONFIGS
from tlearn.compose import load_config
from tlearn.errors import UserError
from tlearn.train.all_problems import all_problems
from tlearn.typed import typed
from tools import fuzz

relaxed = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

SEEDS = [content for content, _ in images.CASES.values() if isinstance(content, bytes) and len(content) < 20_000]


@relaxed
@given(data=st.sampled_from(SEEDS), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12))
def test_a_changed_image(data: bytes, changes: list[tuple[float, int]]) -> None:
    content = bytearray(data)
    for share, value in changes:
        if content:
            content[min(int(share * len(content)), len(content) - 1)] = value
    fuzz.open_image(bytes(content))


@relaxed
@given(
    head=st.sampled_from([b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"BM", b""]), rest=st.binary()
)
def test_bytes_that_begin_like_an_image(head: bytes, rest: bytes) -> None:
    fuzz.open_image(head + rest)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["${seed}", "${", "???"])
)
keys = st.sampled_from(
    ["seed", "name", "head", "data", "optimizer", "schedule", "stages", "units", "options", "defaults"]
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=5), inner, max_size=4)


plain = st.recursive(leaves, nested, max_leaves=12)


@relaxed
@given(data=st.dictionaries(keys, plain, max_size=5))
@example(data={"seed": 10**5000})
def test_plain_data_for_a_config(data: dict[str, object]) -> None:
    with suppress(UserError), all_problems():
        typed(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


TEXTS = [text.encode() if isinstance(text, str) else text for text, _ in CONFIGS.values() if len(text) < 2000]


@relaxed
@given(
    start=st.sampled_from([b"", *TEXTS]),
    more=st.binary(max_size=40) | st.text("{}[]&*!|>%@-:?,#'\" \n\tabc$.<0123").map(str.encode),
)
def test_a_config_file_of_any_bytes(start: bytes, more: bytes, folder: Path) -> None:
    fuzz.read_experiment_bytes(start + b"\n" + more, folder)


@settings(relaxed, max_examples=40)
@given(override=st.text("abcdeoptimizer.seed=+~@[]{}${}\"'\\:,0123456789 -_/", max_size=30))
def test_any_override(override: str) -> None:
    with suppress(UserError), all_problems():
        load_config([override])


@pytest.mark.slow
def test_a_minute_of_new_ones(folder: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    count = fuzz.run(SEEDS, TEXTS, folder, seconds=60, rng=np.random.default_rng(seed))
    print(f"{count} inputs")
    assert count > 100
