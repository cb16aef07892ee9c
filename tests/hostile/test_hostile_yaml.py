"""An experiment from a stranger is data: whatever it says, nothing runs, nothing is read, and a message comes of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tlearn.compose import load_config
from tlearn.errors import ConfigError, UserError
from tlearn.typed import typed
from tlearn.yaml_file import LARGEST_BYTES, read_yaml

SECRET = "the-token-of-somebody"


def unfolding(template: str, levels: int) -> str:
    """Each level names the one before ten times."""
    lines = ["l0: &l0 {x: 1}"]
    lines += [f"l{n}: &l{n} {template.format(', '.join([f'*l{n - 1}'] * 10))}" for n in range(1, levels)]
    return "\n".join(lines)


CASES: dict[str, tuple[str | bytes, str]] = {
    # Bombs.
    "billion laughs": (unfolding("[{}]", 10), "once its aliases are unfolded"),
    "merged billions": (unfolding("{{<<: [{}]}}", 10), "once its aliases are unfolded"),
    "alias in itself": ("a: &a [*a]", "an alias inside what it stands for"),
    "alias in its mapping": ("a: &a {b: *a}", "an alias inside what it stands for"),
    "deep list": ("a: " + "[" * 20_000, "nested more than"),
    "deep mapping": ("a: " + "{b: " * 20_000, "nested more than"),
    "deep blocks": ("\n".join(" " * depth + "a:" for depth in range(500)), "nested more than"),
    "chained aliases": ("\n".join(["a0: &a0 1"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 1500)]), "YAML"),
    "huge": ("name: " + "x" * LARGEST_BYTES, "more than 262,144 bytes"),
    "long number": ("seed: " + "9" * 10_000, "cannot be read as YAML"),
    "long hexadecimal": ("seed: 0x" + "f" * 10_000, "above 2^64"),
    # Python.
    "python object": ("seed: !!python/object/apply:os.system ['touch made']", "cannot be read as YAML"),
    "python module": ("seed: !!python/module:os", "cannot be read as YAML"),
    "python name": ("seed: !!python/name:os.system", "cannot be read as YAML"),
    "target": ("head: {_target_: builtins.open, file: made, mode: w}", "head._target_: unknown key"),
    "target in a stage": ("schedule: {stages: [{name: a, epochs: 1, _target_: os.system}]}", "_target_: unknown key"),
    "target in an optimizer": ("optimizer: {name: adam, _target_: os.system}", "optimizer._target_: unknown key"),
    # The environment.
    "resolver": ("name: ${oc.env:SECRET}", "asks for more than the config"),
    "resolver in a list": ("head: {units: ['${oc.env:SECRET}']}", "asks for more than the config"),
    "resolver in options": ("head: {options: {a: 'x${oc.env:SECRET}'}}", "asks for more than the config"),
    "resolver with a default": ("name: ${oc.env:SECRET,none}", "asks for more than the config"),
    "resolver by reference": ("name: ${${precision}:SECRET}", "asks for more than the config"),
    "nested resolver": ("name: ${seed${oc.env:SECRET}}", "asks for more than the config"),
    "Hydra's resolver": ("name: ${hydra:runtime.cwd}", "asks for more than the config"),
    "Hydra's node": ("name: ${hydra.runtime.cwd}", "asks for more than the config"),
    "decoded": ("name: ${oc.decode:'${oc.env:SECRET}'}", "asks for more than the config"),
    "escaped": ("name: \\${oc.env:SECRET}", "asks for more than the config"),
    "in two halves": (
        "head: {options: {a: '$', b: '{oc.env:SECRET}'}}\nname: ${head.options.a}${head.options.b}",
        "unresolved reference",
    ),
    "in a key": ("'${oc.env:SECRET}': 1", "asks for more than the config"),
    "broken reference": ("name: ${", "asks for more than the config"),
    # Hydra.
    "hydra": ("hydra: {run: {dir: made}}", "cannot set Hydra"),
    "search path": ("hydra: {searchpath: ['file:///tmp']}", "cannot set Hydra"),
    "launcher": ("defaults: [override /hydra/launcher: basic]", "cannot set Hydra"),
    "optional launcher": ("defaults: [optional /hydra/launcher: basic]", "cannot set Hydra"),
    "both words": ("defaults: [override optional /hydra/job_logging: none]", "cannot set Hydra"),
    "into Hydra's package": ("defaults: [/backbone@hydra.run: mobilenet]", "cannot set Hydra"),
    "defaults above": ("defaults: [/../../outside]", "leads out of the config groups"),
    "an option above": ("defaults: [override /backbone: ../../outside]", "leads out of the config groups"),
    "a group above": ("defaults: [{'/../x': y}]", "leads out of the config groups"),
    "an address": ("defaults: ['file:///etc/passwd']", "leads out of the config groups"),
    "itself": ("defaults: [hostile]", "includes itself"),
    "defaults of numbers": ("defaults: [1, null]", "leads out of the config groups"),
    "a mapping for an option": ("defaults: [{override /backbone: {}}]", "leads out of the config groups"),
    "defaults that are no list": ("defaults: {a: b}", "is not a list"),
    # No config at all.
    "a key twice": ("seed: 1\nseed: 2", "'seed' twice"),
    "a date": ("seed: 2001-01-01", "is a date"),
    "no date": ("seed: 2001-99-01", "cannot be read as YAML"),
    "bytes": ("name: !!binary aGFsbG8=", "is a bytes"),
    "a set": ("name: !!set {a, b}", "is a set"),
    "a number for a key": ("1: 2", "is no text"),
    "null for a key": ("null: 2", "is no text"),
    "a list for a key": ("? [1, 2]\n: 3", "is no text"),
    "not a number": ("optimizer: {learning_rate: .nan}", "must be a finite number"),
    "infinite": ("optimizer: {learning_rate: .inf}", "must be a finite number"),
    "a list": ("- 1", "is not a mapping"),
    "text": ("hello", "is not a mapping"),
    "two documents": ("seed: 1\n---\nseed: 2", "cannot be read as YAML"),
    "binary": (b"\xff\xfe\x00\x01", "cannot be read"),
    "a null byte": (b"seed: 1\x00", "cannot be read as YAML"),
    "escapes": ('"a\\e[2Jb": 2', "a\\x1b[2Jb: unknown key"),
    "stages of a wrong kind": ("schedule: {stages: {a: 1}}", "config: "),
    "groups of a wrong kind": ("head: 3", "head"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "outside.yaml").write_text("name: ${oc.env:SECRET}\n")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_experiments_are_refused_with_a_message(case: str, folder: Path) -> None:
    text, says = CASES[case]
    (folder / "experiments" / "hostile.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()  # not the clock: others may have the processor
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=hostile"])
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert time.process_time() - start < 20
    assert sorted(os.listdir(folder)) == ["experiments", "outside.yaml"]


def test_they_stop_those_alone_who_choose_them(folder: Path) -> None:
    for case, (text, _) in CASES.items():
        path = folder / "experiments" / f"{case}.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "experiments" / "fine.yaml").write_text("seed: 5\n")
    assert load_config(["experiment=fine"]).seed == 5


def test_plain_references_are_fine(folder: Path) -> None:
    text = "seed: 7\nname: run-${seed}-${.seed}\ndata: {split_seed: '${..seed}'}\n"
    (folder / "experiments" / "fine.yaml").write_text(text)
    config = load_config(["experiment=fine"])
    assert (config.name, config.data.split_seed) == ("run-7-7", 7)


def test_merge_keys_and_aliases_are_fine(folder: Path) -> None:
    text = "schedule:\n  stages:\n  - &first {name: a, epochs: 1, unfreeze: none}\n  - {<<: *first, name: b}\n"
    (folder / "experiments" / "fine.yaml").write_text(text)
    assert [stage.epochs for stage in load_config(["experiment=fine"]).schedule.stages] == [1, 1]


def test_a_person_may_ask_for_the_environment(folder: Path) -> None:
    assert load_config(["name='${oc.env:SECRET}'"]).name == SECRET


@pytest.mark.parametrize(
    "override",
    [
        "seed=" + "9" * 6000,
        "name=" + "[" * 500 + "]" * 500,
        "seed=${seed}",
        "seed=${oc.env:NOT_THERE}",
        "seed=${",
        "=",
    ],
)
def test_overrides_that_no_parser_likes_are_messages(override: str, folder: Path) -> None:
    with pytest.raises(ConfigError):
        load_config([override])


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "large": lambda path: path.open("wb").truncate(2**40),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_small_file_is_not_read(kind: str, folder: Path) -> None:
    SPECIAL[kind](folder / "experiments" / "hostile.yaml")
    with pytest.raises(ConfigError):
        load_config(["experiment=hostile"])
    assert load_config(["seed=3"]).seed == 3


def test_the_config_of_a_run_is_held_to_the_same(folder: Path) -> None:
    """What a run folder holds is composed already: no reference is left, and none is resolved."""
    (folder / "config.yaml").write_text("name: ${oc.env:SECRET}\n")
    with pytest.raises(UserError, match="unresolved reference"):
        typed(read_yaml(folder / "config.yaml"))
