"""``python -m tlearn.export``: a finished run as files that serve without tlearn, checked before they appear."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tlearn.arguments import run_command
from tlearn.errors import Problem, UserError
from tlearn.exporting.formats import FORMATS, QUANTIZE, SAVED_MODEL
from tlearn.exporting.job import ExportDiffers, export_network
from tlearn.train.command import OK, OUR_FAULT
from tlearn.train.run import Run

if TYPE_CHECKING:
    from tlearn.network import Network

_HELP = """\
Write a finished run in formats that serve without tlearn, preprocessing inside.

    python -m tlearn.export runs/flowers                                  a SavedModel for TensorFlow Serving
    python -m tlearn.export runs/flowers --format all -o flowers-export   and .keras, LiteRT (TFLite), ONNX
    python -m tlearn.export runs/flowers --format tflite --quantize float32 int8

Each file is read back in a fresh process and asked about images of the run's validation split. When its
probabilities part from the run's beyond the tolerance, nothing is written and the exit status is 1.
The last line of standard output is JSON. Exit status: 0; 1 the export parts from the run; 2 a mistake in the
arguments, or a format that cannot hold the network.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tlearn.export", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a finished run")
    parser.add_argument(
        "--format",
        nargs="+",
        default=[SAVED_MODEL],
        metavar="F",
        help=f"{' | '.join(FORMATS)} | all; default: the first",
    )
    parser.add_argument(
        "--quantize",
        nargs="+",
        metavar="Q",
        help=f"LiteRT's numbers: {' | '.join(QUANTIZE)}; default: float32, of all: all",
    )
    parser.add_argument("--output", "-o", metavar="FOLDER", help="folder to make; default: export, in the run's folder")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="check with these; default: the validation split")
    parser.add_argument("--calibration", nargs="+", metavar="PATH", help="int8: ranges; default: the training split")
    parser.add_argument("--check-images", type=int, default=64, metavar="N", help="how many to check with; default: 64")
    parser.add_argument(
        "--calibration-images", type=int, default=200, metavar="N", help="how many for int8; default: 200"
    )
    parser.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="NAME=X",
        help="largest difference allowed, such as tflite-int8=0.2",
    )
    parser.add_argument(
        "--agreement", nargs="+", default=[], metavar="NAME=X", help="least share of equal classes, such as onnx=1"
    )
    return run_command(_command, parser, argv, stopped="stopped; nothing was published")


def _command(arguments: argparse.Namespace) -> int:
    from tlearn.train.console import Terminal

    terminal = Terminal()
    run = Run.open(arguments.run)
    options: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("force", "images", "calibration", "quantize", "check_images", "calibration_images")
    }
    options |= {name: _limits(name, getattr(arguments, name)) for name in ("tolerance", "agreement")}

    def opener() -> Network:
        from tlearn.opening import load

        return load(run)

    try:
        report = export_network(
            opener,
            formats=arguments.format,
            output=arguments.output or run.path / "export",
            say=terminal.print,
            **options,
        )
    except ExportDiffers as error:
        terminal.print(_table(error.report))
        print(f"error: {error}", file=sys.stderr)
        print(json.dumps(error.report), flush=True)
        return OUR_FAULT
    terminal.print(_table(report))
    terminal.print(f"export {report['output']}")
    print(json.dumps(report), flush=True)
    return OK


def _limits(name: str, pairs: Sequence[str]) -> dict[str, float]:
    """``NAME=X`` of the command line. Raises UserError."""
    limits = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            limits[key] = float(value)
        except ValueError:
            raise UserError(Problem(f"--{name} {pair}", "is not NAME=NUMBER", "such as tflite-int8=0.2")) from None
    return limits


def _table(report: Mapping[str, Any]) -> Table:
    """For people; a row for each signature; fits 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in (
        ("export", "left"),
        ("size", "right"),
        ("largest difference", "right"),
        ("same class", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    for entry in report["exports"]:
        for row, (signature, parity) in enumerate(entry["signatures"].items()):
            name = "-".join(filter(None, (entry["format"], entry["quantize"])))
            difference, limit = parity["max_difference"], parity["tolerance"]["difference"]
            table.add_row(
                name if len(entry["signatures"]) == 1 else f"{name} {signature}",
                "" if row else _size(entry["bytes"]),
                f"{'none' if difference is None else format(difference, '.1e')} of {limit:g}",
                f"{parity['agreement']:.1%} of {parity['images']}",
                "" if parity["holds"] else "PARTS",
            )
    return table


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"


if __name__ == "__main__":
    sys.exit(main())
