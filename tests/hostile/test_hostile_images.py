"""Hostile image files: each is read, or refused with a reason; none crashes, hangs or takes the machine's memory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hostile import images
from tlearn.config import Check, DataConfig, OnError
from tlearn.data import Data, UnreadableImage, load_data
from tlearn.data.decode import decode, regular_size, resize

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in two class folders, among good pictures."""
    top = tmp_path_factory.mktemp("corpus")
    images.make(top / "odd")
    (top / "good").mkdir()
    for index in range(20):
        noise = np.random.default_rng(index).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(top / "good" / f"{index}.png")
        Image.fromarray(255 - noise).save(top / "odd" / f"{index}.png")
    return top


@pytest.fixture(scope="module")
def data(folder: Path) -> Data:
    config = DataConfig(name="folder", path=str(folder), on_error=OnError.skip, max_pixels=images.MAX_PIXELS)
    return load_data(config, image_size=32, seed=0)


@pytest.mark.parametrize("name", images.CASES, ids=lambda name: ascii(name)[1:40])
def test_each_is_read_or_refused_with_a_reason(name: str, data: Data, folder: Path) -> None:
    reasons = {Path(entry.path).name: entry.reason for entry in data.report.unreadable}
    expected = images.CASES[name][1]
    if expected is images.READ:
        assert name not in reasons
        pixels = decode(folder / "odd" / name, max_pixels=images.MAX_PIXELS)
        assert (pixels.ndim, pixels.dtype) == (3, np.uint8)
        assert resize(pixels, 32).shape == (32, 32, 3)
    elif expected:
        assert expected in reasons[name]
        with pytest.raises(UnreadableImage):
            decode(folder / "odd" / name, max_pixels=images.MAX_PIXELS)


def test_the_corpus_is_large_enough() -> None:
    assert len(images.CASES) >= 60


def test_headers_are_enough_to_refuse_what_is_too_large(folder: Path) -> None:
    config = DataConfig(name="folder", path=str(folder), check=Check.header, max_pixels=images.MAX_PIXELS)
    with pytest.raises(Exception, match="images cannot be used") as caught:
        load_data(config, image_size=32, seed=0)
    assert "bomb" in str(caught.value)


@pytest.mark.parametrize("name", ["pipe.jpg", "socket.jpg", "device.jpg"])
def test_what_is_no_file_is_never_opened(name: str, folder: Path) -> None:
    with pytest.raises(UnreadableImage, match="is not a regular file"):
        regular_size(folder / "odd" / name)
    with pytest.raises(UnreadableImage, match="is not a regular file"):
        decode(folder / "odd" / name, max_pixels=images.MAX_PIXELS)


def test_what_takes_the_name_of_an_image_meanwhile_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a name and its opening a pipe gets there: reading it would wait for ever."""
    path = tmp_path / "x.png"
    path.write_bytes(images.PNG)
    real = os.stat

    def swapped(name: Any, **options: Any) -> os.stat_result:
        status = real(name, **options)
        if name == path and stat.S_ISREG(status.st_mode):
            path.unlink()
            os.mkfifo(path)
        return status

    monkeypatch.setattr(os, "stat", swapped)
    with pytest.raises(UnreadableImage, match="is not a regular file"):
        decode(path, max_pixels=images.MAX_PIXELS)


_CUT_WHILE_READ = """
import os, sys
from PIL import ImageFile
from tlearn.data.decode import decode
load = ImageFile.ImageFile.load
def load_and_cut(image):
    loaded = load(image)
    os.truncate(sys.argv[1], 100)
    return loaded
ImageFile.ImageFile.load = load_and_cut
print(decode(sys.argv[1], max_pixels=10**9).sum())
"""


def test_an_image_that_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    """Mapped into memory, as Pillow does with a grey bitmap that has a name, it would end the process (SIGBUS)."""
    Image.new("L", (2000, 1000), 7).save(tmp_path / "x.bmp")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _CUT_WHILE_READ, str(tmp_path / "x.bmp")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, f"{2000 * 1000 * 3 * 7}\n"), done.stderr


def test_messages_cannot_command_the_terminal(data: Data) -> None:
    said = "\n".join(data.warnings())
    assert "\\x1b]0;owned\\x07" in said
    assert "\x1b" not in said
    assert said.encode(), "no lone surrogates either"


# Not getrusage: its largest size is that of the parent, where that was larger when it forked.
_PEAK = """
import re, sys
from pathlib import Path
from tlearn.config import DataConfig, OnError
from tlearn.data import load_data
config = DataConfig(name="folder", path=sys.argv[1], on_error=OnError.skip)
load_data(config, image_size=32, seed=0)
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def test_the_corpus_takes_little_memory(folder: Path) -> None:
    """With the default limit of pixels; a bomb of any kind would take gigabytes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _PEAK, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 500, f"{done.stdout.strip()} MB"
