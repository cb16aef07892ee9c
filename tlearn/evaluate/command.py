"""The command line of ``tlearn.evaluate``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tlearn.arguments import (
    add_columns,
    columns_of,
    list_unreadable,
    network_and_paths,
    network_parser,
    run_command,
)
from tlearn.config import CacheConfig
from tlearn.errors import Problem, UserError
from tlearn.train.command import OK

if TYPE_CHECKING:
    from tlearn.evaluate.api import Settings
    from tlearn.evaluate.evaluation import Evaluation, OnBatch
    from tlearn.network import Network
    from tlearn.train.console import Terminal

_HELP = """\
Say how good a run is: scores with intervals, each class, calibration, and the most confident mistakes.

    python -m tlearn.evaluate runs/flowers                              its validation images
    python -m tlearn.evaluate runs/flowers --split test -o report/      JSON, CSV, pictures and a page
    python -m tlearn.evaluate runs/flowers --data more_flowers/         other images of the same classes
    python -m tlearn.evaluate runs/flowers --against runs/older         is one better? McNemar's test
    python -m tlearn.evaluate --backbone mobilenet --alpha 0.25 --data flowers --method knn

Classes of other data are found by name. A class without images is a mistake, unless --allow-missing-classes leaves it
out of the averages; so is one that the network does not know, unless --skip-unknown. --method knn and linear judge the
features of a backbone, or of a run's, without training a run: the data's train images teach, its val images are asked.
The last line on standard output is JSON; with --format json there is nothing else, and everything is in it. Exit
status: 0; 2 for a mistake in the arguments or when no image could be read.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = network_parser("evaluate", _HELP)
    parser.add_argument("--data", metavar="PATH", help="folder of class folders, or a table; default: the run's own")
    parser.add_argument("--split", metavar="S", help="train | val | test; default: val, or all images of --data")
    parser.add_argument("--against", metavar="RUN", help="another run, to compare with on the same images")
    parser.add_argument("--method", default="classifier", metavar="M", help="classifier (default) | knn | linear")
    parser.add_argument("--skip-unknown", action="store_true", help="leave out classes that the network does not know")
    parser.add_argument(
        "--allow-missing-classes", action="store_true", help="leave classes without images out of the averages"
    )
    parser.add_argument("--format", choices=["table", "json"], default="table", help="default: table")
    parser.add_argument(
        "--output", "-o", metavar="PATH", help="write here too: FILE.json, FILE.html, or a folder of everything"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output of an earlier evaluation")
    parser.add_argument("--mistakes", type=int, default=24, metavar="N", help="most confident ones kept; default: 24")
    parser.add_argument("--threshold", type=float, metavar="P", help="several labels; default: 0.5")
    parser.add_argument("--no-temperature", action="store_true", help="without temperature scaling: one pass less")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="C", help="of intervals; default: 0.95")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap; default: 1000")
    parser.add_argument("--neighbours", type=int, default=20, metavar="K", help="of --method knn; default: 20")
    parser.add_argument(
        "--cache-dir", metavar="FOLDER", help="features of knn and linear; default: where training's are"
    )
    parser.add_argument("--no-cache", action="store_true", help="keep no features")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per step; default: 32")
    add_columns(parser, labels=True, splits=True)
    return run_command(_command, parser, argv)


def _command(arguments: argparse.Namespace) -> int:
    from tlearn.evaluate.files import as_json, check_output, write_evaluation
    from tlearn.opening import check_run

    settings = _settings(arguments)
    settings.check()
    settings.columns.check([] if arguments.data is None else [arguments.data])
    opener, paths = network_and_paths(arguments, include_top=settings.method == "classifier", needs_images=False)
    if paths:
        raise UserError(
            Problem("arguments", f"one run is evaluated at a time, got {paths[0]!r} too", "--data names images")
        )
    if arguments.backbone is not None and arguments.data is None:
        raise UserError(Problem("--data", "is missing: a backbone has no images of its own", "--data FOLDER or TABLE"))
    if arguments.data is not None and not os.path.exists(os.path.expanduser(arguments.data)):
        raise UserError(Problem("--data", f"there is no folder or table {arguments.data}"))
    if arguments.against is not None:
        check_run(arguments.against)
    if arguments.output is not None:
        check_output(arguments.output, overwrite=arguments.overwrite)
    evaluation = _evaluated(opener, arguments, settings)
    if arguments.output is not None:
        write_evaluation(evaluation, arguments.output)
    list_unreadable(evaluation.outputs.unreadable)
    if arguments.format == "json":
        sys.stdout.write(as_json(evaluation, arguments.output))
    else:
        _print_tables(evaluation)
        print(json.dumps(_summary(evaluation, arguments.output)))
    return OK


def _settings(arguments: argparse.Namespace) -> Settings:
    from tlearn.evaluate.api import Settings

    return Settings(
        split=arguments.split,
        method=arguments.method,
        columns=columns_of(arguments),
        skip_unknown=arguments.skip_unknown,
        allow_missing=arguments.allow_missing_classes,
        temperature=not arguments.no_temperature,
        threshold=arguments.threshold,
        confidence=arguments.confidence,
        resamples=arguments.resamples,
        mistakes=arguments.mistakes,
        neighbours=arguments.neighbours,
        cache=replace(CacheConfig(), dir=arguments.cache_dir) if arguments.cache_dir else None,
        keep_features=not arguments.no_cache,
        batch_size=arguments.batch_size,
    )


def _evaluated(opener: Callable[[], Network], arguments: argparse.Namespace, settings: Settings) -> Evaluation:
    from tlearn.evaluate.api import evaluate_network
    from tlearn.opening import load
    from tlearn.train.console import Terminal

    network = opener()
    against = None if arguments.against is None else load(arguments.against)
    terminal = Terminal(True)
    try:
        return evaluate_network(network, arguments.data, settings, against=against, on_batch=_bar(terminal))
    finally:
        terminal.end_epoch()


def _bar(terminal: Terminal) -> OnBatch:
    """A bar for each pass over images, on standard error."""
    shown = ""

    def on_batch(what: str, stop: int, images: int, unreadable: int) -> None:
        nonlocal shown
        if what != shown:
            terminal.end_epoch()
            terminal.start_epoch(what, images, 0)
            shown = what
        terminal.step(stop, f"{unreadable} unreadable" if unreadable else "")

    return on_batch


def _print_tables(evaluation: Evaluation) -> None:
    from rich.console import Console

    from tlearn.evaluate.tables import WIDTH, evaluation_tables

    console = Console(highlight=False, markup=False)
    console.width = max(WIDTH, console.width) if console.is_terminal else WIDTH  # a narrower one breaks the lines
    console.print(evaluation_tables(evaluation))


def _summary(evaluation: Evaluation, output: str | None) -> dict[str, object]:
    """The last line: what a script most likely wants."""
    images = evaluation.outputs.images
    scores = {name: None if s.value is None else round(s.value, 6) for name, s in evaluation.scores.items()}
    told: dict[str, object] = {
        "network": evaluation.outputs.network,
        "split": images.split,
        "images": len(images),
        **scores,
    }
    if evaluation.comparison is not None:
        told["p_value"] = evaluation.comparison.p_value
    if evaluation.outputs.unreadable:
        told["unreadable"] = len(evaluation.outputs.unreadable)
    return told | ({"output": output} if output else {})
