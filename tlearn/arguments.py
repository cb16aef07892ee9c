"""What the verbs that ask a network share: arguments for the network and the images, and how errors end."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import yaml

from tlearn import interrupts
from tlearn.config import Interpolation, Resize
from tlearn.errors import ConfigError, Problem, UserError, visible
from tlearn.train.command import OK, USER_ERROR, print_problems
from tlearn.words import counted

if TYPE_CHECKING:
    from tlearn.images import Columns
    from tlearn.network import Network

_SHOWN = 20  # unreadable images listed on the terminal


def network_parser(verb: str, description: str, what: str = "") -> argparse.ArgumentParser:
    """A parser with the arguments that name a network and its images.

    Args:
        verb: of the command.
        description: for ``--help``.
        what: the images, for ``--help``; empty: they are not named behind the network.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m tlearn.{verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"python -m tlearn.{verb} [options] (RUN | --backbone NAME) {what}".rstrip(),
    )
    named = f"a finished run, unless --backbone; {what}".rstrip("; ")
    parser.add_argument("paths", nargs="*", metavar=f"RUN {what}".rstrip(), help=named)
    bare = parser.add_argument_group("a bare backbone instead of a run")
    bare.add_argument("--backbone", metavar="NAME", help="architecture; python -m tlearn.backbones lists them")
    bare.add_argument("--weights", metavar="W", help="imagenet (default) | glyphs | FILE | RUN | null: random")
    bare.add_argument("--image-size", type=int, metavar="PX", help="side of the input; default: its own")
    bare.add_argument("--alpha", type=float, help="width multiplier, MobileNets only")
    bare.add_argument("--depth-multiplier", type=int, metavar="N", help="MobileNet only")
    bare.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of a backbone registered by a plugin"
    )
    bare.add_argument(
        "--resize", choices=[mode.value for mode in Resize], help="how a photograph becomes a square; default: crop"
    )
    bare.add_argument("--crop-fraction", type=float, metavar="F", help="share of the shorter side; default: 0.875")
    bare.add_argument(
        "--interpolation", choices=[kind.value for kind in Interpolation], help="when resizing; default: bilinear"
    )
    parser.add_argument("--max-pixels", type=int, metavar="N", help="refuse larger images; default: 100,000,000")
    return parser


def add_columns(parser: argparse.ArgumentParser, *, labels: bool, splits: bool = False) -> None:
    """Add the arguments that say where a table of images has what."""
    table = parser.add_argument_group("a table of images (.csv, .tsv, .parquet) instead of folders")
    table.add_argument("--root", metavar="FOLDER", help="that its paths start from; default: the table's own")
    table.add_argument("--image-column", metavar="COLUMN", help="default: path")
    if labels:
        table.add_argument("--label-column", metavar="COLUMN", help="default: label")
        table.add_argument("--label-separator", metavar="TEXT", help="between several labels of an image")
    if splits:
        table.add_argument("--split-column", metavar="COLUMN", help="default: none")


def columns_of(arguments: argparse.Namespace) -> Columns:
    """What was given of ``add_columns``."""
    from tlearn.images import Columns

    given = vars(arguments)
    return Columns(
        root=given["root"],
        image=given["image_column"],
        label=given.get("label_column"),
        split=given.get("split_column"),
        separator=given.get("label_separator"),
    )


_BARE = (
    *("weights", "image_size", "alpha", "depth_multiplier"),
    *("resize", "crop_fraction", "interpolation"),
)


def network_and_paths(
    arguments: argparse.Namespace, *, include_top: bool, needs_images: bool = True
) -> tuple[Callable[[], Network], list[str]]:
    """How to open the network that was asked for, and the paths of the images.

    Args:
        arguments: of a ``network_parser``.
        include_top: whether a backbone comes with its own classifier.
        needs_images: whether there must be paths behind the network.

    Raises:
        UserError: there are no images, or options of a backbone go with a run.
    """
    paths: list[str] = list(arguments.paths)
    given = {name: getattr(arguments, name) for name in _BARE if getattr(arguments, name) is not None}
    if arguments.max_pixels is not None:
        _check_limit(arguments.max_pixels)
    if arguments.backbone is None:
        if given or arguments.option:
            options = ", ".join(
                f"--{name.replace('_', '-')}" for name in [*given, *(["option"] * bool(arguments.option))]
            )
            fix = "a run has its own; with --backbone NAME there is no run"
            raise UserError(Problem(options, "without --backbone", fix))
        if not paths:
            raise UserError(Problem("arguments", "neither a run nor --backbone NAME is given", "see --help"))
        run = paths.pop(0)
        opener = _run_opener(run, arguments.max_pixels)
    else:
        if "weights" in given and given["weights"] in ("null", "none"):
            given["weights"] = None
        if arguments.max_pixels is not None:
            given["max_pixels"] = arguments.max_pixels
        opener = _backbone_opener(arguments.backbone, include_top, _options(arguments.option), given)
    if needs_images and not paths:
        raise UserError(Problem("arguments", "no images are given", "name files or folders after the network"))
    return opener, paths


