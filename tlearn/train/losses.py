"""What is minimised and what is measured: always from logits, always against one target vector per image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

TOP_K = 5


def make_loss(multi_label: bool, label_smoothing: float) -> keras.losses.Loss:
    """Cross-entropy over classes, or one per class for multi-label data; from logits.

    Label smoothing is that of Szegedy et al. 2015, arXiv 1512.00567, section 7.
    """
    import keras

    kind = keras.losses.BinaryCrossentropy if multi_label else keras.losses.CategoricalCrossentropy
    return kind(from_logits=True, label_smoothing=label_smoothing)


def make_metrics(classes: int, multi_label: bool) -> list[keras.metrics.Metric]:
    """Metrics against (batch, classes) targets.

    Single label: ``accuracy`` (top-1), and ``top5`` where there are more than five classes. Multi-label: ``accuracy``
    of the single decisions, and ``auc``, the area under the ROC curve, mean over classes.
    """
    import keras

    if multi_label:
        return [
            keras.metrics.BinaryAccuracy("accuracy", threshold=0.0),
            keras.metrics.AUC(name="auc", multi_label=True, num_labels=classes, from_logits=True),
        ]
    metrics: list[keras.metrics.Metric] = [keras.metrics.CategoricalAccuracy("accuracy")]
    if classes > TOP_K:
        metrics.append(keras.metrics.TopKCategoricalAccuracy(TOP_K, name="top5"))
    return metrics


def metric_names(classes: int, multi_label: bool) -> tuple[str, ...]:
    """What an epoch records: loss and metrics of the training images, and of the validation images with ``val_``."""
    own = ("loss", "accuracy", "auc") if multi_label else ("loss", "accuracy", *(("top5",) if classes > TOP_K else ()))
    return (*own, *(f"val_{name}" for name in own))


def default_monitor(multi_label: bool) -> str:
    """The metric that decides which weights are best, where the config names none."""
    return "val_auc" if multi_label else "val_accuracy"


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is a loss."""
    return metric.endswith("loss")


def as_targets(labels: Any, classes: int) -> Any:
    """Labels to float32 targets (batch, classes): class numbers become one-hot, vectors stay, both padded to width."""
    import tensorflow as tf

    if labels.dtype.is_integer and labels.shape.rank == 1:
        return tf.one_hot(labels, classes)
    return tf.pad(tf.cast(labels, tf.float32), [[0, 0], [0, classes - labels.shape[-1]]])
