"""``python -m tlearn.extract``: features of images from any layer of a run or a backbone, to one file."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlearn.arguments import (
    add_columns,
    check_writable,
    columns_of,
    list_unreadable,
    network_and_paths,
    network_parser,
    run_command,
)
from tlearn.config import CacheConfig, FeatureType
from tlearn.errors import DataError, Problem, UserError, visible
from tlearn.train.command import OK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tlearn.feature_file import Partial
    from tlearn.images import Columns, FileImages
    from tlearn.kept_features import KeptFeatures
    from tlearn.labelled import Labelled
    from tlearn.layers import Layer
    from tlearn.network import Network
    from tlearn.train.console import Terminal

_HELP = """\
Write what a layer makes of images to a file, with their paths and labels.

    python -m tlearn.extract runs/flowers photos/ -o features.npz
    python -m tlearn.extract --backbone vgg19 photos/ --layer block4_pool --layer block5_pool -o features.h5
    python -m tlearn.extract runs/flowers --split val -o val.npz                    images it was trained on
    python -m tlearn.extract --backbone mobilenet_v2 photos.csv --label-column kind -o features.parquet

Without --layer: the last feature map, averaged over positions. A layer is named as python -m tlearn.backbones NAME
lists it: by name, block or index; where a block has the name of a layer, block:NAME is the block. Class folders give
labels, and so does a table that has them; of a run on a table the columns are known. The end of the output's name says
the format: .npz, .npy (one layer; paths and labels in a .paths.csv beside it), .parquet or .h5. Stopped or killed, the
same command goes on where it was. Features lie in the cache that training fills, so that the same ones are computed
once: --no-cache goes without. Images that cannot be read are left out and listed. Exit status: 0; 2 when no image could
be read, or for a mistake in the arguments.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = network_parser("extract", _HELP, "IMAGE_OR_FOLDER_OR_TABLE ...")
    parser.add_argument("--output", "-o", required=True, metavar="FILE", help=".npz, .npy, .parquet or .h5")
    parser.add_argument(
        "--split", choices=["train", "val", "test"], help="of the images the run was trained on, instead of others"
    )
    parser.add_argument("--layer", action="append", default=[], metavar="L", help="name, block or index; repeatable")
    parser.add_argument("--pooling", choices=["none", "avg", "max"], help="of the layers named; default: none")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="default: float32")
    parser.add_argument(
        "--include-top", action="store_true", help="backbone: with its own classifier, to name layers of it"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per step; default: 32")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output, and what was gathered for another"
    )
    parser.add_argument("--cache-dir", metavar="FOLDER", help="features kept; default: where training's are")
    parser.add_argument("--no-cache", action="store_true", help="neither look features up nor keep them")
    add_columns(parser, labels=True)
    return run_command(_command, parser, argv, stopped="stopped; the same command goes on from here")


def _command(arguments: argparse.Namespace) -> int:
    check_writable(arguments.output)
    open_network, paths = network_and_paths(
        arguments, include_top=arguments.include_top, needs_images=arguments.split is None
    )
    if arguments.include_top and arguments.backbone is None:
        raise UserError(
            Problem("--include-top", "without --backbone", "the layers of a run's head can be named as they are")
        )
    columns = columns_of(arguments)
    columns.check(paths)
    network: Network | Callable[[], Network] = open_network
    if arguments.split is None:
        run = arguments.paths[0] if arguments.backbone is None else None
        images: FileImages | Labelled = _images_of(paths, columns, run)
    else:
        network = open_network()
        images = _split_of(network, arguments.split, paths)
    started = time.monotonic()
    extracted = extract_features(
        network,
        images,
        arguments.output,
        layers=arguments.layer,
        pooling=arguments.pooling,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
        cache=replace(CacheConfig(), dir=arguments.cache_dir) if arguments.cache_dir else None,
        keep_features=not arguments.no_cache,
    )
    unreadable = extracted.pop("unreadable")
    list_unreadable(unreadable)
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"output": arguments.output, **extracted, "unreadable": len(unreadable), "seconds": seconds}))
    return OK


