"""An evaluation: what a network gives for labelled images, scored, with its worst mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlearn.data import Reading
from tlearn.errors import DataError, Problem, UserError
from tlearn.evaluate.calibration import TEMPERATURES, Calibration, calibration, fit_temperature, probabilities_of
from tlearn.evaluate.comparison import Comparison, compare
from tlearn.evaluate.intervals import CONFIDENCE, RESAMPLES, Bootstrap, Score
from tlearn.evaluate.label_scores import label_class_scores, multi_label_scores
from tlearn.evaluate.scores import (
    ClassScores,
    class_scores,
    confusion_counts,
    single_label_scores,
    worst_confusions,
)
from tlearn.labelled import Labelled, truth_for

if TYPE_CHECKING:
    from tlearn.network import Network

OnBatch = Callable[[str, int, int, int], None]
"""Called with what is read, how many images of it are done, how many there are, and how many were unreadable."""

THRESHOLD = 0.5
"""Probability from which on a label is given, unless another is named."""

_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a classifier gives for labelled images.

    Attributes:
        network: what it is called.
        classes: names of its outputs, of those that are judged: see ``judged``.
        images: those that could be read.
        truth: int64 (n,), their outputs; or 0 and 1 (n, k) where an image may have several labels.
        logits: float64 (n, k), scores before softmax or sigmoid.
        unreadable: (path, reason) of the others.
        reading: how it reads images.
    """

    network: str
    classes: tuple[str, ...]
    images: Labelled
    truth: NDArray[np.int64]
    logits: NDArray[np.float64]
    unreadable: tuple[tuple[str, str], ...]
    reading: Reading

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return self.truth.ndim == 2

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(n, k)."""
        return probabilities_of(self.logits, self.several)

    def given(self, threshold: float) -> NDArray[np.int64]:
        """The class of each image, (n,); or its labels, 0 and 1 (n, k), from a probability on."""
        return (self.probabilities >= threshold).astype(np.int64) if self.several else self.logits.argmax(axis=1)

    def right(self, threshold: float) -> NDArray[np.bool_]:
        """Which images have the right class; or all their labels right, (n,)."""
        given = self.given(threshold) == self.truth
        return np.asarray(given.all(axis=1) if self.several else given)


def outputs_of(
    network: Network,
    images: Labelled,
    *,
    batch_size: int = 32,
    on_batch: OnBatch = lambda what, stop, images, unreadable: None,
) -> Outputs:
    """Run a network over labelled images whose classes it knows; see ``judged`` for the outputs that are kept.

    Args:
        network: with a classifier.
        images: see ``tlearn.labelled``.
        batch_size: images per step.
        on_batch: see ``OnBatch``.

    Raises:
        UserError: the network has no classifier, or its scores are no finite numbers.
        DataError: not one image could be read.
    """
    rows: list[NDArray[np.int64]] = []
    logits: list[NDArray[np.float32]] = []
    unreadable: list[tuple[str, str]] = []
    for batch, (scores,) in network.compute(images, [network.logits], batch_size=batch_size):
        rows.append(batch.rows)
        logits.append(scores)
        unreadable += batch.unreadable
        on_batch(f"{name_of(network)}: {images.split}", batch.stop, len(images), len(unreadable))
    readable = images.only(np.concatenate(rows))
    if not len(readable):
        problems = [Problem(path, reason) for path, reason in unreadable[:_SHOWN]]
        raise DataError([*problems, Problem("images", "not one could be read")])
    scores_of_all = np.concatenate(logits).astype(np.float64)
    classes = judged(network)
    if not np.isfinite(scores_of_all).all():
        fix = "its weights are damaged, or its training went wrong"
        raise UserError(Problem(name_of(network), "gives scores that are no finite numbers", fix))
    return Outputs(
        network=name_of(network),
        classes=classes,
        images=readable,
        truth=truth_for(readable, classes, network.wordnet),
        logits=scores_of_all[:, : len(classes)],
        unreadable=tuple(unreadable),
        reading=network.reading,
    )


def judged(network: Network) -> tuple[str, ...]:
    """Names of the outputs that count, from the first on, as in training.

    With several labels per image each output is a decision of its own, and those above the labels of the run's data
    (``head.classes``) decide about nothing. With one label all compete: whoever takes an image for such a class errs.
    """
    if network.multi_label and network.run is not None:
        return network.classes[: len(network.run.manifest["classes"])]
    return network.classes


def name_of(network: Network) -> str:
    """The folder of a run, or the architecture."""
    return network.backbone.spec.name if network.run is None else network.run.path.name


@dataclass(frozen=True)
class Temperature:
    """Temperature scaling.

    Attributes:
        value: what all logits are divided by.
        split: whose images it was fitted to.
        images: how many.
        after: calibration with it, of the images that are evaluated.
    """

    value: float
    split: str
    images: int
    after: Calibration


@dataclass(frozen=True)
class Mistake:
    """A wrong decision.

    Attributes:
        row: number of the image.
        path: of the image.
        truth, predicted: names of the classes; of a label that an image has or not, ``green`` and ``not green``.
        probability: of what was predicted.
        truth_probability: of the truth.
    """

    row: int
    path: str
    truth: str
    predicted: str
    probability: float
    truth_probability: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How good a classifier is on labelled images.

    Attributes:
        outputs: what it gave for them.
        scores: of all images, with intervals, by name: ``accuracy``, ``top5``, ``loss``, ``macro_f1``, ``ece``, ...;
            where images may have several labels also ``map`` and ``subset_accuracy``.
        classes: of each class.
        matrix: confusion matrix (k, k), row the true class; None where images may have several labels.
        calibration: as it is.
        temperature: and with temperature scaling; None where there were no validation images to fit it to.
        mistakes: the most confident ones, most confident first.
        wrong: how many there are: images, or decisions.
        threshold: probability from which on a label is given.
        confidence, resamples: of the intervals.
        notices: what a person should know before trusting the scores.
        comparison: with another network on the same images.
    """

    outputs: Outputs
    scores: dict[str, Score]
    classes: tuple[ClassScores, ...]
    matrix: NDArray[np.int64] | None
    calibration: Calibration
    temperature: Temperature | None
    mistakes: tuple[Mistake, ...]
    wrong: int
    threshold: float
    confidence: float
    resamples: int
    notices: tuple[str, ...]
    comparison: Comparison | None = None

    def __getitem__(self, name: str) -> float | None:
        """A score by its name: ``evaluation["accuracy"]``."""
        return self.scores[name].value

    @property
    def confusions(self) -> list[tuple[str, str, int]]:
        """(true class, predicted class, images), commonest first; none where images may have several labels."""
        names = self.outputs.classes
        pairs = [] if self.matrix is None else worst_confusions(self.matrix)
        return [(names[row], names[column], count) for row, column, count in pairs]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data for JSON."""
        images = self.outputs.images
        return {
            "network": self.outputs.network,
            "data": images.source.where,
            "split": images.split,
            "images": len(images),
            "multi_label": self.outputs.several,
            "threshold": self.threshold if self.outputs.several else None,
            "notices": list(self.notices),
            "unreadable": [{"path": path, "reason": reason} for path, reason in self.outputs.unreadable],
            "intervals": {
                "confidence": self.confidence,
                "proportions": "Wilson",
                "others": "percentile bootstrap over the images",
                "resamples": self.resamples,
            },
            "scores": {name: score.as_dict() for name, score in self.scores.items()},
            "classes": [scores.as_dict() for scores in self.classes],
            "confusion_matrix": None if self.matrix is None else self.matrix.tolist(),
            "confusions": [{"truth": a, "predicted": b, "images": count} for a, b, count in self.confusions],
            "calibration": self.calibration.as_dict(),
            "temperature": None if self.temperature is None else asdict(self.temperature),
            "wrong": self.wrong,
            "mistakes": [{key: value for key, value in asdict(m).items() if key != "row"} for m in self.mistakes],
            "comparison": None if self.comparison is None else self.comparison.as_dict(),
        }


def score(
    outputs: Outputs,
    *,
    validation: Outputs | None = None,
    threshold: float = THRESHOLD,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    mistakes: int = 24,
) -> Evaluation:
    """Score what a classifier gave for labelled images.

    Args:
        outputs: of the classifier.
        validation: of the same one for validation images, to fit the temperature to; None: no temperature scaling.
        threshold: probability from which on a label is given, where images may have several.
        confidence: of the intervals.
        resamples: of the bootstrap.
        mistakes: how many of the most confident ones are kept.
    """
    several, truth, logits = outputs.several, outputs.truth, outputs.logits
    given = outputs.given(threshold)
    bootstrap = Bootstrap(len(logits), resamples, confidence, work=logits.shape[1] if several else 1)
    if several:
        scores = multi_label_scores(logits, truth, threshold, bootstrap)
        classes = label_class_scores(outputs.probabilities, truth, outputs.classes, threshold, confidence)
    else:
        scores = single_label_scores(logits, truth, bootstrap)
        classes = class_scores(truth, given, outputs.classes, confidence)
    temperature = None if validation is None else _scaled(outputs, validation)
    return Evaluation(
        outputs=outputs,
        scores=scores,
        classes=classes,
        matrix=None if several else confusion_counts(truth, given, logits.shape[1]),
        calibration=calibration(logits, truth),
        temperature=temperature,
        mistakes=_worst(outputs, given, mistakes),
        wrong=int((given != truth).sum()),
        threshold=threshold,
        confidence=confidence,
        resamples=bootstrap.resamples,
        notices=(
            *outputs.images.notices,
            *_missing(classes, several),
            *_about_temperature(temperature, outputs, validation),
        ),
    )


def _scaled(outputs: Outputs, validation: Outputs) -> Temperature:
    value = fit_temperature(validation.logits, validation.truth)
    after = calibration(outputs.logits, outputs.truth, value)
    return Temperature(value, validation.images.split, len(validation.logits), after)


def _missing(classes: tuple[ClassScores, ...], several: bool) -> list[str]:
    names = [repr(scores.name) for scores in classes if not scores.support]
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN]) + (f", ... ({len(names)} classes)" if len(names) > _SHOWN else "")
    notice = f"no image of {shown}: recall and F1 are not defined there, and macro averages are over the other classes"
    return [f"{notice}; scores of single decisions count them" if several else notice]


def _about_temperature(found: Temperature | None, outputs: Outputs, validation: Outputs | None) -> list[str]:
    if found is None:
        return []
    notices = []
    if not 1.01 * TEMPERATURES[0] < found.value < TEMPERATURES[1] / 1.01:
        notices.append("no sensible temperature: the scores of the validation images hardly say what they are of")
    if validation is outputs:
        notices.append("the temperature was fitted to the images that it is judged by: after is a little too good")
    return notices


def _worst(outputs: Outputs, given: NDArray[np.int64], most: int) -> tuple[Mistake, ...]:
    """The most confident mistakes; equal ones in the order of the images."""
    probabilities = outputs.probabilities
    wrong = np.argwhere(given != outputs.truth)  # (image,), or (image, label)
    if outputs.several:
        of_label = probabilities[wrong[:, 0], wrong[:, 1]]
        sure = np.where(given[wrong[:, 0], wrong[:, 1]], of_label, 1 - of_label)
    else:
        sure = probabilities[wrong[:, 0], given[wrong[:, 0]]]
    found = []
    for at in np.argsort(-sure, kind="stable")[:most]:
        image = int(wrong[at, 0])
        if outputs.several:
            name, has = outputs.classes[wrong[at, 1]], bool(given[image, wrong[at, 1]])
            truth, predicted = (f"not {name}", name) if has else (name, f"not {name}")
            truth_probability = 1 - float(sure[at])
        else:
            truth, predicted = outputs.classes[outputs.truth[image]], outputs.classes[given[image]]
            truth_probability = float(probabilities[image, outputs.truth[image]])
        path = outputs.images.name(image)
        found.append(Mistake(image, path, truth, predicted, float(sure[at]), truth_probability))
    return tuple(found)


def compared(evaluation: Evaluation, other: Outputs) -> Evaluation:
    """The evaluation with a comparison: ``other`` is another network's outputs for the same images, of one source.

    Only images that both could read are compared.
    """
    first = evaluation.outputs
    _, here, there = np.intersect1d(first.images.rows, other.images.rows, assume_unique=True, return_indices=True)
    right_first, right_second = (
        outputs.right(evaluation.threshold)[rows] for outputs, rows in ((first, here), (other, there))
    )
    names = (first.network, other.network if other.network != first.network else f"{other.network} (2)")
    bootstrap = Bootstrap(len(here), evaluation.resamples, evaluation.confidence)
    return replace(evaluation, comparison=compare(names[0], right_first, names[1], right_second, bootstrap))
