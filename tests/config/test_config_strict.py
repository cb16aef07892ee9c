"""Nothing gets into a config but the fields of tlearn.config, of their types; everything wrong is said at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tlearn.compose import load_config, sweep_jobs
from tlearn.config import Config, Pooling
from tlearn.errors import ConfigError
from tlearn.plan import main as plan
from tlearn.train.command import main
from tlearn.typed import typed


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seeed=3", "seeed"),
        ("+extra=3", "extra"),
        ("++extra=3", "extra"),
        ("+head._target_=builtins.open", "head._target_"),
        ("++head._target_=builtins.open", "head._target_"),
        ("+_target_=os.system", "_target_"),
        ("+optimizer._partial_=true", "optimizer._partial_"),
        ("+head._convert_=all", "head._convert_"),
        ("++augment.affine.angle=3", "augment.affine.angle"),
        ("+schedule.stages.0.lr=3", "schedule.stages.0.lr"),
        ("+head.extra.deep=3", "head.extra.deep"),
        ("+schedule@head.x=two_stage", "head.x"),
    ],
)
def test_no_key_outside_the_schema(override: str, key: str) -> None:
    assert f"{key}: " in problems(override)


@pytest.mark.parametrize(
    "override",
    [
        "+head={_target_: builtins.open}",
        "head={units: [3], _partial_: true}",
        "schedule.stages=[{name: a, epochs: 1, _target_: builtins.open}]",
        "schedule.stages=[{name: a, epochs: 1, optimizer: {name: sgd, _target_: x}}]",
    ],
)
def test_no_key_outside_the_schema_inside_a_value(override: str) -> None:
    said = problems(override)
    assert "_target_" in said or "_partial_" in said


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=many", "seed"),
        ("seed=1.5", "seed"),
        ("seed=null", "seed"),
        ("seed=[1]", "seed"),
        ("head.units=wide", "head.units"),
        ("head.units=[wide]", "head.units"),
        ("head.units={a: 1}", "head.units"),
        ("head.pooling=average", "head.pooling"),
        ("data.val_fraction=lots", "data.val_fraction"),
        ("log.tensorboard=perhaps", "log.tensorboard"),
        ("backbone.image_size=[64]", "backbone.image_size"),
        ("backbone.image_size=64.5", "backbone.image_size"),
        ("schedule.stages=two", "schedule.stages"),
        ("schedule.stages={a: 1}", "schedule.stages"),
        ("schedule.stages=[3]", "schedule.stages.0"),
        ("schedule.stages=[{name: a, epochs: long}]", "schedule.stages.0.epochs"),
        ("schedule.stages.0.optimizer=sgd", "schedule.stages.0.optimizer"),
        ("schedule.stages.0.optimizer.momentum=much", "schedule.stages.0.optimizer.momentum"),
        ("schedule.stages.9.epochs=3", "schedule.stages"),
        ("augment.affine=0.5", "augment.affine"),
        ("checkpoint={every: often}", "checkpoint.every"),
        ("precision=float8", "precision"),
    ],
)
def test_wrong_types_are_refused(override: str, key: str) -> None:
    assert key in problems(override)


def test_missing_values_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data.root: has no value" in problems("data=table", "data.root=???")
    assert main(["data=folder"]) == 2
    assert "error: data.path: missing" in capsys.readouterr().err


def test_values_have_their_types() -> None:
    config = load_config(["head=mlp", "head.pooling=max", "head.units=[8,4]", "schedule.stages.0.steps=7", "name='3'"])
    assert config.head.pooling is Pooling.max
    assert config.head.units == [8, 4]
    assert config.schedule.stages[0].steps == 7
    assert config.schedule.stages[0].optimizer.learning_rate is None
    assert config.name == "3"


def test_a_selector_of_the_schedule_is_given_on_the_command_line() -> None:
    config = load_config(["schedule=two_stage", "schedule.stages.1.unfreeze={from_layer: 249}"])
    assert config.schedule.stages[1].unfreeze == {"from_layer": 249}
    config = load_config(["schedule=two_stage", "schedule.stages.1.unfreeze.last_blocks=3"])
    assert config.schedule.stages[1].unfreeze == {"last_blocks": 3}


def test_the_options_of_plugins_are_free() -> None:
    config = load_config(["+head.options.scale=4", "+data.options.deep.er=[1,2]"])
    assert config.head.options == {"scale": 4}
    assert config.data.options == {"deep": {"er": [1, 2]}}


def test_problems_of_the_command_line_are_reported_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["sed=1", "head.poling=avg", "head.units=wide", "backbone=mobilenett", "schedule.stages.0.epoch=2"]) == 2
    )
    said = capsys.readouterr().err
    for key in ("sed:", "head.poling:", "head.units:", "backbone=mobilenett:", "schedule.stages.0.epoch:"):
        assert f"error: {key}" in said
    assert said.count("error:") == 5


def test_problems_of_an_experiment_and_the_command_line_are_reported_together(
    experiment: Callable[[str, str], Path],
) -> None:
    experiment("wrong", "head: {poling: avg}\noptimizer: {momentun: 0.9, learning_rate: fast}\n")
    said = problems("experiment=wrong", "sed=2")
    for key in ("sed", "head.poling", "optimizer.momentun", "optimizer.learning_rate"):
        assert f"{key}: " in said


def test_a_group_that_is_not_there_is_answered_with_where_its_keys_are(
    experiment: Callable[[str, str], Path],
) -> None:
    experiment("elsewhere", "train: {batch_size: 64, epochs: 3}\nhedd: {units: [4]}\n")
    said = problems("experiment=elsewhere")
    assert "did you mean data.batch_size or schedule.stages.0.epochs or checkpoint.every.epochs?" in said
    assert "did you mean head?" in said


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        (
            ["head.classes=ten", "head.dropout=1.5", "data.batch_size=0"],
            ["head.classes", "head.dropout", "data.batch_size"],
        ),
        (["hed.units=[3]", "log.every=0"], ["hed.units", "log.every"]),
        (["backbone.alpha=wide", "backbone.image_size=8"], ["backbone.alpha", "backbone.image_size"]),
        (["schedule.stages=[{epochs: x}, 3]", "seed=-1"], ["schedule.stages.0.epochs", "schedule.stages.1", "seed"]),
        # what the wrong key decides is not judged without it
        (["backbone.alpha=wide", "seed=-1"], ["backbone.alpha", "seed"]),
        (["backbone.weights=[w]", "backbone.alpha=0.3", "seed=-1"], ["backbone.weights", "seed"]),
        (
            ["backbone=resnet5", "schedule=two_stage", "schedule.stages.1.unfreeze={last_blocks: 15}", "log.every=0"],
            ["backbone=resnet5", "log.every"],
        ),
        (["optimizer.name=[sgd]", "optimizer.momentum=0.9", "xla=maybe"], ["optimizer.name", "xla"]),
        (["schedule.stages.0.epoch=3", "schedule.stages.0.steps=5", "seed=-1"], ["schedule.stages.0.epoch", "seed"]),
        (["data=folder", "data.path=[a]", "head.classes=3", "seed=-1"], ["data.path", "seed"]),
        (["data.nam=folder", "data.path=a", "head.classes=3", "seed=-1"], ["data.nam", "seed"]),
        (["experiment=nowhere", "seed=-1"], ["experiment=nowhere"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_values_are_checked_beside_what_has_a_wrong_type(
    overrides: list[str], wrong: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for command in (main, plan):
        assert command(overrides) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("    ")]
        assert sorted(line.split(": ")[1] for line in said) == sorted(wrong), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("sede=1", "did you mean seed"),
        ("head.poling=avg", "did you mean head.pooling"),
        ("schedule.stages.0.epoch=2", "did you mean schedule.stages.0.epochs"),
        ("schedule.stages.0.optimizer.momentun=0.9", "schedule.stages.0.optimizer.momentum"),
        ("learning_rate=0.1", "optimizer.learning_rate"),
        ("image_size=64", "backbone.image_size"),
        ("batch_size=64", "data.batch_size"),
        ("data.image_size=64", "did you mean backbone.image_size?"),
        ("head.image_size=64", "did you mean backbone.image_size?"),
        ("train.batch_size=64", "did you mean data.batch_size?"),
        ("backbon.name=vgg16", "did you mean backbone.name?"),
        ("backbone.classes=3", "did you mean head.classes?"),
        ("optimizer.epochs=3", "did you mean schedule.stages.0.epochs or checkpoint.every.epochs?"),
        (
            "schedule.stages.1.learning_rate=1",
            "did you mean schedule.stages.1.optimizer.learning_rate or optimizer.learning_rate?",
        ),
        ("++train={batch_size: 64}", "did you mean data.batch_size?"),
        ("backbone=mobilnet", "did you mean mobilenet"),
        ("backbone=densenet", "densenet121, densenet169, densenet201"),
        ("backbone=nasnet", "nasnet_large, nasnet_mobile"),
        ("backbone=my_own", "backbone.name=my_own"),
        ("head=cosine", "head.name=cosine"),
        ("schedule=twostage", "did you mean two_stage"),
        ("optimizer=adamm", "did you mean adam"),
        ("augment=strong", "heavy, light, medium, none"),
        ("data=folders", "did you mean folder"),
        ("head.pooling=average", "avg"),
    ],
)
def test_the_nearest_names_are_suggested(override: str, hint: str) -> None:
    assert hint in problems(override)


@pytest.mark.parametrize("override", ["seed", "seed:1", "=3", "head.units=[1", "a b=c"])
def test_what_is_no_override_is_refused(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([override]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "key=value" in said


def test_several_values_need_a_multirun(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seed=1,2", "backbone=vgg16,resnet50"]) == 2
    said = capsys.readouterr().err
    assert said.count("-m") >= 2
    assert "seed=1,2" in said
    assert "backbone=vgg16,resnet50" in said


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("backbone=glob(vgg*)", ["vgg16", "vgg19"]),
        ("backbone=glob([vgg*,re*],exclude=*19)", ["resnet50", "vgg16"]),
        ("experiment=glob(*ten_a_class)", ["digits_ten_a_class"]),
        ("head=choice(mlp,linear)", ["mlp", "linear"]),
        ("seed=range(1,4)", ["1", "2", "3"]),
    ],
)
def test_forms_of_several_values(given: str, values: list[str]) -> None:
    assert sweep_jobs([given, "name=x"]) == [[f"{given.partition('=')[0]}={value}", "name=x"] for value in values]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "optimizer.learning_rate=interval(0,1)",
            "has no end of values\n    name some: optimizer.learning_rate=a,b",
        ),
        ("backbone=glob(vig*)", "matches no option\n    choose from: densenet121,"),
        ("seed=glob(*)", "has no options to choose from\n    glob is for config groups"),
        ("seed=range(1,9,0)", "must not be zero"),
        ("seed=range(9,1)", "names no value"),
    ],
)
def test_several_values_that_cannot_be_counted_out(
    override: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", override, "head=interval(1,2)"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "error: head=interval(1,2): has no end of values" in said, "every problem is reported"


def test_every_run_of_a_multirun_is_checked_before_the_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["-m", "seed=1,-2", "head.dropout=0.1,2", "data.batch_size=ten"]) == 2
    said = capsys.readouterr().err
    assert said.count("error: data.batch_size") == 1
    assert said.count("error: seed") == 1
    assert said.count("error: head.dropout") == 1
    assert not list(tmp_path.iterdir())


def test_runs_of_a_multirun_do_not_share_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["-m", "run_dir=r", "seed=1,2"]) == 2
    said = capsys.readouterr().err
    assert "error: run_dir: 2 runs would be made in r\n" in said
    assert 'run_dir="r-${seed}"' in said
    assert main(["-m", 'run_dir="r-${seed}"', "seed=1,-2"]) == 2, "of the seed alone"
    assert "run_dir" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_plain_data_is_checked_the_same_way() -> None:
    assert typed({"seed": 3, "head": {"pooling": "gem"}}).head.pooling is Pooling.gem
    assert typed({}) == Config()
    with pytest.raises(ConfigError) as caught:
        typed({"seed": "x", "head": {"poling": 1}, "data": 3, "schedule": {"stages": [{"nam": 1}, 4]}})
    where = [problem.where for problem in caught.value.problems]
    assert where == ["seed", "head.poling", "data", "schedule.stages.0.nam", "schedule.stages.1"]
