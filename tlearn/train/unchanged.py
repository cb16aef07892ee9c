"""A run goes on with the data and the plan it began with, or not at all: what differs is said line by line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from tlearn.config import Config
from tlearn.data import Data, Split, named_rows
from tlearn.errors import Problem, UserError
from tlearn.train.fingerprint import NONE, Changes, Rows, compare
from tlearn.train.run import Run
from tlearn.words import counted

_SHOWN = 20  # values of the plan
_WORDS = {"unfreeze", "lowest", "optimizer", "head", "weights", "reason", "notes"}
"""Keys of a plan that say in words what others, or the config, say in numbers: a new version may say it otherwise."""

_FOLLOWING = {"file_bytes", "decoded_once"}
"""Keys of a plan that follow from files and config, which are compared themselves; older plans do not have them."""

_FREE = ("run_dir", "resume", "name", "log.", "checkpoint.every.", "checkpoint.keep", "cache.dir", "data.workers")
"""Keys of a config that change nothing about the weights of a run: they may be edited before it goes on."""

Difference = tuple[str, Any, Any]
"""Where two pieces of plain data differ: the path of keys, what was, what is."""


def manifest(data: Data) -> dict[str, Any]:
    """What the data of a run is: a hash over names, labels, splits and files, the classes, and their counts."""
    table = data.table
    counts = {split.name: table.counts(split).tolist() for split in (Split.train, Split.val, Split.test)}
    return {
        "hash": table.manifest_hash(),
        "source": data.source.where,
        "images": len(table),
        "classes": list(table.classes),
        "multi_label": table.multi_label,
        "counts": counts,
        "left_out": [[table.key(entry.row), entry.reason] for entry in data.report.unreadable],
    }


def plain(data: Any) -> Any:
    """A dataclass, or what holds some, as JSON gives it back."""
    data = dataclasses.asdict(data) if dataclasses.is_dataclass(data) and not isinstance(data, type) else data
    return json.loads(json.dumps(data, default=lambda value: value.value if isinstance(value, Enum) else str(value)))


def check_unchanged(
    run: Run, config: Config, data: Data, plan: dict[str, Any], say: Callable[[str], None] = lambda line: None
) -> None:
    """Refuse to go on with other data or another plan than the run began with.

    Args:
        run: as its folder says.
        config: that it would go on with.
        data: as found now.
        plan: made from both.
        say: told of images that only have another time.

    Raises:
        UserError: with every difference, up to twenty of each kind.
    """
    before = run.plan
    problems, notice = _data_problems(run, data)
    differences = [
        *differences_of_plans(before, plain(plan)),
        *((f"config.{key}", was, now) for key, was, now in differences_of_configs(before.get("config", {}), config)),
    ]
    problems += [Problem(key, f"was {shown(was)}, is {shown(now)}") for key, was, now in differences[:_SHOWN]]
    if differences:
        fix = f"undo the change; for a new run from these weights: backbone.weights={run.path}"
        values = counted(len(differences), "value of the plan is", "values of the plan are")
        what = f"{values} not what the run began with"
        problems.append(Problem(str(run.path), what, fix))
    if problems:
        raise UserError(problems)
    if notice:
        say(notice)


def differences_of_plans(before: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """What a plan says otherwise than before, its words aside, and what follows from other things."""
    found = differing({key: value for key, value in before.items() if key != "config"}, now)
    return [difference for difference in found if not set(difference[0].split(".")) & (_WORDS | _FOLLOWING)]


def differences_of_configs(before: dict[str, Any], config: Config) -> list[Difference]:
    """Settings that change the weights of a run and are not what they were; new keys have their defaults."""
    found = differing(before, plain(config))
    return [(key, was, now) for key, was, now in found if not key.startswith(_FREE) and was is not MISSING]


MISSING = object()
"""Stands for a key that is not there."""

TOUCHED = "written anew"
"""What is said of files that changed in nothing but their time."""


def differing(was: Any, now: Any, where: str = "") -> Iterator[Difference]:
    """The leaves in which two pieces of plain data differ; a list of plain values is one."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            path = f"{where}.{key}" if where else str(key)
            yield from differing(was.get(key, MISSING), now.get(key, MISSING), path)
    elif _is_list_of_dicts(was) and _is_list_of_dicts(now):
        for index in range(max(len(was), len(now))):
            first, second = (side[index] if index < len(side) else MISSING for side in (was, now))
            yield from differing(first, second, f"{where}.{index}")
    elif was != now or type(was) is not type(now):
        yield where, was, now


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def shown(value: Any) -> str:
    """A value in a few words."""
    if value is MISSING:
        return "nothing"
    if isinstance(value, list) and len(value) > 8:
        return f"{json.dumps(value[:3])[:-1]}, ... {len(value)} in all]"
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


# --- data ------------------------------------------------------------------------------------------------------------


def _data_problems(run: Run, data: Data) -> tuple[list[Problem], str]:
    """What became of the images since the run began, and what is to be said of those that only have another time.

    A copy, or an archive unpacked again, has other times. Where the check decodes, as it does with up to 20,000 images,
    it knows the bytes, then and now; else another time is a change like any other.
    """
    before, now = run.manifest, plain(manifest(data))
    rows = named_rows(data.source, [name for name, _ in run.left_out])  # older manifests have paths, not keys
    before["left_out"] = [[data.table.key(rows[name][0]) if name in rows else name, why] for name, why in run.left_out]
    keys = [key for key, value in before.items() if key != "source" and now.get(key) != value]
    if not keys:  # where the data lies may be said in another way
        return [], ""
    problems, touched = _changed_files(run, data, before) if "hash" in keys else ([], NONE)
    if keys == ["hash"] and touched.count and not problems:
        first = f"{touched.lines[0]}{' and others' if touched.count > 1 else ''}"
        return [], f"data: {counted(touched.count, 'image was', 'images were')} {TOUCHED}, with the same bytes: {first}"
    left_out = differing({"left_out": before.get("left_out")}, {"left_out": now["left_out"]})
    problems += [Problem(key, f"was {shown(was)}, is {shown(is_now)}") for key, was, is_now in left_out]
    if before.get("classes") != now["classes"]:
        problems.append(Problem("classes", f"were {shown(before.get('classes'))}, are {shown(now['classes'])}"))
    fix = f"bring the data back as it was; for a new run from these weights: backbone.weights={run.path}"
    return [*problems, Problem("data", f"{data.source.where} is not what the run began with", fix)], ""


def _changed_files(run: Run, data: Data, before: dict[str, Any]) -> tuple[list[Problem], Rows]:
    """What a run cannot go on with, and the images that were written anew."""
    try:
        changes = compare(run.files_file, data.table, int(before.get("images", 0)), data.report.contents)
    except (ValueError, TypeError) as error:
        return [Problem("data", f"which files changed is not known: {error}")], NONE
    problems: list[Problem] = []
    for what, rows in (kinds(changes) | {TOUCHED: changes.doubtful}).items():
        problems += [Problem(line, what) for line in rows.lines]
        if rows.count > len(rows.lines):
            problems.append(Problem("...", f"{rows.count:,} images {what} in all"))
    return problems, changes.touched


def kinds(changes: Changes) -> dict[str, Rows]:
    """Changes of files that there are. Splits are drawn anew where files come or go: only the cause is said then."""
    found = {
        "gone": changes.gone,
        "added": changes.added,
        "altered": changes.altered,
        TOUCHED: changes.touched,
        "relabelled": changes.relabelled,
        "moved to another split": NONE if changes.gone.count or changes.added.count else changes.moved,
    }
    return {kind: rows for kind, rows in found.items() if rows.count}
