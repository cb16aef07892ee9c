"""How good the features of a backbone are for some classes, without training a run.

Two customary measures, both on the pooled last feature map of frozen weights. Weighted k nearest neighbours: each
training image near in cosine votes for its class with exp(similarity / 0.07) (Wu et al. 2018, arXiv 1805.01978,
section 3.4; Caron et al. 2021, arXiv 2104.14294, use it with k = 20). Linear probe: multinomial logistic regression
(Alain and Bengio 2016, arXiv 1610.01644), its L2 penalty chosen on a fifth of the training images.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlearn.config import CacheConfig
from tlearn.errors import DataError, Problem, UserError
from tlearn.evaluate.evaluation import OnBatch, Outputs, name_of
from tlearn.kept_features import engine_of, kept_features
from tlearn.labelled import Labelled

if TYPE_CHECKING:
    from tlearn.network import Network

NEIGHBOURS = 20
"""k of the nearest neighbours."""

_TEMPERATURE = 0.07
_PENALTIES = 10.0 ** np.arange(-4, 5)  # C, the inverse of the penalty, for features of unit variance
_HELD_OUT = 0.2
_AT_ONCE = 20_000_000  # similarities held at a time
_LEAST = 1e-12  # probability of a class that no neighbour votes for


@dataclass(frozen=True)
class Probe:
    """What a probe was made of.

    Attributes:
        outputs: its scores for the images evaluated: logarithms of probabilities.
        train_images: how many it learned from.
        settings: its k, or the C that was chosen.
        cached: how many of the two sets of features were in the feature cache.
    """

    outputs: Outputs
    train_images: int
    settings: dict[str, float]
    cached: int


def probe(
    network: Network,
    train: Labelled,
    images: Labelled,
    *,
    method: str,
    neighbours: int = NEIGHBOURS,
    cache: CacheConfig | None = None,
    on_batch: OnBatch = lambda what, stop, images, unreadable: None,
) -> Probe:
    """Fit a probe to the features of training images and apply it to others of the same source.

    Args:
        network: whose backbone gives the features.
        train, images: with the same classes.
        method: ``knn`` or ``linear``.
        neighbours: k of ``knn``.
        cache: where features are kept between calls; None: nowhere.
        on_batch: see ``OnBatch``.

    Raises:
        UserError: images with several labels each.
        DataError: there are no readable images of one or the other kind, or training images of one class only.
    """
    if train.several:
        raise UserError(Problem("--method", f"{method} is for one class per image", "leave --method out"))
    known = _features(network, train, cache, on_batch)
    asked = _features(network, images, cache, on_batch)
    train, images = known.images, asked.images
    if len(np.unique(train.labels)) < 2:
        raise DataError(Problem("data", f"{method} needs training images of two classes or more"))
    classes = len(train.classes)
    settings: dict[str, float]
    if method == "knn":
        k = min(neighbours, len(train))
        logits = nearest_neighbours(known.values, train.labels, asked.values, classes, k)
        settings = {"k": k, "temperature": _TEMPERATURE}
    else:
        logits, chosen = linear_probe(known.values, train.labels, asked.values, classes)
        settings = {"C": chosen}
    outputs = Outputs(
        network=f"{name_of(network)} ({method})",
        classes=train.classes,
        images=images,
        truth=images.labels.astype(np.int64),
        logits=logits,
        unreadable=(*known.unreadable, *asked.unreadable),
        reading=network.reading,
    )
    return Probe(outputs, len(train), settings, known.cached + asked.cached)


# --- the two classifiers ---------------------------------------------------------------------------------------------


def nearest_neighbours(
    known: NDArray[np.float32], labels: NDArray[Any], asked: NDArray[np.float32], classes: int, k: int
) -> NDArray[np.float64]:
    """Weighted k nearest neighbours in cosine.

    Args:
        known, labels: features (m, d) and classes (m,) of the training images.
        asked: features (n, d).
        classes: how many.
        k: at most m.

    Returns:
        Logarithms of the shares of the votes, (n, classes).
    """
    known, asked = _unit(known), _unit(asked)
    shares = np.empty((len(asked), classes))
    at_once = max(1, _AT_ONCE // len(known))
    for start in range(0, len(asked), at_once):
        similarity = asked[start : start + at_once] @ known.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        nearer = near - near.max(axis=1, keepdims=True)  # relative to the nearest: nothing overflows
        votes = np.exp(nearer / _TEMPERATURE)
        cell = np.arange(len(near))[:, None] * classes + labels[nearest]
        shares[start : start + len(near)] = np.bincount(
            cell.ravel(), weights=votes.ravel(), minlength=len(near) * classes
        ).reshape(len(near), classes)
    shares /= shares.sum(axis=1, keepdims=True)
    return np.log(np.maximum(shares, _LEAST))


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12), np.float32)


def linear_probe(
    known: NDArray[np.float32], labels: NDArray[Any], asked: NDArray[np.float32], classes: int
) -> tuple[NDArray[np.float64], float]:
    """Logistic regression on standardised features; arguments as for ``nearest_neighbours``.

    Returns:
        Logarithms of probabilities, (n, classes), and the C that was best on a fifth of the training images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(c: float, features: NDArray[Any], of: NDArray[Any]) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(features, of)

    rows = np.arange(len(labels))
    stratify = labels if np.bincount(labels)[np.unique(labels)].min() > 1 and _fits(labels) else None
    rest, held = train_test_split(rows, test_size=_HELD_OUT, random_state=0, stratify=stratify)
    best = 1.0
    if len(np.unique(labels[rest])) > 1:
        accuracy = [fitted(c, known[rest], labels[rest]).score(known[held], labels[held]) for c in _PENALTIES]
        best = float(_PENALTIES[int(np.argmax(accuracy))])  # of equally good ones, the strongest penalty
    model = fitted(best, known, labels)
    logits = np.full((len(asked), classes), np.log(_LEAST))
    logits[:, model.classes_] = np.maximum(model.predict_log_proba(asked), np.log(_LEAST))
    return logits, best


