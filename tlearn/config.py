"""The whole configuration of a run, as plain typed data.

A config is data, never code: no import paths, no expressions. Names (of backbones, heads, data sources) resolve
through registries. Every field states its unit and meaning; ``null`` always means what its help says, and nothing
has a default anywhere else. This module imports neither Hydra nor TensorFlow.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

# What the fields below may be; `as` hands it on.
# isort: off
from tlearn.choices import (
    Activation as Activation,
    BatchNorm as BatchNorm,
    CacheMode as CacheMode,
    Check as Check,
    ClassWeights as ClassWeights,
    DataCache as DataCache,
    Decoding as Decoding,
    FeatureType as FeatureType,
    Interpolation as Interpolation,
    Keep as Keep,
    LearningRateSchedule as LearningRateSchedule,
    Normalization as Normalization,
    OnError as OnError,
    OnNan as OnNan,
    Output as Output,
    Pooling as Pooling,
    Precision as Precision,
    PrefixEngine as PrefixEngine,
    Resize as Resize,
    Strategy as Strategy,
)

# isort: on

T = TypeVar("T")


def option(default: T, help: str) -> T:
    """A config field with its one-line meaning; mutable defaults are copied for each instance."""
    metadata = {"help": help}
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        mutable: T = field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
        return mutable
    plain: T = field(default=default, metadata=metadata)
    return plain


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass
class BackboneConfig:
    """The pretrained network below the head."""

    name: str = option("mobilenet", "architecture; python -m tlearn.backbones lists them")
    weights: str | None = option(
        "imagenet", "imagenet | glyphs (embedded) | a .weights.h5/.h5/.keras file | a run folder | null: random"
    )
    image_size: int | None = option(None, "side of the square input, pixels; null: the architecture's own")
    alpha: float | None = option(None, "width multiplier, MobileNets only; null: 1.0")
    depth_multiplier: int | None = option(None, "depthwise channels per input channel, MobileNet only; null: 1")
    options: dict[str, Any] = option({}, "options of a backbone registered by a plugin")


@dataclass
class HeadConfig:
    """Pooling and classifier on top of the backbone."""

    name: str = option("linear", "linear | mlp | the name of a head registered by a plugin")
    classes: int | None = option(None, "number of outputs; null: the classes of the data")
    pooling: Pooling = option(Pooling.avg, "none (flatten) | avg | max | gem | avg_max (both, concatenated)")
    units: list[int] = option([], "widths of the hidden layers of head.name=mlp")
    activation: Activation = option(Activation.relu, "of the hidden layers")
    normalization: Normalization = option(Normalization.none, "before each hidden activation")
    dropout: float = option(0.0, "rate, before every dense layer")
    output: Output = option(Output.probabilities, "what the saved model returns; training always uses logits")
    options: dict[str, Any] = option({}, "options of a head registered by a plugin")


# --- the data --------------------------------------------------------------------------------------------------------


@dataclass
class DataConfig:
    """Where labelled images come from and how they reach the model."""

    name: str = option("digits", "digits | glyphs | folder | table | a source registered by a plugin")
    path: str | None = option(None, "folder: the folder of class folders; table: the CSV or Parquet file")
    root: str | None = option(None, "table: folder that relative image paths start from; null: the table's folder")
    allow_outside_root: bool = option(False, "table: take images outside root too: by .., from / or through a link")
    image_column: str = option("path", "table: column of image paths")
    label_column: str = option("label", "table: column of class names")
    split_column: str | None = option(None, "table: column that says train, val or test; null: split here")
    label_separator: str | None = option(None, "table: several labels per image, separated by this; null: one label")
    count: int | None = option(None, "glyphs: how many pictures to draw; null: 24000")
    batch_size: int = option(32, "images per step")
    val_fraction: float = option(0.2, "share of the images held out for validation where the data has none")
    test_fraction: float = option(0.0, "share held out and not touched by training at all, where the data has no split")
    split_seed: int = option(0, "seed of the split; kept apart from seed, so that seeds compare on the same images")
    per_class: int | None = option(None, "train on at most this many images of each class; null: all")
    resize: Resize = option(Resize.crop, "crop the centre | stretch | pad with black")
    crop_fraction: float = option(1.0, "resize=crop: side of the centre square as a share of the shorter side")
    interpolation: Interpolation = option(Interpolation.bilinear, "nearest | bilinear | bicubic | lanczos")
    decode: Decoding = option(
        Decoding.exact, "exact | scaled: JPEGs at the least of 1/2, 1/4, 1/8 of their size that has pixels enough"
    )
    max_pixels: int = option(100_000_000, "images with more pixels are refused (decompression bombs)")
    on_error: OnError = option(OnError.stop, "unreadable image: stop with the list | skip and list")
    check: Check = option(
        Check.auto,
        "before training: decode each image | read its header | none; auto: decode, above 20,000 header (skip: decode)",
    )
    cache: DataCache = option(DataCache.none, "keep decoded images between epochs: none | memory")
    workers: int | None = option(None, "batches loaded at once; null: as many as there are processors")
    options: dict[str, Any] = option({}, "options of a data source registered by a plugin")


# --- augmentation: transforms run in this order, each with its own probability; p = 0 is off -------------------------


@dataclass
class RandomResizedCrop:
    """A random rectangle of the image, resized to the input size (Szegedy et al. 2014, arXiv 1409.4842)."""

    p: float = option(0.0, "probability")
    scale_min: float = option(0.35, "least share of the area")
    scale_max: float = option(1.0, "largest share of the area")
    ratio_min: float = option(0.75, "least width / height")
    ratio_max: float = option(1.333, "largest width / height")


@dataclass
class Flip:
    """Mirror the image."""

    p: float = option(0.0, "probability")


@dataclass
class Affine:
    """Rotate, scale, move and shear."""

    p: float = option(0.0, "probability")
    rotate: float = option(15.0, "largest angle, degrees, either way")
    scale: float = option(0.1, "largest relative change of size, either way")
    translate: float = option(0.05, "largest move as a share of the side, either way")
    shear: float = option(0.0, "largest shear, degrees, either way")


@dataclass
class ColorJitter:
    """Change brightness, contrast, saturation and hue."""

    p: float = option(0.0, "probability")
    brightness: float = option(0.2, "largest relative change")
    contrast: float = option(0.2, "largest relative change")
    saturation: float = option(0.2, "largest relative change")
    hue: float = option(0.03, "largest change as a share of the colour circle")


@dataclass
class Grayscale:
    """Drop the colours."""

    p: float = option(0.0, "probability")


@dataclass
class GaussianBlur:
    """Blur."""

    p: float = option(0.0, "probability")
    sigma_max: float = option(1.5, "largest standard deviation, pixels")


@dataclass
class GaussianNoise:
    """Add noise."""

    p: float = option(0.0, "probability")
    std_max: float = option(0.08, "largest standard deviation as a share of 255")


@dataclass
class JpegCompression:
    """Compress and decompress as JPEG."""

    p: float = option(0.0, "probability")
    quality_min: int = option(50, "least quality, 1..100")


@dataclass
class CoarseDropout:
    """Erase rectangles (Random Erasing, Zhong et al. 2017, arXiv 1708.04896)."""

    p: float = option(0.0, "probability")
    holes: int = option(1, "largest number of rectangles")
    size: float = option(0.25, "largest side as a share of the image's side")


@dataclass
class RandAugment:
    """Random operations of one strength on whole batches (Cubuk et al. 2019, arXiv 1909.13719)."""

    p: float = option(0.0, "probability that an operation is applied")
    operations: int = option(2, "how many are applied in turn")
    magnitude: float = option(0.5, "strength, 0..1")


@dataclass
class AugmentConfig:
    """Random changes of the training images, a function of (seed, epoch, image) alone."""

    name: str = option("none", "what this combination is called")
    random_resized_crop: RandomResizedCrop = option(RandomResizedCrop(), "instead of data.resize, on training images")
    horizontal_flip: Flip = option(Flip(), "left and right")
    vertical_flip: Flip = option(Flip(), "up and down")
    affine: Affine = option(Affine(), "rotate, scale, move, shear")
    color_jitter: ColorJitter = option(ColorJitter(), "brightness, contrast, saturation, hue")
    grayscale: Grayscale = option(Grayscale(), "drop the colours")
    gaussian_blur: GaussianBlur = option(GaussianBlur(), "blur")
    gaussian_noise: GaussianNoise = option(GaussianNoise(), "noise")
    jpeg_compression: JpegCompression = option(JpegCompression(), "JPEG artefacts")
    coarse_dropout: CoarseDropout = option(CoarseDropout(), "erase rectangles")
    rand_augment: RandAugment = option(RandAugment(), "on batches, after the transforms above")
    mixup: float = option(0.0, "alpha of mixup on batches (Zhang et al. 2017, arXiv 1710.09412); 0: off")
    cutmix: float = option(0.0, "alpha of CutMix on batches (Yun et al. 2019, arXiv 1905.04899); 0: off")


# --- training --------------------------------------------------------------------------------------------------------


@dataclass
class Duration:
    """A length in any one unit; all null: none."""

    epochs: float | None = option(None, "passes over the training images")
    steps: int | None = option(None, "batches")
    examples: int | None = option(None, "images")
    percent: float | None = option(None, "of the stage")


@dataclass
class LearningRateConfig:
    """The learning rate over a stage; it starts at optimizer.learning_rate after the warm-up.

    ``null`` in a stage is the run's, unless the stage names a schedule of its own.
    """

    name: LearningRateSchedule | None = option(
        None, "constant | cosine | exponential | polynomial | step; null: constant, in a stage the run's"
    )
    warmup: Duration = option(Duration(), "linear warm-up from zero")
    final: float | None = option(None, "cosine, polynomial: last rate as a share of the first; null: 0")
    power: float | None = option(None, "polynomial: 1 is linear; null: 1")
    rate: float | None = option(None, "exponential, step: factor for each period; null: 0.1")
    every: Duration = option(Duration(), "exponential, step: the period; all null: a third of the stage")


@dataclass
class OptimizerConfig:
    """A Keras optimizer. ``null`` options take Keras' own default; an option the optimizer lacks is an error."""

    name: str | None = option(
        None,
        "adam, sgd, rmsprop, adamw, ...; in a stage null: the run's with all its options; "
        "else of the run's only learning_rate and schedule, where the stage sets none",
    )
    learning_rate: float | None = option(None, "null: the run's optimizer's, whatever its name; there 0.001")
    momentum: float | None = option(None, "sgd, rmsprop, muon")
    nesterov: bool | None = option(None, "sgd, muon")
    rho: float | None = option(None, "rmsprop, adadelta")
    centered: bool | None = option(None, "rmsprop")
    beta_1: float | None = option(None, "adam, adamw, adamax, nadam, lion, lamb")
    beta_2: float | None = option(None, "adam, adamw, adamax, nadam, lion, lamb")
    epsilon: float | None = option(None, "most optimizers")
    amsgrad: bool | None = option(None, "adam, adamw")
    initial_accumulator_value: float | None = option(None, "adagrad, ftrl")
    learning_rate_power: float | None = option(None, "ftrl")
    l1_regularization_strength: float | None = option(None, "ftrl")
    l2_regularization_strength: float | None = option(None, "ftrl")
    l2_shrinkage_regularization_strength: float | None = option(None, "ftrl")
    beta: float | None = option(None, "ftrl")
    beta_2_decay: float | None = option(None, "adafactor")
    epsilon_1: float | None = option(None, "adafactor; null: 1e-14, since Keras' 1e-30 is lost in float32")
    epsilon_2: float | None = option(None, "adafactor")
    clip_threshold: float | None = option(None, "adafactor")
    relative_step: bool | None = option(None, "adafactor")
    adam_beta_1: float | None = option(None, "muon")
    adam_beta_2: float | None = option(None, "muon")
    adam_weight_decay: float | None = option(None, "muon, of all but matrices; null: weight_decay")
    adam_lr_ratio: float | None = option(None, "muon")
    muon_a: float | None = option(None, "muon")
    muon_b: float | None = option(None, "muon")
    muon_c: float | None = option(None, "muon")
    ns_steps: int | None = option(None, "muon")
    rms_rate: float | None = option(None, "muon")
    warmup_steps: int | None = option(None, "schedule_free_adamw")
    weight_decay: float | None = option(
        None, "decoupled, per step times the rate; not of biases, norms and GeM's p; 0 turns an inherited one off"
    )
    clip_norm: float | None = option(None, "clip each variable's gradient to this norm")
    clip_value: float | None = option(None, "clip each element of the gradient")
    clip_global_norm: float | None = option(None, "clip all gradients together to this norm")
    accumulate: int | None = option(None, "batches whose gradients are averaged for one update; null: 1")
    ema: float | None = option(None, "momentum of an average of the weights, used to evaluate and to save; null: off")
    block_decay: float | None = option(
        None, "learning rate of each block as a share of the one above; weight decay is scaled with it"
    )
    schedule: LearningRateConfig = option(LearningRateConfig(), "the learning rate over the stage")


