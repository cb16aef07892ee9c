"""``python -m tlearn.extract``: features of images from any layer of a run or a backbone, to one file."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlearn.arguments import (
    add_columns,
    check_writable,
    columns_of,
    list_unreadable,
    network_and_paths,
    network_parser,
    run_command,
)
from tlearn.errors import DataError, Problem, UserError, visible
from tlearn.train.command import OK

if TYPE_CHECKING:
    from tlearn.images import FileImages
    from tlearn.labelled import Labelled
    from tlearn.layers import Layer
    from tlearn.network import Network

_HELP = """\
Write what a layer makes of images to a file, with their paths and labels.

    python -m tlearn.extract runs/flowers photos/ -o features.npz
    python -m tlearn.extract --backbone vgg19 photos/ --layer block4_pool --layer block5_pool -o features.h5
    python -m tlearn.extract runs/flowers --split val -o val.npz                    images it was trained on
    python -m tlearn.extract --backbone mobilenet_v2 photos.csv --label-column kind -o features.parquet

Without --layer: the last feature map, averaged over positions. A layer is named as python -m tlearn.backbones NAME
lists it: by name, block or index; where a block has the name of a layer, block:NAME is the block. Class folders give
labels, and so does a table. The end of the output's name says the format: .npz, .npy (one layer; paths and labels in
a .paths.csv beside it), .parquet or .h5. Stopped or killed, the same command goes on where it was. Images that cannot
be read are left out and listed. Exit status: 0; 2 when no image could be read, or for a mistake in the arguments.
"""

_AT_ONCE = 1024  # images whose features are copied from the cache at a time


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
    add_columns(parser, labels=True)
    return run_command(_command, parser, argv, stopped="stopped; the same command goes on from here")


def _command(arguments: argparse.Namespace) -> int:
    from tlearn.images import images_of

    check_writable(arguments.output)
    open_network, paths = network_and_paths(
        arguments, include_top=arguments.include_top, needs_images=arguments.split is None
    )
    if arguments.include_top and arguments.backbone is None:
        raise UserError(
            Problem("--include-top", "without --backbone", "the layers of a run's head can be named as they are")
        )
    network: Network | Callable[[], Network] = open_network
    if arguments.split is None:
        images: FileImages | Labelled = images_of(paths, columns_of(arguments), labels=True)
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
    )
    unreadable = extracted.pop("unreadable")
    list_unreadable(unreadable)
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"output": arguments.output, **extracted, "unreadable": len(unreadable), "seconds": seconds}))
    return OK


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
    progress: bool = True,
) -> dict[str, Any]:
    """Write features of image files; go on where an earlier call with the same arguments was stopped.

    Memory holds a few batches and the names of the images, whatever their number.

    Args:
        open_network: the network, or what gives it.
        images: from ``tlearn.images.images_of``, or ``tlearn.labelled.run_split``: their pooled features are taken
            from the cache where training, or an evaluation, has kept them.
        output: ``.npz``, ``.npy``, ``.parquet`` or ``.h5``.
        layers: names, blocks or indices; none: the last feature map, averaged over positions.
        pooling: of feature maps of the layers named: ``none``, ``avg`` or ``max``.
        dtype: of the numbers: ``float32`` or ``float16``.
        batch_size: images per step.
        overwrite: replace the output, and discard what was gathered for it with other arguments.
        progress: show a bar on standard error, where that is a terminal.

    Returns:
        ``images`` (how many), ``layers`` (shape of each for one image), ``unreadable``: (path, reason) of those left
        out, ``resumed``: how many images were there already, ``cached``: whether they came from the feature cache.

    Raises:
        UserError: the output exists, its name says no format, it cannot be written, there is no such layer, another
            extraction was begun for this output, or not one image could be read.
    """
    from tlearn.feature_file import Partial, Result, beside, check_format, write_features
    from tlearn.layers import POOLED
    from tlearn.network import Network
    from tlearn.train.console import Terminal

    path = Path(output).expanduser()
    check_format(path, len(layers))
    if batch_size < 1:
        raise UserError(Problem("--batch-size", f"must be 1 or more, got {batch_size}"))
    for file in (path, beside(path)) if path.suffix.lower() == ".npy" else (path,):
        if file.exists() and not overwrite:
            raise UserError(Problem("--output", f"{file} exists", "--overwrite replaces it"))
    network = open_network if isinstance(open_network, Network) else open_network()
    tensors = network.layers.tensors(layers, pooling)
    shapes = {name: tuple(map(int, tensor.shape[1:])) for name, tensor in tensors.items()}
    facts = {
        "network": network.backbone.spec.name,
        "run": str(network.run.path) if network.run else None,
        "reading": {key: getattr(value, "value", value) for key, value in asdict(network.reading).items()},
        "layers": shapes,
        "pooling": pooling or "none",
    }
    signature = {**facts, "dtype": dtype, "weights": _weights_hash(network), "images": _images_hash(images)}
    terminal = Terminal(progress)
    try:
        with Partial(path, shapes, dtype, signature).opened(discard=overwrite) as partial:
            if partial.kept:
                terminal.print(f"going on after {partial.kept:,} of {len(images):,} images")
            cached = _gather_kept(network, images, partial) if tuple(tensors) == (POOLED,) else False
            if not cached:
                _gather(network, images, tensors, partial, batch_size, terminal)
            if not partial.count:
                partial.remove()
                problems = [Problem(visible(name), reason) for name, reason in partial.unreadable[:20]]
                raise DataError([*problems, Problem("images", "not one could be read")])
            _check_space(path, partial.count, shapes, dtype)
            write_features(path, Result(partial, images, facts))
            partial.remove()
    except OSError as error:
        raise UserError(Problem("--output", f"{path} cannot be written: {error.strerror or error}")) from error
    return {
        "images": partial.count,
        "layers": {name: list(shape) for name, shape in shapes.items()},
        "unreadable": partial.unreadable,
        "resumed": partial.kept,
        "cached": cached,
    }


def _gather_kept(network: Network, images: FileImages | Labelled, partial: Any) -> bool:
    """Take pooled features from the cache of a run, where they are there in full precision."""
    import numpy as np

    from tlearn.config import FeatureType
    from tlearn.kept_features import KeptFeatures
    from tlearn.labelled import Labelled
    from tlearn.layers import POOLED

    cache = network.run.config.cache if network.run else None
    if not isinstance(images, Labelled) or cache is None or cache.dtype is not FeatureType.float32:
        return False
    entry = KeptFeatures(network, images, cache).open()
    if entry is None:
        return False
    with contextlib.closing(entry):
        for start in range(partial.stop, len(images), _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, len(images)))
            partial.append(int(rows[-1]) + 1, rows, {POOLED: entry.take(rows)[0]}, ())
    return True


def _gather(
    network: Network,
    images: FileImages | Labelled,
    tensors: dict[str, Any],
    partial: Any,
    batch_size: int,
    terminal: Any,
) -> None:
    terminal.start_epoch("images", len(images), partial.stop)
    try:
        for batch, values in network.compute(images, list(tensors.values()), batch_size, partial.stop):
            partial.append(batch.stop, batch.rows, dict(zip(tensors, values, strict=True)), batch.unreadable)
            terminal.step(batch.stop, f"{len(partial.unreadable)} unreadable" if partial.unreadable else "")
    finally:
        terminal.end_epoch()


def _weights_hash(network: Network) -> str:
    """SHA-256 over every number of the network."""
    import numpy as np

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


def _check_space(path: Path, count: int, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """The output is written beside what was gathered. Raises UserError when it would not fit."""
    import math

    import numpy as np

    needed = count * sum(map(math.prod, shapes.values())) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        what = f"needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise UserError(
            Problem("--output", what, "make room and give the same command again: nothing gathered is lost")
        )


if __name__ == "__main__":
    sys.exit(main())
