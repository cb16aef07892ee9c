"""``python -m tlearn.predict``: the classes of images, by a finished run or a network's own ImageNet classifier."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import IO, TYPE_CHECKING

from rich.cells import cell_len

from tlearn.arguments import (
    add_columns,
    check_writable,
    columns_of,
    list_unreadable,
    network_and_paths,
    network_parser,
    output_text,
    run_command,
)
from tlearn.errors import DataError, Problem, UserError, visible
from tlearn.train.command import OK

if TYPE_CHECKING:
    from tlearn.images import Columns
    from tlearn.network import Network
    from tlearn.prediction import Prediction

_HELP = """\
Print the likeliest classes of images and their probabilities.

    python -m tlearn.predict runs/flowers photo.jpg more_photos/
    python -m tlearn.predict --backbone mobilenet --alpha 0.25 photo.jpg       ImageNet's own 1000 classes

A run reads images as it did in training. A bare backbone takes the centre square of 0.875 of the shorter side,
bilinear. Folders are searched at any depth; a table (.csv, .tsv, .parquet) names images in its column "path". Images
that cannot be read are left out and listed at the end. Where an image may have several labels, probabilities are of
each label by itself: --threshold 0.5 --top 1000 gives all labels that hold. Exit status: 0; 2 when no image could be
read, or for a mistake in the arguments.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = network_parser("predict", _HELP, "IMAGE_OR_FOLDER_OR_TABLE ...")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes per image; default: 5")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="P", help="leave out classes below")
    parser.add_argument("--format", choices=list(WRITERS), default="table", help="default: table")
    parser.add_argument("--output", "-o", metavar="FILE", help="write here instead of standard output")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per step; default: 32")
    add_columns(parser, labels=False)
    return run_command(_command, parser, argv)


def _command(arguments: argparse.Namespace) -> int:
    open_network, paths = network_and_paths(arguments, include_top=True)
    if arguments.output is not None:
        check_writable(arguments.output)
        if os.path.exists(arguments.output) and any(_same(path, arguments.output) for path in paths):
            raise UserError(Problem("--output", f"{arguments.output} is one of the images", "choose another name"))
    unreadable = predict_files(
        open_network,
        paths,
        columns=columns_of(arguments),
        top=arguments.top,
        threshold=arguments.threshold,
        format=arguments.format,
        output=arguments.output,
        batch_size=arguments.batch_size,
    )
    list_unreadable(unreadable)
    return OK


def _same(path: str, output: str) -> bool:
    return os.path.exists(path) and os.path.samefile(path, output)


