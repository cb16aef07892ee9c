"""Entries on disk: complete or not there, whoever writes, reads, deletes or is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.config import CacheConfig
from tlearn.train import feature_arrays
from tlearn.train.feature_arrays import Layout
from tlearn.train.feature_cache import FeatureCache, cache_folder

KEY, OTHER, THIRD = ("0123456789abcdef" * 2, "f" * 32, "a" * 32)
LAYOUT = Layout(5, ((2, 3), (4,)), "float32")
RANDOM = np.random.default_rng(0)
VALUES = [RANDOM.normal(size=(5, *shape)).astype(np.float32) for shape in LAYOUT.shapes]


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features")


def write(cache: FeatureCache, key: str = KEY, layout: Layout = LAYOUT, values: Any = None, batch: int = 2) -> bool:
    values = VALUES if values is None else values
    with cache.writing(key, layout, "a test") as writer:
        if writer is None:
            return False
        for start in range(0, layout.rows, batch):
            writer.append([value[start : start + batch] for value in values])
    return True


def holds(cache: FeatureCache, key: str = KEY, layout: Layout = LAYOUT, values: Any = None) -> bool:
    features = cache.open(key, layout)
    if features is None:
        return False
    rows = np.array([3, 0, 3])
    taken = features.take(rows)
    features.close()
    for value, expected in zip(taken, VALUES if values is None else values, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[rows])
    return True


def names(cache: FeatureCache) -> list[str]:
    return sorted(os.listdir(cache.folder))


def test_what_was_written_is_read(cache: FeatureCache) -> None:
    assert cache.open(KEY, LAYOUT) is None
    assert not cache.has(KEY)
    assert write(cache)
    assert cache.has(KEY)
    assert holds(cache)
    assert names(cache) == [KEY]
    entry = cache.entries()[0]
    assert (entry.key, entry.about, entry.rows, entry.bytes) == (KEY, "a test", 5, 5 * 10 * 4)
    assert write(cache) is False, "it is there already"


def test_float16_takes_half_the_bytes(cache: FeatureCache) -> None:
    layout = Layout(5, LAYOUT.shapes, "float16")
    assert layout.bytes == LAYOUT.bytes // 2
    write(cache, layout=layout)
    assert sum(file.stat().st_size for file in (cache.folder / KEY).glob("*.bin")) == layout.bytes
    assert holds(cache, layout=layout, values=[value.astype(np.float16).astype(np.float32) for value in VALUES])


def test_float16_refuses_what_it_cannot_hold(cache: FeatureCache) -> None:
    layout = Layout(5, ((2,),), "float16")
    with pytest.raises(OSError, match=r"cache\.dtype=float32"):
        write(cache, layout=layout, values=[np.full((5, 2), 70_000.0, np.float32)])
    assert names(cache) == []
    infinite = np.full((5, 2), np.inf, np.float32)  # that it can
    write(cache, layout=layout, values=[infinite])
    assert holds(cache, layout=layout, values=[infinite])


def test_another_layout_is_another_entry(cache: FeatureCache) -> None:
    write(cache)
    assert cache.open(KEY, Layout(5, ((2, 3), (5,)), "float32")) is None
    assert not cache.has(KEY), "one of the two is wrong: made anew"


def write_half(cache: FeatureCache, *, fails: bool) -> None:
    with cache.writing(KEY, LAYOUT) as writer:
        assert writer is not None
        writer.append([value[:2] for value in VALUES])
        assert cache.open(KEY, LAYOUT) is None
        if fails:
            raise ZeroDivisionError


def test_an_unfinished_entry_is_not_there(cache: FeatureCache) -> None:
    with pytest.raises(ZeroDivisionError):
        write_half(cache, fails=True)
    assert names(cache) == []
    with pytest.raises(RuntimeError, match="2 of 5 rows"):
        write_half(cache, fails=False)
    assert names(cache) == []


# --- damage ----------------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "a bit of the first array": lambda folder: flip_a_bit(folder / "0.bin"),
    "a bit of the last array": lambda folder: flip_a_bit(folder / "1.bin"),
    "truncated": lambda folder: os.truncate(folder / "0.bin", 60),
    "emptied": lambda folder: os.truncate(folder / "1.bin", 0),
    "longer": lambda folder: (folder / "0.bin").open("ab").write(b"\0"),
    "array gone": lambda folder: (folder / "0.bin").unlink(),
    "description cut off": lambda folder: os.truncate(folder / "meta.json", 20),
    "description emptied": lambda folder: (folder / "meta.json").write_text("{}"),
    "description of something": lambda folder: (folder / "meta.json").write_text('{"rows": 5, "crc32": 3}'),
    "description no text": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe\x00"),
    "description gone": lambda folder: (folder / "meta.json").unlink(),
    "lock gone": lambda folder: (folder / "lock").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(cache: FeatureCache, damage: str) -> None:
    said: list[str] = []
    cache = FeatureCache(cache.folder, say=said.append)
    write(cache)
    assert holds(cache)  # and verified: the verdict must not be kept for the changed file
    DAMAGE[damage](cache.folder / KEY)
    assert (cache.damage(KEY) == "") is (damage == "lock gone")
    assert cache.open(KEY, LAYOUT) is None
    assert write(cache)
    assert holds(cache)
    assert names(cache) == [KEY]
    (line,) = said
    assert str(cache.folder / KEY) in line
    assert line.endswith("made anew")


def test_who_reads_a_damaged_entry_keeps_its_files(cache: FeatureCache) -> None:
    write(cache)
    features = cache.open(KEY, LAYOUT)
    assert features is not None
    flip_a_bit(cache.folder / KEY / "1.bin")
    assert cache.open(KEY, LAYOUT) is None
    assert write(cache), "nobody waits for the other reader"
    np.testing.assert_array_equal(features.take(np.arange(5))[0], VALUES[0])


def test_files_are_verified_once_for_each_state(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    write(cache)
    assert holds(cache)
    monkeypatch.setattr(feature_arrays.zlib, "crc32", lambda *_: pytest.fail("read again"))
    assert holds(cache)


# --- several processes -----------------------------------------------------------------------------------------------

WRITER = """
import sys
import numpy as np
from tlearn.train.feature_arrays import Layout
from tlearn.train.feature_cache import FeatureCache
folder, key = sys.argv[1:]
layout = Layout(5, ((2, 3), (4,)), "float32")
random = np.random.default_rng(0)
values = [random.normal(size=(5, *shape)).astype(np.float32) for shape in layout.shapes]
with FeatureCache(folder_path := __import__("pathlib").Path(folder)).writing(key, layout) as writer:
    writer.append([value[:3] for value in values])
    for file in writer._files:
        file.flush()
    print("half", flush=True)
    sys.stdin.readline()
    writer.append([value[3:] for value in values])
