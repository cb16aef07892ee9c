"""Runs that keep features end where runs that compute every image every time end."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.train.feature_cache import FeatureCache
from tlearn.train.trainer import Stopped

ROOT = Path(__file__).resolve().parents[2]
PROCESS = os.environ | {"PYTHONPATH": str(ROOT)}  # of other processes
FRESH = ("augment.horizontal_flip.p=0.5", "augment.affine.p=0.7")
SHORT = "schedule.stages.0.epochs=2"
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")

TWO_STAGES = (
    "schedule=two_stage",
    *("schedule.stages.0.epochs=1", "schedule.stages.0.optimizer.learning_rate=0.01"),
    *("schedule.stages.1.epochs=1", "schedule.stages.1.optimizer.learning_rate=0.1"),
)
UP_AND_DOWN = (  # trains a part of what the last stage freezes, and of what the first froze
    "schedule.stages=["
    "{name: head, unfreeze: none, epochs: 1},"
    "{name: low, unfreeze: {layers: low_.*}, epochs: 1, optimizer: {name: sgd, learning_rate: 0.1}},"
    "{name: again, unfreeze: none, epochs: 2},"
    "{name: top, unfreeze: {last_blocks: 1}, epochs: 1}]",
)
FORGETFUL = (  # the last stage's features depend on what the first trained
    "schedule.stages=["
    "{name: all, unfreeze: all, epochs: 1, batch_norm: train, optimizer: {name: sgd, learning_rate: 0.1}},"
    "{name: head, unfreeze: none, epochs: 3}]",
)


def off(overrides: tuple[str, ...]) -> tuple[str, ...]:
    return (*overrides, "cache.mode=off")


# --- every schedule, every family ------------------------------------------------------------------------------------

FAMILIES = {  # one network of each, at the least size it takes
    "mobilenet": (32, 0.25),
    "mobilenet_v2": (32, 0.35),
    "vgg16": (32, None),
    "resnet50": (32, None),
    "densenet121": (32, None),
    "nasnet_mobile": (32, None),
    "xception": (71, None),
    "inception_v3": (75, None),
    "inception_resnet_v2": (75, None),
}
QUICK = ("mobilenet", "mobilenet_v2", "vgg16", "resnet50")
STAGES = {"frozen": 1, "two_stage": 2, "gradual": 4, "full": 2}
FEW = "data.options={count: 15}"  # pictures, 12 of them to train on: two steps an epoch
PASSES = {"frozen": 1, "two_stage": 1, "gradual": 1, "full": 1 + 2}  # over the images; two epochs compute everything


@pytest.fixture
def settled(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """``settled("resnet50")``: overrides for a backbone whose random weights give features of ordinary size.

    Fresh batch norms do nothing in inference, and features of twenty layers of random convolutions are nearly nothing.
    """
    import keras

    from tlearn.backbones import build_backbone, save_weights_npz

    def settle(name: str) -> tuple[str, ...]:
        side, alpha = FAMILIES[name]
        keras.utils.set_random_seed(1)
        backbone = build_backbone(name, weights=None, image_size=side, alpha=alpha)
        for layer in backbone.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        images = np.random.default_rng(2).integers(0, 256, (16, side, side, 3)).astype(np.float32)
        backbone.model()(images, training=True)
        save_weights_npz(tmp_path / "settled.npz", backbone.layers)
        weights = f"backbone.weights={tmp_path / 'settled.npz'}"
        return (f"backbone.name={name}", f"backbone.image_size={side}", f"backbone.alpha={alpha or 'null'}", weights)

    return settle


@pytest.fixture
def one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs of a test are of one network, which goes back to its first weights, and save none: both take longest."""
    from tlearn.train import checkpoint, classifier

    build, built = classifier.build_classifier, []

    def once(*args: Any, **keywords: Any) -> Any:
        if not built:
            made = build(*args, **keywords)
            built.extend((made, made.model.get_weights()))
        made, weights = built
        made.model.set_weights(weights)
        return made

    monkeypatch.setattr(classifier, "build_classifier", once)
    monkeypatch.setattr(checkpoint, "save", lambda *_: None)


