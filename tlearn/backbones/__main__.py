"""``python -m tlearn.backbones``: what there is; with a name, that network layer by layer."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from tlearn.backbones import build_backbone, check_backbone
from tlearn.backbones.listing import all_rows, facts, layer_rows, print_all, print_one
from tlearn.errors import UserError
from tlearn.interrupts import stopped
from tlearn.quiet import import_tensorflow


def main(argv: Sequence[str] | None = None) -> int:
    """List the architectures, or show one. Returns the exit status: 0, or 2 for a mistake in the arguments."""
    arguments = _parser().parse_args(argv)
    console = Console(highlight=False)
    try:
        if arguments.name is None:
            _list(console, arguments.json)
        else:
            _show(console, arguments)
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return stopped()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tlearn.backbones", description="List the backbones, or show one layer by layer."
    )
    parser.add_argument("name", nargs="?", help="architecture to show; without it all are listed")
    parser.add_argument("--layers", action="store_true", help="print every layer (the default with a name)")
    parser.add_argument("--image-size", type=int, metavar="PX", help="side of the input; default: its own")
    parser.add_argument("--alpha", type=float, help="width multiplier, MobileNets only")
    parser.add_argument("--json", action="store_true", help="print data instead of a table")
    return parser


def _list(console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps(all_rows(), indent=2))
    else:
        print_all(console)


def _show(console: Console, arguments: argparse.Namespace) -> None:
    options = {"image_size": arguments.image_size, "alpha": arguments.alpha}
    if problems := check_backbone(arguments.name, **options):
        raise UserError(problems)
    import_tensorflow()
    backbone = build_backbone(arguments.name, **options)
    if arguments.json:
        blocks = [block._asdict() for block in backbone.blocks]
        print(json.dumps({**facts(backbone.spec), "blocks": blocks, "layers": layer_rows(backbone)}, indent=2))
    else:
        print_one(console, backbone)


if __name__ == "__main__":
    sys.exit(main())
