"""Runs and the features they keep: used again, shared, damaged, or with no place to be kept in."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.features.conftest import FRESH, SHORT, TWO_STAGES, off
from tlearn.train.feature_cache import FeatureCache

ROOT = Path(__file__).resolve().parents[2]
PROCESS = os.environ | {"PYTHONPATH": str(ROOT)}  # of other processes


# --- used again ------------------------------------------------------------------------------------------------------


def test_another_run_uses_them_again(train: Callable[..., Any], tmp_path: Path) -> None:
    first = train("cache.dir=kept", SHORT)
    assert first.passes == 1
    assert (tmp_path / "kept").is_dir(), "a relative folder starts where the command does"
    assert [entry.where for entry in FeatureCache(Path("kept")).entries()] == ["memory"] * 2
    second = train("cache.dir=kept", SHORT, "head.dropout=0.5", "optimizer.name=sgd", "data.batch_size=5")
    assert second.passes == 0
    assert "features are in the cache" in second.said
    assert train("cache.dir=other", SHORT).passes == 1


def test_what_of_them_is_there_is_used_again(train: Callable[..., Any]) -> None:
    expected = train("cache.dir=kept", SHORT)
    for split, other, passes in (("train", "val", 0), ("val", "train", 1)):
        rows = {"train": 18, "val": 6}
        (entry,) = (entry for entry in FeatureCache(Path("kept")).entries() if entry.rows == rows[other])
        shutil.rmtree(Path("kept") / entry.key)
        again = train("cache.dir=kept", SHORT)
        assert f"features of the {split} images are in the cache" in again.said
        assert f"features of {rows[other]} {other} images: " in again.said
        assert again.passes == passes
        assert again.furthest_from(expected) == 0


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "0.bin").read_bytes())
    data[100] ^= 64
    (folder / "0.bin").write_bytes(data)


def test_damaged_features_are_made_anew(train: Callable[..., Any]) -> None:
    expected = train("cache.dir=kept", SHORT)
    assert "made anew" not in expected.said
    damages: dict[str, Callable[[Path], Any]] = {
        "0.bin has another checksum than when it was written": flip_a_bit,
        "0.bin has 60 instead of 1,152 bytes": lambda folder: os.truncate(folder / "0.bin", 60),
        "0.bin: No such file or directory": lambda folder: (folder / "0.bin").unlink(),
        "meta.json does not describe them": lambda folder: os.truncate(folder / "meta.json", 20),
    }
    for why, damage in damages.items():
        largest = max(Path("kept").glob("*/0.bin"), key=lambda file: file.stat().st_size)  # of the training images
        damage(largest.parent)
        again = train("cache.dir=kept", SHORT)
        assert again.passes == 1
        assert again.furthest_from(expected) == 0
        assert f"features in {largest.parent.absolute()}: {why}; made anew" in again.said
        assert again.said.count("made anew") == 1


def test_damaged_features_of_all_stages_are_made_in_one_pass(train: Callable[..., Any]) -> None:
    stages = ("schedule=two_stage", "schedule.stages.1.unfreeze={last_blocks: 1}", "schedule.stages.1.epochs=1", SHORT)
    expected = train("cache.dir=kept", *stages)
    for folder in Path("kept").iterdir():
        flip_a_bit(folder)
    again = train("cache.dir=kept", *stages)
    assert again.said.count("made anew") == 4
    assert again.passes == 1
    assert again.furthest_from(expected) == 0


@pytest.mark.parametrize(
    ("split", "check", "sampled"),
    [("train", "decode", 0), ("val", "decode", 0), ("train", "header", 64), ("train", "header", 2)],
)
def test_a_file_changed_behind_its_size_and_time(
    train: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    split: str,
    check: str,
    sampled: int,
) -> None:
    """A check that reads all bytes finds it; one that reads headers finds it in the files that it samples."""
    monkeypatch.setattr("tlearn.data.source._SAMPLED", sampled)
    random = np.random.default_rng(1)
    for where, count in (("train", 4), ("val", 2)):
        for name in ("ant", "bee"):
            (tmp_path / "photographs" / where / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (40, 36, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photographs" / where / name / f"{index}.bmp")
    folder = ("data.name=folder", f"data.path={tmp_path / 'photographs'}", f"data.check={check}", "cache.dir=kept")
    first = train(*folder, SHORT)
    file = tmp_path / "photographs" / split / "bee" / "0.bmp"
    stamp, data = file.stat(), bytearray(file.read_bytes())
    data[-3000:] = bytes(3000)
    file.write_bytes(data)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = train(*folder, SHORT)
    if sampled == 2:  # the first and the last
        assert "features are in the cache" in second.said
        return
    assert ": they are of files with other bytes; made anew" in second.said
    assert f"features of {8 if split == 'train' else 4} {split} images" in second.said
    assert second.passes == (split == "train")
    assert (second.furthest_from(first) > 0) is (split == "train")
    third = train(*folder, SHORT)
    assert "features are in the cache" in third.said
    assert third.furthest_from(second) == 0


def test_a_pass_over_the_images_shows_how_far_it_is(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tlearn.train.console import Terminal

    shown: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Terminal, "start_epoch", lambda self, label, steps, done: shown.append((label, steps)))
    monkeypatch.setattr(Terminal, "step", lambda self, done, note: shown.append((done,)))
    run = train(*FRESH, "cache.views=3", "schedule.stages.0.epochs=1")  # 18 images, in batches of at most 32
    assert "features of 18 train images: 3.5 kB, 3 passes" in run.said
    assert "features of 6 val images: 384 bytes, one pass" in run.said
    assert shown[:6] == [("features of train images", 3), (1,), (2,), (3,), ("features of val images", 1), (1,)]


def test_what_was_used_longest_ago_makes_room(train: Callable[..., Any]) -> None:
    size = train(SHORT).plan.stages[0].features.bytes
    first, second, third = (f"data.resize={way}" for way in ("crop", "stretch", "pad"))

    room = f"cache.max_gb={2.5e-9 * size:g}"  # for those of two runs
    runs = [train("cache.dir=kept", room, resize, SHORT) for resize in (first, second, first, third, first, second)]
    assert [run.passes for run in runs] == [1, 1, 0, 1, 0, 1], "the third took the room of the second"
    # Of entries opened within one tick of the clock, either may go first: training or validation.
    removed = rf"made room in {Path('kept').absolute()} for {room}: removed \S+ \S+, used longest ago: tiny 32 px, "
    said = [len(re.findall(removed + r"blotches (?:train|val): head_pool 16", run.said)) for run in runs]
    assert [count > 0 for count in said] == [False, False, False, True, False, True]


MAKER = """
import contextlib, json, sys
from pathlib import Path
import numpy as np
from tlearn.train.feature_arrays import Layout
from tlearn.train.feature_cache import FeatureCache
made, wanted = FeatureCache(Path("made")), FeatureCache(Path("wanted"))
with contextlib.ExitStack() as stack:
    for folder in sorted(made.folder.iterdir()):
        meta = json.loads((folder / "meta.json").read_text())
        layout = Layout(meta["rows"], tuple(map(tuple, meta["shapes"])), meta["dtype"])
        features = stack.enter_context(contextlib.closing(made.open(folder.name, layout)))
        stack.enter_context(wanted.writing(folder.name, layout)).append(features.take(np.arange(layout.rows)))
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_what_another_process_makes_is_waited_for(train: Callable[..., Any], killed: bool) -> None:
    """Where it is killed before they are complete, they are made here."""
    expected = train("cache.dir=made", SHORT)
    command = [sys.executable, "-c", MAKER]
    with subprocess.Popen(command, env=PROCESS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "at work\n"
        assert sorted(path.suffix for path in Path("wanted").iterdir()) == [".partial"] * 2

        def end() -> bool:
            """Asked first while the run waits."""
            if killed:
                other.kill()
            elif other.stdin is not None:
                other.stdin.close()
            other.wait()
            return False

        run = train("cache.dir=wanted", SHORT, should_stop=end)
    assert "another process is making the same features: waiting for them" in run.said
    assert run.passes == killed
    assert run.furthest_from(expected) == 0
    assert sorted(path.name for path in Path("wanted").iterdir()) == sorted(os.listdir("made"))


@pytest.mark.slow
def test_two_commands_at_once_share_one_pass() -> None:
    """Each image is computed by one of them, whoever comes first, and both end with the same weights."""
    words = ["data.per_class=12", "schedule.stages.0.epochs=2", "cache.dir=shared", "log.tensorboard=false"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tlearn.train", f"run_dir=run-{number}", *words],
            env=PROCESS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    printed = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    told = [json.loads(out.splitlines()[-1]) for out, _ in printed]
    assert told[0]["weights_sha256"] == told[1]["weights_sha256"]
    assert " ".join(said for _, said in printed).count("features of 120 train images") == 1
    assert len(os.listdir("shared")) == 2


# --- where they cannot be kept ---------------------------------------------------------------------------------------


def test_too_little_room_is_planned_for(train: Callable[..., Any]) -> None:
    schedule = (*TWO_STAGES, "schedule.stages.1.unfreeze={last_blocks: 1}")
    whole = train(*schedule)
    sizes = [stage.features.bytes for stage in whole.plan.stages]
    assert sizes[0] < sizes[1]
    small = train(*schedule, f"cache.max_gb={sizes[0] * 1.01e-9}", "cache.dir=small")
    assert [stage.features.cached for stage in small.plan.stages] == [True, False]
    assert "more than cache.max_gb" in small.plan.stages[1].features.reason
    assert small.furthest_from(whole) < 1e-5
    # room for each, but not for both at once: two passes, and the first makes room for the second
    tight = train(*schedule, f"cache.max_gb={sizes[1] * 1.01e-9}", "cache.dir=tight")
    assert [stage.features.made_in for stage in tight.plan.stages] == [0, 1]
    assert tight.plan.passes == tight.passes == 2
    assert tight.furthest_from(whole) == 0


@pytest.mark.parametrize("folder", ["/dev/null/features", "/proc/features"])
def test_a_folder_that_cannot_be_written_to(train: Callable[..., Any], folder: str) -> None:
    expected = train(*off(()), "schedule.stages.0.epochs=1")
    run = train(f"cache.dir={folder}", "schedule.stages.0.epochs=1")
    assert f"features cannot be kept in {folder}" in run.said
    assert "stage head computes all images in each epoch instead" in run.said
    assert run.furthest_from(expected) == 0


@pytest.mark.parametrize("used", [False, True], ids=["while they are made", "while they are used"])
def test_a_folder_that_vanishes(train: Callable[..., Any], used: bool) -> None:
    """The stage that was making them streams; one that has them goes on with them, and the next makes its own."""
    schedule = (
        ("schedule.stages.0.epochs=1",) if not used else (*TWO_STAGES, "schedule.stages.1.unfreeze={last_blocks: 1}")
    )
    expected = train(*schedule)

    def vanish() -> bool:
        newest = max(Path().glob("run*"), key=lambda path: int(path.name[3:]))
        if not used or (newest / "metrics.jsonl").is_file():
            shutil.rmtree("kept", ignore_errors=True)
        return False

    run = train(*schedule, "log.every=1", "cache.dir=kept", should_stop=vanish)
    assert ("stage head computes all images in each epoch instead" in run.said) is not used
    assert (f"features of stage top are gone from {Path('kept').absolute()}" in run.said) is used
    assert run.passes == (2 if used else 1)
    assert run.furthest_from(expected) == 0


def test_a_disk_that_fills_up_half_way(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tlearn.train.feature_arrays import Writer

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writer, "append", full)
    run = train("cache.dir=full", "schedule.stages.0.epochs=1")
    assert "No space left on device" in run.said
    assert list(Path("full").iterdir()) == []


def test_room_for_the_stage_but_not_for_later_ones(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the pass is made for the stage alone."""
    schedule = (*TWO_STAGES, "schedule.stages.1.unfreeze={last_blocks: 1}")
    expected = train(*schedule)
    original = FeatureCache._make_room
    refused = []

    def once(self: FeatureCache, needed: int) -> None:
        if needed > 10_000 and not refused:
            refused.append(needed)
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, needed)

    monkeypatch.setattr(FeatureCache, "_make_room", once)
    run = train(*schedule, "cache.dir=other")
    assert refused
    assert "features of all stages cannot be kept: No space left on device" in run.said
    assert run.passes == 2
    assert run.furthest_from(expected) == 0


def test_an_unreadable_image_ends_the_run_and_leaves_nothing(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlearn.data import ArraySource, UnreadableImage

    original = ArraySource.read

    def read(self: ArraySource, row: int) -> Any:
        if row == 7:
            raise UnreadableImage("seven.jpg", "is broken")
        return original(self, row)

    monkeypatch.setattr(ArraySource, "read", read)
    with pytest.raises(UnreadableImage, match=r"seven.jpg"):
        train("cache.dir=kept", SHORT)
    assert not list(Path("kept").glob("*.partial"))
