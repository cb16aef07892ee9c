"""Groups, presets and experiments: from a few words to a whole config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tlearn.compose import experiments, load_config, preset
from tlearn.config import Config, Normalization
from tlearn.errors import ConfigError
from tlearn.plan import main as plan_main
from tlearn.train.command import main

Write = Callable[[str, str], Path]


def test_the_command_of_the_card() -> None:
    config = load_config(["backbone=inception_v3", "head.classes=200"])
    assert (config.backbone.name, config.backbone.weights) == ("inception_v3", "imagenet")
    assert config.backbone.image_size == 299
    assert config.head.classes == 200


def test_the_default_run_needs_no_network_and_no_files() -> None:
    config = load_config()
    assert (config.backbone.name, config.backbone.weights, config.backbone.alpha) == ("mobilenet", "glyphs", 0.25)
    assert config.data.name == "digits"


def test_a_group_sets_many_keys_and_single_keys_win() -> None:
    config = load_config(["schedule=two_stage", "schedule.stages.1.epochs=3", "augment=light", "augment.mixup=0.1"])
    assert [stage.epochs for stage in config.schedule.stages] == [10, 3]
    assert config.schedule.stages[1].optimizer.momentum == 0.9
    assert config.augment.horizontal_flip.p == 0.5
    assert config.augment.mixup == 0.1


def test_a_choice_leaves_nothing_of_the_default_choice() -> None:
    assert load_config(["backbone=vgg16"]).backbone.alpha is None
    assert load_config(["optimizer=adagrad"]).optimizer.name == "adagrad"
    assert len(load_config(["schedule=gradual"]).schedule.stages) == 4


@pytest.mark.parametrize("group", ["backbone", "head", "data", "augment", "optimizer", "schedule"])
def test_presets_are_what_the_command_line_composes(group: str) -> None:
    from tlearn.paths import shipped

    for path in (shipped("configs") / group).glob("*.yaml"):
        extra = ["data.path=x"] if path.stem in ("folder", "table") else []
        composed = getattr(load_config([f"{group}={path.stem}", *extra]), group)
        made = preset(group, path.stem)
        if extra:
            made.path = "x"
        assert made == composed, path
        assert made.name == ("mobilenet" if path.stem == "embedded" else path.stem)


def test_a_config_is_made_of_presets() -> None:
    config = Config(schedule=preset("schedule", "two_stage"), head=preset("head", "mlp"))
    assert config.schedule.stages[1].unfreeze == {"last_blocks": 2}
    assert config.head.units == [1024]
    config.schedule.stages[0].epochs = 1
    assert preset("schedule", "two_stage").stages[0].epochs == 10


@pytest.mark.parametrize(
    ("group", "name", "hint"),
    [("schedul", "two_stage", "did you mean schedule"), ("schedule", "twostage", "did you mean two_stage")],
)
def test_unknown_presets_are_refused(group: str, name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        preset(group, name)


# --- experiments -----------------------------------------------------------------------------------------------------


def test_an_experiment_of_the_working_directory(experiment: Write) -> None:
    experiment(
        "petals", "defaults:\n  - override /backbone: mobilenet_v2\n  - override /schedule: two_stage\nseed: 7\n"
    )
    config = load_config(["experiment=petals"])
    assert (config.backbone.name, len(config.schedule.stages), config.seed) == ("mobilenet_v2", 2, 7)
    assert config.name == "petals"


def test_the_command_line_wins_over_the_experiment(experiment: Write) -> None:
    experiment("petals", "defaults:\n  - override /backbone: mobilenet_v2\nseed: 7\nhead: {dropout: 0.5}\n")
    config = load_config(["experiment=petals", "seed=8", "backbone=vgg16", "name=other"])
    assert (config.seed, config.backbone.name, config.head.dropout, config.name) == (8, "vgg16", 0.5, "other")


def test_an_experiment_may_name_the_run(experiment: Write) -> None:
    experiment("petals", "name: flowers/one\n")
    assert load_config(["experiment=petals"]).name == "flowers/one"


def test_experiments_are_found_recursively(experiment: Write) -> None:
    experiment("ours/deep/petals", "head: {normalization: layer}\n")
    assert "ours/deep/petals" in experiments()
    config = load_config(["experiment=ours/deep/petals"])
    assert config.head.normalization is Normalization.layer
    assert config.name == "ours/deep/petals"


def test_an_edited_experiment_is_read_again(experiment: Write) -> None:
    experiment("petals", "seed: 7\n")
    assert load_config(["experiment=petals"]).seed == 7
    experiment("petals", "seed: 8\n")
    assert load_config(["experiment=petals"]).seed == 8


def test_stages_of_an_experiment_replace_those_of_the_schedule(experiment: Write) -> None:
    experiment("petals", "schedule: {stages: [{name: only, unfreeze: all, epochs: 2}]}\n")
    config = load_config(["experiment=petals"])
    assert [(stage.name, stage.unfreeze) for stage in config.schedule.stages] == [("only", "all")]


def test_a_broken_experiment_stops_only_those_who_choose_it(
    experiment: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = experiment("broken", "seed: [1\n")
    experiment("list", "- 1\n")
    experiment("fine", "seed: 3\n")
    assert load_config(["experiment=fine"]).seed == 3
    for flags in ([], ["--cfg", "job"]):
        assert main(["experiment=broken", *flags]) == 2
        said = capsys.readouterr().err
        assert str(broken) in said
        assert said.count("error:") == 1
    assert main(["experiment=list"]) == 2
    assert "is not a mapping" in capsys.readouterr().err


def test_an_experiment_that_is_not_text_is_refused(experiment: Write, capsys: pytest.CaptureFixture[str]) -> None:
    experiment("binary", "").write_bytes(b"\xff\xfe\x00seed: 3")
    assert main(["experiment=binary"]) == 2
    assert "binary.yaml" in capsys.readouterr().err


def test_a_wrong_choice_inside_an_experiment_is_one_message(
    experiment: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment("petals", "defaults:\n  - override /backbone: mobilnet\n")
    assert main(["experiment=petals"]) == 2
    said = capsys.readouterr().err
    assert "mobilnet" in said
    assert "Traceback" not in said


def test_an_unknown_experiment_is_refused_with_the_nearest(experiment: Write) -> None:
    experiment("petals", "seed: 7\n")
    with pytest.raises(ConfigError, match="did you mean petals"):
        load_config(["experiment=petal"])


def test_no_experiment_at_all() -> None:
    assert load_config(["experiment=null"]).name is None


def test_the_plan_verb_takes_the_same_overrides(capsys: pytest.CaptureFixture[str], tiny_plugin: Path) -> None:
    overrides = ["backbone.name=tiny", "backbone.weights=null", "backbone.alpha=null", "data.name=stripes"]
    assert plan_main([*overrides, "schedule=two_stage", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in plan["stages"]] == ["head", "top"]
    assert plan["stages"][1]["lowest"] == "mid_conv (4)"
    assert plan_main([*overrides, "schedule=two_stage"]) == 0
    shown = capsys.readouterr().out
    for words in ("tiny, random weights", "48 train, 12 val", "last_blocks: 2", "sgd 0.0001"):
        assert words in shown
    assert plan_main(["sede=2"]) == 2
    assert not list(Path.cwd().iterdir())
