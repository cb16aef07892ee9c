"""Evaluating from Python; the command line does no more than to call this and to print."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tlearn.config import CacheConfig, CacheMode, DataConfig
from tlearn.errors import DataError, Problem, UserError, did_you_mean
from tlearn.evaluate.evaluation import (
    THRESHOLD,
    Evaluation,
    OnBatch,
    Outputs,
    compared,
    judged,
    name_of,
    outputs_of,
    score,
)
from tlearn.evaluate.intervals import CONFIDENCE, RESAMPLES
from tlearn.evaluate.probes import NEIGHBOURS, probe
from tlearn.images import Columns, is_table
from tlearn.labelled import (
    SPLITS,
    Labelled,
    check_every_class,
    divide_other_data,
    known_only,
    other_data,
    run_data,
    run_split,
    split_of,
    table_columns,
)
from tlearn.words import counted

if TYPE_CHECKING:
    from tlearn.network import Network

METHODS = ("classifier", "knn", "linear")
_OTHER_DATA = Problem("--data", "names other images to evaluate on")


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Attributes:
        split: ``train``, ``val`` or ``test``; None: a run's ``val``, all images of other data.
        method: ``classifier``: the network's own; ``knn`` and ``linear``: its features, see ``tlearn.evaluate.probes``.
        columns: of a table of images; without one, nothing may be said of it.
        skip_unknown: leave out images of classes that the network does not know, instead of raising.
        allow_missing: evaluate although there is no image of some class, instead of raising.
        temperature: fit temperature scaling to a run's validation images.
        threshold: probability from which on a label is given, where images may have several; None: 0.5.
        confidence, resamples: of the intervals.
        mistakes: how many of the most confident ones are kept.
        neighbours: k of ``knn``.
        cache: where the features of ``knn`` and ``linear`` are kept; None: as the run, or training, would.
        keep_features: whether they are kept at all.
        batch_size: images per step.
    """

    split: str | None = None
    method: str = "classifier"
    columns: Columns = field(default_factory=Columns)
    skip_unknown: bool = False
    allow_missing: bool = False
    temperature: bool = True
    threshold: float | None = None
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    mistakes: int = 24
    neighbours: int = NEIGHBOURS
    cache: CacheConfig | None = None
    keep_features: bool = True
    batch_size: int = 32

    def check(self) -> None:
        """Raises UserError with everything that makes no sense."""
        problems = [
            Problem(f"--{name}", f"must be {least} or more, got {value}")
            for name, value, least in (
                ("mistakes", self.mistakes, 0),
                ("resamples", self.resamples, 100),
                ("neighbours", self.neighbours, 1),
                ("batch-size", self.batch_size, 1),
            )
            if value < least
        ]
        for name, value, known in (("split", self.split, SPLITS), ("method", self.method, METHODS)):
            if value is not None and value not in known:
                problems.append(Problem(f"--{name}", f"is {value!r}", did_you_mean(value, known)))
        for name, share in (("confidence", self.confidence), ("threshold", self.threshold)):
            if share is not None and not 0 < share < 1:
                problems.append(Problem(f"--{name}", f"is a share between 0 and 1, got {share}"))
        if problems:
            raise UserError(problems)


def evaluate_network(
    network: Network,
    data: str | None,
    settings: Settings,
    *,
    against: Network | None = None,
    on_batch: OnBatch = lambda what, stop, images, unreadable: None,
) -> Evaluation:
    """Evaluate a network.

    Args:
        network: of a run, or a bare backbone; with a classifier, unless the method says otherwise.
        data: a folder of class folders, or a table; None: the data of the run.
        settings: how.
        against: another network, to be compared with on the same images.
        on_batch: see ``OnBatch``.

    Raises:
        UserError, DataError: everything a user can mend.
    """
    settings.check()
    settings.columns.check([] if data is None else [data])
    if settings.threshold is not None and (settings.method != "classifier" or not network.multi_label):
        what = "is for several labels per image, and one class is given to each here: the most probable"
        raise UserError(Problem("--threshold", what, "leave it out"))
    if data is None and network.run is None:
        raise UserError(Problem("--data", "a backbone has no images of its own", "--data FOLDER or TABLE names some"))
    if settings.method != "classifier":
        if against is not None:
            raise UserError(Problem("--against", f"does not go with --method {settings.method}"))
        return _evaluate_features(network, data, settings, on_batch)

    images = _images(network, data, settings)
    for each in (network, against):
        if each is not None:
            images = _fitting(images, each, settings)
    _check_every_class(network, images, data, settings)
    outputs = _outputs(network, images, settings, on_batch)
    validation, notices = _validation(network, data, outputs, settings, on_batch)
    evaluation = score(
        outputs,
        validation=validation,
        threshold=THRESHOLD if settings.threshold is None else settings.threshold,
        confidence=settings.confidence,
        resamples=settings.resamples,
        mistakes=settings.mistakes,
    )
    evaluation = replace(evaluation, notices=(*evaluation.notices, *_not_judged(network), *notices))
    if against is None:
        return evaluation
    evaluation = replace(evaluation, notices=(*evaluation.notices, *_seen_in_training(network, against, data)))
    return compared(evaluation, _outputs(against, images, settings, on_batch))


