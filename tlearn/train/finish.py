"""The end of a run: the final weights evaluated, the model saved, the summary and the report written."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlearn.config import Config, Keep
from tlearn.errors import Problem, UserError
from tlearn.train import checkpoint, report
from tlearn.train.classifier import Classifier
from tlearn.train.logs import TensorBoardLog
from tlearn.train.loop import Evaluation, Logs
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
    evaluate: Evaluation,
    validation: tf.data.Dataset,
    test: tf.data.Dataset | None,
    board: TensorBoardLog,
) -> dict[str, Any]:
    """Finish the folder of a run whose stages have ended. Returns the summary."""
    if config.checkpoint.final is Keep.best:
        _take_best_weights(run, classifier)
    final, matrix = _evaluate(evaluate, validation, "val", plan)
    if test is not None:
        final |= _evaluate(evaluate, test, "test", plan)[0]
    _save_model(run, classifier.finished(config.head.output))
    summary = {
        "run": str(run.path),
        "status": "finished",
        **{name: round(value, 6) for name, value in final.items()},
        "epochs": progress.epochs,
        "steps": progress.global_step,
        "best_epoch": progress.best_epoch,
        "seconds": round(progress.seconds, 1),
        "classes": len(plan.classes),
        "parameters": plan.parameters,
    }
    pictures = report.write_report(run, plan.classes, matrix, summary)
    for name, png in pictures.items():
        board.png("val", name, png, progress.global_step)
    board.hyperparameters(config, {f"final/{name}": value for name, value in final.items()}, progress.global_step)
    board.close()
    run.write_summary(summary)  # last: a run with a summary is complete
    return summary


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


def _evaluate(evaluate: Evaluation, batches: tf.data.Dataset, split: str, plan: Plan) -> tuple[Logs, Any]:
    """Metrics with the split's name before theirs, and the confusion matrix; None for multi-label data."""
    values, logits, targets = evaluate.with_outputs(batches)
    named = {f"{split}_{name}": value for name, value in values.items()}
    if plan.multi_label:
        return named, None
    classes = len(plan.classes)
    predicted = np.concatenate(logits)[:, :classes].argmax(axis=1)
    return named, report.confusion_matrix(np.concatenate(targets).argmax(axis=1), predicted, classes)
