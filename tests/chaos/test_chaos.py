"""A run that is killed with SIGKILL again and again ends bit for bit as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tlearn.train import checkpoint
from tlearn.train.api import open_run

ROOT = Path(__file__).resolve().parents[2]

BASE = (
    "backbone={name: tiny, weights: null, alpha: null, image_size: 16}",
    "data.name=digits",
    "data.per_class=8",
    "data.batch_size=8",
    "head=mlp",
    "head.units=[8]",
    "log.every=3",
    "log.images=2",
    "checkpoint.every={steps: 2, minutes: null}",
)
HEAD = "{name: head, epochs: 1}"
ALL = "{name: all, unfreeze: all, epochs: 1, batch_norm: train}"

RUNS = {
    "short": (
        "log.tensorboard=false",
        f"schedule.stages=[{HEAD}, {{name: all, unfreeze: all, epochs: 1, batch_norm: train, carry_slots: true}}]",
        "optimizer.ema=0.9",
        "optimizer.accumulate=3",
        "augment=light",
        "cache.views=2",
        "head.dropout=0.3",
    ),
    "everything": (
        f"schedule.stages=[{HEAD}, {{name: top, unfreeze: {{last_blocks: 1}}, epochs: 1.5, carry_slots: true}}, {ALL}]",
        "optimizer.ema=0.9",
        "optimizer.accumulate=3",
        "optimizer.schedule={name: cosine, warmup: {steps: 2}}",
        "augment=light",
        "cache.views=2",
        "head.dropout=0.3",
    ),
    "cached head": ("schedule.stages=[{name: head, epochs: 4}]", "head.dropout=0.3"),
    "streaming with augmentation": (
        "schedule.stages=[{name: all, unfreeze: all, epochs: 3, batch_norm: train}]",
        "augment=light",
        "augment.mixup=0.2",
        "optimizer=sgd",
        "optimizer.momentum=0.9",
    ),
    "passage between stages": (
        "log.tensorboard=false",
        f"schedule.stages=[{HEAD}, {{name: top, unfreeze: {{last_blocks: 1}}, epochs: 0.5, carry_slots: true}}, {ALL}]",
        "checkpoint.every={steps: 7, minutes: null}",
    ),
    "gradient accumulation": (
        "log.tensorboard=false",
        "schedule.stages=[{name: all, unfreeze: all, epochs: 2.5}]",
        "optimizer.accumulate=4",
        "optimizer.schedule={name: cosine, warmup: {steps: 2}}",
        "checkpoint.every={steps: 1, minutes: null}",
    ),
    "averaged weights": (
        "log.tensorboard=false",
        f"schedule.stages=[{HEAD}, {ALL}]",
        "optimizer.ema=0.9",
        "checkpoint.every={steps: null, epochs: null, minutes: 0.0005}",
    ),
}


STOPPED = 3  # exit status of a run that was asked to


class Zygote:
    """Starts runs quickly."""

    def __init__(self, folder: Path) -> None:
        plugin = ROOT / "tests" / "train" / "plugin"
        quick = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1", "TLEARN_PLUGINS": "tiny_plugin"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            cwd=folder,
            env=os.environ | quick | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(plugin)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(
        self, arguments: list[str], log: Path, *, after: float | None = None, at: tuple[str, int] | None = None
    ) -> tuple[int, float]:
        """Exit status of a run, or minus a signal, and its seconds; killed as the zygote says."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": arguments, "log": str(log), "after": after, "at": at}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["status"], answer["seconds"]

    def close(self) -> None:
        self._process.communicate(timeout=300)


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


