"""The search space: what it draws, and what is said when it makes no sense."""

from __future__ import annotations

from collections import Counter
from typing import Any

import optuna
import pytest

from tlearn.compose import load_config, parse_overrides
from tlearn.errors import ConfigError
from tlearn.paths import shipped
from tlearn.sweep.load import load_sweep
from tlearn.sweep.space import config_value, parse_space
from tlearn.sweep.values import override_text
from tlearn.train.checks import check_config

HEADS = {
    "head.units": {"type": "categorical", "choices": [[64], [256, 256]], "when": {"head": "mlp"}},
    "head": {"type": "categorical", "choices": ["linear", "mlp"]},
    "head.dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.25},
    "data.batch_size": {"type": "int", "low": 8, "high": 35, "step": 8},
    "optimizer.learning_rate": {"type": "float", "low": "1e-4", "high": 0.1, "log": True},
}


def drawn(space: Any, count: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    return [space.suggest(study.ask()) for _ in range(count)]


def test_it_draws_values_of_every_type_and_keeps_conditions() -> None:
    values = drawn(parse_space(HEADS, 1))
    assert {value["head"] for value in values} == {"linear", "mlp"}
    assert all(("head.units" in value) == (value["head"] == "mlp") for value in values)
    assert {value["head.dropout"] for value in values} == {0.0, 0.25, 0.5}
    assert {value["data.batch_size"] for value in values} == {8, 16, 24, 32}
    rates = [value["optimizer.learning_rate"] for value in values]
    assert min(rates) >= 1e-4
    assert max(rates) <= 0.1
    assert 10 < sum(rate < 0.00316 for rate in rates) < 50, "half of them below the middle of the logarithm"
    assert {tuple(config_value(value["head.units"])) for value in values if "head.units" in value} == {
        (64,),
        (256, 256),
    }


def test_a_grid_holds_every_combination_once() -> None:
    space = parse_space({key: HEADS[key] for key in ("head", "head.units", "head.dropout")}, 1)
    points = space.grid()
    assert len(points) == (1 + 2) * 3
    assert Counter(point["head"] for point in points) == {"mlp": 6, "linear": 3}
    assert len({tuple(point.items()) for point in points}) == len(points)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "is empty"),
        ({"seed": 3}, "expects a mapping"),
        ({"seed": {"type": "flaot", "low": 1, "high": 2}}, "did you mean float"),
        ({"seed": {"low": 1, "high": 2}}, "has no type"),
        ({"seed": {"type": "int", "low": 5, "high": 2}}, "low 5 is above high 2"),
        ({"seed": {"type": "int", "low": 0.5, "high": 2}}, "must be a whole number"),
        ({"seed": {"type": "int", "low": 1}}, "high: is missing"),
        ({"seed": {"type": "float", "low": 0, "high": 2, "log": True}}, "must be above 0 where log is true"),
        ({"seed": {"type": "float", "low": 1, "high": 2, "log": True, "step": 0.1}}, "together with log"),
        ({"seed": {"type": "float", "low": 1, "high": 2, "step": 3}}, "at most high - low"),
        ({"seed": {"type": "float", "low": 1, "high": ".inf"}}, "finite number"),
        ({"seed": {"type": "int", "low": 1, "high": 2, "chioces": [1]}}, "is no field of a key of type int"),
        ({"seed": {"type": "categorical", "choices": []}}, "at least one value"),
        ({"seed": {"type": "categorical", "choices": [1, 1]}}, "holds a value twice"),
        ({"run_dir": {"type": "categorical", "choices": ["a"]}}, "every trial has its own"),
        ({**HEADS, "seed": {"type": "int", "low": 1, "high": 2, "when": {"haed": "mlp"}}}, "did you mean head"),
        ({**HEADS, "seed": {"type": "int", "low": 1, "high": 2, "when": {"head": "conv"}}}, "head is never 'conv'"),
        ({"seed": {"type": "int", "low": 1, "high": 2, "when": {"seed": 1}}}, "depends on itself"),
        (
            {
                "a": {"type": "categorical", "choices": [1], "when": {"b": 1}},
                "b": {"type": "categorical", "choices": [1], "when": {"a": 1}},
            },
            "in a circle",
        ),
    ],
)
def test_nonsense_is_explained(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.space") as caught:
        parse_space(fields, 1)
    assert says in str(caught.value)


ODD = ["a b", "it's", "true", "1e3", "a,b", "{x}", "", 3, 0.1, None, True, [64, "x y"], {"last_blocks": 2}]


@pytest.mark.parametrize("value", ODD)
def test_any_value_survives_the_command_line(value: Any) -> None:
    (override,) = parse_overrides([override_text("key", value)])
    assert override.value() == value


# --- sweeps as they are loaded ---------------------------------------------------------------------------------------


SHIPPED = sorted(path.stem for path in shipped("configs").glob("sweep/*.yaml"))


@pytest.mark.parametrize(
    ("name", "schedule"), [*((name, "frozen") for name in SHIPPED), ("learning_rates", "two_stage")]
)
def test_every_shipped_sweep_makes_runs_that_are_possible(name: str, schedule: str, tmp_path: Any) -> None:
    sweep = load_sweep([f"sweep={name}", f"schedule={schedule}"])
    assert sweep.settings.name == name
    for values in drawn(sweep.space, 2):
        check_config(load_config(sweep.overrides(values, tmp_path / "a run")))
    last = sweep.space.parameters[-1].key
    assert ("stages.1" in last) == (name == "learning_rates" and schedule == "two_stage")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], ["sweep: is not given", "learning_rates"]),
        (["sweep=lerning_rates"], ["did you mean learning_rates"]),
        (["sweep=nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (
            ["sweep=heads", "sweep.tirals=3", "sweep.pruner.nam=asha"],
            ["did you mean sweep.trials", "did you mean sweep.pruner.name"],
        ),
        (["sweep=heads", "sweep.trials=0"], ["sweep.trials: must be 1 or more"]),
        (["sweep=heads", "sweep.trials=null"], ["there is no budget"]),
        (["sweep=heads", "sweep.trials=ten"], ["sweep.trials", "ten"]),
        (["sweep=heads", "sweep.sampler.name=bayes"], ["sweep.sampler.name"]),
        (["sweep=heads", "sweep.sampler.name=grid"], ["learning_rate: has no end of values"]),
        (["sweep=heads", "sweep.objectives.0.metric=val_acuracy"], ["did you mean val_accuracy"]),
        (["sweep=heads", "sweep.objectives=[{metric: val_loss},{metric: seconds}]"], ["sweep.pruner.name=none"]),
        (["sweep=heads", "sweep.objectives.0.metric=seconds"], ["seconds is not known before the end"]),
        (["sweep=small_and_good", "sweep.sampler.name=cmaes"], ["one objective only"]),
        (["sweep=heads", "run_dir=x"], ["sweep.dir=PATH"]),
        (["sweep=heads", "seed=1,2"], ["several values", "search them"]),
        (["sweep=heads", "haed=mlp"], ["haed"]),
        (["sweep=heads", "~sweep.space.head"], ["the key head is not in the space"]),
        (
            ["sweep=bad.yaml"],
            ["sweep.space.optimizer.lerning_rate: unknown", "mean optimizer.learning_rate"],
        ),
        (["sweep=heads", "sweep.space.head.dropout.high=1.5"], ["head.dropout"]),
        (["sweep=heads", "sweep.space.head.pooling.choices=[avg,median]"], ["head.pooling"]),
        (["sweep=heads", "sweep.name=a b"], ["sweep.name"]),
    ],
)
def test_a_wrong_sweep_is_explained(overrides: list[str], says: list[str], in_own_folder: Any) -> None:
    text = "space:\n  optimizer.lerning_rate: {type: float, low: 0.1, high: 1.0}\n"
    (in_own_folder / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_sweep(overrides)
    assert [text for text in says if text not in str(caught.value)] == [], str(caught.value)


def test_a_run_has_no_key_of_a_sweep() -> None:
    with pytest.raises(ConfigError, match=r"it is for python -m tlearn\.sweep"):
        load_config(["sweep=heads", "sweep.trials=3"])


def test_text_that_begins_as_a_mapping_does_stays_text() -> None:
    """As the same text does on the command line: what it cannot be there is said in the same way."""
    assert config_value("{last_blocks: 1}") == "{last_blocks: 1}"
    assert config_value('{"last_blocks": 1}') == {"last_blocks": 1}
    choices = "{type: categorical, choices: [none, '{last_blocks: 1}']}"
    with pytest.raises(ConfigError, match="last_blocks: 1}' is not a selector"):
        load_sweep(["sweep=learning_rates", f"sweep.space={{schedule.stages.0.unfreeze: {choices}}}"])
