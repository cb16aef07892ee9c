"""Networks in plain PyTorch, each in the standard layout of its paper. Only what the benchmarks compare with.

Imported by an interpreter that has torch, numpy and Pillow and need have nothing else.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# --- MobileNet (Howard et al. 2017, arXiv 1704.04861, table 1) -------------------------------------------------------


class Separable(nn.Module):
    """Depthwise 3x3, then pointwise 1x1, each with batch norm and ReLU6."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        # Keras pads strided convolutions on the right and the bottom only; weights trained with that need it here.
        self.pad = (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, groups=inputs, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(inputs, eps=1e-3, momentum=0.01)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.depthwise_norm(self.depthwise(functional.pad(x, self.pad))))
        return functional.relu6(self.pointwise_norm(self.pointwise(x)))


class MobileNet(nn.Module):
    """Images float32 (b, 3, S, S) in -1..1 to a feature map (b, 1024 alpha, S/32, S/32)."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        widths = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
        strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
        channels = [int(32 * alpha), *(int(width * alpha) for width in widths)]
        self.conv = nn.Conv2d(3, channels[0], 3, 2, bias=False)
        self.norm = nn.BatchNorm2d(channels[0], eps=1e-3, momentum=0.01)
        self.blocks = nn.ModuleList(map(Separable, channels[:-1], channels[1:], strides))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.norm(self.conv(functional.pad(x, (0, 1, 0, 1)))))
        for block in self.blocks:
            x = block(x)
        return x

    def load_keras(self, arrays: dict[str, np.ndarray]) -> None:
        """Take up the weights of Keras' MobileNet: ``layer/variable`` to array."""
        _convolution(self.conv, arrays["conv1/kernel"], depthwise=False)
        _norm(self.norm, arrays, "conv1_bn")
        for number, block in enumerate(self.blocks, start=1):
            _convolution(block.depthwise, arrays[f"conv_dw_{number}/kernel"], depthwise=True)
            _norm(block.depthwise_norm, arrays, f"conv_dw_{number}_bn")
            _convolution(block.pointwise, arrays[f"conv_pw_{number}/kernel"], depthwise=False)
            _norm(block.pointwise_norm, arrays, f"conv_pw_{number}_bn")


def _convolution(layer: nn.Conv2d, kernel: np.ndarray, *, depthwise: bool) -> None:
    """Keras' (h, w, in, out), for depthwise (h, w, channels, 1), as PyTorch's (out, in, h, w)."""
    order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
    layer.weight.data.copy_(torch.from_numpy(kernel.transpose(order).copy()))


def _norm(layer: nn.BatchNorm2d, arrays: dict[str, np.ndarray], name: str) -> None:
    layer.weight.data.copy_(torch.from_numpy(arrays[f"{name}/gamma"]))
    layer.bias.data.copy_(torch.from_numpy(arrays[f"{name}/beta"]))
    layer.running_mean.copy_(torch.from_numpy(arrays[f"{name}/moving_mean"]))
    layer.running_var.copy_(torch.from_numpy(arrays[f"{name}/moving_variance"]))


# --- ResNet50 (He et al. 2015, arXiv 1512.03385, table 1) ------------------------------------------------------------


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        # As in Keras, and in the paper, the first convolution has the stride.
        self.body = nn.Sequential(
            *_normed(inputs, width, 1, stride),
            nn.ReLU(inplace=True),
            *_normed(width, width, 3),
            nn.ReLU(inplace=True),
            *_normed(width, outputs, 1),
        )
        reshapes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*_normed(inputs, outputs, 1, stride)) if reshapes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """Images (b, 3, S, S) to a feature map (b, 2048, S/32, S/32)."""
    layers = [*_normed(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if index == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers)


def _normed(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


# --- MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2) ----------------------------------------------------


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        expand = [*_normed(inputs, width, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        self.adds = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *expand, *_normed(width, width, 3, stride, width), nn.ReLU6(inplace=True), *_normed(width, outputs, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet_v2() -> nn.Module:
    """Images (b, 3, S, S) to a feature map (b, 1280, S/32, S/32); width 1."""
    layers = [*_normed(3, 32, 3, 2), nn.ReLU6(inplace=True)]
    inputs = 32
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, blocks, stride in rows:
        for index in range(blocks):
            layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
            inputs = outputs
    return nn.Sequential(*layers, *_normed(inputs, 1280, 1), nn.ReLU6(inplace=True))
