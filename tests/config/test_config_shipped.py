"""Every YAML file that comes with tlearn, found recursively, is composed, typed, checked and planned."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlearn.backbones import SPECS
from tlearn.compose import experiments, load_config
from tlearn.paths import shipped
from tlearn.train.checks import check_config

pytestmark = pytest.mark.usefixtures("tiny_plugin")

CONFIGS = sorted(path for path in shipped("configs").rglob("*.yaml") if path.parent != shipped("configs"))
EXPERIMENTS = sorted(shipped("experiments").rglob("*.yaml"))
TINY = ("backbone.name=tiny", "backbone.weights=null", "backbone.alpha=null", "backbone.image_size=16")
STRIPES = ("data.name=stripes", "data.batch_size=8")


def group(path: Path) -> str:
    return path.parent.relative_to(shipped("configs")).as_posix()


def of_group(name: str) -> list:
    return [pytest.param(path.stem, id=path.stem) for path in CONFIGS if group(path) == name]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of class folders, with a table of its pictures beside them."""
    random = np.random.default_rng(1)
    rows = []
    for label in ("a", "b", "c"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for index in range(5):
            name = f"{label}/{index}.png"
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "pictures" / name)
            rows.append((name, label))
    with open(tmp_path / "pictures" / "table.csv", "w", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return tmp_path / "pictures"


def test_no_group_is_forgotten_here() -> None:
    assert {group(path) for path in CONFIGS} == {
        "augment",
        "backbone",
        "data",
        "head",
        "on_nan",
        "optimizer",
        "schedule",
        "sweep",  # in tests/sweep/
    }
    assert {path.stem for path in CONFIGS if group(path) == "backbone"} - {"embedded"} == set(SPECS._builtin)


@pytest.mark.parametrize("name", of_group("backbone"))
def test_backbones_are_possible_as_written(name: str) -> None:
    """Planned in tests/train/test_train_variants.py, where each is built once."""
    config = load_config([f"backbone={name}", "backbone.weights=null"])
    check_config(config)
    spec = SPECS[config.backbone.name]
    assert name == "embedded" or config.backbone.image_size == spec.image_size


@pytest.mark.parametrize("name", of_group("data"))
def test_data_are_planned(name: str, pictures: Path) -> None:
    from tlearn.train.api import make_plan

    place = {"folder": [f"data.path={pictures}"], "table": [f"data.path={pictures / 'table.csv'}"]}
    few = {"glyphs": ["data.count=400"]}
    config = load_config([f"data={name}", *place.get(name, []), *few.get(name, []), *TINY])
    check_config(config)
    plan = make_plan(config)
    assert plan.train_images > plan.val_images > 0
    assert plan.outputs == len(plan.classes) > 1


@pytest.mark.parametrize("name", of_group("augment"))
def test_augmentations_are_planned_and_drawn(name: str) -> None:
    from tlearn.data import Reading, load_data, training_batches
    from tlearn.train.api import make_plan

    config = load_config([f"augment={name}", *TINY, *STRIPES])
    check_config(config)
    assert make_plan(config).steps > 0
    data = load_data(config.data, image_size=16, seed=1)
    batches = training_batches(
        data.source, data.train, Reading(16), batch_size=8, seed=1, steps=1, augment=config.augment
    )
    ((images, _),) = batches.as_numpy_iterator()
    assert images.shape == (8, 16, 16, 3)
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 255


@pytest.mark.parametrize("name", of_group("optimizer"))
def test_optimizers_are_planned(name: str) -> None:
    from tlearn.train.api import make_plan

    config = load_config([f"optimizer={name}", *TINY, *STRIPES])
    check_config(config)
    assert [stage.optimizer.split()[0] for stage in make_plan(config).stages] == [name]


@pytest.mark.parametrize("name", of_group("head"))
def test_heads_are_planned(name: str) -> None:
    from tlearn.train.api import make_plan

    config = load_config([f"head={name}", *TINY, *STRIPES])
    check_config(config)
    assert make_plan(config).head.startswith(name)


@pytest.mark.parametrize("name", of_group("schedule"))
def test_schedules_are_planned(name: str) -> None:
    from tlearn.train.api import make_plan

    config = load_config([f"schedule={name}", *TINY, *STRIPES])
    check_config(config)
    plan = make_plan(config)
    assert [stage.name for stage in plan.stages] == [stage.name for stage in config.schedule.stages]
    parameters = [stage.parameters for stage in plan.stages]
    assert parameters == sorted(set(parameters)), "each stage trains more than the one before"
    assert plan.steps == sum(6 * int(stage.epochs) for stage in config.schedule.stages)


def test_experiments_are_planned(subtests: pytest.Subtests, pictures: Path) -> None:
    for path in EXPERIMENTS:
        with subtests.test(path.stem):
            plan_experiment(path, pictures)


def plan_experiment(path: Path, pictures: Path) -> None:
    from tlearn.train.api import make_plan

    name = path.relative_to(shipped("experiments")).with_suffix("").as_posix()
    assert experiments()[name] == path
    config = load_config([f"experiment={name}"])
    if config.backbone.weights is not None:
        config.backbone.weights = None
    if config.data.name == "folder":
        config.data.path = str(pictures)
    if config.data.name == "table":
        config.data.path = str(pictures / "table.csv")
        config.data.root = config.data.split_column = None
        config.data.image_column, config.data.label_column = "path", "label"
    if config.data.name == "glyphs":
        config.data.count = 400
    config.head.classes = None
    config.data.per_class = None
    check_config(config)
    plan = make_plan(config)
    assert plan.steps > 0
    assert config.name


def test_an_experiment_says_how_to_run_it() -> None:
    for path in EXPERIMENTS:
        name = path.relative_to(shipped("experiments")).with_suffix("").as_posix()
        text = path.read_text(encoding="utf-8")
        assert text.startswith("#"), f"{path}: its header gives the command and the result to expect"
        assert f"experiment={name}" in text