def predict_files(
    open_network: Callable[[], Network],
    paths: Sequence[str],
    *,
    columns: Columns | None = None,
    top: int = 5,
    threshold: float = 0.0,
    format: str = "table",
    output: str | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> list[tuple[str, str]]:
    """Classify files and write what comes out, batch by batch.

    Args:
        open_network: gives the network; called when there are images.
        paths: images and folders, or one table of images.
        columns: of the table.
        top: classes per image.
        threshold: leave out classes with a smaller probability, 0..1.
        format: ``table``, ``json`` or ``csv``.
        output: file to write; None: standard output.
        batch_size: images per step.
        progress: show a bar on standard error, where that is a terminal.

    Returns:
        (path, reason) of the images that could not be read.

    Raises:
        UserError: not one could be read, or an argument makes no sense.
    """
    _check(top, threshold, batch_size)
    from tlearn.images import Columns, images_of
    from tlearn.train.console import Terminal

    columns = columns or Columns()
    columns.check(paths)
    images = images_of(paths, columns, labels=False)
    network = open_network()
    terminal = Terminal(progress and (output is not None or not sys.stdout.isatty()))
    unreadable: list[tuple[str, str]] = []

    def predictions() -> Iterable[Prediction]:
        """Nothing is written until an image was read."""
        terminal.start_epoch("images", len(images), 0)
        try:
            for batch, found in network.predict_batches(images, top=top, threshold=threshold, batch_size=batch_size):
                unreadable.extend(batch.unreadable)
                yield from found
                terminal.step(batch.stop, f"{len(unreadable)} unreadable" if unreadable else "")
        finally:
            terminal.end_epoch()

    waiting = iter(predictions())
    first = next(waiting, None)
    if first is None:
        raise DataError([Problem(visible(name), reason) for name, reason in unreadable[:20]] + [_NONE])
    with output_text(output) as file:
        WRITERS[format](file, network, _chain(first, waiting))
    return unreadable


_CUT = "..."
_LEAST_OF_A_PATH = 16  # columns of a terminal; a narrower one breaks lines
_NONE = Problem("images", "not one could be read")


def _check(top: int, threshold: float, batch_size: int) -> None:
    problems = [
        Problem(f"--{name}", f"must be 1 or more, got {value}")
        for name, value in (("top", top), ("batch-size", batch_size))
        if value < 1
    ]
    if not 0 <= threshold <= 1:
        problems.append(Problem("--threshold", f"is a probability, 0 to 1, got {threshold}"))
    if problems:
        raise UserError(problems)


def _chain(first: Prediction, others: Iterable[Prediction]) -> Iterable[Prediction]:
    yield first
    yield from others


# --- formats, each written as predictions come -----------------------------------------------------------------------


def _write_table(file: IO[str], network: Network, predictions: Iterable[Prediction]) -> None:
    """Rows of aligned columns; the path comes last, since nobody knows how long the next one is."""
    most = shutil.get_terminal_size().columns if file.isatty() else None
    width = min(max(len("class"), *(cell_len(visible(name)) for name in network.classes)), 40)
    ids = network.wordnet is not None
    file.write(f"probability  {'wordnet    ' if ids else ''}{_padded('class', width)}  image\n")
    for prediction in predictions:
        path = visible(prediction.path)
        if not prediction.top:
            row = f"{'-':>11}  {'           ' if ids else ''}{_padded('-', width)}  "
            file.write(f"{row}{_shortened(path, row, most)}\n")
        for guess in prediction.top:
            wordnet = f"{guess.wordnet:<11}" if ids else ""
            row = f"{guess.probability:11.4f}  {wordnet}{_padded(visible(guess.label), width)}  "
            file.write((row + _shortened(path, row, most)).rstrip() + "\n")
            path = ""


def _write_json(file: IO[str], network: Network, predictions: Iterable[Prediction]) -> None:
    """A list with a line for each image."""
    before = "[\n"
    for prediction in predictions:
        file.write(before + json.dumps(prediction.as_dict()))
        before = ",\n"
    file.write("\n]\n")


def _write_csv(file: IO[str], network: Network, predictions: Iterable[Prediction]) -> None:
    """A line for each class of each image."""
    writer = csv.writer(file, lineterminator="\n")
    ids = network.wordnet is not None
    writer.writerow(["path", "rank", "index", *(["wordnet"] if ids else []), "label", "probability"])
    for prediction in predictions:
        for rank, guess in enumerate(prediction.top, start=1):
            wordnet = [guess.wordnet] if ids else []
            writer.writerow([prediction.path, rank, guess.index, *wordnet, guess.label, guess.probability])


def _shortened(path: str, row: str, most: int | None) -> str:
    """The end of a path, which tells images apart, where a terminal has no room for all of it behind its row."""
    if most is None or cell_len(path) <= (room := max(most - cell_len(row), _LEAST_OF_A_PATH)):
        return path
    kept = path[-room:]
    while cell_len(kept) > room - len(_CUT):  # not by its length: some signs take two columns
        kept = kept[1:]
    return _CUT + kept


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


WRITERS = {"table": _write_table, "json": _write_json, "csv": _write_csv}


if __name__ == "__main__":
    sys.exit(main())
