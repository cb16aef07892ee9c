"""What can be said about a DataConfig in a fraction of a second, before anything slow is imported or read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tlearn.config import AugmentConfig, DataConfig, Resize
from tlearn.data.sources import SOURCES
from tlearn.errors import ConfigError, DataError, Problem

_DEFAULTS = DataConfig()

# The options of DataConfig that only some sources take; all others concern every source.
_TAKEN_BY = {
    "path": ("folder", "table"),
    "root": ("table",),
    "allow_outside_root": ("table",),
    "image_column": ("table",),
    "label_column": ("table",),
    "split_column": ("table",),
    "label_separator": ("table",),
    "count": ("glyphs",),
    "options": (),
}
_BUILTIN = ("digits", "glyphs", "folder", "table")
_PEEKED_BYTES = 64_000_000  # a table is read for its classes up to this size: well under a second


def check_data_config(config: DataConfig) -> list[Problem]:
    """Everything wrong with the config itself, and with where it points, in the order of its fields.

    No file is read but the header of a table; no folder but the two upper levels.
    """
    try:
        known = config.name in SOURCES
    except ConfigError as error:  # a plugin that cannot be imported
        return list(error.problems)
    if not known:
        try:
            SOURCES[config.name]
        except ConfigError as error:
            return list(error.problems)
    problems = [*_options(config), *_ranges(config)]
    return problems + ([] if problems else _place(config))


def peek_classes(config: DataConfig) -> tuple[str, ...] | None:
    """Class names, when they are cheap to have and the config is in order; else None.

    They are those that ``load_data`` will find: folder names, or the different values of a label column.
    """
    try:
        if config.name == "digits":
            from tlearn.data.embedded import DIGITS

            return DIGITS
        if config.name == "glyphs":
            from tlearn.data.glyphs import CLASSES

            return CLASSES
        if config.name == "folder" and config.path is not None:
            from tlearn.data.folder import class_folders

            return class_folders(Path(config.path).expanduser())[0]
        if config.name == "table" and config.path is not None:
            return _table_classes(config, Path(config.path).expanduser())
    except DataError:
        pass  # load_data will say what is wrong
    return None


def check_augment_config(config: AugmentConfig) -> list[Problem]:
    """Probabilities and strengths out of range; what is off (p = 0) is looked at as well."""
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    allowed: dict[str, tuple[float, float, float]]
    allowed = {f"{name}.p": (part.p, 0, 1) for name, part in parts.items() if hasattr(part, "p")}
    crop, affine, jitter = config.random_resized_crop, config.affine, config.color_jitter
    allowed |= {
        "random_resized_crop.scale_max": (crop.scale_max, 0.001, 1),
        "random_resized_crop.scale_min": (crop.scale_min, 0.001, crop.scale_max),
        # With 1 between them no photograph is too narrow; else albumentations 2.0.8 may cut a crop of no width.
        "random_resized_crop.ratio_min": (crop.ratio_min, 0.01, 1),
        "random_resized_crop.ratio_max": (crop.ratio_max, 1, 100),
        "affine.rotate": (affine.rotate, 0, 180),
        "affine.scale": (affine.scale, 0, 0.99),
        "affine.translate": (affine.translate, 0, 1),
        "affine.shear": (affine.shear, 0, 89),
        "color_jitter.brightness": (jitter.brightness, 0, 1),
        "color_jitter.contrast": (jitter.contrast, 0, 1),
        "color_jitter.saturation": (jitter.saturation, 0, 1),
        "color_jitter.hue": (jitter.hue, 0, 0.5),
        "gaussian_blur.sigma_max": (config.gaussian_blur.sigma_max, 0.01, 100),
        "gaussian_noise.std_max": (config.gaussian_noise.std_max, 0, 1),
        "jpeg_compression.quality_min": (config.jpeg_compression.quality_min, 1, 100),
        "coarse_dropout.holes": (config.coarse_dropout.holes, 1, 1000),
        "coarse_dropout.size": (config.coarse_dropout.size, 0.001, 1),
        "rand_augment.operations": (config.rand_augment.operations, 1, 20),
        "rand_augment.magnitude": (config.rand_augment.magnitude, 0, 1),
        "mixup": (config.mixup, 0, 100),
        "cutmix": (config.cutmix, 0, 1),  # the range of Keras' layer
    }
    return [
        Problem(f"augment.{name}", f"must be {least:g} to {largest:g}, not {value:g}")
        for name, (value, least, largest) in allowed.items()
        if not least <= value <= largest
    ]


def _table_classes(config: DataConfig, file: Path) -> tuple[str, ...] | None:
    from tlearn.data.tabular import read_columns, read_labels

    if not file.is_file() or file.stat().st_size > _PEEKED_BYTES:
        return None
    labels = read_columns(file, {"label_column": config.label_column})["label_column"]
    return read_labels(labels, config.label_separator, file, config.label_column)[1]


def _options(config: DataConfig) -> list[Problem]:
    """Options that the source needs and lacks, or that it does not take."""
    if config.name not in _BUILTIN:
        return []  # a plugin takes what it likes
    problems = []
    for field in dataclasses.fields(config):
        takers = _TAKEN_BY.get(field.name)
        value = getattr(config, field.name)
        if takers is None or config.name in takers or value == getattr(_DEFAULTS, field.name):
            continue
        fix = f"it belongs to {' and '.join(f'data={name}' for name in takers)}" if takers else "only plugins take it"
        problems.append(Problem(f"data.{field.name}", f"data.name={config.name} does not take it", fix))
    if config.path is None and config.name in _TAKEN_BY["path"]:
        what = {"folder": "the folder of class folders", "table": "the CSV or Parquet file"}[config.name]
        problems.append(Problem("data.path", f"missing: data.name={config.name} needs it", f"give {what}"))
    if config.label_separator == "":
        problems.append(Problem("data.label_separator", "is empty", "a character such as | or null for one label"))
    return problems


def _ranges(config: DataConfig) -> list[Problem]:
    """Numbers out of range."""
    problems = []
    for name in ("count", "batch_size", "per_class", "max_pixels", "workers"):
        value = getattr(config, name)
        if value is not None and value < 1:
            problems.append(Problem(f"data.{name}", f"must be 1 or more, not {value}"))
    for name in ("val_fraction", "test_fraction"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            problems.append(Problem(f"data.{name}", f"must be at least 0 and less than 1, not {value}"))
    if not problems and config.val_fraction + config.test_fraction >= 1:
        total = f"{config.val_fraction} + {config.test_fraction}"
        problems.append(Problem("data.val_fraction", f"with data.test_fraction nothing is left to train on ({total})"))
    if not 0 < config.crop_fraction <= 1:
        what = f"must be more than 0 and at most 1, not {config.crop_fraction}"
        problems.append(Problem("data.crop_fraction", what))
    elif config.crop_fraction != _DEFAULTS.crop_fraction and config.resize is not Resize.crop:
        what = f"has no effect: data.resize={config.resize.value} takes the whole image"
        problems.append(Problem("data.crop_fraction", what, "leave it out, or set data.resize=crop"))
    if config.split_seed < 0:
        problems.append(Problem("data.split_seed", f"must be 0 or more, not {config.split_seed}"))
    return problems


def _place(config: DataConfig) -> list[Problem]:
    """What a glance at the disk shows."""
    if config.path is None or config.name not in _TAKEN_BY["path"]:
        return []
    path = Path(config.path).expanduser()
    try:
        if config.name == "folder":
            from tlearn.data.folder import class_folders

            class_folders(path)
        else:
            from tlearn.data.tabular import check_columns, named_columns

            check_columns(path, named_columns(config.image_column, config.label_column, config.split_column))
            if config.root is not None and not Path(config.root).expanduser().is_dir():
                return [Problem("data.root", f"there is no folder {config.root}", "give the folder of the images")]
    except DataError as error:
        return list(error.problems)
    return []