@dataclass
class EarlyStoppingConfig:
    """End a stage when checkpoint.monitor no longer improves."""

    patience: int | None = option(None, "epochs without improvement before the stage ends; null: off")
    min_delta: float = option(0.0, "least change that counts as improvement")


@dataclass
class Stage:
    """One part of the schedule: what trains, for how long, and how."""

    name: str = option("stage", "appears in logs and metrics; unique in the schedule")
    unfreeze: Any = option(
        "none",
        "backbone layers that train: none | all | {last_blocks: N} | {from_block: NAME} | "
        "{from_layer: INDEX or NAME} | {layers: REGEX}",
    )
    epochs: float | None = option(None, "length in passes over the training images")
    steps: int | None = option(None, "length in batches")
    examples: int | None = option(None, "length in images")
    optimizer: OptimizerConfig = option(OptimizerConfig(), "the run's, with what is set here; or one of its own name")
    batch_norm: BatchNorm = option(BatchNorm.inference, "inference: moving statistics, gamma and beta stay still")
    carry_slots: bool = option(False, "keep optimizer state of variables that trained in the stage before")
    label_smoothing: float | None = option(None, "null: loss.label_smoothing")
    class_weights: ClassWeights | None = option(None, "null: loss.class_weights")
    xla: Any = option(None, "auto | on | off; null: the run's xla")
    early_stopping: EarlyStoppingConfig = option(EarlyStoppingConfig(), "end the stage early")


