"""Where a run stands: what a checkpoint needs besides arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass
class Progress:
    """Position and selection, over all stages and all resumptions.

    Attributes:
        stage: index of the stage.
        step: steps run in it.
        global_step: steps run in all.
        epochs: epochs run in all.
        seconds: time spent training.
        first_iteration: what the stage's optimizer counts from, where it took over state.
        metrics: of the last epoch.
        best: best value of the monitored metric so far, in any stage.
        best_epoch: when that was, counted from 1.
        best_before_rollback: the rollback since which that epoch has been run anew, and its record is another; 0: none.
        stage_best: best value in this stage.
        waited: epochs since then.
        validation_due: an epoch's steps are over, and its validation is not.
        rollbacks: how often the run went back because a loss was no number.
        engine_trial: what came of the last trial of prefix engines; empty where there was none.
        features: what came of keeping the features of a stage, by its name; not of stages that were to stream. Those
            of a pass that a killed run had no time to save this behind were found in the cache.
        rates: share of the planned learning rate that is left in a stage, by its index as text.
    """

    stage: int = 0
    step: int = 0
    global_step: int = 0
    epochs: int = 0
    seconds: float = 0.0
    first_iteration: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_epoch: int = 0
    best_before_rollback: int = 0
    stage_best: float | None = None
    waited: int = 0
    validation_due: bool = False
    rollbacks: int = 0
    engine_trial: str = ""
    features: dict[str, str] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Share of the planned learning rate that is left in this stage."""
        return self.rates.get(str(self.stage), 1.0)

    def enter(self, stage: int) -> None:
        """Begin a stage: what belongs to the one before is forgotten, what belongs to the run is kept."""
        self.stage, self.step, self.first_iteration = stage, 0, 0
        self.stage_best, self.waited = None, 0

    def judge(self, value: float, *, epoch: int, smaller_is_better: bool, min_delta: float) -> bool:
        """Take note of an epoch's value of the monitored metric. True when it is the best of the run.

        The first of equals is, or the first whose record there still is.
        """
        sign = -1.0 if smaller_is_better else 1.0
        if self.stage_best is None or sign * (value - self.stage_best) > min_delta:
            self.stage_best, self.waited = value, 0
        else:
            self.waited += 1
        has_no_record = value == self.best and self.best_before_rollback > 0
        if self.best is not None and sign * (value - self.best) <= 0 and not has_no_record:
            return False
        self.best, self.best_epoch, self.best_before_rollback = value, epoch, 0
        return True

    def back_to(self, saved: Progress, factor: float) -> Progress:
        """Where a run goes on that goes back to a saved state after a fault.

        What was the best before stays the best: its weights are on disk, and no later state has them.

        Args:
            saved: of the state.
            factor: for the learning rate of the stage that had the fault.
        """
        rates = self.rates | {str(self.stage): self.rate * factor}
        gone_back = replace(saved, rollbacks=self.rollbacks + 1, rates=rates, seconds=self.seconds)
        if (self.best, self.best_epoch) != (saved.best, saved.best_epoch):
            gone_back.best, gone_back.best_epoch = self.best, self.best_epoch
            gone_back.best_before_rollback = self.best_before_rollback or gone_back.rollbacks
        return gone_back
