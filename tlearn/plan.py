"""``python -m tlearn.plan``: what a run or a sweep would do, with the same overrides; nothing is trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from tlearn.errors import UserError
from tlearn.train.command import OK, USER_ERROR, print_problems

_HELP = """\
Print the plan of a run: what trains in each stage, for how long, on what. Nothing is trained or written.

    python -m tlearn.plan [--json] [key=value ...]              the overrides of python -m tlearn.train

Or that of a sweep: what is searched, and how often images are put through the frozen part of the network.

    python -m tlearn.plan [--json] sweep=NAME [key=value ...]   the overrides of python -m tlearn.sweep
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
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
    return OK


def _plan_run(overrides: list[str], as_json: bool) -> None:
    from tlearn.compose import load_config
    from tlearn.train.checks import check_config

    config = load_config(overrides)
    check_config(config)  # before TensorFlow is imported
    from tlearn.train.api import make_plan
    from tlearn.train.console import print_plan

    plan = make_plan(config)
    if as_json:
        print(json.dumps(plan.as_dict(), indent=1))
    else:
        print_plan(plan)


def _plan_sweep(overrides: list[str], as_json: bool) -> None:
    from tlearn.sweep.load import load_sweep

    sweep = load_sweep(overrides)
    from tlearn.sweep.extractions import print_plan

    print_plan(sweep, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