@dataclass
class ScheduleConfig:
    """The stages, run in the order written."""

    name: str = option("custom", "what this schedule is called")
    stages: list[Stage] = option([], "run in this order")


@dataclass
class LossConfig:
    """Cross-entropy: over classes, or per class for multi-label data."""

    label_smoothing: float = option(0.0, "share of the probability spread over all classes")
    class_weights: ClassWeights = option(ClassWeights.none, "none | balanced (inverse frequency)")


@dataclass
class CacheConfig:
    """Features of the frozen part of the model, computed once per image and kept on disk."""

    mode: CacheMode = option(CacheMode.auto, "auto: wherever it is possible and fits | off: every image, every epoch")
    dir: str | None = option(None, "folder; null: tlearn/features in the user's cache folder")
    max_gb: float = option(20.0, "size of the folder, 10^9 bytes; what was used longest ago makes room")
    dtype: FeatureType = option(FeatureType.float32, "float32: exact | float16: half the bytes")
    views: int | None = option(None, "augmented versions kept of each image; null: fresh ones, none kept")


@dataclass
class PrefixConfig:
    """How the frozen part of the model is computed when its features are made."""

    engine: PrefixEngine = option(
        PrefixEngine.auto,
        "graph | xla | folded (batch norm worked into the layer before it; differs in rounding) | "
        "auto: folded where the run is deterministic, else the fastest in a short trial",
    )


