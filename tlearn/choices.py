"""What config fields may be where they are one of a few words.

Each word is spelled in YAML as in Python, so that it reads the same in files, on the command line and in code. All of
them are to be had from ``tlearn.config`` too, beside the fields they are for.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from tlearn.errors import ConfigError, Problem, did_you_mean

Word = TypeVar("Word", bound=Enum)


def choice(words: type[Word], given: Word | str, where: str) -> Word:
    """One of a field's words, as the Python API takes it. Raises ConfigError for others, with the nearest.

    Args:
        words: the field's enumeration.
        given: one of them, or its spelling.
        where: name of the argument.
    """
    known = {word.value: word for word in words}
    name = given.value if isinstance(given, words) else given
    if name not in known:
        raise ConfigError(Problem(where, f"is {name!r}", did_you_mean(str(name), known)))
    return known[name]


class Pooling(Enum):
    """How a feature map (height, width, channels) becomes one vector."""

    none = "none"
    avg = "avg"
    max = "max"
    gem = "gem"
    avg_max = "avg_max"


class Activation(Enum):
    """Non-linearity of the hidden layers of a head."""

    relu = "relu"
    gelu = "gelu"
    silu = "silu"
    tanh = "tanh"


class Normalization(Enum):
    """Normalisation before each hidden activation of a head."""

    none = "none"
    batch = "batch"
    layer = "layer"


class Output(Enum):
    """What the saved model returns for each class."""

    probabilities = "probabilities"
    logits = "logits"


class Resize(Enum):
    """How a photograph of any shape becomes a square."""

    crop = "crop"
    stretch = "stretch"
    pad = "pad"


class Interpolation(Enum):
    """Pillow's resampling filter, antialiased when shrinking."""

    nearest = "nearest"
    bilinear = "bilinear"
    bicubic = "bicubic"
    lanczos = "lanczos"


class Decoding(Enum):
    """How many of a JPEG's pixels are decoded."""

    exact = "exact"
    scaled = "scaled"


class OnError(Enum):
    """What an unreadable image does to a run."""

    stop = "stop"
    skip = "skip"


class Check(Enum):
    """How closely the image files are looked at before training."""

    auto = "auto"
    decode = "decode"
    header = "header"
    none = "none"


class DataCache(Enum):
    """Where decoded, resized images are kept between epochs."""

    none = "none"
    memory = "memory"


class ClassWeights(Enum):
    """How classes are weighted in the loss."""

    none = "none"
    balanced = "balanced"


class BatchNorm(Enum):
    """Batch normalisation of the unfrozen part of the backbone."""

    inference = "inference"
    train = "train"


class LearningRateSchedule(Enum):
    """How the learning rate moves over a stage, after the warm-up."""

    constant = "constant"
    cosine = "cosine"
    exponential = "exponential"
    polynomial = "polynomial"
    step = "step"


class Precision(Enum):
    """Keras' dtype policy; heads stay float32 in all of them."""

    float32 = "float32"
    mixed_float16 = "mixed_float16"
    mixed_bfloat16 = "mixed_bfloat16"


class Strategy(Enum):
    """Devices a run trains on."""

    auto = "auto"
    one = "one"
    mirrored = "mirrored"
    multi_worker = "multi_worker"


class CacheMode(Enum):
    """Whether features of the frozen part are kept between epochs and runs."""

    auto = "auto"
    off = "off"


class FeatureType(Enum):
    """How features are stored."""

    float32 = "float32"
    float16 = "float16"


class PrefixEngine(Enum):
    """How the frozen part of a model is computed when features are made."""

    auto = "auto"
    graph = "graph"
    xla = "xla"
    folded = "folded"


class OnNan(Enum):
    """What a run does when its loss, or a weight, is no longer a number."""

    stop = "stop"
    rollback = "rollback"


class Keep(Enum):
    """Which weights become the final model."""

    best = "best"
    last = "last"
