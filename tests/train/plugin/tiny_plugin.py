"""A user's own module, as TLEARN_PLUGINS names it: a backbone that builds at once, a head, a data source."""

import os

import numpy as np

from tlearn.backbones import register_backbone
from tlearn.data import ArraySource, register_source
from tlearn.heads import register_head

if "TINY_PLUGIN_LOG" in os.environ:  # says which processes loaded it
    with open(os.environ["TINY_PLUGIN_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{os.getpid()}\n")


@register_backbone("tiny", image_size=16, least_size=8, blocks={name: f"{name}_relu" for name in ("low", "mid", "top")})
def tiny(images, filters=4):
    from keras import layers

    x = images
    for index, name in enumerate(("low", "mid", "top")):
        x = layers.Conv2D(filters * 2**index, 3, strides=2, padding="same", name=f"{name}_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_norm")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    return x


@register_head("cosine")
def cosine(features, classes, scale=8.0):
    from keras import layers

    x = layers.GlobalAveragePooling2D(name="head_pool", dtype="float32")(features)
    x = layers.UnitNormalization(name="head_unit", dtype="float32")(x)
    return layers.Dense(classes, name="head_logits", dtype="float32")(scale * x)


@register_source("stripes")
def stripes(config, *, image_size, seed):
    """Three classes of noisy pictures: striped across, striped down, plain."""
    count, noise = config.options.get("count", 60), config.options.get("noise", 90)
    random = np.random.default_rng(7)
    labels = np.arange(count) % 3
    wave = np.where(np.arange(16) % 4 < 2, 60, 190)
    plain = [np.broadcast_to(wave[:, None], (16, 16)), np.broadcast_to(wave, (16, 16)), np.full((16, 16), 125)]
    images = np.stack([plain[label] for label in labels])[..., None] + random.normal(0, noise, (count, 16, 16, 3))
    return ArraySource(images.clip(0, 255).astype(np.uint8), labels, ("across", "down", "plain"), name="stripes")
