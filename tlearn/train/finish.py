"""The end of a run: the final weights evaluated, the model saved, the summary and the report written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tlearn.config import Config, Keep
from tlearn.errors import Problem, UserError
from tlearn.train import checkpoint, report
from tlearn.train.classifier import Classifier
from tlearn.train.logs import TensorBoardLog
from tlearn.train.loop import Logs, Outputs
from tlearn.train.losses import default_monitor
from tlearn.train.plan import Plan
from tlearn.train.progress import Progress
from tlearn.train.run import Run


def finish(
    run: Run,
    config: Config,
    plan: Plan,
    classifier: Classifier,
    progress: Progress,
    *,
    validate: Callable[[], Outputs],
    test: Callable[[], Outputs] | None,
    board: TensorBoardLog,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Finish the folder of a run whose stages have ended.

    Killed here, a run does all of it again: every file is replaced as a whole, and the summary comes last.

    Args:
        run, config, plan, classifier: of the run.
        progress: where it stands.
        validate, test: evaluate the final weights on a split; None: there is no such split.
        board: is written to, and closed.
        say: is told what the report has to go without.

    Returns:
        The summary.
    """
    takes_best = config.checkpoint.final is Keep.best
    if takes_best:
        _take_best_weights(run, classifier)
    chosen = _chosen(config, plan, progress, last=run.epochs()[-1]["epoch"])
    say(f"model: {chosen}")
    validation = validate()
    final, matrix = _named(validation, "val"), _confusion(validation, plan)
    if test is not None:
        final |= _named(test(), "test")
    _save_model(run, classifier.finished(config.head.output))
    summary = {
        "run": str(run.path),
        "status": "finished",
        **{name: round(value, 6) for name, value in final.items()},
        **_totals(plan, progress),
        "weights_sha256": checkpoint.sha256(classifier.variables()),
    }
    if progress.rollbacks:
        summary["rollbacks"] = progress.rollbacks
    if progress.engine_trial:
        summary["prefix_engine"] = progress.engine_trial
    model_epoch = progress.best_epoch if takes_best and not progress.best_before_rollback else None
    outcome = report.Outcome(summary, matrix, chosen, model_epoch, progress.features)
    pictures = report.write_report(run, plan, outcome, say)
    for name, png in pictures.items():
        board.png(name, png, progress.global_step)
    board.hyperparameters(config, {f"final/{name}": value for name, value in final.items()}, progress.global_step)
    board.close()
    run.write_summary(summary)  # last: a run with a summary is complete
    return summary


def finish_pruned(run: Run, config: Config, plan: Plan, progress: Progress, *, board: TensorBoardLog) -> dict[str, Any]:
    """Finish the folder of a run that was given up: its last metrics, no model. Returns the summary."""
    summary = {
        "run": str(run.path),
        "status": "pruned",
        **{name: round(value, 6) for name, value in progress.metrics.items()},
        **_totals(plan, progress),
    }
    validation = {name: value for name, value in progress.metrics.items() if name.startswith("val_")}
    board.hyperparameters(config, {f"final/{name}": value for name, value in validation.items()}, progress.global_step)
    board.close()
    run.write_summary(summary)
    return summary


def _totals(plan: Plan, progress: Progress) -> dict[str, Any]:
    return {
        "epochs": progress.epochs,
        "steps": progress.global_step,
        "best_epoch": progress.best_epoch,
        **({"best_before_rollback": progress.best_before_rollback} if progress.best_before_rollback else {}),
        "seconds": round(progress.seconds, 1),
        "classes": len(plan.classes),
        "parameters": plan.parameters,
    }


def _chosen(config: Config, plan: Plan, progress: Progress, last: int) -> str:
    """Which weights become the model: they are not those of the epoch that was shown last, as a rule."""
    monitor = config.checkpoint.monitor or default_monitor(plan.multi_label)
    best = _place(plan, progress.best_epoch, before_rollback=progress.best_before_rollback)
    score = f"by {monitor} {progress.best:.4g}"
    if config.checkpoint.final is Keep.best:
        return f"weights of {best}, the best {score}"
    return f"weights of {_place(plan, last)}, the last; the best {score} were those of {best}"


def _place(plan: Plan, epoch: int, before_rollback: int = 0) -> str:
    """``epoch 12 (top 2/10)``: counted over the run, and in its stage; before which rollback, where it was run anew."""
    stage = next(stage for stage in reversed(plan.stages) if stage.first_epoch < epoch or stage is plan.stages[0])
    which = f" before rollback {before_rollback}" if before_rollback else ""
    return f"epoch {epoch}{which} ({stage.name} {epoch - stage.first_epoch}/{stage.epochs})"


def _take_best_weights(run: Run, classifier: Classifier) -> None:
    """Raises UserError when their file is gone or damaged."""
    try:
        variables = classifier.variables()
        arrays, _ = checkpoint.load(run.best_file, most=checkpoint.largest(variables.values()))
        for key, variable in variables.items():
            variable.assign(arrays[key])
    except (ValueError, KeyError) as error:
        fix = "checkpoint.final=last does without the best weights"
        raise UserError(Problem(str(run.best_file), f"cannot be used: {error}", fix)) from None


def _save_model(run: Run, model: keras.Model) -> None:
    """Write the model under its name only when it is whole."""
    with checkpoint.replacing(run.model_file) as partial:
        model.save(partial)


def _named(outputs: Outputs, split: str) -> Logs:
    """Metrics with the split's name before theirs."""
    return {f"{split}_{name}": value for name, value in outputs.values.items()}


def _confusion(outputs: Outputs, plan: Plan) -> np.ndarray | None:
    """The confusion matrix; None for multi-label data."""
    if plan.multi_label:
        return None
    classes = len(plan.classes)
    predicted = outputs.logits[:, :classes].argmax(axis=1)
    return report.confusion_matrix(outputs.targets.argmax(axis=1), predicted, classes)