@dataclass
class Every:
    """How often; with several units set, whichever is due first."""

    minutes: float | None = option(5.0, "null: not by time")
    epochs: int | None = option(None, "null: not by epochs")
    steps: int | None = option(None, "null: not by steps")


@dataclass
class CheckpointConfig:
    """What is kept while training."""

    every: Every = option(Every(), "how often the resumable state is saved; always at the end of a stage")
    keep: int = option(1, "how many of the latest resumable states are kept")
    monitor: str | None = option(None, "metric that decides what is best; null: val_accuracy, multi-label val_auc")
    final: Keep = option(Keep.best, "weights of the final model: best | last")


@dataclass
class OnNanConfig:
    """What a loss that is infinite or not a number does to a run."""

    action: OnNan = option(
        OnNan.stop, "stop, keeping the last good state | rollback: go back to that state with a smaller learning rate"
    )
    factor: float = option(0.5, "rollback: for the learning rate of that stage, each time")
    most: int = option(3, "rollback: how often in a run, before it stops")


@dataclass
class LogConfig:
    """What a run writes for people to look at."""

    tensorboard: bool = option(True, "write TensorBoard event files")
    images: int = option(16, "augmented sample images shown in TensorBoard")
    every: int = option(50, "steps between logged training metrics")
    progress: bool = option(True, "show a progress bar on a terminal")


