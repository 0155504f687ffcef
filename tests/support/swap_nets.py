"""Small networks and layers that the tests of the swap share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv2dSame(nn.Conv2d):
    """Pads in its forward so that the output has ceil(N / stride) pixels, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for axis in (1, 0):
            size, step = x.shape[-2 + axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
            total = max((-(-size // step) - 1) * step + reach + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StandardizedConv2d(nn.Conv2d):
    """Standardizes its weight; its output size is that of a plain convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class FixedSizeConv2d(nn.Conv2d):
    """Follows no rule that stride 1 could keep."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(super().forward(x), 3)


class Block(nn.Module):
    """A residual block with a strided 1 x 1 shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)) + self.shortcut(x))


class HiddenSteps(nn.Module):
    """Downsamples where no layer shows it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., ::2, ::2]
        return F.max_pool2d(F.interpolate(x, scale_factor=0.5), 2)


def small_resnet() -> nn.Sequential:
    """Return a network with every kind of layer that is swapped, and BatchNorm."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    head = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return nn.Sequential(stem, Block(8), head)
