"""A config with a value of a wrong type may hold others out of range: both are told at once.

Where a key is wrong its default stands in for it, and the rest is checked as ever. What is found then is told, unless
it hangs on what the wrong key was to say.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from tlearn.errors import ConfigError, Problem, UserError
from tlearn.train.checks import check_config
from tlearn.typed import IllTyped, meant_keys

# A key that is wrong, and the keys that nobody can judge without it; both are patterns of whole keys.
_NOT_WITHOUT = (
    (r"experiment", r".*"),
    (r"backbone(\.name)?", r"backbone\..*|schedule\.stages\.\d+\.unfreeze.*"),
    (r"backbone\..*", r"backbone\.weights"),
    (r"backbone\.weights", r"backbone\.(alpha|depth_multiplier)"),
    (r"head\.name", r"head\..*"),
    (r"data\.name", r"data\..*"),
    (r"data(\..*)?", r"head\.classes"),
    (r"optimizer(\.name)?", r"(.*\.)?optimizer\..*"),
    (r"schedule\.stages\.\d+\.optimizer\.name", r"(.*\.)?optimizer\..*"),
    (r"schedule", r"optimizer"),
    (r"strategy", r"TF_CONFIG.*"),
)


@contextlib.contextmanager
def all_problems() -> Iterator[None]:
    """Around the making of a config: problems of its keys and types leave with those of its values.

    Raises:
        ConfigError: as the block did, with what ``check_config`` says of the keys that are not wrong.
    """
    try:
        yield
    except IllTyped as error:
        raise ConfigError([*error.problems, *_problems_of_the_rest(error)]) from None


def _problems_of_the_rest(error: IllTyped) -> Iterator[Problem]:
    wrong = [key for problem in error.problems for key in meant_keys(problem.where.partition("=")[0])]
    try:
        check_config(error.rest)
    except UserError as found:
        yield from (problem for problem in found.problems if not any(_hangs_on(problem.where, key) for key in wrong))


def _hangs_on(where: str, wrong: str) -> bool:
    """Whether what was found there may be due to the wrong key: its own group, what it holds, and what it decides."""
    if f"{where}.".startswith(f"{wrong}.") or f"{wrong}.".startswith(f"{where}."):
        return True
    return any(re.fullmatch(key, wrong) and re.fullmatch(others, where) for key, others in _NOT_WITHOUT)