@dataclass
class Config:
    """One run."""

    name: str | None = option(None, "of the run; null: the experiment's or the backbone's")
    seed: int = option(1, "of everything random but the split")
    run_dir: str | None = option(None, "run folder to make; null: runs/<name>-<time>")
    resume: str | None = option(None, "a run folder to go on with; no other override may be given")
    deterministic: Any = option("auto", "true | false | auto: same config, same weights, bit for bit; auto: on CPU")
    precision: Precision = option(Precision.float32, "float32 | mixed_float16 | mixed_bfloat16")
    xla: Any = option("auto", "compile training steps with XLA: on | off | auto: on a GPU where runs need not repeat")
    strategy: Strategy = option(
        Strategy.auto,
        "devices: one | mirrored (all of this machine) | multi_worker (all of the machines in TF_CONFIG) | "
        "auto: multi_worker where TF_CONFIG names several workers, mirrored with several GPUs, else one",
    )
    strategy_timeout: float = option(300.0, "seconds that workers wait for one another at the start")
    backbone: BackboneConfig = option(BackboneConfig(), "the pretrained network")
    head: HeadConfig = option(HeadConfig(), "pooling and classifier")
    data: DataConfig = option(DataConfig(), "labelled images")
    augment: AugmentConfig = option(AugmentConfig(), "random changes of the training images")
    optimizer: OptimizerConfig = option(
        OptimizerConfig(name="adam", learning_rate=1e-3),
        "for stages that name none of their own; its learning rate and schedule for all that set none",
    )
    schedule: ScheduleConfig = option(ScheduleConfig(), "stages")
    loss: LossConfig = option(LossConfig(), "what is minimised")
    cache: CacheConfig = option(CacheConfig(), "features of frozen layers, computed once")
    prefix: PrefixConfig = option(PrefixConfig(), "how features are computed")
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "what is kept")
    on_nan: OnNanConfig = option(OnNanConfig(), "numerical faults")
    log: LogConfig = option(LogConfig(), "what is written for people")
