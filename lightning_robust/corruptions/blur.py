"""Loss of sharpness."""

from __future__ import annotations

from kornia.filters import gaussian_blur2d
from torch import Tensor

from lightning_robust.corruptions.inputs import check_image, check_number


def gaussian_blur(image: Tensor, *, sigma: float, seeds: Tensor | None = None) -> Tensor:
    """Convolve with a Gaussian that is cut at four sigma, borders repeated, as ImageNet-C and CIFAR-10-C do.

    Severities 1 to 5 there are 1, 2, 3, 4, 6 at 224 pixels and 0.4, 0.6, 0.7, 0.8, 1 at 32.

    Args:
        image: in [0, 1], shape (B, C, H, W).
        sigma: standard deviation in pixels; 0 leaves the image as it is.
        seeds: not used: the corruption is not random.

    Returns:
        Blurred images in [0, 1], of the image's type.

    Raises:
        InputError: if the image is not in [0, 1] or ``sigma`` is negative.

    Source:
        Hendrycks and Dietterich, ICLR 2019.
    """
    check_number(sigma, "sigma")
    unit = check_image(image)
    reach = int(4 * sigma + 0.5)
    if reach == 0:
        return image.clone()
    blurred = gaussian_blur2d(unit, 2 * reach + 1, (sigma, sigma), border_type="replicate")
    return blurred.clamp(0, 1).to(image.dtype)
