"""Loss of contrast."""

from __future__ import annotations

from torch import Tensor

from lightning_robust.corruptions.inputs import check_image, check_number


def contrast(image: Tensor, *, factor: float, seeds: Tensor | None = None) -> Tensor:
    """Scale every value's distance from the mean of its channel, as ImageNet-C and CIFAR-10-C do.

    Severities 1 to 5 there are 0.4, 0.3, 0.2, 0.1, 0.05 at 224 pixels and 0.75, 0.5, 0.4, 0.3, 0.15 at 32.

    Args:
        image: in [0, 1], shape (B, C, H, W).
        factor: 1 leaves the image as it is, 0 leaves the mean; above 1 it raises the contrast.
        seeds: not used: the corruption is not random.

    Returns:
        Images in [0, 1], of the image's type.

    Raises:
        InputError: if the image is not in [0, 1] or ``factor`` is negative.

    Source:
        Hendrycks and Dietterich, ICLR 2019.
    """
    check_number(factor, "factor")
    unit = check_image(image)
    mean = unit.mean(dim=(2, 3), keepdim=True)
    return (mean + factor * (unit - mean)).clamp(0, 1).to(image.dtype)