def _images(network: Network, data: str | None, settings: Settings) -> Labelled:
    size, limit = network.reading.image_size, network.reading.max_pixels
    if data is not None:
        config = network.run.config.data if network.run else DataConfig()
        columns = table_columns(config, settings.columns)
        return other_data(data, settings.split, columns, limit, several=network.multi_label)
    assert network.run is not None
    return run_split(network.run, settings.split or "val", size, limit, hint=_OTHER_DATA)


def _fitting(images: Labelled, network: Network, settings: Settings) -> Labelled:
    """The images whose classes the network knows."""
    if not network.classes:
        network.logits  # noqa: B018  says what has no classifier
    if images.several != network.multi_label:
        kinds = ("one class", "several labels")
        what = f"the images have {kinds[images.several]} each, {name_of(network)} gives {kinds[network.multi_label]}"
        raise UserError(Problem("classes", what, "evaluate on data of the same kind"))
    return known_only(images, judged(network), network.wordnet, skip_unknown=settings.skip_unknown)


def _check_every_class(network: Network, images: Labelled, data: str | None, settings: Settings) -> None:
    """Of a run's outputs only those count that its own data have a class for."""
    count = len(network.classes) if network.run is None else len(network.run.manifest["classes"])
    if not settings.allow_missing:
        where = f"the {images.split} images" if data is None else data
        check_every_class(images, network.classes, network.wordnet, count=count, where=where)


def _not_judged(network: Network) -> list[str]:
    count = len(network.classes) - len(judged(network))
    if not count:
        return []
    return [
        f"{counted(count, 'output')} without a label in the run's data: not scored; the loss of training counts all"
    ]


def _outputs(network: Network, images: Labelled, settings: Settings, on_batch: OnBatch) -> Outputs:
    return outputs_of(network, images, batch_size=settings.batch_size, on_batch=on_batch)


def _validation(
    network: Network, data: str | None, outputs: Outputs, settings: Settings, on_batch: OnBatch
) -> tuple[Outputs | None, tuple[str, ...]]:
    """What the network gives for the run's validation images, or why there is nothing."""
    if not settings.temperature or network.run is None:
        return None, ()
    if data is None and outputs.images.split == "val":
        return outputs, ()
    try:
        images = run_split(network.run, "val", network.reading.image_size, network.reading.max_pixels)
        return _outputs(network, _fitting(images, network, settings), settings, on_batch), ()
    except UserError as error:
        return None, (f"no temperature scaling: {error.problems[0].where}: {error.problems[0].what}",)


def _seen_in_training(network: Network, against: Network, data: str | None) -> list[str]:
    """A run may have trained on what another one was validated on."""
    if data is not None or network.run is None:
        return []
    if against.run is not None and against.run.manifest.get("hash") == network.run.manifest.get("hash"):
        return []
    return [f"{name_of(against)} was trained on other data, or on another division of it: it may know these images"]


# --- features --------------------------------------------------------------------------------------------------------


def _evaluate_features(network: Network, data: str | None, settings: Settings, on_batch: OnBatch) -> Evaluation:
    train, images = _train_and_asked(network, data, settings)
    if not settings.allow_missing:
        for each in (train, images):
            check_every_class(each, each.classes, None, count=len(each.classes), where=f"the {each.split} images")
    cache = settings.cache or (network.run.config.cache if network.run else CacheConfig())
    found = probe(
        network,
        train,
        images,
        method=settings.method,
        neighbours=settings.neighbours,
        cache=cache if settings.keep_features and cache.mode is not CacheMode.off else None,
        on_batch=on_batch,
    )
    evaluation = score(
        found.outputs,
        confidence=settings.confidence,
        resamples=settings.resamples,
        mistakes=settings.mistakes,
    )
    chosen = ", ".join(f"{name} = {value:g}" for name, value in found.settings.items())
    about = f"{settings.method} on features of {network.backbone.spec.name}: {found.train_images:,} images, {chosen}"
    if found.cached == 2:
        about += "; features from the cache"
    return replace(evaluation, notices=(about, *evaluation.notices))


def _train_and_asked(network: Network, data: str | None, settings: Settings) -> tuple[Labelled, Labelled]:
    """The images that a probe learns from, and those it is asked about."""
    size, limit = network.reading.image_size, network.reading.max_pixels
    split = settings.split or "val"
    notices: tuple[str, ...] = ()
    if split == "train":
        fix = "--split val or test asks it about others"
        raise UserError(Problem("--split", f"{settings.method} learns from the train images", fix))
    if data is None:
        assert network.run is not None
        divided, notices = run_data(network.run, size, limit, hint=_OTHER_DATA)
    else:
        divided = divide_other_data(_as_config(network, data, settings, limit), size)
    rows = {"train": divided.train, "val": divided.val, "test": divided.test}
    if not len(rows[split]):
        there = ", ".join(name for name in SPLITS if len(rows[name]))
        raise DataError(Problem("--split", f"there are no {split} images", f"one of: {there}"))
    return split_of(divided, "train", notices), split_of(divided, split, notices)


def _as_config(network: Network, data: str, settings: Settings, max_pixels: int) -> DataConfig:
    """Other data as a run would be told of it: it divides images that are not divided yet."""
    if not is_table(data):
        return DataConfig(name="folder", path=data, max_pixels=max_pixels)
    columns = table_columns(network.run.config.data if network.run else DataConfig(), settings.columns)
    return DataConfig(
        name="table",
        path=data,
        root=columns.root,
        image_column=columns.image or "path",
        label_column=columns.label or "label",
        split_column=columns.split,
        label_separator=columns.separator,
        max_pixels=max_pixels,
    )
