"""What a user's batches look like: where the image is, and how it was normalized."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_robust.errors import InputError

Key: TypeAlias = int | str
Path: TypeAlias = tuple[Key, ...]
Images: TypeAlias = Tensor | list[Tensor]

IMAGE_NAMES = ("image", "images", "img", "imgs", "x", "input", "inputs", "pixel_values", "jpg", "png")
TARGET_NAMES = ("target", "targets", "label", "labels", "y", "cls", "class")
KNOWN_STATISTICS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
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
            Normalization(tuple(self.mean), tuple(self.std))

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


class BatchAdapter:
    """Finds image and target in a batch of any shape and hands back a new batch of the same type.

    The rule, where the spec names no key: a bare tensor is the image; a mapping, dataclass or namedtuple is searched
    for the names ``IMAGE_NAMES`` and ``TARGET_NAMES`` in that order; a tuple or list holds the image first and the
    target second; a container in the image's place is searched by the same rule. An image is a tensor of shape
    (B, C, H, W), or a list of tensors of shape (C, H, W) (detection).

    Args:
        spec: what the user declared.

    Example:
        >>> adapter = BatchAdapter(ImageSpec())
        >>> batch = {"image": torch.zeros(2, 3, 4, 4), "label": torch.tensor([0, 1])}
        >>> image, target = adapter.read(batch)
        >>> adapter.write(batch, image + 1)["image"].max().item(), batch["image"].max().item()
        (1.0, 0.0)
    """

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec

    def read(self, batch: Any) -> tuple[Images, Any]:
        """Return image and target (None where the batch has none).

        Raises:
            InputError: if no image is found, saying what the batch holds and which argument names it.
        """
        image_path, target_path = self.paths(batch)
        return _get(batch, image_path), None if target_path is None else _get(batch, target_path)

    def write(self, batch: Any, image: Images, target: Any = None) -> Any:
        """Return a new batch of the same type with another image and, unless None, another target."""
        image_path, target_path = self.paths(batch)
        batch = _put(batch, image_path, image)
        return batch if target is None or target_path is None else _put(batch, target_path, target)

    def paths(self, batch: Any) -> tuple[Path, Path | None]:
        """Return the paths of image and target in the batch."""
        image_path, target_path = _as_path(self.spec.image_key), _as_path(self.spec.target_key)
        found_image, found_target = _search(batch)
        image_path = found_image if image_path is None else image_path
        target_path = found_target if target_path is None else target_path
        if image_path is None:
            raise InputError(
                f"No image was found in a batch of {describe(batch)}. Name it, for example "
                'ImageSpec(image_key="image", target_key="label").'
            )
        for name, path in (("image_key", image_path), ("target_key", target_path)):
            if path is not None and not _reaches(batch, path):
                raise InputError(
                    f"{name}={list(path)} leads nowhere in a batch of {describe(batch)}. Correct {name} in ImageSpec."
                )
        return image_path, target_path


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


def describe(value: Any) -> str:
    """Say what a batch holds, for an error."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with " + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of ({', '.join(describe(v) for v in value[:4])})"
    names = _attributes(value)
    if names:
        return f"{type(value).__name__} with " + ", ".join(f"{n}: {describe(getattr(value, n))}" for n in names)
    return type(value).__name__


def is_image(value: Any) -> bool:
    """Whether a value is a batch of images: (B, C, H, W), or a list of (C, H, W)."""
    if isinstance(value, Tensor):
        return value.ndim == 4 and (value.is_floating_point() or value.dtype == torch.uint8)
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(
            isinstance(v, Tensor) and v.ndim == 3 and (v.is_floating_point() or v.dtype == torch.uint8) for v in value
        )
    )


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
                return f"{seen}: they look normalized. Pass spec=ImageSpec({given})."
    return f"{seen}: if they are normalized, pass spec=ImageSpec(mean=(...), std=(...)) with the values you used."


def _as_path(key: Any) -> Path | None:
    if key is None:
        return None
    return tuple(key) if isinstance(key, list | tuple) else (key,)


def _attributes(value: Any) -> list[str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    return list(getattr(value, "_fields", ()))


def _search(batch: Any) -> tuple[Path | None, Path | None]:
    if is_image(batch):
        return (), None
    if isinstance(batch, Mapping):
        entries: dict[Key, Any] = dict(batch)
    elif names := _attributes(batch):
        entries = {name: getattr(batch, name) for name in names}
    elif isinstance(batch, list | tuple):
        return _search_sequence(batch)
    else:
        return None, None
    image = _first(entries, IMAGE_NAMES, containers=True)
    target = next(((name,) for name in TARGET_NAMES if name in entries), None)
    if image is None and isinstance(batch, tuple):
        return _search_sequence(batch)
    return image, target


def _search_sequence(batch: Sequence[Any]) -> tuple[Path | None, Path | None]:
    if not batch:
        return None, None
    target: Path | None = (1,) if len(batch) > 1 else None
    if is_image(batch[0]):
        return (0,), target
    image, inner_target = _search(batch[0])
    if image is None:
        return None, target
    return (0, *image), target if inner_target is None or target is not None else (0, *inner_target)


def _first(entries: Mapping[Key, Any], names: Sequence[str], *, containers: bool) -> Path | None:
    for name in names:
        if name in entries and is_image(entries[name]):
            return (name,)
    if containers:
        for name in names:
            inner = _search(entries[name])[0] if name in entries else None
            if inner is not None:
                return (name, *inner)
    return None


def _item(batch: Any, key: Key) -> Any:
    if isinstance(batch, Mapping) or (isinstance(batch, list | tuple) and isinstance(key, int)):
        return batch[key]  # type: ignore[index]
    return getattr(batch, str(key))


def _get(batch: Any, path: Path) -> Any:
    for key in path:
        batch = _item(batch, key)
    return batch


def _reaches(batch: Any, path: Path) -> bool:
    try:
        _get(batch, path)
    except (LookupError, AttributeError, TypeError):
        return False
    return True


def _put(batch: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    key, inner = path[0], _put(_item(batch, path[0]), path[1:], value)
    if isinstance(batch, Mapping):
        new = copy.copy(batch)
        new[key] = inner  # type: ignore[index]
        return new
    if hasattr(batch, "_replace"):
        return batch._replace(**{key if isinstance(key, str) else batch._fields[key]: inner})
    if isinstance(batch, list | tuple):
        items = [inner if i == key else item for i, item in enumerate(batch)]
        return items if type(batch) is list else type(batch)(items)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **{str(key): inner})
    new = copy.copy(batch)
    setattr(new, str(key), inner)
    return new
