"""What the plan says about features, before anything is computed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.features.conftest import SHORT, TINY
from tlearn.data import ArraySource
from tlearn.plan import main
from tlearn.train.api import prepare
from tlearn.train.console import plan_table
from tlearn.train.plan import Plan

FLIPPED = "augment.horizontal_flip.p=0.5"
TWO_STAGES = ("schedule=two_stage", "schedule.stages.1.unfreeze={last_blocks: 1}")  # of the three that tiny has


@pytest.fixture
def plan(tiny_config: Callable[..., Any]) -> Callable[..., Plan]:
    return lambda *overrides: prepare(tiny_config(*overrides)).plan


def shown(plan: Plan) -> list[str]:
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_table(plan))
    return console.export_text().splitlines()


def test_stages_and_passes(plan: Callable[..., Plan]) -> None:
    made = plan(*TWO_STAGES)
    head, top = (stage.features for stage in made.stages)
    assert (head.tensors, head.shapes, head.bytes_per_image) == (("head_pool 16",), ((16,),), 64)
    assert head.bytes == 64 * 24
    assert (top.tensors, top.bytes_per_image) == (("mid_relu 8x8x8",), 8 * 8 * 8 * 4)
    assert (head.made_in, top.made_in) == (0, 0)
    assert (made.passes, made.epochs) == (1, 20)
    lines = shown(made)
    assert all(len(line.rstrip()) <= 80 for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "head computes head_pool 16 once: 1.5 kB, 64 bytes an image in float32" in text
    assert "top computes mid_relu 8x8x8 once, together with head: 49.2 kB, 2,048 bytes an image in float32" in text
    assert "passes over the training images: 1 instead of 20" in text


@pytest.mark.parametrize(
    ("overrides", "reason", "passes"),
    [
        (["cache.mode=off"], "cache.mode=off", 20),
        ([FLIPPED], "fresh augmentation (cache.views=null)", 20),
        (["augment.mixup=0.2"], "batches are mixed as pixels", 20),
        (["augment.cutmix=1"], "batches are mixed as pixels", 20),
        (["augment.rand_augment.p=1", "cache.views=2"], "batches are mixed as pixels", 20),
        (["schedule.stages.0.unfreeze=all"], "no layer is frozen", 20),
        (["cache.max_gb=0.000000001"], "1.54e-06 GB are more than cache.max_gb=1e-09", 20),
        ([FLIPPED, "cache.views=3"], "3 versions of each training image", 3),
        (["cache.views=3"], "1 version of each training image", 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_reasons(plan: Callable[..., Plan], overrides: list[str], reason: str, passes: int) -> None:
    made = plan(*overrides)
    features = made.stages[0].features
    assert features.reason == reason
    assert features.cached is (passes < 20)
    assert made.passes == passes
    text = " ".join(" ".join(shown(made)).split())
    changed = reason in ("fresh augmentation (cache.views=null)", "batches are mixed as pixels")
    images = "all training images" if changed else "all images"
    streamed = f"computes {images} in each epoch: {reason}; 20 passes over 55.3 kB of pixels"
    assert (streamed in text) is not features.cached
    assert ("; head_pool 16 of the validation images once: 384 bytes in float32" in text) is changed
    saved = " instead of 20, prefix engine graph" if passes < 20 else ""
    assert text.endswith(f"passes over the training images: {passes}{saved}") or "note:" in text


def test_a_source_that_cannot_tell_is_streamed(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ArraySource, "fingerprint")
    features = plan().stages[0].features
    assert features.reason == "data.name=blotches cannot tell whether its images changed"


def test_the_second_of_two_equal_stages_costs_nothing(plan: Callable[..., Plan]) -> None:
    stages = "schedule.stages=[{name: one, epochs: 2}, {name: two, epochs: 3}]"
    made = plan(stages, "cache.max_gb=0.0000016")  # room for the features of one
    assert [stage.features.made_in for stage in made.stages] == [0, 0]
    assert (made.passes, made.epochs) == (1, 5)


VGG = ("backbone.name=vgg16", "backbone.image_size=32", "deterministic=true", "xla=on")


def test_xla_where_it_cannot_repeat_is_refused_before_the_first_step(plan: Callable[..., Plan]) -> None:
    from tlearn.errors import ConfigError

    assert plan(*VGG).stages[0].features.cached, "the pooling layers are below what trains"
    with pytest.raises(ConfigError, match=r"(?s)xla.*max pooling.*block5_pool.*deterministic=false"):
        plan(*VGG, "schedule.stages.0.unfreeze={last_blocks: 1}")
    with pytest.raises(ConfigError, match=r"schedule\.stages\.0\.xla"):
        plan(*VGG, "xla=off", "schedule.stages.0.unfreeze={last_blocks: 1}", "schedule.stages.0.xla=on")
    assert plan(*VGG, "deterministic=false", "schedule.stages.0.unfreeze={last_blocks: 1}")


# --- what the cache has already --------------------------------------------------------------------------------------


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``printed("seed=2")``: what ``python -m tlearn.plan`` prints of a run's features in the cache ``kept``."""

    def printed(*overrides: str) -> str:
        capsys.readouterr()
        assert main([*TINY, "cache.dir=kept", *overrides]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line.rstrip()) <= 80 for line in lines)
        return " ".join(" ".join(lines).split())

    return printed