def assert_equivalent(train: Callable[..., Any], overrides: tuple[str, ...], eagerly: bool = True) -> Any:
    """Train both ways; give back the run that kept features."""
    cached = train(*overrides, eagerly=eagerly)
    streamed = train(*off(overrides), eagerly=eagerly)
    assert any(stage.features.cached for stage in cached.plan.stages)
    assert not any(stage.features.cached for stage in streamed.plan.stages)
    for stage in cached.plan.stages:
        assert cached.moved(stage.variables) > 1e-4, "the comparison would find nothing"
    print(" ".join(text for text in overrides if text.startswith(("backbone.name=", "schedule="))), end=": ")
    assert cached.furthest_from(streamed) <= 1e-6
    return cached


def shipped(schedule: str, rate: float, epochs: int = 1) -> tuple[str, ...]:
    """A schedule of ours, shortened, with a rate for all stages but the head's that moves weights far in few steps."""
    settings = [f"schedule={schedule}"]
    for index in range(STAGES[schedule]):
        settings.append(f"schedule.stages.{index}.epochs={epochs}")
        settings.append(f"schedule.stages.{index}.optimizer.learning_rate={rate if index else 0.01:f}")
    return tuple(settings)


@pytest.mark.usefixtures("one_network")
@pytest.mark.parametrize("schedule", STAGES)
def test_every_schedule_on_mobilenet(train: Callable[..., Any], schedule: str) -> None:
    """Largest difference of any weight after two epochs in each stage: at most 1e-6; measured: 0."""
    mobilenet = ("backbone.name=mobilenet", "backbone.weights=glyphs", "backbone.alpha=0.25", FEW)
    cached = assert_equivalent(train, (*mobilenet, *shipped(schedule, 0.01, epochs=2)))
    assert cached.passes == 1
    assert cached.plan.passes == PASSES[schedule]


@pytest.mark.usefixtures("one_network")
def test_two_stages_on_mobilenet_v2(train: Callable[..., Any], settled: Callable[..., tuple[str, ...]]) -> None:
    """As below, in the quick round: the other family that lasts seconds."""
    assert_equivalent(train, (*settled("mobilenet_v2"), *shipped("two_stage", 0.0005), FEW))


@pytest.mark.slow
@pytest.mark.usefixtures("one_network")
@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_schedules_on_every_family(
    train: Callable[..., Any], settled: Callable[..., tuple[str, ...]], name: str
) -> None:
    """Largest difference of any weight at the end of a run: at most 1e-6; measured: 0.

    All schedules on the small networks; on the others, for time's sake, the one that has the frontiers of all.
    """
    rate = 0.00001 if name == "inception_v3" else 0.0005  # without learned weights more would overflow
    network = settled(name)
    for schedule in STAGES if name in QUICK else ("gradual",):
        shortened = shipped(schedule, rate, epochs=2 if schedule == "full" else 1)  # it warms up for one
        cached = assert_equivalent(train, (*network, *shortened, FEW))
        assert cached.plan.passes == PASSES[schedule]


def test_with_compiled_steps(train: Callable[..., Any]) -> None:
    """The other comparisons run without graphs, which take longer to make; measured: 0 here too."""
    assert_equivalent(train, TWO_STAGES, eagerly=False)


# --- the tiny network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [UP_AND_DOWN, FORGETFUL], ids=["up and down", "forgetful"])
def test_stages_that_change_what_others_freeze(train: Callable[..., Any], schedule: tuple[str, ...]) -> None:
    """Features are made of the weights that a stage begins with, not of those that the run began with."""
    cached = train(*schedule)
    streamed = train(*off(schedule))
    assert cached.furthest_from(streamed) < 1e-5
    made_in = [stage.features.made_in for stage in cached.plan.stages]
    assert made_in == ([0, None, 2, 2] if schedule is UP_AND_DOWN else [None, 1])
    assert cached.passes == (2 if schedule is UP_AND_DOWN else 1)


@pytest.mark.parametrize("views", [1, 2])
def test_views_are_those_of_the_streamed_run(train: Callable[..., Any], views: int) -> None:
    """With as many versions of each image, from the same seed: largest difference below 1e-5."""
    overrides = (*FRESH, f"cache.views={views}", "schedule.stages.0.epochs=4")
    cached, streamed = train(*overrides), train(*off(overrides))
    assert cached.plan.stages[0].features.views == views
    assert cached.plan.passes == views
    assert cached.furthest_from(streamed) < 1e-5
    other = train(*FRESH, f"cache.views={views + 1}", "schedule.stages.0.epochs=4")
    assert cached.furthest_from(other) > 1e-4, "the views differ from each other"


