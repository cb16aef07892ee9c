"""Repeat a run from its folder, and compare: environment, data and weights first, then every number and the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tlearn.data import ImageTable, index_data, leave_out
from tlearn.errors import Problem, UserError
from tlearn.train.fingerprint import compare
from tlearn.train.foreign import read_json
from tlearn.train.run import Run, environment
from tlearn.train.unchanged import MISSING, TOUCHED, Difference, differing, kinds, plain

_APART = ("seconds",)  # of records: what no two runs share
_PLACES = ("run", "seconds")  # and of summaries
_MACHINE = ("python", "packages", "platform", "processor", "cpus", "devices")


@dataclass
class Reproduction:
    """What came of repeating a run.

    Attributes:
        run: that was repeated.
        repeated: the new run's folder; None where data or weights rule out that it could be the same.
        surroundings: what differs in versions and machine, which may explain differences: (what, was, is).
        inputs: what differs in data and weights: (what, was, is).
        records: how many records were compared.
        differences: of numbers and of the final weights: (where, was, is).
    """

    run: Path
    repeated: Path | None = None
    surroundings: list[Difference] = field(default_factory=list)
    inputs: list[Difference] = field(default_factory=list)
    records: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether the run was repeated, and nothing differs."""
        return self.repeated is not None and not self.differences

    def as_dict(self) -> dict[str, Any]:
        """Plain data, the command's last line."""
        return {
            "run": str(self.run),
            "repeated": None if self.repeated is None else str(self.repeated),
            "equal": self.equal,
            "records": self.records,
            "differences": len(self.differences),
            "inputs": [where for where, *_ in self.inputs],
            "environment": [where for where, *_ in self.surroundings],
        }


def reproduce(
    path: str | Path,
    *,
    run_dir: str | Path | None = None,
    say: Callable[[Reproduction], None] = lambda found: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Reproduction:
    """Repeat a finished run in a folder of its own, and compare.

    Features are made anew, in the new run's folder, and deleted when it has ended: those that the first run left in
    the cache would answer for the part of the model that is to be repeated.

    Args:
        path: of the run.
        run_dir: folder to make; None: the run's own with ``-repeated`` behind its name.
        say: called with what is known before training begins.
        should_stop: as for ``tlearn.fit``.

    Raises:
        UserError: the run has not ended, or is damaged, or its data cannot be read.
        Stopped, NumericalFault, OutOfMemory: as for ``tlearn.fit``.
    """
    from tlearn.train.api import fit, image_size, weights_identity

    first = Run.open(path)
    summary = first.summary  # refuses a run that has not ended
    if summary.get("status") == "pruned":
        fix = "train it to its end first, with the overrides in its overrides.yaml and another run_dir"
        raise UserError(Problem(str(first.path), "was pruned: it has no final weights to compare", fix))
    if "weights_sha256" not in summary:
        raise UserError(
            Problem(str(first.path), "does not say which weights it ended with", "an older version made it")
        )
    folder = Path(run_dir).expanduser() if run_dir else first.path.with_name(f"{first.path.name}-repeated")
    if folder.exists():
        raise UserError(Problem("--run-dir", f"{folder} exists", "name another folder: --run-dir FOLDER"))
    config, recorded = first.config, read_json(first.environment_file)
    found = Reproduction(first.path, surroundings=_surroundings(recorded))
    data = index_data(config.data, image_size=image_size(config), seed=config.seed)
    data = leave_out(data, config.data, [name for name, _ in first.left_out])
    found.inputs = [
        *_files(first, data.table),
        *_weights(recorded.get("weights", {}), weights_identity(config)),
    ]
    say(found)
    if any(not where.startswith(TOUCHED) for where, *_ in found.inputs):
        return found
    features = folder / "features"
    config = replace(config, run_dir=str(folder), cache=replace(config.cache, dir=str(features)))
    run = fit(config, overrides=first.overrides, should_stop=should_stop)
    shutil.rmtree(features, ignore_errors=True)
    found.repeated, found.records = run.path, len(first.metrics)
    found.differences = list(_results(first, run))
    return found


def _surroundings(recorded: dict[str, Any]) -> list[Difference]:
    """Versions and machine, then and now."""
    now = environment()
    then, today = ({key: source.get(key) for key in _MACHINE} for source in (recorded, now))
    return list(differing(plain(then), plain(today)))


def _files(run: Run, table: ImageTable) -> list[Difference]:
    """Images that are not what they were; those written at another time only may hold the same."""
    before, now = run.manifest, table.manifest_hash()
    if before.get("hash") == now:
        return []
    if before.get("classes") != list(table.classes):
        return [("classes", before.get("classes"), list(table.classes))]
    try:
        changes = kinds(compare(run.files_file, table, int(before.get("images", 0))))
    except (ValueError, TypeError) as error:
        return [(f"data, which files is not known ({error})", before.get("hash"), now)]
    named = [(f"{kind}: {line}", MISSING, MISSING) for kind, rows in changes.items() for line in rows.lines]
    return named or [("data", before.get("hash"), now)]


def _weights(then: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """The weights that a run begins with, by what they hold and not by where they lie."""
    return list(differing({"weights": then.get("sha256")}, {"weights": now.get("sha256")}))


def _results(first: Run, second: Run) -> list[Difference]:
    """Every record, the summary and with it the final weights."""

    def records(run: Run) -> dict[str, Any]:
        return {
            f"{record['event']} {record['global_step']} ({record['stage']})": {
                key: value for key, value in record.items() if key not in _APART
            }
            for record in run.metrics
        }

    def summary(run: Run) -> dict[str, Any]:
        return {key: value for key, value in run.summary.items() if key not in _PLACES}

    return [*differing(records(first), records(second)), *differing(summary(first), summary(second))]