"""


@pytest.fixture
def half_written(cache: FeatureCache) -> Any:
    """Start a process that writes half an entry, and the rest when it is told to on its standard input."""
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(cache.folder), KEY]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_killed_writer_leaves_nothing_that_is_read(cache: FeatureCache, half_written: Any) -> None:
    process = half_written()
    assert names(cache) == [f"{KEY}.partial"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cache.open(KEY, LAYOUT) is None
    assert cache.entries() == []
    assert write(cache), "its lock has gone with it"
    assert holds(cache)
    assert names(cache) == [KEY]


def test_what_a_killed_writer_left_is_swept_away(cache: FeatureCache, half_written: Any) -> None:
    process = half_written()
    assert cache.sweep() == 0, "it is still at work"
    process.kill()
    process.wait()
    assert write(cache, OTHER)  # making room sweeps
    assert names(cache) == [OTHER]


def test_a_killed_writer_leaves_its_room_to_the_next(cache: FeatureCache, half_written: Any) -> None:
    cache.max_bytes = LAYOUT.bytes
    process = half_written()
    process.kill()
    process.wait()
    assert write(cache)
    assert holds(cache)


def test_of_two_writers_one_waits_and_reads(cache: FeatureCache, half_written: Any) -> None:
    process = half_written()
    waits = []

    def go_on() -> None:
        if not waits:
            process.stdin.write("\n")
            process.stdin.flush()
        waits.append(names(cache))

    with cache.writing(KEY, LAYOUT, while_waiting=go_on) as writer:
        assert writer is None
    assert waits
    assert process.wait() == 0
    assert holds(cache)
    assert names(cache) == [KEY]


def test_who_waits_can_be_stopped(cache: FeatureCache, half_written: Any) -> None:
    process = half_written()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), cache.writing(KEY, LAYOUT, while_waiting=stop):
        pass
    assert process.poll() is None, "the other one has not ended"


def test_who_waits_for_a_killed_writer_goes_on_itself(cache: FeatureCache, half_written: Any) -> None:
    process = half_written()

    def kill() -> None:
        process.kill()
        process.wait()

    with cache.writing(KEY, LAYOUT, while_waiting=kill) as writer:
        assert writer is not None
        writer.append(VALUES)
    assert holds(cache)


# --- room ------------------------------------------------------------------------------------------------------------


def used_at(cache: FeatureCache, key: str, seconds: float) -> None:
    os.utime(cache.folder / key / "meta.json", (seconds, seconds))


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, max_bytes=2 * LAYOUT.bytes)
    write(cache, KEY)
    write(cache, OTHER)
    used_at(cache, KEY, 1000)
    used_at(cache, OTHER, 2000)
    assert holds(cache, KEY)  # the older one, but used now
    write(cache, THIRD)
    assert names(cache) == [KEY, THIRD]


def test_what_is_in_use_does_not_make_room(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, max_bytes=2 * LAYOUT.bytes)
    write(cache, KEY)
    write(cache, OTHER)
    features = cache.open(KEY, LAYOUT)
    assert features is not None
    used_at(cache, KEY, 1000)
    assert not cache.delete(KEY)
    write(cache, THIRD)
    assert names(cache) == [KEY, THIRD], "the younger one, which nobody used"
    also = cache.open(THIRD, LAYOUT)
    assert also is not None
    with pytest.raises(OSError, match=r"would exceed cache\.max_gb"):
        write(cache, OTHER)
    assert names(cache) == [KEY, THIRD]
    features.close()
    write(cache, OTHER)
    assert names(cache) == [THIRD, OTHER]
    also.close()
    np.testing.assert_array_equal(features.take(np.arange(5))[1], VALUES[1])  # deleted, not taken away


def test_entries_that_are_being_written_count(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, max_bytes=2 * LAYOUT.bytes - 1)
    with cache.writing(KEY, LAYOUT) as first:
        assert first is not None
        with pytest.raises(OSError, match=r"cache\.max_gb"), cache.writing(OTHER, LAYOUT):
            pass
        first.append(VALUES)
    assert names(cache) == [KEY]


def test_a_clock_that_jumps_only_changes_the_order(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, max_bytes=2 * LAYOUT.bytes)
    for key, when in ((KEY, 2**33), (OTHER, 0)):
        write(cache, key)
        used_at(cache, key, when)
    write(cache, THIRD)
    assert names(cache) == [KEY, THIRD]
    assert holds(cache, KEY)


def test_nothing_else_in_the_folder_is_touched(cache: FeatureCache) -> None:
    cache.folder.mkdir()
    for name in ("photos", "photos.partial", "x.deleted-1"):
        (cache.folder / name).mkdir()
        (cache.folder / name / "meta.json").write_text("{}")
    (cache.folder / KEY).write_text("a file")
    cache.max_bytes = LAYOUT.bytes
    write(cache, OTHER)
    cache.sweep()
    assert {"photos", "photos.partial", "x.deleted-1"} < set(names(cache))
    assert [entry.key for entry in cache.entries()] == [OTHER]
    assert write(cache, KEY), "a file of that name is none of ours to keep"
    assert holds(cache)


# --- bad folders -----------------------------------------------------------------------------------------------------


def test_a_full_disk_shows_before_the_work(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"), cache.writing(KEY, LAYOUT):
        pytest.fail("the work began")
    assert names(cache) == []


@pytest.mark.parametrize("reason", [errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_that_cannot_reserve_space_will_do(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    write(cache)
    assert holds(cache)


@pytest.mark.parametrize("folder", ["/dev/null/features", "/proc/features"])
def test_a_folder_that_cannot_be_made_is_an_os_error(folder: str) -> None:
    cache = FeatureCache(Path(folder))
    assert cache.open(KEY, LAYOUT) is None
    assert cache.entries() == []
    with pytest.raises(OSError):
        write(cache)


def test_a_folder_that_may_only_be_read_serves(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    write(cache)
    real_open = os.open

    def read_only(path: Any, flags: int, *rest: Any, **keywords: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, flags, *rest, **keywords)

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "utime", denied)
    monkeypatch.setattr(Path, "rename", denied)
    assert holds(cache)
    assert not cache.delete(KEY)
    flip_a_bit(cache.folder / KEY / "0.bin")
    assert cache.open(KEY, LAYOUT) is None, "damaged, and cannot be deleted"


def test_a_folder_that_vanishes_is_made_again(cache: FeatureCache) -> None:
    write(cache)
    features = cache.open(KEY, LAYOUT)
    assert features is not None
    cache.folder.rename(cache.folder.with_name("elsewhere"))
    np.testing.assert_array_equal(features.take(np.arange(5))[0], VALUES[0])
    assert cache.open(KEY, LAYOUT) is None
    assert write(cache)
    assert holds(cache)


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder(CacheConfig()) == Path("/var/cache/tlearn/features")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder(CacheConfig()) == Path("/home/someone/.cache/tlearn/features")
    assert cache_folder(CacheConfig(dir="~/f")) == Path("/home/someone/f")
    assert cache_folder(CacheConfig(dir="f")) == Path.cwd() / "f"
