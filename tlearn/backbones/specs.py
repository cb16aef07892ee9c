"""What the thirteen architectures differ in, one row of data each. Nothing here imports TensorFlow.

The rows are checked against the built networks in ``tests/backbones``. Facts (size, top-1 and top-5 on ImageNet's
validation set, depth) are those of the Keras documentation, https://keras.io/api/applications; parameter counts are
exact for Keras 3.15 with the 1000-class top and default options.

Blocks
    A backbone is cut into named blocks from the image to the last activation. They are what ``unfreeze`` counts
    (``last_blocks: 2``, ``from_block: mixed9``), so a block is the unit people add when they unfreeze "a little
    more":

    - Inception: one ``mixed`` module; Inception-ResNet: one residual block; ResNet: one residual block;
    - Xception and VGG: one numbered block; MobileNets: one separable convolution / inverted residual;
    - NASNet: one cell;
    - DenseNet: one *dense block with the transition after it* (``conv2`` .. ``conv5``). A single dense layer adds 32
      channels, a fiftieth of the network: two of them would train next to nothing, and a ``gradual`` schedule would
      have 58 stages. Finer cuts are there by layer: ``from_layer: conv5_block9_0_bn``.

    A block is stored as the index of its last layer in ``model.layers`` of Keras' network without top. Names of
    layers would not do: Keras numbers unnamed layers through the whole process (``conv2d_94``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tlearn.errors import ConfigError, Problem
from tlearn.registry import Registry

KEY = "backbone.name"


class Preprocess(Enum):
    """What an architecture expects of RGB pixels in 0..255; the values are the names Keras uses."""

    tf = "tf"  # x / 127.5 - 1
    caffe = "caffe"  # BGR, minus ImageNet's mean per channel
    torch = "torch"  # x / 255, minus ImageNet's mean, over its standard deviation
    none = "none"  # as they are: a user's own network that does it itself


@dataclass(frozen=True)
class Block:
    """A named part of a backbone; it starts after the block before it.

    Attributes:
        name: as used by ``unfreeze``.
        last: its last layer: index in the layers without top, or (registered backbones only) the layer's name.
    """

    name: str
    last: int | str


@dataclass(frozen=True)
class Option:
    """An option that an architecture takes besides the image size.

    Attributes:
        name: ``alpha``, ``depth_multiplier`` or ``dropout``.
        default: value when none is given.
        low, high: what is accepted, both ends included (``dropout`` stays below 1).
        imagenet: values that ImageNet weights exist for; empty: any, the option has no weights.
    """

    name: str
    default: float
    low: float
    high: float
    imagenet: tuple[float, ...] = ()


@dataclass(frozen=True)
class BackboneSpec:
    """One architecture.

    Attributes:
        name: as in ``backbone.name``.
        title: as its paper calls it.
        keras_name: function in ``keras.applications``; empty for a registered backbone.
        preprocess: what it expects of the pixels.
        image_size: default side of the square input, pixels.
        least_size: smallest side it accepts, pixels.
        blocks: in order from the image; empty: none named.
        layers: how many layers it has without top, the input layer included; None: known once built.
        width: channels of the feature map with default options; None: known once built.
        parameters: exact count with the 1000-class top, default options; None: not stated.
        size_mb: of the float32 weights file with top, megabytes.
        depth: layers as the Keras documentation counts them.
        top1, top5: ImageNet validation accuracy, 0..1.
        paper: title of the source; arxiv: its number.
        licence: of the ImageNet weights.
        options: what it takes besides the image size.
        weights_file: name of the ImageNet weights in Keras' cache (without top, with top); fields ``{alpha}`` and
            ``{size}`` are filled in for the MobileNets. None: there are no ImageNet weights.
        weights_sizes: image sizes that have a file of their own, pixels; empty: one file for all.
        builder: a registered backbone's own function, see ``register_backbone``.
    """

    name: str
    title: str
    keras_name: str
    preprocess: Preprocess
    image_size: int
    least_size: int
    blocks: tuple[Block, ...] = ()
    layers: int | None = None
    width: int | None = None
    parameters: int | None = None
    size_mb: int | None = None
    depth: int | None = None
    top1: float | None = None
    top5: float | None = None
    paper: str = ""
    arxiv: str = ""
    licence: str = ""
    options: tuple[Option, ...] = ()
    weights_file: tuple[str, str] | None = None
    weights_sizes: tuple[int, ...] = ()
    builder: Callable[..., Any] | None = None

    def option(self, name: str) -> Option | None:
        """The row of an option, None when the architecture does not take it."""
        return next((option for option in self.options if option.name == name), None)

    def block_names(self) -> tuple[str, ...]:
        """Names of the blocks, in order from the image."""
        return tuple(block.name for block in self.blocks)

    def feature_width(self, alpha: float | None = None) -> int | None:
        """Channels of the feature map for a width multiplier (None: the default, 1.0).

        MobileNet scales every layer (1704.04861, section 3.3); MobileNetV2 keeps its last convolution at 1280 channels
        for multipliers below one (1801.04381, section 5) and rounds to a multiple of 8 above.
        """
        if alpha is None or self.width is None or self.option("alpha") is None:
            return self.width
        if self.name == "mobilenet":
            return int(self.width * alpha)
        return max(self.width, int(self.width * alpha + 4) // 8 * 8)


def _blocks(names: list[str], lasts: list[int]) -> tuple[Block, ...]:
    return tuple(Block(name, last) for name, last in zip(names, lasts, strict=True))


def _numbered(pattern: str, first: int, last: int) -> list[str]:
    return [pattern.format(number) for number in range(first, last + 1)]


def _residual(counts: Mapping[str, int]) -> list[str]:
    return [f"{stage}_block{number}" for stage, count in counts.items() for number in range(1, count + 1)]


_XCEPTION = _blocks(
    _numbered("block{}", 1, 14), [6, 15, 25, 35, 45, 55, 65, 75, 85, 95, 105, 115, 125, 131]
)  # fmt: skip

_VGG = _numbered("block{}", 1, 5)

_RESNET50 = _blocks(
    ["conv1", *_residual({"conv2": 3, "conv3": 4, "conv4": 6, "conv5": 3})],
    [6, 18, 28, 38, 50, 60, 70, 80, 92, 102, 112, 122, 132, 142, 154, 164, 174],
)

_INCEPTION_V3 = _blocks(
    ["stem", *_numbered("mixed{}", 0, 10)], [17, 40, 63, 86, 100, 132, 164, 196, 228, 248, 279, 310]
)

_INCEPTION_RESNET_V2 = _blocks(
    [
        *("stem", "mixed_5b", *_numbered("block35_{}", 1, 10)),
        *("mixed_6a", *_numbered("block17_{}", 1, 20)),
        *("mixed_7a", *_numbered("block8_{}", 1, 10), "conv_7b"),
    ],
    [17, 40, *range(62, 261, 22), 274, *range(290, 595, 16), 617, *range(633, 762, 16), 776, 779],
)

_MOBILENET = _blocks(["conv1", *_numbered("block_{}", 1, 13)], [3, 9, 16, 22, 29, 35, 42, 48, 54, 60, 66, 72, 79, 85])

_MOBILENET_V2 = _blocks(
    ["stem", "expanded_conv", *_numbered("block_{}", 1, 16), "conv_1"],
    [3, 8, 17, 26, 35, 44, 53, 62, 71, 80, 89, 97, 106, 115, 124, 133, 142, 150, 153],
)

_DENSENET = _numbered("conv{}", 1, 5)

# Cells carry the numbers Keras gives them. The closing activation belongs to the last cell.
_NASNET_MOBILE = _blocks(
    [
        *("stem", "stem_1", "stem_2", *_numbered("normal_{}", 0, 3)),
        *("reduce_4", *_numbered("normal_{}", 5, 8)),
        *("reduce_8", *_numbered("normal_{}", 9, 12)),
    ],
    [2, 53, 110, 158, 203, 248, 293, 347, 395, 440, 485, 530, 584, 632, 677, 722, 768],
)
_NASNET_LARGE = _blocks(
    [
        *("stem", "stem_1", "stem_2", *_numbered("normal_{}", 0, 5)),
        *("reduce_6", *_numbered("normal_{}", 7, 12)),
        *("reduce_12", *_numbered("normal_{}", 13, 18)),
    ],
    [2, 53, 110, 158, 203, 248, 293, 338, 383, 437, 485, 530, 575, 620, 665, 710, 764, 812, 857, 902, 947, 992, 1038],
)

_VGG_PAPER = "Very Deep Convolutional Networks for Large-Scale Image Recognition"
_DENSENET_PAPER = "Densely Connected Convolutional Networks"
_NASNET_PAPER = "Learning Transferable Architectures for Scalable Image Recognition"


def _tf_kernels(name: str) -> tuple[str, str]:
    stem = f"{name}_weights_tf_dim_ordering_tf_kernels"
    return f"{stem}_notop.h5", f"{stem}.h5"


_BUILTIN: dict[str, BackboneSpec] = {
    "xception": BackboneSpec(
        name="xception", title="Xception", keras_name="Xception", preprocess=Preprocess.tf,
        image_size=299, least_size=71, blocks=_XCEPTION, layers=132, width=2048,
        parameters=22_910_480, size_mb=88, depth=126, top1=0.790, top5=0.945,
        paper="Xception: Deep Learning with Depthwise Separable Convolutions", arxiv="1610.02357", licence="MIT",
        weights_file=_tf_kernels("xception"),
    ),
    "vgg16": BackboneSpec(
        name="vgg16", title="VGG16", keras_name="VGG16", preprocess=Preprocess.caffe,
        image_size=224, least_size=32, blocks=_blocks(_VGG, [3, 6, 10, 14, 18]), layers=19, width=512,
        parameters=138_357_544, size_mb=528, depth=23, top1=0.715, top5=0.901,
        paper=_VGG_PAPER, arxiv="1409.1556", licence="CC BY 4.0 (Oxford VGG)",
        weights_file=_tf_kernels("vgg16"),
    ),
    "vgg19": BackboneSpec(
        name="vgg19", title="VGG19", keras_name="VGG19", preprocess=Preprocess.caffe,
        image_size=224, least_size=32, blocks=_blocks(_VGG, [3, 6, 11, 16, 21]), layers=22, width=512,
        parameters=143_667_240, size_mb=549, depth=26, top1=0.727, top5=0.910,
        paper=_VGG_PAPER, arxiv="1409.1556", licence="CC BY 4.0 (Oxford VGG)",
        weights_file=_tf_kernels("vgg19"),
    ),
    "resnet50": BackboneSpec(
        name="resnet50", title="ResNet50", keras_name="ResNet50", preprocess=Preprocess.caffe,
        image_size=224, least_size=32, blocks=_RESNET50, layers=175, width=2048,
        parameters=25_636_712, size_mb=99, depth=168, top1=0.759, top5=0.929,
        paper="Deep Residual Learning for Image Recognition", arxiv="1512.03385", licence="MIT",
        weights_file=_tf_kernels("resnet50"),
    ),
    "inception_v3": BackboneSpec(
        name="inception_v3", title="Inception v3", keras_name="InceptionV3", preprocess=Preprocess.tf,
        image_size=299, least_size=75, blocks=_INCEPTION_V3, layers=311, width=2048,
        parameters=23_851_784, size_mb=92, depth=159, top1=0.788, top5=0.944,
        paper="Rethinking the Inception Architecture for Computer Vision", arxiv="1512.00567", licence="MIT",
        weights_file=_tf_kernels("inception_v3"),
    ),
    "inception_resnet_v2": BackboneSpec(
        name="inception_resnet_v2", title="Inception-ResNet v2", keras_name="InceptionResNetV2",
        preprocess=Preprocess.tf,
        image_size=299, least_size=75, blocks=_INCEPTION_RESNET_V2, layers=780, width=1536,
        parameters=55_873_736, size_mb=215, depth=572, top1=0.804, top5=0.953,
        paper="Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
        arxiv="1602.07261", licence="Apache-2.0",
        weights_file=_tf_kernels("inception_resnet_v2"),
    ),
    "mobilenet": BackboneSpec(
        name="mobilenet", title="MobileNet", keras_name="MobileNet", preprocess=Preprocess.tf,
        image_size=224, least_size=32, blocks=_MOBILENET, layers=86, width=1024,
        parameters=4_253_864, size_mb=17, depth=88, top1=0.665, top5=0.871,
        paper="MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
        arxiv="1704.04861", licence="Apache-2.0",
        options=(
            Option("alpha", 1.0, 0.05, 4.0, imagenet=(0.25, 0.5, 0.75, 1.0)),
            Option("depth_multiplier", 1, 1, 8, imagenet=(1,)),
            Option("dropout", 0.001, 0.0, 1.0),
        ),
        weights_file=("mobilenet_{alpha}_{size}_tf_no_top.h5", "mobilenet_{alpha}_{size}_tf.h5"),
        weights_sizes=(128, 160, 192, 224),
    ),
    "mobilenet_v2": BackboneSpec(
        name="mobilenet_v2", title="MobileNetV2", keras_name="MobileNetV2", preprocess=Preprocess.tf,
        image_size=224, least_size=32, blocks=_MOBILENET_V2, layers=154, width=1280,
        parameters=3_538_984, size_mb=14, depth=88, top1=0.713, top5=0.901,
        paper="MobileNetV2: Inverted Residuals and Linear Bottlenecks", arxiv="1801.04381", licence="Apache-2.0",
        options=(
            Option("alpha", 1.0, 0.05, 4.0, imagenet=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4)),
            Option("depth_multiplier", 1, 1, 1, imagenet=(1,)),  # Keras 3's function no longer has it
        ),
        weights_file=(
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}_no_top.h5",
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}.h5",
        ),
        weights_sizes=(96, 128, 160, 192, 224),
    ),
    "densenet121": BackboneSpec(
        name="densenet121", title="DenseNet-121", keras_name="DenseNet121", preprocess=Preprocess.torch,
        image_size=224, least_size=32, blocks=_blocks(_DENSENET, [6, 52, 140, 312, 426]), layers=427, width=1024,
        parameters=8_062_504, size_mb=33, depth=121, top1=0.750, top5=0.923,
        paper=_DENSENET_PAPER, arxiv="1608.06993", licence="Apache-2.0",
        weights_file=_tf_kernels("densenet121"),
    ),
    "densenet169": BackboneSpec(
        name="densenet169", title="DenseNet-169", keras_name="DenseNet169", preprocess=Preprocess.torch,
        image_size=224, least_size=32, blocks=_blocks(_DENSENET, [6, 52, 140, 368, 594]), layers=595, width=1664,
        parameters=14_307_880, size_mb=57, depth=169, top1=0.762, top5=0.932,
        paper=_DENSENET_PAPER, arxiv="1608.06993", licence="Apache-2.0",
        weights_file=_tf_kernels("densenet169"),
    ),
    "densenet201": BackboneSpec(
        name="densenet201", title="DenseNet-201", keras_name="DenseNet201", preprocess=Preprocess.torch,
        image_size=224, least_size=32, blocks=_blocks(_DENSENET, [6, 52, 140, 480, 706]), layers=707, width=1920,
        parameters=20_242_984, size_mb=80, depth=201, top1=0.773, top5=0.936,
        paper=_DENSENET_PAPER, arxiv="1608.06993", licence="Apache-2.0",
        weights_file=_tf_kernels("densenet201"),
    ),
    "nasnet_mobile": BackboneSpec(
        name="nasnet_mobile", title="NASNet-A mobile", keras_name="NASNetMobile", preprocess=Preprocess.tf,
        image_size=224, least_size=32, blocks=_NASNET_MOBILE, layers=769, width=1056,
        parameters=5_326_716, size_mb=23, depth=None, top1=0.744, top5=0.919,
        paper=_NASNET_PAPER, arxiv="1707.07012", licence="Apache-2.0",
        weights_file=("nasnet_mobile_no_top.h5", "nasnet_mobile.h5"),
    ),
    "nasnet_large": BackboneSpec(
        name="nasnet_large", title="NASNet-A large", keras_name="NASNetLarge", preprocess=Preprocess.tf,
        image_size=331, least_size=32, blocks=_NASNET_LARGE, layers=1039, width=4032,
        parameters=88_949_818, size_mb=343, depth=None, top1=0.825, top5=0.960,
        paper=_NASNET_PAPER, arxiv="1707.07012", licence="Apache-2.0",
        weights_file=("nasnet_large_no_top.h5", "nasnet_large.h5"),
    ),
}  # fmt: skip

SPECS: Registry[BackboneSpec] = Registry(KEY, _BUILTIN)

_FAMILIES = {
    "densenet": ("densenet121", "densenet169", "densenet201"),
    "nasnet": ("nasnet_mobile", "nasnet_large"),
    "vgg": ("vgg16", "vgg19"),
}


def get_spec(name: str) -> BackboneSpec:
    """The row of an architecture.

    Raises:
        ConfigError: unknown name (with the nearest ones), or a family such as ``densenet`` (with its members).
    """
    if name in _FAMILIES and name not in SPECS:
        members = _FAMILIES[name]
        raise ConfigError(
            Problem(KEY, f"{name!r} is a family of {len(members)} networks", "choose " + " or ".join(members))
        )
    return SPECS[name]


def register_backbone(
    name: str,
    *,
    image_size: int = 224,
    least_size: int = 32,
    preprocess: Preprocess | str = Preprocess.tf,
    blocks: Mapping[str, int | str] | None = None,
    title: str = "",
    paper: str = "",
    licence: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a network of your own usable from YAML as ``backbone.name``.

    The decorated function takes the preprocessed image tensor, float32 (batch, S, S, 3), and ``backbone.options`` as
    keyword arguments. It returns a feature map (batch, h, w, channels), or the model that a function of
    ``keras.applications`` makes with ``input_tensor=``. There must be no model inside it: freezing and caching look at
    layers. Name the layers, so that weights are found again::

        @register_backbone("tiny", image_size=64, blocks={"stem": "stem_relu", "body": "body_relu"})
        def tiny(images, filters=16):
            x = keras.layers.Conv2D(filters, 3, strides=2, name="stem_conv")(images)
            x = keras.layers.ReLU(name="stem_relu")(x)
            x = keras.layers.Conv2D(2 * filters, 3, strides=2, name="body_conv")(x)
            return keras.layers.ReLU(name="body_relu")(x)

    Args:
        name: what ``backbone.name`` calls it.
        image_size: default side of the square input, pixels.
        least_size: smallest side it accepts, pixels.
        preprocess: what the tensor it is given looks like: ``tf``, ``caffe``, ``torch`` or ``none`` (0..255).
        blocks: block name → its last layer (name, or index among the layers), in order from the image; without it
            ``last_blocks`` and ``from_block`` cannot be used.
        title, paper, licence: shown by ``python -m tlearn.backbones``.

    Raises:
        ValueError: the name is taken by another function, or a value makes no sense.
    """
    if not 1 <= least_size <= image_size:
        raise ValueError(f"backbone {name!r}: least_size={least_size} and image_size={image_size} make no sense")
    rows = tuple(Block(block, last) for block, last in (blocks or {}).items())

    def add(builder: Callable[..., Any]) -> Callable[..., Any]:
        spec = BackboneSpec(
            name=name,
            title=title or name,
            keras_name="",
            preprocess=Preprocess(preprocess),
            image_size=image_size,
            least_size=least_size,
            blocks=rows,
            paper=paper,
            licence=licence,
            builder=builder,
        )
        SPECS.register(name)(spec)
        return builder

    return add
