"""The samplers and pruners of Optuna by our names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlearn.sweep.config import Pruner, Sampler
from tlearn.sweep.load import Sweep

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


def make_sampler(sweep: Sweep, place: int, taken: Sequence[FrozenTrial] = ()) -> optuna.samplers.BaseSampler:
    """The sampler of one trial.

    Its random numbers depend on the seed and on the trial's place in the budget alone, so that a study that was
    stopped and goes on draws what it would have drawn.

    Args:
        sweep: whose space is searched.
        place: of the trial, from 0.
        taken: the trials before it, whose values a grid leaves out.
    """
    from optuna import samplers

    settings, population = sweep.settings.sampler, sweep.settings.sampler.population
    seed = random.Random(f"{sweep.settings.seed}/{place}").getrandbits(31)
    if settings.name is Sampler.random:
        return samplers.RandomSampler(seed=seed)
    if settings.name is Sampler.grid:
        return _grid_sampler(sweep, taken)
    if settings.name is Sampler.cmaes:
        return samplers.CmaEsSampler(
            seed=seed, n_startup_trials=settings.startup, popsize=population, warn_independent_sampling=False
        )
    if settings.name is Sampler.nsgaii:
        size = {} if population is None else {"population_size": population}
        return samplers.NSGAIISampler(seed=seed, **size)
    return samplers.TPESampler(seed=seed, n_startup_trials=settings.startup)


def make_pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """The pruner of a study."""
    from optuna import pruners

    settings = sweep.settings.pruner
    if settings.name is Pruner.median:
        return pruners.MedianPruner(n_startup_trials=settings.startup, n_warmup_steps=settings.warmup)
    if settings.name is Pruner.asha:
        return pruners.SuccessiveHalvingPruner(min_resource=settings.min_epochs, reduction_factor=settings.reduction)
    if settings.name is Pruner.hyperband:
        return pruners.HyperbandPruner(min_resource=settings.min_epochs, reduction_factor=settings.reduction)
    return pruners.NopPruner()


def _grid_sampler(sweep: Sweep, taken: Sequence[FrozenTrial]) -> optuna.samplers.BaseSampler:
    """The points of the grid in an order that the seed decides; each trial takes the first that nobody has.

    A trial of another worker that has not drawn its point yet is left the one that it will find. Optuna's own counts a
    trial that was lost as visited, and knows no conditions.
    """
    from optuna import samplers

    points = sweep.space.grid()
    random.Random(sweep.settings.seed).shuffle(points)
    visited = [trial.params for trial in taken]
    drawing = sum("run" not in trial.user_attrs and trial.params not in points for trial in taken)
    free = [point for point in points if point not in visited][drawing:]

    class Point(samplers.BaseSampler):  # type: ignore[misc,unused-ignore]
        """One point of the grid."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            """Nothing is drawn together."""
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            """Nothing is drawn together."""
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            """The point's value of this key."""
            return (free or points)[0][param_name]

    return Point()
