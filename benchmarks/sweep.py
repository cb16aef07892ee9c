"""What a search saves by giving up bad trials, and what it saves by making features once for all of them.

The same search for a head four times: with the median pruner and without, with one feature cache for all trials and
with a cache for each. Values are drawn at random from the seed, so all four try the same ones. The searches go on in
turn, one trial each, so that a slow moment of the machine meets all of them. Caches are empty at first: the first trial
fills the shared one.

A trial's time is that of ``tlearn.fit``, all in one process: ``tlearn.sweep`` starts a process for each, whose import
of TensorFlow neither of the two saves.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.classic import CASES, SMALLEST
from benchmarks.common import QUICK, compare, compare_accuracy, flowers, has_photographs, scratch, write_results
from tlearn.sweep.load import Sweep, load_sweep
from tlearn.sweep.process import Ended, OnReport
from tlearn.sweep.values import override_text

TRIALS = 2 if QUICK else 20
EPOCHS = 2 if QUICK else 20
PRUNER = {"name": "median", "startup": 1, "warmup": 0} if QUICK else {"name": "median", "startup": 5, "warmup": 1}
SPACE = {
    "head": {"type": "categorical", "choices": ["linear", "mlp"]},
    "head.units": {"type": "categorical", "choices": [[64], [256], [1024]], "when": {"head": "mlp"}},
    "optimizer.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
}


@dataclass(frozen=True)
class Trial:
    """What became of a trial."""

    seconds: float
    epochs: int
    pruned: bool
    val_accuracy: float
    val_loss: float


class Search:
    """A sweep whose trials run in this process.

    Args:
        sweep: what is searched, in a folder of its own.
        cache: of the features of all trials; None: a folder for each.

    Attributes:
        trials: those that have ended.
    """

    def __init__(self, sweep: Sweep, cache: Path | None) -> None:
        self._sweep = sweep
        self._cache = cache
        self.trials: list[Trial] = []

    def one_more(self) -> None:
        """Run the next trial."""
        from rich.console import Console

        from tlearn.sweep.display import Display
        from tlearn.sweep.study import SharedStudy
        from tlearn.sweep.worker import Worker

        sweep = replace(self._sweep, settings=replace(self._sweep.settings, trials=len(self.trials) + 1))
        study = SharedStudy(sweep)
        with Display(sweep, study, Console(file=io.StringIO())) as display:
            Worker(sweep, study, display, self._run).work()

    def _run(self, overrides: list[str], log: Path, on_report: OnReport) -> Ended:
        import keras

        import tlearn
        from benchmarks.clock import Clock
        from tlearn.compose import load_config
        from tlearn.train.stopping import Pruned

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            if on_report(epoch, metrics):
                raise Pruned

        keras.backend.clear_session()
        cache = self._cache or self._sweep.folder / f"features-{len(self.trials)}"
        config = load_config([*overrides, override_text("cache.dir", str(cache))])
        begin = time.perf_counter()
        summary = tlearn.fit(config, terminal=Clock(), on_epoch=on_epoch).summary
        seconds = round(time.perf_counter() - begin, 2)
        pruned = summary["status"] == "pruned"
        self.trials.append(Trial(seconds, summary["epochs"], pruned, summary["val_accuracy"], summary["val_loss"]))
        return Ended(0)

    @property
    def seconds(self) -> float:
        """Of all trials."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def best(self) -> float:
        """Accuracy of the best of the trials that came to their end."""
        return min((trial for trial in self.trials if not trial.pruned), key=lambda trial: trial.val_loss).val_accuracy

    @property
    def results(self) -> list[tuple[Any, ...]]:
        """Everything of each trial but its time."""
        return [(trial.epochs, trial.pruned, trial.val_accuracy, trial.val_loss) for trial in self.trials]


def main() -> None:
    """Measure, print a table, write the results."""
    if not has_photographs():
        return
    from tlearn.quiet import import_tensorflow

    import_tensorflow()
    with scratch() as folder:
        searches = _searches(folder)
        searches.pop("warm-up").one_more()  # the first run of a process loads what the others find there
        for number in range(TRIALS):
            for name, search in searches.items():
                search.one_more()
                print(f"  trial {number}, {name}: {search.trials[-1]}", flush=True)
    neither, shared, pruned, both = searches.values()
    after_the_first = [[trial.seconds for trial in search.trials[1:]] for search in (shared, neither)]
    many = f"{TRIALS} trials"
    comparisons = [
        compare(f"{many}, one cache", "s", [shared.seconds], [neither.seconds], "a cache for each"),
        compare("a trial after the first, one cache", "s", *after_the_first, "a cache for each"),
        compare(f"{many}, a cache for each, pruned", "s", [pruned.seconds], [neither.seconds], "not pruned"),
        compare(f"{many}, one cache, pruned", "s", [both.seconds], [shared.seconds], "not pruned"),
        compare(f"{many}, one cache, pruned", "s", [both.seconds], [neither.seconds], "a cache for each, not pruned"),
        compare_accuracy("the best trial, pruned", [both.best], [shared.best], "not pruned"),
    ]
    write_results(
        "sweep",
        {name: [asdict(trial) for trial in search.trials] for name, search in searches.items()},
        comparisons,
        seconds_saved={
            "one cache": round(neither.seconds - shared.seconds, 1),
            "pruning, a cache for each": round(neither.seconds - pruned.seconds, 1),
            "pruning, one cache": round(shared.seconds - both.seconds, 1),
            "both": round(neither.seconds - both.seconds, 1),
        },
        trials_pruned=sum(trial.pruned for trial in both.trials),
        trials_with_other_results=_differing(neither, shared) + _differing(pruned, both),
    )


def _searches(folder: Path) -> dict[str, Search]:
    """The four by name, and one for the start."""
    case = CASES[SMALLEST]
    values = {
        "sweep.space": SPACE,
        "sweep.trials": TRIALS,
        "sweep.sampler.name": "random",
        "sweep.seed": 3 if QUICK else 0,  # the second of two trials is the worse one
        "sweep.objectives.0.metric": "val_loss",
        "backbone": case.backbone,
        "backbone.alpha": case.alpha,
        "backbone.weights": None if case.weights is None else str(case.weights),
        "backbone.image_size": case.side,
        "data": "folder",
        "data.path": str(flowers(folder)),
        "data.batch_size": 4 if QUICK else 32,
        "optimizer": "adam",
        "schedule.stages.0.epochs": EPOCHS,
        "log.tensorboard": False,
    }
    searches = {}
    for name, pruner, cache in (
        ("warm-up", {"name": "none"}, None),
        ("neither", {"name": "none"}, None),
        ("one cache", {"name": "none"}, folder / "features"),
        ("pruning", PRUNER, None),
        ("both", PRUNER, folder / "features-of-both"),
    ):
        own = {"sweep.pruner": pruner, "sweep.dir": str(folder / name.replace(" ", "-"))}
        searches[name] = Search(load_sweep([override_text(*each) for each in (values | own).items()]), cache)
    return searches


def _differing(search: Search, other: Search) -> int:
    """Trials that found something else with another cache."""
    return sum(one != two for one, two in zip(search.results, other.results, strict=True))
