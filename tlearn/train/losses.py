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


def make_metrics(classes: int, multi_label: bool, labels: int) -> list[keras.metrics.Metric]:
    """Metrics against (batch, classes) targets.

    Single label: ``accuracy`` (top-1), and ``top5`` where there are more than five classes. Multi-label: ``accuracy``
    of the single decisions, and ``auc``, the area under the ROC curve, mean over the labels that some images have and
    some have not; both over the labels of the data only.

    Args:
        classes: outputs of the model.
        multi_label: whether an image may have any number of labels.
        labels: how many of the outputs, from the first, the data knows.
    """
    import keras

    if multi_label:
        return _multi_label_metrics(labels)
    metrics: list[keras.metrics.Metric] = [keras.metrics.CategoricalAccuracy("accuracy")]
    if classes > TOP_K:
        metrics.append(keras.metrics.TopKCategoricalAccuracy(TOP_K, name="top5"))
    return metrics


def metric_names(classes: int, multi_label: bool) -> tuple[str, ...]:
    """What an epoch records: loss and metrics of the training images, and of the validation images with ``val_``."""
    own = ("loss", "accuracy", "auc") if multi_label else ("loss", "accuracy", *(("top5",) if classes > TOP_K else ()))
    return (*own, *(f"val_{name}" for name in own))


def _multi_label_metrics(labels: int) -> list[keras.metrics.Metric]:
    import keras
    from keras import ops

    class Accuracy(keras.metrics.BinaryAccuracy):
        def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
            super().update_state(y_true[:, :labels], y_pred[:, :labels], sample_weight)

    class MeanAUC(keras.metrics.AUC):
        def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
            super().update_state(y_true[:, :labels], y_pred[:, :labels], sample_weight)

        def result(self) -> Any:
            positives = self.true_positives + self.false_negatives  # (thresholds, labels)
            negatives = self.false_positives + self.true_negatives
            recall = ops.divide_no_nan(self.true_positives, positives)
            fallout = ops.divide_no_nan(self.false_positives, negatives)
            areas = ops.sum((fallout[:-1] - fallout[1:]) * (recall[:-1] + recall[1:]) / 2, axis=0)
            judged = ops.cast((positives[0] > 0) & (negatives[0] > 0), areas.dtype)
            return ops.divide_no_nan(ops.sum(areas * judged), ops.sum(judged))

    return [
        Accuracy("accuracy", threshold=0.0),
        MeanAUC(name="auc", multi_label=True, num_labels=labels, from_logits=True),
    ]


def default_monitor(multi_label: bool) -> str:
    """The metric that decides which weights are best, where the config names none."""
    return "val_auc" if multi_label else "val_accuracy"


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is a loss."""
    return metric.endswith("loss")


def as_targets(labels: Any, classes: int) -> Any:
    """Labels to float32 targets (..., classes): integers become one-hot, float vectors stay, both padded to width."""
    import tensorflow as tf

    if labels.dtype.is_integer:
        return tf.one_hot(labels, classes)
    missing = classes - labels.shape[-1]
    return tf.pad(tf.cast(labels, tf.float32), [*[[0, 0]] * (labels.shape.rank - 1), [0, missing]])