def _images_of(paths: Sequence[str], given: Columns, run: str | None) -> FileImages:
    """Images with their labels. Of a table they are as the run's own; bad ones that nobody asked for are left out."""
    from tlearn.images import images_of, is_table

    if not any(map(is_table, paths)):
        return images_of(paths, given, labels=True)
    columns = given if run is None else _columns_of_run(run, given)
    try:
        return images_of(paths, columns, labels=True)
    except DataError as error:
        if given.label is not None or given.separator is not None:
            raise
        images = images_of(paths, columns, labels=False)  # raises as well, unless it is the labels that are bad
        bad = error.problems[0]
        print(visible(f"note: no labels are written: {bad.where}: {bad.what}"), file=sys.stderr)
        return images


def _columns_of_run(run: str, given: Columns) -> Columns:
    from tlearn.labelled import table_columns
    from tlearn.opening import check_run
    from tlearn.train.run import Run

    check_run(run)
    return table_columns(Run.open(run).config.data, given)


def _split_of(network: Network, split: str, paths: Sequence[str]) -> Labelled:
    """Images of a run's own data."""
    from tlearn.labelled import run_split

    if network.run is None:
        raise UserError(Problem("--split", "a backbone has no images of its own", "name files or folders"))
    if paths:
        raise UserError(Problem("--split", f"is for the run's own images, and {paths[0]} is given", "drop one of them"))
    return run_split(network.run, split, network.reading.image_size, network.reading.max_pixels)


