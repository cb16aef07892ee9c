"""The pictures of an evaluation: confusion matrix, reliability diagram, and a contact sheet of mistakes."""

from __future__ import annotations

import io
import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlearn.data import UnreadableImage
from tlearn.evaluate.calibration import Calibration
from tlearn.evaluate.evaluation import Evaluation, Mistake
from tlearn.train.report import draw_confusion_matrix

_COLUMNS = 6  # of the contact sheet
_THUMB = 160  # pixels


def draw_confusions(evaluation: Evaluation) -> bytes | None:
    """The confusion matrix; PNG. None where images may have several labels."""
    if evaluation.matrix is None:
        return None
    return draw_confusion_matrix(evaluation.matrix, evaluation.outputs.classes)


def draw_reliability(evaluation: Evaluation) -> bytes:
    """The reliability diagram, as it is and with temperature scaling, over the number of decisions in each bin; PNG."""
    panels = [("as it is", evaluation.calibration)]
    if evaluation.temperature is not None:
        panels.append((f"temperature {evaluation.temperature.value:.3g}", evaluation.temperature.after))
    figure = _figure(4.4 * len(panels), 5.2)
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, height_ratios=(4, 1))
    for column, (title, found) in enumerate(panels):
        _reliability(axes[0, column], title, found, evaluation.outputs.several)
        _histogram(axes[1, column], found, evaluation.outputs.several)
    return _png(figure)


def _reliability(axes: Any, title: str, found: Calibration, several: bool) -> None:
    bins = [each for each in found.bins if each.count]
    left = [each.low for each in bins]
    width = found.bins[0].high - found.bins[0].low
    accuracy = np.array([each.accuracy for each in bins])
    confidence = np.array([each.confidence for each in bins])
    axes.bar(left, accuracy, width, align="edge", color="#4878a8", edgecolor="white", label="accuracy")
    axes.bar(
        left, confidence - accuracy, width, bottom=accuracy, align="edge",
        color="#d65f5f", alpha=0.35, edgecolor="#d65f5f", hatch="//", label="gap to the confidence",
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), title=f"{title}: ECE {found.ece:.3f}")
    axes.set_ylabel("share of labels that hold" if several else "accuracy")
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9)


def _histogram(axes: Any, found: Calibration, several: bool) -> None:
    width = found.bins[0].high - found.bins[0].low
    axes.bar([each.low for each in found.bins], [each.count for each in found.bins], width, align="edge", color="grey")
    axes.set(xlabel="probability" if several else "confidence", ylabel="decisions" if several else "images")


def draw_mistakes(evaluation: Evaluation) -> bytes | None:
    """The most confident mistakes with their pictures; PNG. None where there are none."""
    mistakes = evaluation.mistakes
    if not mistakes:
        return None
    columns = min(_COLUMNS, len(mistakes))
    rows = math.ceil(len(mistakes) / columns)
    figure = _figure(1.9 * columns, 2.45 * rows)
    for axes in (cells := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.axis("off")
    for axes, mistake in zip(cells.flat, mistakes, strict=False):
        axes.imshow(thumbnail(evaluation, mistake))
        said = f"{_short(mistake.predicted)} {mistake.probability:.3f}\nis {_short(mistake.truth)}"
        axes.set_title(said, fontsize=8, loc="left", parse_math=False)
        axes.text(
            0, _THUMB + 4, _short(os.path.basename(mistake.path), 28),
            fontsize=5.5, color="grey", va="top", parse_math=False,
        )  # fmt: skip
    return _png(figure)


def thumbnail(evaluation: Evaluation, mistake: Mistake) -> NDArray[np.uint8]:
    """What the network saw of an image, uint8 (160, 160, 3); grey where it can no longer be read."""
    outputs = evaluation.outputs
    try:
        picture = outputs.images.picture(mistake.row, outputs.reading)
    except UnreadableImage:
        return np.full((_THUMB, _THUMB, 3), 128, np.uint8)
    return outputs.reading.square(picture, _THUMB)


def thumbnail_jpeg(evaluation: Evaluation, mistake: Mistake) -> bytes:
    """The same as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(thumbnail(evaluation, mistake)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _short(text: str, most: int = 20) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text)
    half = most // 2  # its beginning and its end: long names often differ in the end alone
    return text if len(text) <= most else f"{text[: most - half - 1]}…{text[-half:]}"


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
