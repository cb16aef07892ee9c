"""Labelled images, from a folder, a table, a library or a drawing routine, to a stream of batches.

Importing this package is cheap: TensorFlow, albumentations and scikit-learn are imported when they are first needed.

    data = load_data(config.data, image_size=224, seed=1)
    batches = training_batches(data.source, data.train, Reading(image_size=224), batch_size=32, seed=1)
"""

from __future__ import annotations

from tlearn.data.augment import changes_images
from tlearn.data.check import CheckReport, Unreadable, check_images
from tlearn.data.decode import UnreadableImage, decode, resize
from tlearn.data.failures import reraise
from tlearn.data.load import Data, check_data, checked_meanwhile, index_data, leave_out, load_data, named_rows
from tlearn.data.loader import FirstSquares, PixelCache
from tlearn.data.pipeline import batches_per_epoch, evaluation_batches, training_batches, view_batches
from tlearn.data.preflight import check_augment_config, check_data_config, peek_classes
from tlearn.data.reading import Reading
from tlearn.data.source import ArraySource, FileSource, ImageSource, fingerprint
from tlearn.data.sources import SOURCES, SourceFactory, register_source
from tlearn.data.table import ImageTable, Split

__all__ = [
    "SOURCES",
    "ArraySource",
    "CheckReport",
    "Data",
    "FileSource",
    "FirstSquares",
    "ImageSource",
    "ImageTable",
    "PixelCache",
    "Reading",
    "SourceFactory",
    "Split",
    "Unreadable",
    "UnreadableImage",
    "batches_per_epoch",
    "changes_images",
    "check_augment_config",
    "check_data",
    "check_data_config",
    "check_images",
    "checked_meanwhile",
    "decode",
    "evaluation_batches",
    "fingerprint",
    "index_data",
    "leave_out",
    "load_data",
    "named_rows",
    "peek_classes",
    "register_source",
    "reraise",
    "resize",
    "training_batches",
    "view_batches",
]
