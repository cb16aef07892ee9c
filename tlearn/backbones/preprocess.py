"""What each architecture expects of the pixels, as the first layers of the network.

Only stock, serialisable pieces of Keras: a saved model loads with safe mode on, without tlearn. The constants are those
of ``keras.applications.imagenet_utils.preprocess_input``; the arithmetic is folded into one multiplication and one
addition, so results differ from it by rounding only (below 1e-4 for ``caffe``, whose values reach 150; 1e-6 else).
"""

from __future__ import annotations

from typing import Any

from tlearn.backbones.specs import Preprocess

# ImageNet's mean and standard deviation per channel. Caffe's networks were trained on BGR images in 0..255.
_BGR_MEAN = (103.939, 116.779, 123.68)
_RGB_MEAN = (0.485, 0.456, 0.406)
_RGB_STD = (0.229, 0.224, 0.225)


def preprocess(images: Any, mode: Preprocess) -> Any:
    """Prepare images inside a network.

    Args:
        images: ``KerasTensor`` of RGB pixels 0..255, any dtype, (batch, S, S, 3).
        mode: what the architecture expects.

    Returns:
        ``KerasTensor`` of the same shape. Always float32: in float16 the pixels of a resized image would lose a bit
        or two before the network has seen them.
    """
    import keras

    if mode is Preprocess.caffe:
        images = keras.ops.flip(images, axis=-1)
    scale: Any = 1.0
    offset: Any = 0.0
    if mode is Preprocess.tf:
        scale, offset = 1 / 127.5, -1.0
    elif mode is Preprocess.caffe:
        scale, offset = [1.0, 1.0, 1.0], [-mean for mean in _BGR_MEAN]
    elif mode is Preprocess.torch:
        scale = [1 / (255 * std) for std in _RGB_STD]
        offset = [-mean / std for mean, std in zip(_RGB_MEAN, _RGB_STD, strict=True)]
    return keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")(images)