def _fits(labels: NDArray[Any]) -> bool:
    """Whether a fifth of the images has room for one of each class."""
    return round(len(labels) * _HELD_OUT) >= len(np.unique(labels))


# --- features --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _FeaturesOf:
    """Features (n, d) of images that could be read; and whether they were in the cache."""

    images: Labelled
    values: NDArray[np.float32]
    unreadable: tuple[tuple[str, str], ...] = ()
    cached: bool = False


def _features(network: Network, images: Labelled, cache: CacheConfig | None, on_batch: OnBatch) -> _FeaturesOf:
    """Pooled features, from the feature cache where they are there, and put there where all images can be read."""
    tensors = network.layers.tensors([])
    (tensor,), (kept,) = tensors.values(), kept_features(network, images, tensors, cache).values()
    entry = kept.open()
    if entry is not None:
        with contextlib.closing(entry):
            (values,) = entry.take(np.arange(len(images)))
        return _FeaturesOf(images, values, cached=True)
    made = _computed(network, tensor, images, on_batch)
    if not made.unreadable:
        kept.write([made.values])
    return made


def _computed(network: Network, tensor: Any, images: Labelled, on_batch: OnBatch) -> _FeaturesOf:
    rows: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float32]] = []
    unreadable: list[tuple[str, str]] = []
    for batch, (features,) in network.compute(images, [tensor], engine=engine_of(network)):
        rows.append(batch.rows)
        values.append(features)
        unreadable += batch.unreadable
        on_batch(f"features: {images.split}", batch.stop, len(images), len(unreadable))
    readable = images.only(np.concatenate(rows)) if rows else images
    if not len(readable):
        raise DataError(Problem("images", f"not one of the {images.split} images could be read"))
    return _FeaturesOf(readable, np.concatenate(values), tuple(unreadable))
