"""The freeze selectors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlearn.backbones import Backbone, build_backbone, check_unfreeze, get_spec, parse_unfreeze, trainable_layers
from tlearn.backbones.specs import BackboneSpec, Preprocess
from tlearn.errors import ConfigError

RESNET = get_spec("resnet50")


@pytest.fixture(scope="module")
def mobilenet() -> Backbone:
    return build_backbone("mobilenet", alpha=0.25, image_size=32)


@pytest.mark.parametrize(
    ("value", "first"),
    [
        ("all", 0),
        ({"last_blocks": 1}, 80),
        ({"last_blocks": 14}, 0),
        ({"from_block": "block_12"}, 73),
        ({"from_layer": 80}, 80),
        ({"from_layer": "conv_dw_13"}, 80),
        ({"from_layer": 0}, 0),
    ],
)
def test_from_a_layer_up(value: Any, first: int, mobilenet: Backbone) -> None:
    assert check_unfreeze(value, mobilenet.spec) == []
    assert trainable_layers(value, mobilenet) == tuple(range(first, 86))


def test_none(mobilenet: Backbone) -> None:
    assert trainable_layers("none", mobilenet) == ()


def test_pattern_finds_anywhere_in_the_name(mobilenet: Backbone) -> None:
    chosen = trainable_layers({"layers": r"_13_bn$|^conv1$"}, mobilenet)
    assert [mobilenet.names[index] for index in chosen] == ["conv1", "conv_dw_13_bn", "conv_pw_13_bn"]


@pytest.mark.parametrize(
    "pattern", [r"conv\+\+", "[+*]+", "(?:conv|bn)_1", "(?i)CONV", "(?<!d)w_1", "block_(1[0-6]|9)_.*_BN$", "(ab)+"]
)
def test_ordinary_patterns_are_fine(pattern: str) -> None:
    assert check_unfreeze({"layers": pattern}, RESNET) == []


@given(st.integers(1, 14), st.integers(1, 14))
def test_more_blocks_train_more(mobilenet: Backbone, fewer: int, more: int) -> None:
    fewer, more = sorted((fewer, more))
    small = trainable_layers({"last_blocks": fewer}, mobilenet)
    large = trainable_layers({"last_blocks": more}, mobilenet)
    assert set(small) <= set(large) <= set(trainable_layers("all", mobilenet))
    assert (len(small) < len(large)) == (fewer < more)


@given(st.sampled_from(get_spec("mobilenet").block_names()))
def test_blocks_counted_and_named_agree(mobilenet: Backbone, name: str) -> None:
    names = mobilenet.spec.block_names()
    count = len(names) - names.index(name)
    assert trainable_layers({"from_block": name}, mobilenet) == trainable_layers({"last_blocks": count}, mobilenet)


@given(st.integers(-20, 200))
def test_index_is_a_layer_or_an_error(mobilenet: Backbone, index: int) -> None:
    problems = check_unfreeze({"from_layer": index}, mobilenet.spec)
    assert bool(problems) == (not 0 <= index < 86)
    if not problems and index < 85:  # 85 is an activation: nothing there could train
        assert trainable_layers({"from_layer": index}, mobilenet)[0] == index


@pytest.mark.parametrize(
    ("value", "where", "says"),
    [
        ("some", "unfreeze", "'some' is not a selector"),
        ("last_blocks", "unfreeze", "write {last_blocks: ...}"),
        (None, "unfreeze", "not a selector"),
        (2, "unfreeze", "not a selector"),
        (["all"], "unfreeze", "not a selector"),
        ({}, "unfreeze", "exactly one"),
        ({"last_blocks": 2, "from_block": "conv5_block1"}, "unfreeze", "last_blocks and from_block"),
        ({"last_block": 2}, "unfreeze.last_block", "did you mean last_blocks"),
        ({"last_blocks": "2"}, "unfreeze.last_blocks", "a whole number"),
        ({"last_blocks": True}, "unfreeze.last_blocks", "a whole number"),
        ({"last_blocks": 0}, "unfreeze.last_blocks", "unfreeze: none"),
        ({"last_blocks": -1}, "unfreeze.last_blocks", "1 to 17"),
        ({"last_blocks": 18}, "unfreeze.last_blocks", "unfreeze: all"),
        ({"from_block": "conv5_blok1"}, "unfreeze.from_block", "did you mean conv5_block1"),
        ({"from_block": 3}, "unfreeze.from_block", "name of a block"),
        ({"from_layer": 175}, "unfreeze.from_layer", "0 to 174"),
        ({"from_layer": -1}, "unfreeze.from_layer", "0 to 174"),
        ({"from_layer": 1.5}, "unfreeze.from_layer", "index or name"),
        ({"layers": "("}, "unfreeze.layers", "not a regular expression"),
        ({"layers": "(a+)+$"}, "unfreeze.layers", "for ever"),
        ({"layers": "(?:.|.)*x"}, "unfreeze.layers", "for ever"),
        ({"layers": "(a{2,9}){2,}"}, "unfreeze.layers", "for ever"),
        ({"layers": "((?P<x>a?)b)+"}, "unfreeze.layers", "for ever"),
        ({"layers": ".*.*.*.*.*x"}, "unfreeze.layers", "for ever"),
        ({"layers": "a" * 201}, "unfreeze.layers", "longer than 200"),
        ({"layers": 5}, "unfreeze.layers", "a regular expression"),
    ],
)
def test_wrong_selectors_are_found_without_the_network(value: Any, where: str, says: str) -> None:
    (problem,) = check_unfreeze(value, RESNET)
    assert problem.where == where
    assert says in str(problem)


def test_where_names_the_stage() -> None:
    (problem,) = check_unfreeze({"from_block": "x"}, RESNET, "schedule.stages.1.unfreeze")
    assert problem.where == "schedule.stages.1.unfreeze.from_block"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"from_layer": "conv_dw_14"}, "did you mean conv_dw_"),
        ({"layers": "mixed"}, "nothing that could train"),
        ({"layers": "_relu$"}, "only layers without weights"),
        ({"from_layer": 85}, "only layers without weights"),
        ({"from_layer": 86}, "0 to 85"),
    ],
)
def test_wrong_selectors_that_need_the_network(value: Any, says: str, mobilenet: Backbone) -> None:
    with pytest.raises(ConfigError, match="unfreeze") as caught:
        trainable_layers(value, mobilenet)
    assert says in str(caught.value)


def test_network_without_blocks() -> None:
    spec = BackboneSpec("own", "own", "", Preprocess.tf, 64, 32)
    (problem,) = check_unfreeze({"last_blocks": 1}, spec)
    assert "no named blocks" in str(problem)
    assert check_unfreeze({"from_layer": 999}, spec) == []  # known once it is built


@given(st.text(max_size=60) | st.dictionaries(st.text(max_size=12), st.text(max_size=12) | st.integers(), max_size=2))
def test_whatever_stands_there_is_read_or_refused(value: Any) -> None:
    try:
        unfreeze = parse_unfreeze(value)
    except ConfigError:
        return
    assert parse_unfreeze(unfreeze) == unfreeze