def test_weights_of_classes_and_several_labels(train: Callable[..., Any]) -> None:
    overrides = ("loss.class_weights=balanced", "head.classes=5", "schedule.stages.0.epochs=2")
    assert train(*overrides).furthest_from(train(*off(overrides))) < 1e-5


def test_dropout_in_the_head_goes_on(train: Callable[..., Any]) -> None:
    overrides = ("head.name=mlp", "head.units=[8]", "head.dropout=0.5", "schedule.stages.0.epochs=2")
    assert train(*overrides).furthest_from(train(*off(overrides))) < 1e-5


def test_float16_is_near(train: Callable[..., Any]) -> None:
    half = train("cache.dtype=float16", "schedule.stages.0.epochs=2")
    exact = train("schedule.stages.0.epochs=2")
    assert half.plan.stages[0].features.bytes * 2 == exact.plan.stages[0].features.bytes
    assert 0 < half.furthest_from(exact) < 1e-3


def test_mixed_precision(train: Callable[..., Any]) -> None:
    overrides = ("precision=mixed_bfloat16", "schedule=two_stage", "schedule.stages.0.epochs=1")
    overrides = (*overrides, "schedule.stages.1.epochs=1", "schedule.stages.1.unfreeze={last_blocks: 1}")
    cached, streamed = train(*overrides), train(*off(overrides))
    assert cached.passes == 1
    assert cached.furthest_from(streamed) < 1e-2  # 8 bits of precision in the top block


