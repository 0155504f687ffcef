"""What a user declares of the images in a batch, and the check of what they hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_robust.errors import InputError

Images: TypeAlias = Tensor | list[Tensor]

KNOWN_STATISTICS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# denormalized images leave the box by rounding only; anything more is a mistake
_SLACK = 1e-3


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Per-channel ``(image - mean) / std`` and its inverse.

    Args:
        mean: one value per channel, in [0, 1] image units.
        std: one positive value per channel.

    Raises:
        InputError: if the lengths differ or a ``std`` is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise InputError(
                f"mean={self.mean} and std={self.std} do not describe a normalization: "
                "give one mean and one positive std per channel."
            )

    def normalize(self, image: Tensor) -> Tensor:
        """Take a [0, 1] image of shape (..., C, H, W) to normalized values."""
        mean, std = self._constants(image)
        return (image - mean) / std

    def denormalize(self, image: Tensor) -> Tensor:
        """Take normalized values of shape (..., C, H, W) back to a [0, 1] image."""
        mean, std = self._constants(image)
        return image * std + mean

    def _constants(self, image: Tensor) -> tuple[Tensor, Tensor]:
        channels = image.shape[-3]
        if channels != len(self.mean):
            raise InputError(
                f"The image has {channels} channels and the normalization {len(self.mean)}: "
                "give mean and std with one value per channel of the image."
            )
        shape = (channels, 1, 1)
        return image.new_tensor(self.mean).view(shape), image.new_tensor(self.std).view(shape)


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Where the image of a batch is and how it was normalized; declared once, read by every callback.

    Args:
        mean: per-channel mean that was subtracted before the batch reached the callback, or None for [0, 1] images.
        std: per-channel std that was divided by.
        image_key: position or name of the image in a batch, or a list of them for a nested batch; None finds it.
        target_key: the same for the target.

    Raises:
        InputError: if only one of ``mean`` and ``std`` is given.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    image_key: int | str | list[int | str] | None = None
    target_key: int | str | list[int | str] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError(f"ImageSpec has mean={self.mean} and std={self.std}: give both, or neither.")
        if self.mean is not None and self.std is not None:
            # YAML gives lists: two specs that say the same must be equal
            checked = Normalization(tuple(self.mean), tuple(self.std))
            object.__setattr__(self, "mean", checked.mean)
            object.__setattr__(self, "std", checked.std)

    @property
    def normalization(self) -> Normalization | None:
        """The normalization of the batches, or None where they are [0, 1] images."""
        if self.mean is None or self.std is None:
            return None
        return Normalization(tuple(self.mean), tuple(self.std))

    def to_unit(self, image: Images) -> Images:
        """Take images as they are in a batch to [0, 1]."""
        normalization = self.normalization
        if normalization is None:
            return image
        if isinstance(image, Tensor):
            return normalization.denormalize(image)
        return [normalization.denormalize(one) for one in image]

    def from_unit(self, image: Images) -> Images:
        """Take [0, 1] images to what the batch held."""
        normalization = self.normalization
        if normalization is None:
            return image
        if isinstance(image, Tensor):
            return normalization.normalize(image)
        return [normalization.normalize(one) for one in image]


def clip_unit(values: Tensor) -> Tensor:
    """Clamp to [0, 1] with gradient 1 on the bounds, where many natural pixels lie and torch versions differ."""
    if not values.requires_grad:
        return values.clamp(0, 1)
    clamped = values.clamp(0, 1)
    return torch.where(clamped == values, values, clamped.detach())


def check_unit_batch(image: Tensor, wanted_by: str, advice: str, *, row_step: int = 1) -> None:
    """Refuse what is not a batch of float images in [0, 1].

    Args:
        image: as a caller gave it.
        wanted_by: a plural noun named in the error, for example ``"attacks"``.
        advice: what to do about values out of range; ends the error.
        row_step: look at the values of every so many rows only, where reading all would cost too much.

    Raises:
        InputError: naming type, shape or range.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.is_floating_point():
        seen = f"{image.dtype}, {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise InputError(f"The image is {seen}: {wanted_by} need float images in [0, 1] of shape (B, C, H, W).")
    if image.numel() == 0:
        return
    low, high = (value.item() for value in image.detach()[:, :, ::row_step].aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"The images hold NaN or infinite values: {wanted_by} need finite ones in [0, 1]. Mend the data "
            "before this step."
        )
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise InputError(f"The images lie in [{low:.3g}, {high:.3g}]: {wanted_by} need them in [0, 1]. {advice}")


def check_unit_range(image: Images, spec: ImageSpec, where: str) -> None:
    """Refuse images that are not in [0, 1] once the declared normalization is undone.

    Args:
        image: as found in the batch.
        spec: what the user declared.
        where: named in the error, for example ``"the first train batch"``.

    Raises:
        InputError: naming the range that was seen and the argument that fixes it.
    """
    parts = [image] if isinstance(image, Tensor) else image
    for part in parts:
        if part.dtype == torch.uint8 or part.numel() == 0:
            continue
        unit = spec.to_unit(part.detach().float())
        if not isinstance(unit, Tensor):
            continue
        low, high = unit.aminmax()
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise InputError(f"The images of {where} hold NaN or infinite values; mend the data before this step.")
        if low.item() < -_SLACK or high.item() > 1 + _SLACK:
            raise InputError(_range_message(part.detach().float(), spec, where, low.item(), high.item()))


def _range_message(image: Tensor, spec: ImageSpec, where: str, low: float, high: float) -> str:
    seen = f"The images of {where} should be in [0, 1] but lie in [{low:.3g}, {high:.3g}]"
    if spec.normalization is not None:
        return f"{seen} after mean={spec.mean} and std={spec.std} are undone: correct mean and std in ImageSpec."
    if low >= -_SLACK and high <= 255 + _SLACK:
        return f"{seen}: they look like 8-bit values; divide them by 255 before the batch reaches the callback."
    for mean, std in KNOWN_STATISTICS.values():
        channels = image.shape[-3]
        if channels in (1, 3):
            unit = Normalization(mean[:channels], std[:channels]).denormalize(image)
            if unit.min() > -0.01 and unit.max() < 1.01:
                given = f"mean={mean[:channels]}, std={std[:channels]}"
                return f"{seen}: they look normalized. Pass spec=ImageSpec({given}) to one of the callbacks."
    return f"{seen}: if they are normalized, pass spec=ImageSpec(mean=(...), std=(...)) with the values you used."