def unbroken(text: str) -> str:
    """The text without its spaces: a path longer than a line is broken anywhere."""
    return "".join(text.split())


def test_the_plan_tells_what_is_in_the_cache(
    train: Callable[..., Any], printed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "head 0 of 18 train images, 0 of 6 val: 1 pass" in printed()
    assert not Path("kept").exists()
    train("cache.dir=kept", SHORT)
    train_entry, val_entry = sorted(Path("kept").iterdir(), key=lambda entry: -(entry / "0.bin").stat().st_size)
    for entry in (train_entry, val_entry):
        os.utime(entry / "meta.json", (1000, 1000))
    before = seen(Path("kept"))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: pytest.fail("locked"))
        patch.setattr(ArraySource, "read", lambda *_: pytest.fail("read an image"))
        told = printed(*TWO_STAGES)
    assert unbroken(f"features in the cache {Path('kept').absolute()}:") in unbroken(told)
    assert "head 18 of 18 train images, 6 of 6 val: no pass over the images" in told
    assert "top 0 of 18 train images, 0 of 6 val: 1 pass" in told
    assert seen(Path("kept")) == before, "looking is no use"
    assert "head 0 of 18 train images, 6 of 6 val: 3 passes" in printed(FLIPPED, "cache.views=3")

    shutil.rmtree(val_entry)
    assert "head 18 of 18 train images, 0 of 6 val: one pass over the val images" in printed()
    os.truncate(train_entry / "0.bin", 60)
    assert "head 0 of 18 train images, 0 of 6 val: 1 pass" in printed()


def test_a_folder_that_takes_nothing_is_no_matter_where_all_is_there(
    train: Callable[..., Any], printed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("cache.dir=kept", SHORT)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "no features can be kept" not in printed()
    assert "no features can be kept" in printed("seed=2")


def test_what_will_make_room_is_said_before(train: Callable[..., Any], printed: Callable[..., str]) -> None:
    train("cache.dir=kept", SHORT)
    told = printed("seed=2", "cache.max_gb=0.000003")
    assert "note: 1.5 kB of features are to be made beside 1.5 kB in the cache, more than cache.max_gb=3e-06:" in told
    assert "are to be made" not in printed("seed=2", "cache.max_gb=0.0000031"), "there is room for 3,072 bytes"
    assert "are to be made" not in printed("cache.max_gb=0.000003"), "they are there"


def seen(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_features_above_trained_layers_show_later(printed: Callable[..., str]) -> None:
    """Those of the middle block change in the first stage; of the last, nothing that they are made of does."""
    unfrozen = {"mid": "{layers: mid_conv}", "head": "none", "top": "{last_blocks: 2}"}
    stages = [f"{{name: {name}, epochs: 1, unfreeze: {selector}}}" for name, selector in unfrozen.items()]
    told = printed(f"schedule.stages=[{', '.join(stages)}]")
    assert "mid 0 of 18 train images, 0 of 6 val: 1 pass" in told
    assert "head shows once earlier stages have trained what is below its features: at most 1 pass" in told
    assert "top 0 of 18 train images, 0 of 6 val: made in the pass of mid" in told


@pytest.mark.parametrize(
    ("check", "says"),
    [("auto", "the run does that first"), ("none", "data.check=none: the run will not look either")],
)
def test_images_are_not_opened(printed: Callable[..., str], tmp_path: Path, check: str, says: str) -> None:
    for name in "abcdefgh":
        (tmp_path / "files" / "ab"[name > "d"]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / "ab"[name > "d"] / f"{name}.jpg").write_bytes(b"no photograph")
    files = ("data.name=folder", "data.path=files", "data.val_fraction=0.5", f"data.check={check}")
    told = printed(*files)
    assert f"note: whether the images can be read was not checked; {says}" in told
    assert "not checked" not in printed(), "those in memory need no check"
    streamed = printed(*files, "cache.mode=off")
    assert "cache.mode=off; 20 passes over 52 bytes of files" in streamed, "four of thirteen"
    in_memory = printed(*files, "cache.mode=off", "data.cache=memory")
    assert "cache.mode=off; 20 passes over 12.3 kB of pixels, decoded once" in in_memory


def test_what_costs_more_than_it_saves_is_said(
    printed: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "passes over the training images: 30, more than the 20 epochs: fewer" in printed(FLIPPED, "cache.views=30")
    assert "more than" not in printed(FLIPPED, "cache.views=20")
    (tmp_path / "a-:cat:-file").touch()
    for folder in ("a-:cat:-file", "a-:cat:-file/kept"):
        told = printed(f"cache.dir={folder}")
        assert unbroken(f"note: {tmp_path / 'a-:cat:-file'} is no folder: no features can be kept") in unbroken(told)
        assert "no folder" not in printed(f"cache.dir={folder}", "cache.mode=off")
    assert "may not be written to" not in printed("cache.dir=kept")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    told = printed("cache.dir=kept")
    assert unbroken(f"note: {tmp_path} may not be written to: no features can be kept") in unbroken(told)


def test_programs_read_what_is_in_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "cache.dir=kept", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cache"] == {
        "folder": str(Path("kept").absolute()),
        "stages": [{"stage": "head", "train": False, "val": False, "made_in": 0, "passes": 1}],
        "bytes": 0,
        "missing_bytes": told["stages"][0]["features"]["bytes"],
    }
    assert main([*TINY, "cache.mode=off", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cache"]["stages"] == []