def test_executions_of_many_steps_end_where_somebody_wants_to_know(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small steps go many into one execution, and their number changes nothing."""
    from tlearn.train import loop

    ends: list[list[int]] = []
    run = loop.Loop.run

    def noted(self: Any, start: int, stop_at: Any) -> Any:
        ends.append([])
        for step, logs in run(self, start, stop_at):
            ends[-1].append(step)
            yield step, logs

    monkeypatch.setattr(loop.Loop, "run", noted)
    overrides = ("data.batch_size=1", "schedule.stages.0.epochs=2", "log.every=5", "checkpoint.every.steps=8")
    monkeypatch.setattr(loop, "_EXECUTION_SECONDS", 0.0)
    expected = train(*overrides, eagerly=False)
    monkeypatch.setattr(loop, "_EXECUTION_SECONDS", 1e9)
    made = train(*overrides, eagerly=False)
    logged, saved, epochs = range(5, 37, 5), range(8, 37, 8), (18, 36)
    apart = (1, 17, 35)  # the first, to see how long a step takes; and the last batch of an epoch may be a smaller one
    assert ends == [list(range(1, 37)), sorted({*logged, *saved, *epochs, *apart})]
    assert made.furthest_from(expected) == 0
    assert [line["step"] for line in made.run.metrics if line["event"] == "step"] == list(logged)


def test_the_number_of_steps_read_at_once_changes_nothing(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlearn.train import streams

    overrides = ("schedule.stages.0.epochs=5", "data.batch_size=4")  # the last batch of each epoch is smaller
    expected = train(*overrides)
    monkeypatch.setattr(streams, "_CHUNK_STEPS", 3)
    assert train(*overrides).furthest_from(expected) == 0
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 1)
    assert train(*overrides).furthest_from(expected) == 0


# --- used again ------------------------------------------------------------------------------------------------------


def test_another_run_uses_them_again(train: Callable[..., Any], tmp_path: Path) -> None:
    first = train("cache.dir=kept", SHORT)
    assert first.passes == 1
    assert (tmp_path / "kept").is_dir(), "a relative folder starts where the command does"
    second = train("cache.dir=kept", SHORT, "head.dropout=0.5", "optimizer.name=sgd", "data.batch_size=5")
    assert second.passes == 0
    assert "features are in the cache" in second.said
    assert train("cache.dir=other", SHORT).passes == 1


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "0.bin").read_bytes())
    data[100] ^= 64
    (folder / "0.bin").write_bytes(data)


def test_damaged_features_are_made_anew(train: Callable[..., Any]) -> None:
    expected = train("cache.dir=kept", SHORT)
    damages: tuple[Callable[[Path], Any], ...] = (
        flip_a_bit,
        lambda folder: os.truncate(folder / "0.bin", 60),
        lambda folder: (folder / "0.bin").unlink(),
        lambda folder: os.truncate(folder / "meta.json", 20),
    )
    for damage in damages:
        largest = max(Path("kept").glob("*/0.bin"), key=lambda file: file.stat().st_size)  # of the training images
        damage(largest.parent)
        again = train("cache.dir=kept", SHORT)
        assert again.passes == 1
        assert again.furthest_from(expected) == 0


def test_a_pass_over_the_images_shows_how_far_it_is(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tlearn.train.console import Terminal

    shown: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Terminal, "start_epoch", lambda self, label, steps, done: shown.append((label, steps)))
    monkeypatch.setattr(Terminal, "step", lambda self, done, note: shown.append((done,)))
    train(*FRESH, "cache.views=3", "schedule.stages.0.epochs=1")  # 18 images, in batches of at most 32
    assert shown[:6] == [("features of train images", 3), (1,), (2,), (3,), ("features of val images", 1), (1,)]


def test_what_was_used_longest_ago_makes_room(train: Callable[..., Any]) -> None:
    size = train(SHORT).plan.stages[0].features.bytes
    first, second, third = (f"data.resize={way}" for way in ("crop", "stretch", "pad"))

    def passes(resize: str) -> int:
        room_for_two = ("cache.dir=kept", f"cache.max_gb={2.5e-9 * size}")
        made: int = train(*room_for_two, resize, SHORT).passes
        return made

    assert [passes(resize) for resize in (first, second, first, third)] == [1, 1, 0, 1]
    assert [passes(resize) for resize in (first, second)] == [0, 1], "the third took the room of the second"


MAKER = """
import contextlib, json, sys
from pathlib import Path
import numpy as np
from tlearn.train.feature_cache import FeatureCache, Layout
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
    assert run.passes == (2 if used else 1)
    assert run.furthest_from(expected) == 0


def test_a_disk_that_fills_up_half_way(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tlearn.train.feature_cache import Writer

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


# --- stopped and resumed ---------------------------------------------------------------------------------------------


def stopped(train: Callable[..., Any], *overrides: str, should_stop: Callable[[], bool]) -> Path:
    with pytest.raises(Stopped) as caught:
        train(*overrides, should_stop=should_stop)
    return Path(caught.value.run)


@pytest.mark.parametrize("schedule", [UP_AND_DOWN, FORGETFUL], ids=["up and down", "forgetful"])
def test_resumed_inside_a_cached_stage(train: Callable[..., Any], schedule: tuple[str, ...]) -> None:
    """To the same weights, bit for bit, though the weights that the features are made of were trained before."""
    every_step = (*schedule, "log.every=1", "cache.dir=kept")
    expected = train(*every_step)
    for step, forgets in ((expected.plan.stages[0].steps + 1, False), (expected.plan.steps - 2, True)):
        path = stopped(train, *every_step, should_stop=at_step(step))
        if forgets:
            shutil.rmtree("kept")
        resumed = train(*every_step, resume=path)
        assert resumed.furthest_from(expected) == 0


def at_step(step: int) -> Callable[[], bool]:
    """Says stop once the newest run has recorded a global step."""

    def asked() -> bool:
        newest = max(Path().glob("run*"), key=lambda path: int(path.name[3:]))
        lines = (newest / "metrics.jsonl").read_text() if (newest / "metrics.jsonl").is_file() else ""
        return f'"global_step": {step},' in lines

    return asked


def test_stopped_while_features_are_made(train: Callable[..., Any]) -> None:
    expected = train(SHORT)
    path = stopped(train, "cache.dir=kept", SHORT, should_stop=lambda: True)
    assert list(Path("kept").iterdir()) == []
    resumed = train("cache.dir=kept", SHORT, resume=path)
    assert resumed.passes == 2, "one of them was stopped"
    assert resumed.furthest_from(expected) == 0


@pytest.mark.slow
def test_resumed_where_features_cannot_be_kept(train: Callable[..., Any]) -> None:
    """The optimizer's state fits the whole model as well as the suffix."""
    schedule = ("schedule.stages.0.unfreeze={last_blocks: 2}", "schedule.stages.0.epochs=4", "log.every=1")
    expected = train(*schedule)
    path = stopped(train, *schedule, "cache.dir=kept", should_stop=at_step(6))
    shutil.rmtree("kept")
    Path("kept").write_text("no folder")
    resumed = train(*schedule, "cache.dir=kept", resume=path)
    assert "features cannot be kept" in resumed.said
    assert resumed.furthest_from(expected) < 1e-5