def extract_features(
    open_network: Callable[[], Network] | Network,
    images: FileImages | Labelled,
    output: str | Path,
    *,
    layers: Sequence[Layer] = (),
    pooling: str | None = None,
    dtype: str = "float32",
    batch_size: int = 32,
    overwrite: bool = False,
    cache: CacheConfig | None = None,
    keep_features: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Write features of image files; go on where an earlier call with the same arguments was stopped.

    Memory holds a few batches and the names of the images, whatever their number.

    Args:
        open_network: the network, or what gives it.
        images: from ``tlearn.images.images_of``, or ``tlearn.labelled.run_split``.
        output: ``.npz``, ``.npy``, ``.parquet`` or ``.h5``.
        layers: names, blocks or indices; none: the last feature map, averaged over positions.
        pooling: of feature maps of the layers named: ``none``, ``avg`` or ``max``.
        dtype: of the numbers: ``float32`` or ``float16``.
        batch_size: images per step.
        overwrite: replace the output, and discard what was gathered for it with other arguments.
        cache: the feature cache, where layers are looked up and kept; None: as the run, or training, would have it.
        keep_features: whether it is used at all.
        progress: show a bar on standard error, where that is a terminal.

    Returns:
        ``images`` (how many), ``layers`` (shape of each for one image), ``unreadable``: (path, reason) of those left
        out, ``resumed``: how many images were there already, ``cached``: whether all came from the feature cache.

    Raises:
        UserError: the output exists, its name says no format, it cannot be written, there is no such layer, another
            extraction was begun for this output, or not one image could be read.
    """
    from tlearn.feature_file import Partial
    from tlearn.kept_features import kept_features
    from tlearn.network import Network
    from tlearn.train.console import Terminal

    path = Path(output).expanduser()
    _check_arguments(path, len(layers), batch_size, overwrite=overwrite)
    network = open_network if isinstance(open_network, Network) else open_network()
    tensors = network.layers.tensors(layers, pooling)
    shapes = {name: tuple(map(int, tensor.shape[1:])) for name, tensor in tensors.items()}
    facts = _facts(network, shapes, pooling)
    signature = {**facts, "dtype": dtype, "weights": _weights_hash(network), "images": _images_hash(images)}
    terminal = Terminal(progress)
    if cache is None:
        cache = network.run.config.cache if network.run else CacheConfig()
    try:
        with Partial(path, shapes, dtype, signature).opened(discard=overwrite) as partial:
            if partial.kept:
                terminal.print(f"going on after {partial.kept:,} of {len(images):,} images")
            kept = kept_features(network, images, tensors, cache if keep_features else None, FeatureType.float32)
            missing = _gather(network, images, tensors, kept, partial, batch_size, terminal)
            _write(path, partial, images, facts)
            if not partial.unreadable and dtype == FeatureType.float32.value:
                for name in missing:
                    kept[name].write(partial.chunks(name))
            partial.remove()
    except OSError as error:
        raise UserError(Problem("--output", f"{path} cannot be written: {error.strerror or error}")) from error
    return {
        "images": partial.count,
        "layers": {name: list(shape) for name, shape in shapes.items()},
        "unreadable": partial.unreadable,
        "resumed": partial.kept,
        "cached": not missing,
    }


def _check_arguments(path: Path, layers: int, batch_size: int, *, overwrite: bool) -> None:
    """Raises UserError when the output's name says no format for so many layers, or it exists; before anything slow."""
    from tlearn.feature_file import beside, check_format

    check_format(path, layers)
    if batch_size < 1:
        raise UserError(Problem("--batch-size", f"must be 1 or more, got {batch_size}"))
    for file in (path, beside(path)) if path.suffix.lower() == ".npy" else (path,):
        if file.exists() and not overwrite:
            raise UserError(Problem("--output", f"{file} exists", "--overwrite replaces it"))


def _facts(network: Network, shapes: Mapping[str, tuple[int, ...]], pooling: str | None) -> dict[str, Any]:
    """What made the features, as plain data: written beside them, and compared before they are gone on with."""
    from tlearn.kept_features import engine_of

    return {
        "network": network.backbone.spec.name,
        "run": str(network.run.path) if network.run else None,
        "reading": {key: getattr(value, "value", value) for key, value in asdict(network.reading).items()},
        "layers": shapes,
        "pooling": pooling or "none",
        "engine": engine_of(network).value,
    }


def _gather(
    network: Network,
    images: FileImages | Labelled,
    tensors: dict[str, Any],
    kept: Mapping[str, KeptFeatures],
    partial: Partial,
    batch_size: int,
    terminal: Terminal,
) -> list[str]:
    """Take features from the cache where they are there, and compute the others, whose names are returned."""
    from tlearn.kept_features import engine_of

    with contextlib.ExitStack() as stack:
        entries = {name: entry for name in tensors if (entry := kept[name].open()) is not None}
        for entry in entries.values():
            stack.callback(entry.close)
        missing = {name: tensor for name, tensor in tensors.items() if name not in entries}

        def known(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
            return {name: entry.take(rows)[0] for name, entry in entries.items()}

        terminal.start_epoch("images", len(images), partial.stop)
        stack.callback(terminal.end_epoch)
        if not missing:
            for start in range(partial.stop, len(images), batch_size):
                rows = np.arange(start, min(start + batch_size, len(images)))
                partial.append(int(rows[-1]) + 1, rows, known(rows), ())
                terminal.step(partial.stop, "from the cache")
            return []
        for batch, values in network.compute(
            images, list(missing.values()), batch_size, partial.stop, engine_of(network)
        ):
            computed = dict(zip(missing, values, strict=True))
            partial.append(batch.stop, batch.rows, computed | known(batch.rows), batch.unreadable)
            terminal.step(batch.stop, f"{len(partial.unreadable)} unreadable" if partial.unreadable else "")
    return list(missing)


def _write(path: Path, partial: Partial, images: FileImages | Labelled, facts: Mapping[str, Any]) -> None:
    """Write the output from what was gathered.

    Raises:
        DataError: not one image could be read; nothing that was gathered stays.
        UserError: there is no room for it.
    """
    from tlearn.feature_file import Result, write_features

    if not partial.count:
        partial.remove()
        problems = [Problem(visible(name), reason) for name, reason in partial.unreadable[:20]]
        raise DataError([*problems, Problem("images", "not one could be read")])
    _check_space(path, partial)
    write_features(path, Result(partial, images, facts))


def _weights_hash(network: Network) -> str:
    """SHA-256 over every number of the network."""
    digest = hashlib.sha256()
    for variable in network.model.weights:
        digest.update(np.ascontiguousarray(variable.numpy()).data)
    return digest.hexdigest()


def _images_hash(images: FileImages | Labelled) -> str:
    """SHA-256 over names, sizes and times of the files, and their labels."""
    digest = hashlib.sha256(repr(images.classes).encode("utf-8", "surrogateescape"))
    for row, stamp in enumerate(images.stamps()):
        digest.update(f"{images.name(row)}\0{stamp}\n".encode("utf-8", "surrogateescape"))
    digest.update(images.labels.tobytes())
    return digest.hexdigest()


def _check_space(path: Path, partial: Partial) -> None:
    """The output is written beside what was gathered. Raises UserError when it would not fit."""
    needed = partial.count * sum(map(math.prod, partial.shapes.values())) * partial.dtype.itemsize
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        what = f"needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise UserError(
            Problem("--output", what, "make room and give the same command again: nothing gathered is lost")
        )


if __name__ == "__main__":
    sys.exit(main())