def _run_opener(run: str, max_pixels: int | None) -> Callable[[], Network]:
    def opener() -> Network:
        from dataclasses import replace

        from tlearn.opening import load

        network = load(run)
        if max_pixels is not None:
            network.reading = replace(network.reading, max_pixels=max_pixels)
        return network

    return opener


def _backbone_opener(
    name: str, include_top: bool, options: dict[str, Any], given: dict[str, Any]
) -> Callable[[], Network]:
    def opener() -> Network:
        from tlearn.opening import backbone
        from tlearn.quiet import import_tensorflow

        if given.get("weights", "") is None:  # the same network each time, or nothing could be gone on with
            import_tensorflow()
            import keras

            keras.utils.set_random_seed(0)
        return backbone(name, include_top=include_top, options=options, **given)

    return opener


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE``, values as in YAML. Raises ConfigError."""
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise ConfigError([Problem(f"--option {pair}", "is not KEY=VALUE") for pair in wrong])
    try:
        return {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    except yaml.YAMLError as error:
        raise ConfigError(Problem("--option", " ".join(str(error).split()))) from error


def _check_limit(max_pixels: int) -> None:
    if max_pixels < 1:
        raise UserError(Problem("--max-pixels", f"must be 1 or more, got {max_pixels}"))


def run_command(
    command: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    stopped: str = "stopped",
) -> int:
    """Parse, run, and turn what a user can mend into a message and exit status 2.

    Args:
        command: takes the arguments, returns the exit status.
        parser: of the arguments.
        argv: the arguments; None: those of the process.
        stopped: what to say when it was interrupted.
    """
    arguments = parser.parse_intermixed_args(argv)
    try:
        return command(arguments)
    except UserError as error:
        bare = getattr(arguments, "backbone", None) is not None
        error.problems = tuple(dict.fromkeys(_in_options(problem, bare) for problem in error.problems))
        print_problems(error)
        return USER_ERROR
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return interrupts.stopped(stopped)


_LARGER = "--max-pixels N lets larger images in"
_OF_BACKBONE = (
    *(("backbone.name=", "--backbone "), ("backbone.name", "--backbone")),
    *(("backbone.weights=", "--weights "), ("backbone.weights", "--weights")),
    *(("backbone.image_size=", "--image-size "), ("backbone.image_size", "--image-size")),
    *(("backbone.alpha=", "--alpha "), ("backbone.alpha", "--alpha")),
    *(("backbone.depth_multiplier=", "--depth-multiplier "), ("backbone.depth_multiplier", "--depth-multiplier")),
)


def _in_options(problem: Problem, bare: bool) -> Problem:
    """A problem with an image, or with a bare backbone, in the words of these commands instead of a run's config."""
    what, fix = in_options(problem.what), problem.fix
    if what != problem.what:
        fix = _LARGER
    elif "data.on_error" in fix:
        fix = ""
    where = problem.where
    for key, option in _OF_BACKBONE if bare else ():
        where, what, fix = (text.replace(key, option) for text in (where, what, fix))
    return Problem(where, what, fix)


def in_options(text: str) -> str:
    """A reason why an image cannot be read, with the option that it speaks of."""
    return text.replace("data.max_pixels=", "--max-pixels ")


@contextlib.contextmanager
def output_text(path: str | None) -> Iterator[IO[str]]:
    """Where to write text: standard output, or a file that appears under its name when it is complete.

    File names that are not UTF-8 come out as the bytes they are. Raises UserError when the file cannot be written.
    """
    if path is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="surrogateescape")
        yield sys.stdout
        sys.stdout.flush()
        return
    temporary = f"{path}.{os.getpid()}.partial"
    try:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(Problem("--output", f"{path} cannot be written: {error.strerror or error}")) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def check_writable(path: str) -> None:
    """An output must be a file in a folder that is there: raise UserError now rather than at the end."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise UserError(Problem("--output", f"{path} is a folder", "name a file"))
    if not os.path.isdir(folder):
        raise UserError(Problem("--output", f"there is no folder {folder}", "make it, or choose another"))
    if not os.access(folder, os.W_OK):
        raise UserError(Problem("--output", f"{folder} may not be written to"))


def list_unreadable(unreadable: Sequence[tuple[str, str]]) -> None:
    """Images that were left out, on standard error."""
    if not unreadable:
        return
    print(f"{counted(len(unreadable), 'image')} could not be read:", file=sys.stderr)
    for name, reason in unreadable[:_SHOWN]:
        print(f"  {visible(name)}: {in_options(reason)}", file=sys.stderr)
    if len(unreadable) > _SHOWN:
        print(f"  and {len(unreadable) - _SHOWN:,} more", file=sys.stderr)
    if any("data.max_pixels" in reason for _, reason in unreadable):
        print(f"  {_LARGER}", file=sys.stderr)
