"""The residual nets for 32x32 images of He et al., CVPR 2016, section 4.2 (6n + 2 layers)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20 for CIFAR, 0.27 M parameters (He et al., CVPR 2016, section 4.2).

    Args:
        num_classes: rows of the last layer.

    Returns:
        A net with random weights, from normalized images (B, 3, H, W) to logits (B, num_classes).
    """
    return CifarResNet(blocks=3, num_classes=num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56 for CIFAR, 0.85 M parameters; arguments and result as for :func:`resnet20`."""
    return CifarResNet(blocks=9, num_classes=num_classes)


class PadShortcut(nn.Module):
    """Shortcut without parameters (option A): keep every ``stride``-th pixel, pad the channels with zeros.

    The subsampling is an ``AvgPool2d`` of kernel 1, which is the strided slice of the paper written as a layer: a
    slice in ``forward`` would be out of reach of layer surgery.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out; the zeros are put on both sides.
        stride: of the subsampling.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.subsample = nn.AvgPool2d(1, stride)
        before = (out_channels - in_channels) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(self.subsample(x), self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else PadShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Residual net with three stages of 16, 32 and 64 channels.

    Args:
        blocks: blocks in a stage; the net has ``6 * blocks + 2`` layers.
        num_classes: number of logits.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Take normalized images (B, 3, H, W) to logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)
