"""``python -m tlearn.plan``: what a run would do, with the same overrides as ``tlearn.train``; nothing is trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from tlearn.errors import UserError
from tlearn.train.command import OK, USER_ERROR, print_problems

_HELP = """\
Print the plan of a run: what trains in each stage, for how long, on what. Nothing is trained or written.

    python -m tlearn.plan [--json] [key=value ...]     the overrides of python -m tlearn.train
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return OK
    overrides = [argument for argument in arguments if argument != "--json"]
    try:
        from tlearn.compose import load_config
        from tlearn.train.checks import check_config

        config = load_config(overrides)
        check_config(config)  # before TensorFlow is imported
        from tlearn.train.api import make_plan
        from tlearn.train.console import print_plan

        plan = make_plan(config)
    except UserError as error:
        print_problems(error)
        return USER_ERROR
    if "--json" in arguments:
        print(json.dumps(plan.as_dict(), indent=1))
    else:
        print_plan(plan)
    return OK


if __name__ == "__main__":
    sys.exit(main())
