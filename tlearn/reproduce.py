"""``python -m tlearn.reproduce``: repeat a run from its folder and compare every number, and the final weights."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tlearn.arguments import run_command
from tlearn.train.command import OK, STOPPED
from tlearn.train.memory import OutOfMemory
from tlearn.train.stopping import NumericalFault, Stopped, StopSignal

if TYPE_CHECKING:
    from tlearn.train.console import Terminal
    from tlearn.train.reproduction import Reproduction
    from tlearn.train.unchanged import Difference

DIFFERS = 1

_SHOWN = 20

_HELP = """\
Repeat a finished run from its folder, and compare.

    python -m tlearn.reproduce runs/flowers                          in runs/flowers-repeated
    python -m tlearn.reproduce runs/flowers --run-dir /tmp/again

First it says what differs in versions, machine, data and weights. Where data or weights are others, nothing is
trained; else the run is repeated in a new folder, its features made anew, and every recorded number but times is
compared, and the SHA-256 of the final weights. The last line of standard output is JSON. Exit status: 0 all is
equal; 1 something differs; 2 the run has not ended, or is damaged; 3 stopped by a signal.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tlearn.reproduce", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a finished run")
    parser.add_argument("--run-dir", metavar="FOLDER", help="folder to make; default: RUN-repeated")
    return run_command(_command, parser, argv, stopped="stopped before training; nothing was written")


def _command(arguments: argparse.Namespace) -> int:
    from tlearn.train.console import Terminal
    from tlearn.train.reproduction import reproduce

    terminal = Terminal()

    def say(found: Reproduction) -> None:
        _show(terminal, "the machine or its software", found.surroundings)
        _show(terminal, "what the run was made from", found.inputs)

    try:
        found = reproduce(arguments.run, run_dir=arguments.run_dir, say=say, should_stop=StopSignal())
    except Stopped as stopped:
        terminal.print(f"{stopped}; it will not be compared")
        return STOPPED
    except (NumericalFault, OutOfMemory) as fault:
        terminal.print(f"the run ended, its repetition {fault.run} did not: {fault}")
        return DIFFERS
    _show(terminal, "results", found.differences)
    if found.repeated is None:
        terminal.print("not repeated: from other images or weights comes another run")
    elif found.equal:
        terminal.print(f"equal: {found.records} records, the summary, and every bit of the final weights")
    print(json.dumps(found.as_dict()), flush=True)
    return OK if found.equal else DIFFERS


def _show(terminal: Terminal, of_what: str, differences: Sequence[Difference]) -> None:
    """Differences as a table: where, was, is, and how far apart two numbers are."""
    from tlearn.train.unchanged import shown

    if not differences:
        return
    table = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), title=f"differences of {of_what}", title_justify="left"
    )
    for name in ("where", "was", "is", "apart"):
        table.add_column(name, overflow="fold")
    for where, was, now in differences[:_SHOWN]:
        numbers = isinstance(was, float) and isinstance(now, float)
        table.add_row(where, shown(was), shown(now), f"{abs(was - now):.2g}" if numbers else "")
    terminal.print(table)
    if len(differences) > _SHOWN:
        terminal.print(f"... {len(differences)} differences in all")


class _Verb(ModuleType):
    """Lets ``tlearn.reproduce(run)`` be the function, also once this module has taken its name in the package."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Reproduction:
        from tlearn.train.reproduction import reproduce

        return reproduce(*arguments, **keywords)


sys.modules[__name__].__class__ = _Verb

if __name__ == "__main__":
    sys.exit(main())
