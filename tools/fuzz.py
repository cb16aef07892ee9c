"""Turn bytes in images, experiments and tables for some time: python -m tools.fuzz [SECONDS] [SEED].

What is found, any exception but ours, is printed with the bytes that cause it; it belongs into ``tests/hostile``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from tlearn.data.decode import UnreadableImage, decode
from tlearn.data.tabular import index_table
from tlearn.errors import DataError, UserError
from tlearn.experiments import read_experiment

_MAX_PIXELS = 250_000


def open_image(content: bytes) -> None:
    """Decode bytes; anything but an image or ``UnreadableImage`` is a finding."""
    with suppress(UnreadableImage):
        pixels = decode(content, max_pixels=_MAX_PIXELS)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def read_experiment_bytes(content: bytes, folder: Path) -> None:
    """Read bytes as an experiment; anything but a mapping or a message is a finding."""
    path = folder / "fuzzed.yaml"
    path.write_bytes(content)
    with suppress(UserError):
        assert isinstance(read_experiment(path), dict)


def read_table(content: bytes, folder: Path, suffix: str) -> None:
    """Read bytes as a table; anything but columns or a message is a finding."""
    path = folder / f"fuzzed{suffix}"
    path.write_bytes(content)
    with suppress(DataError):
        index_table(path, max_pixels=_MAX_PIXELS)


def changed(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes turned, cut out, doubled or cut off, a few times."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 12))):
        at, length = (int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 9)))
        match int(rng.integers(4)):
            case 0:
                data[at : at + length] = rng.bytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + 8 * length]
            case 3:
                data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
    return bytes(data)


def tables(folder: Path) -> list[tuple[bytes, str]]:
    """A small table in each format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": ["0.png", "1.png"] * 9, "label": ["a", "b"] * 9}), folder / "good.parquet")
    return [(b"path,label\n0.png,a\n1.png,b\n" * 3, ".csv"), ((folder / "good.parquet").read_bytes(), ".parquet")]


def run(
    pictures: Sequence[bytes], experiments: Sequence[bytes], folder: Path, *, seconds: float, rng: np.random.Generator
) -> int:
    """Fuzz for some time. Returns the number of inputs; a finding keeps its exception, with the bytes in a note."""
    end, count, good = time.monotonic() + seconds, 0, tables(folder)
    while time.monotonic() < end:
        picture = changed(pictures[int(rng.integers(len(pictures)))], rng)
        experiment = changed(experiments[int(rng.integers(len(experiments)))], rng)
        table, suffix = good[int(rng.integers(len(good)))]
        table = changed(table, rng)
        for content, attempt in (
            (picture, partial(open_image, picture)),
            (experiment, partial(read_experiment_bytes, experiment, folder)),
            (table, partial(read_table, table, folder, suffix)),
        ):
            try:
                attempt()
            except Exception as error:
                error.add_note(f"input: {content!r}")
                raise
            count += 1
    return count


def main() -> None:
    """Fuzz the corpus of the tests."""
    from tests.hostile import images
    from tests.hostile.test_hostile_yaml import CASES

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 2**32
    pictures = [content for content, _ in images.CASES.values() if isinstance(content, bytes) and len(content) < 20_000]
    texts = [text.encode() if isinstance(text, str) else text for text, _ in CASES.values() if len(text) < 2000]
    print(f"seed {seed}, {seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        count = run(pictures, texts, Path(folder), seconds=seconds, rng=np.random.default_rng(seed))
    print(f"{count} inputs, no finding")


if __name__ == "__main__":
    main()
