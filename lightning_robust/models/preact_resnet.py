"""Pre-activation ResNet-18 as the released code of JaFR (and of GradAlign, its base) trains it."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


def preact_resnet18(num_classes: int = 10) -> PreActResNet18:
    """PreActResNet-18 of the released JaFR recipe, 11.2 M parameters.

    Args:
        num_classes: rows of the last layer.

    Returns:
        A net with random weights, from normalized images (B, 3, H, W) to logits (B, num_classes).
    """
    return PreActResNet18(num_classes=num_classes)


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions.

    A shortcut that changes the shape is a 1x1 convolution of the activated tensor; otherwise it is the input itself.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        y: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return y + shortcut


class PreActResNet18(nn.Module):
    """Four stages of two pre-activation blocks for small images (the first convolution has stride 1).

    Two things differ from the common pre-activation net and follow the released code: the mean over pixels and the
    linear layer follow the last block directly, without a final batch norm and ReLU; and weights are drawn from
    N(0, 2 / (k * k * out_channels)) for convolutions and N(0, 2 / in_features) for the linear layer, biases zero.

    Args:
        num_classes: number of logits.
        width: channels of the first stage; each later stage doubles them.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int = 10, *, width: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        self.linear = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / module.in_features))
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Take images (B, in_channels, H, W), in [0, 1] in the released recipe, to logits (B, num_classes)."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PreActBlock(in_channels, out_channels, stride), PreActBlock(out_channels, out_channels, 1))
