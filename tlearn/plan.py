"""``python -m tlearn.plan``: what a run or a sweep would do, with the same overrides; nothing is trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tlearn.config import Check, Config
from tlearn.errors import UserError
from tlearn.interrupts import stopped
from tlearn.train.command import OK, USER_ERROR, print_problems
from tlearn.words import size_text

if TYPE_CHECKING:
    from tlearn.data import Data
    from tlearn.train.foresight import Foresight

_HELP = """\
Print the plan of a run: what trains in each stage, for how long, on what. Nothing is trained or written.

    python -m tlearn.plan [--json] [key=value ...]              the overrides of python -m tlearn.train

Or that of a sweep: what is searched, and how often images are put through the frozen part of the network.

    python -m tlearn.plan [--json] sweep=NAME [key=value ...]   the overrides of python -m tlearn.sweep
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 a user's mistake, 3 stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return OK
    overrides = [argument for argument in arguments if argument != "--json"]
    try:
        from tlearn.sweep.load import names_a_sweep

        plan = _plan_sweep if names_a_sweep(overrides) else _plan_run
        plan(overrides, "--json" in arguments)
    except UserError as error:
        print_problems(error)
        return USER_ERROR
    except KeyboardInterrupt:
        return stopped()
    return OK


def _plan_run(overrides: list[str], as_json: bool) -> None:
    from tlearn.compose import load_config
    from tlearn.train.all_problems import all_problems
    from tlearn.train.checks import check_config

    with all_problems():
        config = load_config(overrides)
    check_config(config)  # before TensorFlow is imported
    from tlearn.train.api import prepare
    from tlearn.train.console import print_plan

    prepared = prepare(config, check_images=False)
    from tlearn.train.foresight import foresee

    plan = prepared.plan
    found = foresee(config, prepared.data, prepared.classifier, plan)
    if as_json:
        print(json.dumps(plan.as_dict() | {"cache": found.as_dict()}, indent=1))
    else:
        print_plan(plan, found, [*_about_the_cache(config, found), *_not_checked(config, prepared.data)])


def _about_the_cache(config: Config, found: Foresight) -> list[str]:
    """Where it cannot keep what stages count on, or not without losing something else."""
    from tlearn.train.feature_cache import FeatureCache

    if not found.stages:
        return []
    if found.missing_bytes and (obstacle := FeatureCache(found.folder).obstacle()):
        what = "no features can be kept, and all images are computed in each epoch"
        return [f"{obstacle}: {what}; cache.dir names another place"]
    missing, there, most = found.missing_bytes, found.bytes, config.cache.max_gb
    if missing and missing + there > most * 1e9:
        sizes = f"{size_text(missing)} of features are to be made beside {size_text(there)}"
        return [f"{sizes} in the cache, more than cache.max_gb={most:g}: what was used longest ago makes room"]
    return []


def _not_checked(config: Config, data: Data) -> list[str]:
    """What a plan is made without."""
    if data.source.file(int(data.train[0])) is None:
        return []
    checked = config.data.check is not Check.none
    later = "the run does that first" if checked else "data.check=none: the run will not look either"
    return [f"whether the images can be read was not checked; {later}"]


def _plan_sweep(overrides: list[str], as_json: bool) -> None:
    from tlearn.sweep.load import load_sweep

    sweep = load_sweep(overrides)
    from tlearn.sweep.extractions import print_plan

    print_plan(sweep, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
