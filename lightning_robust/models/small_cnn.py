"""A small net that trains in seconds on a CPU, for demos and tests."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with batch norm; one strided and one followed by a max pool, so both can be swapped.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        width: channels of the first convolution.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(in_channels, width, 1),
            *_convolution(width, 2 * width, 2),
            *_convolution(2 * width, 2 * width, 1),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width, 1),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Take images (B, in_channels, H, W), at least 4 pixels a side, to logits (B, num_classes)."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def _convolution(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