def result(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves of numbers: records, points, weights, states; no times.

    Nor where its features came from: a run that was killed between its pass and its first checkpoint finds them.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    run = open_run(folder)
    (last,) = run.checkpoints.glob("step-*.npz")
    arrays, state = checkpoint.load(last)
    best, _ = checkpoint.load(run.best_file)
    points = [
        (path.parent.name, value.tag, event.step, value.tensor.SerializeToString())
        for path in run.tensorboard.rglob("*tfevents*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if path.parent.name in ("train", "val")
    ]
    return {
        "metrics": [{k: v for k, v in record.items() if k != "seconds"} for record in run.metrics],
        "summary": {k: v for k, v in run.summary.items() if k not in ("run", "seconds")},
        "progress": {k: v for k, v in state.items() if k not in ("seconds", "features")},
        "state": checkpoint.sha256(arrays),
        "best": checkpoint.sha256(best),
        "points": sorted(points),
        "status": run.status["status"],
        "left over": [path.name for path in folder.rglob(".partial.*")],
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part, value in expected.items():
        assert found[part] == value, part


def kill_moments(moments: random.Random, seconds: float) -> Iterator[dict[str, Any]]:
    """When, or where, one attempt after the other is killed: all kinds in turn, in an order of chance."""
    yield {"at": ("features", moments.randint(1, 5)), "after": 1.2 * seconds}  # later they are there already
    while True:
        places = ["time", "time", "time", "write", "before rename", "after rename", "features", "validation", "end"]
        moments.shuffle(places)
        at = places.index("validation") + 1  # the state has no record of an epoch that the next attempt writes
        for place in [*places[:at], "epoch", *places[at:]]:
            after = moments.uniform(0.1, 0.95) * seconds
            if place == "time":
                yield {"after": after}
            else:  # which may lie behind it already
                most = {"features": 3, "validation": 2, "epoch": 1}.get(place, 12)
                yield {"at": (place, moments.randint(1, most)), "after": 1.2 * seconds}


def torment(zygote: Zygote, overrides: tuple[str, ...], kills: int, seed: int, folder: Path) -> Counter[str]:
    """Kill runs of a config until there were so many kills, or stops; hold each that ends against one left alone.

    Returns:
        How many kills there were, by place.
    """
    log, moments, done = folder / "log.txt", random.Random(seed), Counter[str]()

    def arguments(run: Path) -> list[str]:
        if (run / "config.yaml").is_file():
            return [f"resume={run}"]
        shutil.rmtree(run, ignore_errors=True)  # it had not begun
        return [*BASE, *overrides, f"run_dir={run}", f"cache.dir={run}.cache"]

    def check(run: Path) -> None:
        assert_same(result(run), expected)
        shutil.rmtree(f"{run}.cache", ignore_errors=True)  # not every run keeps features

    status, seconds = zygote.run(arguments(folder / "whole"), log)
    assert status == 0, log.read_text()
    expected = result(folder / "whole")
    assert expected["left over"] == []
    number, attempts, kinds = 0, 0, kill_moments(moments, seconds)
    while sum(done.values()) < kills:
        attempts += 1
        assert attempts < 4 * kills, f"hardly any attempt is killed in time: {done}"
        run, kill = folder / f"run-{number}", next(kinds)
        status, lived = zygote.run(arguments(run), log, **kill)
        assert status in (0, -signal.SIGKILL, STOPPED), log.read_text()
        if status != 0:
            done[kill["at"][0] if "at" in kill and lived < kill["after"] else "time"] += 1
        if (run / "summary.json").is_file():
            if status != 0:  # killed after that, it is complete all the same; whoever resumes it is told
                assert zygote.run(arguments(run), log)[0] == 2, log.read_text()
            check(run)
            number += 1
    run = folder / f"run-{number}"
    if run.exists():
        status, _ = zygote.run(arguments(run), log)
        assert status == 0, log.read_text()
        check(run)
    print(f"seed {seed}: {sum(done.values())} kills, {dict(done)}, {number + 1} runs, {attempts} attempts")
    assert done["time"]
    return done


def test_stopped_in_a_validation_and_killed_after_it(zygote: Zygote, tmp_path: Path) -> None:
    """The state has steps of an epoch, and not its record: a second resumption must not find that already there."""
    log, run = tmp_path / "log.txt", tmp_path / "run"
    config = [*BASE, *RUNS["cached head"]]
    assert zygote.run([*config, f"run_dir={tmp_path / 'whole'}"], log)[0] == 0, log.read_text()
    assert zygote.run([*config, f"run_dir={run}"], log, at=("validation", 2))[0] == STOPPED, log.read_text()
    assert zygote.run([f"resume={run}"], log, at=("epoch", 1))[0] == -signal.SIGKILL, log.read_text()
    assert zygote.run([f"resume={run}"], log)[0] == 0, log.read_text()
    assert_same(result(run), result(tmp_path / "whole"))


def test_killed_four_times(zygote: Zygote, tmp_path: Path) -> None:
    torment(zygote, RUNS["short"], 4, seed=3, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_a_hundred_times(name: str, zygote: Zygote, tmp_path: Path) -> None:
    """Seventeen kills of each of seven runs."""
    torment(zygote, RUNS[name], 17, seed=len(name), folder=tmp_path)
