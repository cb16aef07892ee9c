"""``python -m tlearn.cache``: the features that runs keep of frozen layers: list, verify, clear."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tlearn.config import CacheConfig
from tlearn.errors import Problem, UserError, visible
from tlearn.interrupts import stopped
from tlearn.train.feature_cache import Entry, FeatureCache, cache_folder
from tlearn.words import counted, size_text

_DAY = 86_400
_ANEW = "the next run that wants it makes it anew"
_HELD = "it is in use, or may not be deleted"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 2 for wrong arguments and damaged entries."""
    arguments = _parser().parse_args(argv)
    try:
        cache = _cache(arguments.dir)
        if arguments.command == "verify":
            return _verify(cache, arguments.json)
        if arguments.command == "clear":
            return _clear(cache, arguments.older_than, arguments.json)
        return _list(cache, arguments.json)
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
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dir", metavar="FOLDER", help="as cache.dir; default: tlearn/features in your cache folder")
    shared.add_argument("--json", action="store_true", help="print data instead of a table")
    parser = argparse.ArgumentParser(
        prog="python -m tlearn.cache", description="Look after the features that runs keep of frozen layers."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", parents=[shared], help="what is there, latest used first")
    commands.add_parser("verify", parents=[shared], help="read everything and compare checksums; status 2 on damage")
    clear = commands.add_parser("clear", parents=[shared], help="delete what no run uses now")
    clear.add_argument("--older-than", type=_days, metavar="DAYS", default=0.0, help="only what was not used for long")
    return parser


def _days(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (days := float(text)) >= 0:
            return days
    raise argparse.ArgumentTypeError(f"must be a number of days, 0 or more, got {text!r}")


def _cache(folder: str | None) -> FeatureCache:
    """The folder, which must exist where somebody names it."""
    path = cache_folder(CacheConfig(dir=folder))
    if folder is not None and not path.is_dir():
        raise UserError(Problem("--dir", f"there is no folder {path}"))
    return FeatureCache(path)


def _list(cache: FeatureCache, as_json: bool) -> int:
    entries = sorted(cache.entries(), key=lambda entry: -entry.used)
    if as_json:
        print(json.dumps({"folder": str(cache.folder), "entries": list(map(dataclasses.asdict, entries))}, indent=2))
        return 0
    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    for name in ("key", "features", "images", "size", "used"):
        table.add_column(name, justify="right" if name in ("images", "size") else "left", no_wrap=name != "features")
    for entry in entries:
        features = visible("\n".join(filter(None, (entry.about, entry.where))), keep="\n")
        size, used = size_text(entry.bytes), _ago(time.time() - entry.used)
        table.add_row(_short(entry.key), Text(features), f"{entry.rows:,}", size, used)
    if entries:
        console.print(table)
    unfinished = cache.unfinished_bytes()
    more = f"; {size_text(unfinished)} are being written, or are left unfinished or damaged" if unfinished else ""
    console.print(Text(f"{cache.folder}: {_counted(entries)}, {_size(entries)}{more}"), soft_wrap=True)
    return 0


def _verify(cache: FeatureCache, as_json: bool) -> int:
    entries = cache.entries()
    abouts = {entry.key: entry.about for entry in entries} | dict.fromkeys(cache.undescribed(), "")
    damaged = {key: why for key in sorted(abouts) if (why := cache.damage(key))}
    if as_json:
        print(json.dumps({"folder": str(cache.folder), "entries": len(abouts), "damaged": list(damaged)}, indent=2))
    else:
        print(f"{cache.folder}: {counted(len(abouts), 'entry', 'entries')}, {len(damaged)} damaged")
    for key, why in damaged.items():
        print(visible(f"damaged: {_short(key)} {abouts[key]}\n    {why}; {_ANEW}", keep="\n"), file=sys.stderr)
    return 2 if damaged else 0


def _clear(cache: FeatureCache, older_than: float, as_json: bool) -> int:
    # What a clock that was set back since calls the future was used now.
    entries = [entry for entry in cache.entries() if max(0.0, time.time() - entry.used) >= older_than * _DAY]
    deleted = [entry for entry in entries if cache.delete(entry.key)]
    kept = [entry for entry in entries if entry not in deleted]
    swept = cache.sweep()
    megabytes = sum(entry.bytes for entry in deleted) / 1e6  # as data, in one unit
    if as_json:
        data = {"deleted": [entry.key for entry in deleted], "kept": [entry.key for entry in kept], "MB": megabytes}
        print(json.dumps({"folder": str(cache.folder), **data}, indent=2))
    else:
        left = f"; also {counted(swept, 'unfinished or damaged one', 'unfinished or damaged ones')}" if swept else ""
        print(f"{cache.folder}: {_counted(deleted)} deleted, {_size(deleted)}{left}")
    for entry in kept:
        print(visible(f"kept: {_short(entry.key)} {entry.about}\n    {_HELD}", keep="\n"), file=sys.stderr)
    return 0


def _short(key: str) -> str:
    """What an entry is called wherever a person reads it; its folder is named by the whole key."""
    return key[:8]


def _counted(entries: Sequence[Entry]) -> str:
    return counted(len(entries), "entry", "entries")


def _size(entries: Sequence[Entry]) -> str:
    return size_text(sum(entry.bytes for entry in entries))


def _ago(seconds: float) -> str:
    for unit, length in (("day", _DAY), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count > 0:
            return f"{counted(count, unit)} ago"
    return "just now"


if __name__ == "__main__":
    sys.exit(main())
